"""The contract of the VmStore port, for the fake and for the real one on Valkey and on Redis."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from tests.conftest import ServerOf
from tests.support.builders import HOST, NOW_MS, a_lost_vm, a_spec, a_vm
from tests.support.fakes import FakeClock, FakeVmStore
from tests.support.processes import wait_until
from tests.support.servers import RedisFlavour, empty
from workers.domain.audit import Event, EventKind, event
from workers.domain.errors import UnknownVm
from workers.domain.vm import State, VmRecord
from workers.ports import Change, Outcome, Take, VmStore
from workers.store.client import connect
from workers.store.events import EventLog
from workers.store.vm_store import RedisVmStore

PassTime = Callable[[int], None]


@pytest.fixture(params=["fake", *RedisFlavour])
def subject(request: pytest.FixtureRequest, server_of: ServerOf) -> Iterator[tuple[VmStore, PassTime]]:
    if request.param == "fake":
        clock = FakeClock(NOW_MS * 1000)
        yield FakeVmStore(clock), clock.advance
        return
    flavour = RedisFlavour(request.param)
    server = server_of(flavour)
    empty(server)
    client = connect(server.url(0), timeout_s=5, connect_timeout_s=5)
    try:
        yield RedisVmStore(client, prefix="rel", events_kept=1000), _really_pass(client)
    finally:
        client.close()


def _really_pass(client: object) -> PassTime:
    def pass_time(ms: int) -> None:
        began = client.time()  # type: ignore[attr-defined] # redis-py's client
        goal = began[0] * 1000 + began[1] / 1000 + ms
        wait_until(lambda: _now_ms(client) > goal, timeout_s=ms / 1000 + 5, what="server time to pass")

    return pass_time


def _now_ms(client: object) -> float:
    seconds, micros = client.time()  # type: ignore[attr-defined] # redis-py's client
    return float(seconds * 1000 + micros / 1000)


@pytest.fixture
def store(subject: tuple[VmStore, PassTime]) -> VmStore:
    return subject[0]


@pytest.fixture
def pass_time(subject: tuple[VmStore, PassTime]) -> PassTime:
    return subject[1]


def put(store: VmStore, *records: VmRecord) -> None:
    changes = [Change(r.vm_id, 0, r, check_in_ms=0, spec=a_spec(r.vm_id)) for r in records]
    assert all(outcome is Outcome.DONE for outcome in store.write(changes).outcomes)


def only(store: VmStore, change: Change) -> Outcome:
    return store.write([change]).outcomes[0]


def a_take(owner: str = "me", *, ttl_ms: int = 60_000, per_host: int = 4, per_fleet: int = 64) -> Take:
    return Take(owner, ttl_ms, per_host, per_fleet)


def test_a_record_comes_back_as_it_was_written(store: VmStore) -> None:
    put(store, a_lost_vm())

    snapshot = store.read(["vm-1", "vm-2"])

    assert list(snapshot.found) == ["vm-1"]
    assert snapshot.found["vm-1"].record == a_lost_vm()
    assert snapshot.found["vm-1"].rev == 1
    assert not snapshot.found["vm-1"].leased
    assert store.spec("vm-1") == a_spec("vm-1")


def test_an_unknown_vm_has_no_spec(store: VmStore) -> None:
    with pytest.raises(UnknownVm):
        store.spec("vm-1")


@pytest.mark.parametrize("rev", [0, 2])
def test_a_write_upon_another_revision_changes_nothing(store: VmStore, rev: int) -> None:
    put(store, a_vm())

    outcome = only(store, Change("vm-1", rev, a_vm(generation=99)))

    assert outcome is Outcome.STALE
    assert store.read(["vm-1"]).found["vm-1"].record.generation == a_vm().generation


def test_each_change_of_a_batch_stands_alone(store: VmStore) -> None:
    put(store, a_vm("vm-1"), a_vm("vm-2"))
    changes = [Change("vm-1", 7, a_vm("vm-1")), Change("vm-2", 1, a_vm("vm-2", generation=8))]

    assert list(store.write(changes).outcomes) == [Outcome.STALE, Outcome.DONE]
    assert store.read(["vm-2"]).found["vm-2"].record.generation == 8


def test_all_or_nothing_is_nothing_when_one_is_refused(store: VmStore) -> None:
    put(store, a_vm("vm-1"))
    changes = [Change("vm-2", 0, a_vm("vm-2")), Change("vm-1", 0, a_vm("vm-1"))]

    written = store.write(changes, all_or_nothing=True)

    assert list(written.outcomes) == [Outcome.NOT_TRIED, Outcome.STALE]
    assert store.ids() == ["vm-1"]


def test_seen_vms_only_get_the_time_of_their_last_check(store: VmStore) -> None:
    put(store, a_vm())
    before = store.read(["vm-1"])
    assert before.found["vm-1"].checked_ms is None

    store.write([], seen=["vm-1", "vm-forgotten"])

    after = store.read(["vm-1", "vm-forgotten"])
    assert list(after.found) == ["vm-1"]
    assert after.found["vm-1"].rev == before.found["vm-1"].rev
    assert (after.found["vm-1"].checked_ms or 0) >= before.now_ms


def test_a_deleted_record_is_gone_from_every_index(store: VmStore) -> None:
    put(store, a_vm())
    assert only(store, Change("vm-1", 1, None)) is Outcome.DONE

    assert store.read(["vm-1"]).found == {}
    assert store.ids() == store.ids(host=HOST) == store.ids(state=State.HEALTHY) == []
    assert store.unscheduled(["vm-1"]) == ["vm-1"]


def test_ids_follow_state_and_host(store: VmStore) -> None:
    put(store, a_vm("vm-1"), a_lost_vm("vm-2"), a_vm("vm-3", host="host-b"))
    only(store, Change("vm-1", 1, a_lost_vm("vm-1")))

    assert store.ids(state=State.ORPHANED) == ["vm-1", "vm-2"]
    assert store.ids(host="host-b") == ["vm-3"]
    assert store.ids(host=HOST, state=State.HEALTHY) == []


def test_a_taken_lease_keeps_others_out_until_it_ends(store: VmStore, pass_time: PassTime) -> None:
    put(store, a_lost_vm())
    assert only(store, Change("vm-1", 1, a_lost_vm(), take=a_take("me", ttl_ms=150))) is Outcome.DONE
    assert store.read(["vm-1"]).found["vm-1"].lease_owner == "me"
    assert only(store, Change("vm-1", 2, a_lost_vm(), take=a_take("you"))) is Outcome.LEASED

    pass_time(200)

    assert not store.read(["vm-1"]).found["vm-1"].leased
    assert not store.renew("vm-1", "me", 1000)
    assert only(store, Change("vm-1", 2, a_lost_vm(), take=a_take("you"))) is Outcome.DONE


def test_a_renewed_lease_goes_on(store: VmStore, pass_time: PassTime) -> None:
    put(store, a_lost_vm())
    only(store, Change("vm-1", 1, a_lost_vm(), take=a_take("me", ttl_ms=400)))
    assert store.renew("vm-1", "me", 60_000)
    assert not store.renew("vm-1", "you", 60_000)

    pass_time(500)

    assert store.read(["vm-1"]).found["vm-1"].lease_owner == "me"


def test_a_write_that_needs_the_lease_is_refused_without_it(store: VmStore) -> None:
    put(store, a_lost_vm())
    assert only(store, Change("vm-1", 1, a_vm(), held_by="me")) is Outcome.LEASED
    only(store, Change("vm-1", 1, a_lost_vm(), take=a_take("me")))
    assert only(store, Change("vm-1", 2, a_vm(), held_by="you")) is Outcome.LEASED
    assert only(store, Change("vm-1", 2, a_vm(), held_by="me", release=True)) is Outcome.DONE
    assert not store.read(["vm-1"]).found["vm-1"].leased


@pytest.mark.parametrize("caps", [{"per_host": 2}, {"per_fleet": 2}])
def test_slots_are_bounded_and_come_back_with_the_lease(store: VmStore, caps: dict[str, int]) -> None:
    put(store, *[a_lost_vm(f"vm-{n}") for n in range(3)])
    outcomes = [
        only(store, Change(f"vm-{n}", 1, a_lost_vm(f"vm-{n}"), take=a_take(f"me-{n}", **caps))) for n in range(3)
    ]
    assert outcomes == [Outcome.DONE, Outcome.DONE, Outcome.NO_SLOT]
    assert not store.read(["vm-2"]).found["vm-2"].leased
    again = only(store, Change("vm-2", 1, a_lost_vm("vm-2"), take=a_take("me-2", **caps)))
    assert again is Outcome.WAITING

    written = store.write([Change("vm-0", 2, a_vm("vm-0"), held_by="me-0", release=True)])

    assert list(written.next_in_line) == [("vm-2", HOST)]
    assert only(store, Change("vm-2", 1, a_lost_vm("vm-2"), take=a_take("me-2", **caps))) is Outcome.DONE


def test_slots_end_with_a_holder_that_went_away(store: VmStore, pass_time: PassTime) -> None:
    put(store, a_lost_vm("vm-0"), a_lost_vm("vm-1"))
    only(store, Change("vm-0", 1, a_lost_vm("vm-0"), take=a_take("dead", ttl_ms=150, per_host=1)))
    pass_time(200)
    assert only(store, Change("vm-1", 1, a_lost_vm("vm-1"), take=a_take(per_host=1))) is Outcome.DONE


def test_a_lease_without_caps_takes_no_slot(store: VmStore) -> None:
    put(store, a_lost_vm("vm-0"), a_lost_vm("vm-1"))
    only(store, Change("vm-0", 1, a_lost_vm("vm-0"), take=Take("stopper", 60_000)))
    assert store.renew("vm-0", "stopper", 60_000)
    assert only(store, Change("vm-1", 1, a_lost_vm("vm-1"), take=a_take(per_host=1))) is Outcome.DONE


def test_the_line_is_served_by_priority_then_age(store: VmStore, pass_time: PassTime) -> None:
    put(store, *[a_lost_vm(f"vm-{n}", priority=p) for n, p in enumerate([5, 5, 5, 9])])
    only(store, Change("vm-0", 1, a_lost_vm("vm-0"), take=a_take("me-0", per_host=1)))
    for number, priority in ((2, 5), (1, 5), (3, 9)):
        vm_id = f"vm-{number}"
        record = a_lost_vm(vm_id, priority=priority)
        assert only(store, Change(vm_id, 1, record, take=a_take(vm_id, per_host=1))) is Outcome.NO_SLOT
        pass_time(5)

    served = []
    holder = "vm-0"
    for _ in range(3):
        owner = "me-0" if holder == "vm-0" else holder
        written = store.write([Change(holder, 2, a_vm(holder), held_by=owner, release=True)])
        holder = written.next_in_line[0][0]
        served.append(holder)
        record = store.read([holder]).found[holder].record
        assert only(store, Change(holder, 1, record, take=a_take(holder, per_host=1))) is Outcome.DONE

    assert served == ["vm-3", "vm-2", "vm-1"]


def test_one_of_many_takers_wins(store: VmStore) -> None:
    put(store, a_lost_vm())
    outcomes: list[Outcome] = []

    def take(owner: str) -> None:
        outcomes.append(only(store, Change("vm-1", 1, a_lost_vm(), take=a_take(owner))))

    threads = [threading.Thread(target=take, args=(f"owner-{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(outcomes) == sorted([Outcome.DONE] + [Outcome.STALE] * 7)


def test_what_has_no_next_check_is_told(store: VmStore) -> None:
    put(store, a_vm("vm-1"), a_vm("vm-2"))
    only(store, Change("vm-2", 1, a_vm("vm-2"), check_in_ms=-1))
    assert store.unscheduled(["vm-1", "vm-2"]) == ["vm-2"]
    assert store.unscheduled([]) == []


def test_writing_nothing_is_nothing(store: VmStore) -> None:
    assert list(store.write([]).outcomes) == []


def test_events_are_written_with_their_change_only(store: VmStore) -> None:
    put(store, a_vm())
    told = event(EventKind.CHANGED, a_vm(), actor="test", why="because")
    refused = replace(told, why="refused")

    only(store, Change("vm-1", 1, a_vm(), (told,)))
    only(store, Change("vm-1", 1, a_vm(), (refused,)))
    store.note([replace(told, why="noted")])

    assert [entry.why for entry in _events(store)] == ["because", "noted"]


def _events(store: VmStore) -> list[Event]:
    if isinstance(store, FakeVmStore):
        return list(store.events)
    assert isinstance(store, RedisVmStore)

    return [entry.event for entry in EventLog(store._client, prefix="rel").latest(limit=10)]
