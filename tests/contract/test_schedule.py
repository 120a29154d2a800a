"""The schedule on real servers: each due VM goes to exactly one beat, spread out, and only to hosts that live."""

import threading
from collections import Counter
from collections.abc import Iterator
from typing import cast

import pytest
import redis

from tests.conftest import ServerOf
from tests.support.builders import a_process, a_spec, a_vm, some_limits
from tests.support.processes import wait_until
from tests.support.servers import RedisFlavour, empty
from workers.ports import Change
from workers.store.client import connect
from workers.store.hosts import HostRegistry, HostWorker
from workers.store.schedule import DETECT_ORPHANS, RECONCILE, RedisSchedule
from workers.store.vm_store import RedisVmStore

SWEEPS = {DETECT_ORPHANS: 60_000, RECONCILE: 300_000}


@pytest.fixture(params=list(RedisFlavour))
def client(request: pytest.FixtureRequest, server_of: ServerOf) -> Iterator[redis.Redis]:
    server = server_of(RedisFlavour(request.param))
    empty(server)
    made = connect(server.url(0), timeout_s=5, connect_timeout_s=5)
    yield made
    made.close()


def a_schedule(client: redis.Redis, *, interval_ms: int = 30_000, per_message: int = 500) -> RedisSchedule:
    return RedisSchedule(client, prefix="rel", interval_ms=interval_ms, per_message=per_message, sweeps=SWEEPS)


def put(client: redis.Redis, *vm_ids: str, host: str = "host-a") -> None:
    changes = [Change(vm_id, 0, a_vm(vm_id, host=host), check_in_ms=0, spec=a_spec(vm_id)) for vm_id in vm_ids]
    RedisVmStore(client, prefix="rel", limits=some_limits()).write(changes)


def serve(client: redis.Redis, host: str = "host-a", owner: str = "me", ttl_ms: int = 60_000) -> HostWorker | None:
    worker = HostWorker(owner, host, a_process(), 0, "1")
    return HostRegistry(client, prefix="rel").hold(worker, ttl_ms=ttl_ms)


def claimed(schedule: RedisSchedule, limit: int = 1000) -> list[str]:
    return [vm_id for _, vm_ids in schedule.claim(limit).checks for vm_id in vm_ids]


def test_a_new_vm_is_due_at_once_and_then_not_before_its_time(client: redis.Redis) -> None:
    serve(client)
    put(client, "vm-1")
    schedule = a_schedule(client)

    assert claimed(schedule) == ["vm-1"]
    assert claimed(schedule) == []
    left = schedule.claim(10).next_in_ms
    assert left is not None
    assert 0 < left <= 30_000


def test_a_vm_comes_round_every_interval(client: redis.Redis) -> None:
    serve(client)
    put(client, "vm-1")
    schedule = a_schedule(client, interval_ms=20)
    wait_until(lambda: claimed(schedule), what="the first check")
    wait_until(lambda: claimed(schedule), what="the second check")


def test_a_host_without_a_live_worker_gets_no_messages_and_no_backlog(client: redis.Redis) -> None:
    put(client, "vm-1", "vm-2")
    schedule = a_schedule(client, interval_ms=20)
    for _ in range(5):
        assert claimed(schedule) == []
    serve(client)
    wait_until(lambda: claimed(schedule), what="a check, now that the host lives")
    assert max(Counter(claimed(schedule)).values(), default=0) <= 1


def test_vms_of_one_host_share_a_message_up_to_its_size(client: redis.Redis) -> None:
    serve(client)
    serve(client, "host-b")
    put(client, *[f"vm-{n}" for n in range(25)])
    put(client, "vm-b", host="host-b")

    checks = a_schedule(client, per_message=10).claim(1000).checks

    sizes = sorted((host, len(vm_ids)) for host, vm_ids in checks)
    assert sizes == [("host-a", 5), ("host-a", 10), ("host-a", 10), ("host-b", 1)]


def test_a_claim_says_that_there_is_more_also_where_nobody_lives_to_be_told(client: redis.Redis) -> None:
    put(client, "vm-1", "vm-2", "vm-3")
    schedule = a_schedule(client)

    assert schedule.claim(2).next_in_ms == 0
    assert schedule.claim(2).next_in_ms


def test_one_claim_moves_on_or_forgets_thousands(client: redis.Redis) -> None:
    serve(client)
    ids = [f"vm-{n}" for n in range(1300)]
    put(client, *ids)
    client.zadd("rel:due", {f"gone-{n}": 0 for n in range(1300)})
    schedule = a_schedule(client)

    assert sorted(claimed(schedule, limit=5000)) == sorted(ids)
    assert claimed(schedule, limit=5000) == []
    assert client.zcard("rel:due") == len(ids) + len(SWEEPS)


