"""Operator modes in the store: what is written, what a read tells, and what a damaged entry means."""

from collections.abc import Iterator

import pytest
import redis

from tests.conftest import ServerOf
from tests.support.builders import HOST, NOW_MS, a_lost_vm, a_spec, some_limits
from tests.support.servers import RedisFlavour
from tests.support.stores import PREFIX, Subject, redis_subject
from workers.domain.audit import Event, EventKind
from workers.domain.breaker import BreakerState, Call
from workers.domain.modes import FLEET, UNREADABLE, Hold, Mode, Scope, host_scope, vm_scope
from workers.embedded import EmbeddedServer
from workers.ports import Change, Outcome, Take
from workers.store.breakers import RedisBreakers

TOLD = Event(EventKind.MODE, "", "", "alice", "network work", scope=FLEET)
HELD = Scope((Hold("h1", Mode.PAUSED, "alice", "network work", NOW_MS),))


@pytest.fixture(params=list(RedisFlavour))
def server(request: pytest.FixtureRequest, server_of: ServerOf) -> EmbeddedServer:
    return server_of(RedisFlavour(request.param))


@pytest.fixture
def subject(server: EmbeddedServer) -> Iterator[Subject]:
    with redis_subject(server) as made:
        made.serve(HOST)
        made.make(some_limits(), None).write([Change("vm-1", 0, a_lost_vm(), spec=a_spec())])
        yield made


def test_what_is_set_comes_back_with_its_event_and_is_gone_when_it_is_lifted(subject: Subject) -> None:
    assert subject.modes.put_scope(FLEET, Scope(), HELD, TOLD)

    assert subject.modes.modes([FLEET, vm_scope("vm-1")])[1].scopes == {FLEET: HELD}
    assert subject.modes.all_modes()[1].scopes == {FLEET: HELD}
    assert subject.events()[-1] == TOLD
    assert subject.modes.put_scope(FLEET, HELD, Scope(), TOLD)
    assert subject.modes.all_modes()[1].scopes == {}


def test_who_comes_second_reads_again(subject: Subject) -> None:
    assert subject.modes.put_scope(FLEET, Scope(), HELD, TOLD)
    before = len(subject.events())

    assert not subject.modes.put_scope(FLEET, Scope(), HELD, TOLD)
    assert len(subject.events()) == before


def test_nobody_is_confirmed_where_what_holds_it_cannot_be_read(subject: Subject, server: EmbeddedServer) -> None:
    with redis.Redis.from_url(server.url(0)) as client:
        client.hset(f"{PREFIX}:modes", FLEET, "{not json")
    assert set(subject.make(some_limits(), None).confirm(HOST, {"vm-1": 1}).left) == {"vm-1"}


def test_a_read_tells_what_holds_its_vms_and_nothing_else(subject: Subject) -> None:
    for scope in (FLEET, host_scope(HOST), vm_scope("vm-1"), host_scope("host-z"), vm_scope("vm-2")):
        subject.modes.put_scope(scope, Scope(), HELD, TOLD)

    found = subject.make(some_limits(), None).read(["vm-1"]).modes

    assert set(found.scopes) == {FLEET, host_scope(HOST), vm_scope("vm-1")}


def test_what_cannot_be_read_holds_everything_until_it_is_lifted(server: EmbeddedServer, subject: Subject) -> None:
    client = redis.Redis.from_url(server.url(0))
    client.hset(f"{PREFIX}:modes", FLEET, "{not json")
    store = subject.make(some_limits(), None)
    stored = store.read(["vm-1"]).found["vm-1"]

    damaged = store.read(["vm-1"]).modes
    refused = store.write([Change("vm-1", stored.rev, stored.record, take=Take("me", 1000, ()))]).outcomes

    assert damaged.scopes[FLEET].holds[0].id == UNREADABLE
    assert refused == [Outcome.HELD]
    assert subject.modes.put_scope(FLEET, damaged.scopes[FLEET], Scope(), TOLD)
    assert not client.exists(f"{PREFIX}:modes")
    client.close()


def test_a_breaker_opened_by_hand_stays_open_and_closing_it_calls_who_waits(
    server: EmbeddedServer, subject: Subject
) -> None:
    client = redis.Redis.from_url(server.url(0))
    client.delete(f"{PREFIX}:modes")
    store, scope = subject.make(some_limits(), None), f"host:{HOST}"
    breakers = RedisBreakers(client, prefix=PREFIX, limits=some_limits())

    written = breakers.put(scope, BreakerState.OPEN, why="by hand: bad disks", actor="alice")

    assert written is not None
    assert [(event.actor, event.scope) for event in written.told] == [("alice", scope)]
    assert breakers.put(scope, BreakerState.OPEN, why="once more", actor="alice") is None
    subject.pass_time(3_600_000)
    subject.serve(HOST)
    store.tend(HOST)
    stored = store.read(["vm-1"]).found["vm-1"]
    take = Take("me", 1000, (Call(scope, ("x.img",)),))
    assert store.write([Change("vm-1", stored.rev, stored.record, take=take)]).outcomes == [Outcome.WAITING]

    closed = breakers.put(scope, BreakerState.CLOSED, why="by hand: mended", actor="alice")

    assert closed is not None
    assert [called.vm_id for called in closed.called] == ["vm-1"]
    assert breakers.put(scope, BreakerState.CLOSED, why="once more", actor="alice") is None
    client.close()
