"""What people may ask for, on a real server: what is sent and written, and each refusal with its one line."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import ServerOf
from tests.support.builders import HOST, a_lost_vm, a_process, a_spec, a_vm, an_episode
from tests.support.servers import RedisFlavour, empty
from workers import queues
from workers.bootstrap import Fleet
from workers.domain.audit import EventKind
from workers.domain.errors import Refused, UnknownVm
from workers.domain.modes import Mode, vm_scope
from workers.domain.vm import Desired, EpisodeEnd, Force, State, VmRecord
from workers.ports import Change, Halt, Outcome, Take
from workers.services.operations import Operations
from workers.settings import load
from workers.store.hosts import HostWorker

_FOREVER_MS = 10**9


class Desk:
    """A fleet, and what one person's requests send."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.sent: list[tuple[str, str, Mapping[str, Any]]] = []
        self.operations: Operations = fleet.operations(lambda *message: self.sent.append(message), actor="cli:alice")

    def put(self, record: VmRecord) -> None:
        change = Change(record.vm_id, 0, record, check_in_ms=0, spec=a_spec(record.vm_id))
        assert self.fleet.store.write([change]).outcomes == [Outcome.DONE]

    def serve(self) -> None:
        self.fleet.hosts.hold(HostWorker("me", HOST, a_process(), 0, "1"), ttl_ms=_FOREVER_MS)

    def record(self) -> VmRecord:
        return self.fleet.store.read(["vm-1"]).found["vm-1"].record

    def lease(self) -> None:
        stored = self.fleet.store.read(["vm-1"]).found["vm-1"]
        change = Change("vm-1", stored.rev, stored.record, take=Take("somebody", _FOREVER_MS, ()))
        assert self.fleet.store.write([change]).outcomes == [Outcome.DONE]


@pytest.fixture
def desk(server_of: ServerOf, tmp_path: Path) -> Iterator[Desk]:
    server = server_of(RedisFlavour.VALKEY)
    empty(server)
    settings = load(
        {"RELIABILITY_REDIS__URL": server.url(0), "RELIABILITY_BROKER__URL": server.url(1)}, tmp_path
    ).settings
    client = redis.Redis.from_url(server.url(0))
    made = Desk(Fleet(settings, client))
    made.serve()
    yield made
    client.close()


@pytest.mark.parametrize("force", list(Force))
def test_a_request_is_written_down_and_sent_with_what_it_overrides(desk: Desk, force: Force) -> None:
    desk.put(a_lost_vm())

    asked = desk.operations.recover("vm-1", reason="disk replaced", force=force)

    ((task, vm_id, arguments),) = desk.sent
    assert (task, vm_id) == (queues.RECOVER_VM, "vm-1")
    assert arguments["request_id"] == asked.request_id
    assert arguments.get("force", "plain") == force
    (told,) = [entry.event for entry in desk.fleet.events.since(asked.after)]
    assert (told.kind, told.actor, told.request_id) == (EventKind.OVERRIDE, "cli:alice", asked.request_id)
    assert told.why.endswith("disk replaced")


def _no_worker(desk: Desk) -> None:
    desk.put(a_lost_vm(host="host-z"))


def _halted(desk: Desk) -> None:
    desk.put(a_lost_vm())
    desk.fleet.data.halt(HOST, Halt("the data are older than those it knows", frozen=True))


def _paused(desk: Desk) -> None:
    desk.put(a_lost_vm())
    desk.fleet.operator_modes(actor="bob").hold(vm_scope("vm-1"), Mode.PAUSED, why="disk work")


def _healthy(desk: Desk) -> None:
    desk.put(a_vm())


def _stopped(desk: Desk) -> None:
    desk.put(a_vm(state=State.STOPPED, desired=Desired.STOPPED, process=None))