def test_each_vm_of_a_big_host_keeps_its_place_among_several(client: redis.Redis) -> None:
    serve(client)
    put(client, *[f"vm-{n}" for n in range(40)])

    def places() -> dict[bytes, float]:
        a_schedule(client, per_message=10).claim(1000)
        due = cast("list[tuple[bytes, float]]", client.zrange("rel:due", 0, -1, withscores=True))
        return {member: score % 30_000 for member, score in due if member.startswith(b"vm-")}

    before = places()
    client.zadd("rel:due", dict.fromkeys(before, 0))

    assert places() == before
    assert len(set(before.values())) == 4


def test_a_fleet_is_spread_over_the_interval_and_each_vm_keeps_its_place(client: redis.Redis) -> None:
    hosts = [f"host-{n}" for n in range(100)]
    for host in hosts:
        serve(client, host)
        put(client, f"vm-{host}", host=host)
    a_schedule(client).claim(1000)

    due = cast("list[tuple[bytes, float]]", client.zrange("rel:due", 0, -1, withscores=True))
    scores = [score % 30_000 for vm_id, score in due if b"vm-" in vm_id]

    assert len(scores) == len(hosts)
    thirds = Counter(int(score) // 10_000 for score in scores)
    assert all(thirds[third] >= len(hosts) // 6 for third in range(3))


def test_every_due_vm_goes_to_exactly_one_of_many_beats(client: redis.Redis) -> None:
    serve(client)
    ids = [f"vm-{n}" for n in range(2000)]
    put(client, *ids)
    taken: list[str] = []

    def beat() -> None:
        schedule = a_schedule(client)
        while part := claimed(schedule, limit=50):
            taken.extend(part)

    beats = [threading.Thread(target=beat) for _ in range(4)]
    for thread in beats:
        thread.start()
    for thread in beats:
        thread.join()

    assert sorted(taken) == sorted(ids)


def test_the_sweeps_of_a_host_are_scheduled_with_its_lease(client: redis.Redis) -> None:
    serve(client)
    due = a_schedule(client).claim(10)
    assert sorted(due.sweeps) == [(DETECT_ORPHANS, "host-a"), (RECONCILE, "host-a")]
    assert a_schedule(client).claim(10).sweeps == []


def test_a_forgotten_vm_leaves_the_schedule(client: redis.Redis) -> None:
    serve(client)
    put(client, "vm-1")
    client.delete("rel:vm:vm-1")
    assert claimed(a_schedule(client)) == []
    assert client.zscore("rel:due", "vm-1") is None


def test_a_host_name_has_one_worker_and_the_next_one_says_who(client: redis.Redis) -> None:
    assert serve(client, owner="first") is None
    assert serve(client, owner="first") is None, "keeping it is fine"
    holder = serve(client, owner="second")
    assert holder is not None
    assert holder.owner == "first"


def test_a_host_name_is_free_again_when_its_lease_ended(client: redis.Redis) -> None:
    serve(client, owner="first", ttl_ms=50)
    wait_until(lambda: serve(client, owner="second") is None, what="the lease to end")


def test_a_holder_known_to_be_dead_is_replaced_at_once_but_nobody_else(client: redis.Redis) -> None:
    serve(client, owner="first")
    registry = HostRegistry(client, prefix="rel")
    dead = HostWorker("first", "host-a", a_process(), 0, "1")
    wrong = HostWorker("other", "host-a", a_process(), 0, "1")
    successor = HostWorker("second", "host-a", a_process(), 0, "1")
    assert registry.hold(successor, ttl_ms=1000, instead_of=wrong) == dead
    assert registry.hold(successor, ttl_ms=1000, instead_of=dead) is None


def test_a_released_host_name_is_free_and_a_foreign_one_is_not_released(client: redis.Redis) -> None:
    serve(client, owner="first")
    registry = HostRegistry(client, prefix="rel")
    registry.release(HostWorker("second", "host-a", a_process(), 0, "1"))
    assert serve(client, owner="second") is not None
    registry.release(HostWorker("first", "host-a", a_process(), 0, "1"))
    assert serve(client, owner="second") is None


def test_a_silent_host_is_told(client: redis.Redis) -> None:
    serve(client, owner="first", ttl_ms=20)
    registry = HostRegistry(client, prefix="rel")
    assert registry.silent(longer_than_ms=60_000) == []
    wait_until(lambda: registry.silent(longer_than_ms=10) == ["host-a"], what="the host to be silent")
