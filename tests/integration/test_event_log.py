"""The event stream on a real server: read in pages, exported, trimmed by age, and what a restart leaves of it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.builders import a_vm
from tests.support.cluster import cluster
from tests.support.processes import wait_until
from workers.domain.audit import Event, EventKind, event
from workers.domain.epoch import Known, Trusted, judge_data, order
from workers.embedded import EmbeddedServer
from workers.store.client import connect
from workers.store.codec import dump_event
from workers.store.data import RedisData
from workers.store.events import EventLog

PREFIX = "rel"
HOUR_MS = 3_600_000


@pytest.fixture
def client(redis_flavour: object, redis_url: str) -> Iterator[redis.Redis]:
    del redis_flavour
    made = connect(redis_url, timeout_s=5, connect_timeout_s=5)
    yield made
    made.close()


@pytest.fixture
def log(client: redis.Redis) -> EventLog:
    return EventLog(client, prefix=PREFIX)


@pytest.fixture
def data(client: redis.Redis) -> RedisData:
    return RedisData(client, prefix=PREFIX, lease_ms=1000)


def an_event(why: str, vm_id: str = "vm-1") -> Event:
    return event(EventKind.CHANGED, a_vm(vm_id), actor="test", why=why)


def write(client: redis.Redis, *, ago_ms: int, number: int = 0) -> str:
    """Write an event as it would stand there if it had been written so long ago; returns its id."""
    seconds, micros = client.time()
    entry_id = f"{seconds * 1000 + micros // 1000 - ago_ms}-{number}"
    client.xadd(f"{PREFIX}:events", {"e": dump_event(an_event(f"{ago_ms} ms ago"))}, id=entry_id)
    return entry_id


def ids(log: EventLog) -> list[str]:
    return [entry.id for entry in log.since("0-0")]


def test_all_of_a_long_stream_is_read_page_by_page(client: redis.Redis, log: EventLog) -> None:
    pipe = client.pipeline()
    for number in range(2500):
        pipe.xadd(f"{PREFIX}:events", {"e": dump_event(an_event(str(number), f"vm-{number % 2}"))})
    pipe.execute()

    whole = [entry.event.why for entry in log.since("0-0")]

    assert whole == [str(number) for number in range(2500)]
    assert [entry.event.why for entry in log.since("0-0", vm_id="vm-1", limit=3)] == ["1", "3", "5"]
    assert [entry.event.why for entry in log.latest(limit=2, matches=lambda told: told.vm_id == "vm-0")] == [
        "2496",
        "2498",
    ]


def test_a_range_ends_where_it_is_told_to(client: redis.Redis, log: EventLog) -> None:
    written = [write(client, ago_ms=ago) for ago in (4000, 3000, 2000, 1000)]

    assert [entry.id for entry in log.since(written[0], last=written[2])] == written[1:3]
    assert [entry.id for entry in log.latest(limit=9, after=written[0], last=written[2])] == written[1:3]


def test_entries_of_another_version_are_counted_in_an_export(client: redis.Redis, log: EventLog) -> None:
    kept = write(client, ago_ms=10)
    odd = client.xadd(f"{PREFIX}:events", {"e": '{"kind":"from the future"}'})
    passed: list[str] = []

    assert [entry.id for entry in log.since("0-0", passed_over=passed.append)] == [kept]
    assert isinstance(odd, bytes)
    assert passed == [odd.decode()]


def test_what_is_too_old_is_dropped_to_the_last_entry(client: redis.Redis, log: EventLog) -> None:
    for number in range(250):
        write(client, ago_ms=2 * HOUR_MS, number=number)
    young = [write(client, ago_ms=1000), write(client, ago_ms=0)]

    assert log.trim(HOUR_MS) == 250
    assert ids(log) == young
    assert log.trim(HOUR_MS) == 0


def test_the_newest_event_stays_however_old_it_is(client: redis.Redis, log: EventLog, data: RedisData) -> None:
    data.begin(None)
    write(client, ago_ms=3 * HOUR_MS)
    newest = write(client, ago_ms=2 * HOUR_MS)

    log.trim(HOUR_MS)

    assert ids(log) == [newest]
    assert trusts(data, newest), "a quiet fleet goes on"


def test_a_host_that_saw_what_was_trimmed_by_age_still_trusts_the_data(
    client: redis.Redis, log: EventLog, data: RedisData
) -> None:
    data.begin(None)
    seen = write(client, ago_ms=2 * HOUR_MS)
    write(client, ago_ms=0)
    assert trusts(data, seen)

    log.trim(HOUR_MS)

    assert seen not in ids(log)
    assert trusts(data, seen)


def test_trimming_hides_no_rollback(client: redis.Redis, log: EventLog, data: RedisData) -> None:
    data.begin(None)
    write(client, ago_ms=2 * HOUR_MS)
    kept = write(client, ago_ms=2000)
    lost = f"{order(kept)[0] + 500}-0"  # the host saw it, and a rollback took it away

    log.trim(HOUR_MS)

    assert not trusts(data, lost)


def test_an_empty_stream_has_nothing_to_trim(log: EventLog) -> None:
    assert log.trim(HOUR_MS) == 0


def trusts(data: RedisData, last_seen: str) -> bool:
    epoch = data.look(None).epoch
    assert epoch is not None
    known = Known(epoch, last_seen)
    return isinstance(judge_data(known, data.look(known)), Trusted)


@pytest.mark.full
def test_workers_drop_what_is_too_old_and_go_on(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    with cluster(tmp_path, fresh_server, EVENTS__MAX_AGE="1h") as site:
        client = connect(fresh_server.url(0), timeout_s=5, connect_timeout_s=5)
        old = [write(client, ago_ms=2 * HOUR_MS, number=number) for number in range(3)]

        site.serve()
        site.run_vms(f"aged{os.getpid()}")
        wait_until(lambda: not set(old) & set(ids(site.fleet.events)), what="the old events to go")

        assert not site.fleet.data.halted()
        client.close()


@pytest.mark.full
def test_the_audit_survives_that_the_server_is_killed(redis_flavour: object, fresh_server: EmbeddedServer) -> None:
    """The append-only file has every event, also rewritten; and what was trimmed by age stays known as trimmed."""
    del redis_flavour
    client = connect(fresh_server.url(0), timeout_s=5, connect_timeout_s=5)
    log, data = EventLog(client, prefix=PREFIX), RedisData(client, prefix=PREFIX, lease_ms=1000)
    data.begin(None)
    seen = write(client, ago_ms=2 * HOUR_MS)
    kept = [write(client, ago_ms=ago) for ago in (3000, 2000, 1000)]
    log.trim(HOUR_MS)
    client.bgrewriteaof()
    wait_until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], what="the rewrite")
    kept.append(write(client, ago_ms=0))
    told = [entry.event for entry in log.since("0-0")]

    fresh_server.kill()
    fresh_server.start()

    assert ids(log) == kept
    assert [entry.event for entry in log.since("0-0")] == told
    assert trusts(data, seen)
    client.close()