REFUSALS = {
    "no_worker": (_no_worker, "no worker serves host host-z: start `reliability worker` there first; nothing was sent"),
    "halted": (_halted, f"host {HOST} recovers nothing now: the data are older than those it knows; see `reliability"),
    "paused": (_paused, "vm-1: vm:vm-1 is paused: disk work; lift it with `reliability resume`, or use --force"),
    "healthy": (_healthy, "vm-1 is healthy: there is nothing to recover; --kill-healthy ends and starts it all the"),
    "stopped": (_stopped, "vm-1 is to be stopped: apply it with `desired: running` to start it"),
}


@pytest.mark.parametrize("hindrance", REFUSALS)
def test_what_is_refused_says_why_and_what_to_do_and_sends_nothing(desk: Desk, hindrance: str) -> None:
    set_up, words = REFUSALS[hindrance]
    set_up(desk)

    with pytest.raises(Refused) as refused:
        desk.operations.recover("vm-1")

    assert (refused.value.hindrance, refused.value.why[: len(words)]) == (hindrance, words)
    assert desk.sent == []


def test_a_vm_nobody_knows_is_an_error_of_its_own(desk: Desk) -> None:
    with pytest.raises(UnknownVm):
        desk.operations.recover("vm-9")


@pytest.mark.parametrize("reason", ["", "two\nlines", "x" * 201])
def test_a_reason_is_one_line(desk: Desk, reason: str) -> None:
    with pytest.raises(ValueError, match="field reason"):
        desk.operations.recover("vm-1", reason=reason)


def test_what_is_being_recovered_is_not_asked_for_again(desk: Desk) -> None:
    desk.put(a_lost_vm())
    desk.lease()

    assert not desk.operations.recover("vm-1").sent
    assert desk.sent == []


def test_a_vm_that_was_given_up_gets_all_its_attempts_again(desk: Desk) -> None:
    ended = an_episode(attempt=3, end=EpisodeEnd.FAILED, ended_ms=1, error="no disk")
    desk.put(a_lost_vm(state=State.FAILED, episode=ended))

    desk.operations.reset("vm-1", reason="disk replaced")

    record = desk.record()
    episode = record.open_episode
    assert (record.state, episode.attempt if episode else None) == (State.ORPHANED, 0)
    assert [(task, vm_id) for task, vm_id, _ in desk.sent] == [(queues.RECOVER_VM, "vm-1")]
    (told,) = [e.event for e in desk.fleet.events.latest(limit=10) if e.event.kind is EventKind.RESET]
    assert (told.actor, told.why) == ("cli:alice", "reset: disk replaced")


def test_a_reset_clears_the_history_of_a_vm_that_is_well_and_leaves_it_so(desk: Desk) -> None:
    desk.put(a_vm(episode=an_episode(attempt=2, end=EpisodeEnd.RECOVERED, ended_ms=1), restarts=2))

    desk.operations.reset("vm-1", reason="known")

    assert desk.record() == replace(a_vm(), episode=None, restarts=0)
    with pytest.raises(Refused, match="nothing to reset"):
        desk.operations.reset("vm-1", reason="known")


def test_an_open_episode_is_not_reset(desk: Desk) -> None:
    desk.put(a_lost_vm())

    with pytest.raises(Refused, match="being recovered"):
        desk.operations.reset("vm-1", reason="x")


def test_a_breaker_is_opened_and_closed_by_hand(desk: Desk) -> None:
    desk.operations.trip("image:web.img", reason="bad build")
    assert [seen.scope for seen in desk.fleet.weather.breakers()] == ["image:web.img"]
    with pytest.raises(Refused, match="open already"):
        desk.operations.trip("image:web.img", reason="bad build")

    desk.operations.close_breaker("image:web.img", reason="mended")

    assert desk.fleet.weather.breakers() == []
    told = [entry.event for entry in desk.fleet.events.latest(limit=10)]
    assert [event.actor for event in told] == ["cli:alice", "cli:alice"]


@pytest.mark.parametrize("scope", ["", "vm-1", "image:", "host", "fleet:x"])
def test_a_scope_of_breakers_is_checked(desk: Desk, scope: str) -> None:
    with pytest.raises(ValueError, match="field scope"):
        desk.operations.trip(scope, reason="x")
