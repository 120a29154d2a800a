"""What operator modes keep from being done, against fakes; and the table of what a person's request overrides."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.builders import HOST, a_lost_vm, a_vm, an_episode
from tests.support.fakes import World
from workers.domain.audit import Event, EventKind
from workers.domain.breaker import Breaker, BreakerState
from workers.domain.errors import Refused
from workers.domain.modes import FLEET, Flag, Mode, host_scope, vm_scope
from workers.domain.recovery import WakeUp
from workers.domain.strays import StrayPolicy
from workers.domain.vm import Desired, EpisodeEnd, Force, Reason, State
from workers.ports import Ended
from workers.services.modes import OperatorModes
from workers.services.recovery import Finished, Ignored, Result, Waiting


@pytest.fixture
def world() -> World:
    return World()


def modes(world: World) -> OperatorModes:
    return OperatorModes(world.modes, actor="alice")


def hold(world: World, mode: Mode, scope: str = vm_scope("vm-1")) -> None:
    modes(world).hold(scope, mode, why="disk work")


def recover(world: World, force: Force | None = None, request: str = "request-1") -> Result:
    wake = WakeUp() if force is None else WakeUp(request_id=request, actor="alice", force=force)
    return world.recovery.recover("vm-1", wake)


def told(world: World, kind: EventKind) -> list[Event]:
    return [event for _, event in world.server.contents.events if event.kind is kind]


@pytest.mark.parametrize("scope", [FLEET, host_scope(HOST), vm_scope("vm-1")])
@pytest.mark.parametrize("mode", list(Mode))
def test_nothing_is_done_to_a_held_vm_and_that_is_said_once(world: World, mode: Mode, scope: str) -> None:
    world.put(a_lost_vm())
    hold(world, mode, scope)

    assert isinstance(recover(world), Ignored)
    assert isinstance(recover(world), Ignored)

    assert world.host.started == []
    kind = EventKind.WOULD_HAVE if mode is Mode.OBSERVE_ONLY else EventKind.HELD
    event = told(world, kind)[0]
    assert len(told(world, kind)) == 1
    assert (event.scope, event.trace_id is not None, event.reason) == (scope, True, Reason.PROCESS_DEAD)
    assert "disk work" in event.why


def test_a_vm_is_recovered_by_the_sweeps_once_its_pause_is_lifted(world: World) -> None:
    world.put(a_lost_vm())
    hold(world, Mode.PAUSED)
    recover(world)
    world.orphans.sweep()
    assert world.wakeups.woken == []

    modes(world).lift(vm_scope("vm-1"))
    world.orphans.sweep()

    assert world.wakeups.woken == ["vm-1"]
    assert isinstance(recover(world), Finished)


def test_a_mode_that_is_set_while_an_attempt_runs_stops_it_before_its_exec(world: World) -> None:
    world.put(a_lost_vm())
    world.host.before_exec = lambda *_: pytest.fail("it was started")
    world.host.check_generation = lambda *_: hold(world, Mode.MAINTENANCE)

    recover(world)

    assert world.record().state is State.ORPHANED
    assert world.record().open_episode is not None
    assert world.record().open_episode.attempt == 0  # type: ignore[union-attr] # it uses up no attempt


def test_a_held_vm_keeps_no_slot_and_stands_in_no_line(world: World) -> None:
    world.put(a_lost_vm())
    hold(world, Mode.MAINTENANCE)

    world.store.write([], enlist=["vm-1"])
    recover(world)

    row = world.rows["vm-1"]
    assert (row.line, row.called_until_ms, world.server.contents.slots.get(FLEET, {})) == (None, 0, {})


def test_a_paused_vm_is_not_judged_and_one_in_maintenance_is(world: World) -> None:
    paused, kept = world.boot("vm-1"), world.boot("vm-2")
    hold(world, Mode.PAUSED)
    hold(world, Mode.MAINTENANCE, vm_scope("vm-2"))
    world.host.kill("vm-1")
    world.host.kill("vm-2")

    world.checks.check(["vm-1", "vm-2"])
    world.checks.processes_ended({"vm-1": Ended(paused.process), "vm-2": Ended(kept.process)})  # type: ignore[arg-type] # both have one
    world.orphans.sweep()

    assert world.state("vm-1") is State.HEALTHY
    assert world.state("vm-2") is State.ORPHANED


def test_a_stop_waits_for_the_end_of_a_mode(world: World) -> None:
    world.boot("vm-1", desired=Desired.STOPPED)
    hold(world, Mode.OBSERVE_ONLY)

    assert isinstance(world.recovery.stop("vm-1"), Ignored)
    assert world.host.alive
    assert [event.why.partition(":")[0] for event in told(world, EventKind.WOULD_HAVE)] == ["would have stopped it"]

    modes(world).lift(vm_scope("vm-1"))
    assert isinstance(world.recovery.stop("vm-1"), Finished)


@pytest.mark.parametrize("flag", [Flag.HEALTH_CHECKS, Flag.ORPHAN_DETECTION, Flag.RECOVERY])
def test_each_part_can_be_switched_off_for_one_host(world: World, flag: Flag) -> None:
    world.boot("vm-1")
    world.host.kill("vm-1")
    modes(world).switch(host_scope(HOST), flag, on=False, why="roll-out")

    if flag is Flag.HEALTH_CHECKS:
        world.checks.check(["vm-1"])
    else:
        world.orphans.sweep()
    judged = world.state() is State.ORPHANED
    result = recover(world)

    assert judged is (flag is Flag.RECOVERY)
    assert world.host.started == []
    assert isinstance(result, Ignored)


def test_strays_are_only_reported_where_reaping_is_switched_off_or_a_mode_holds() -> None:
    for set_up in (
        lambda world: modes(world).switch(FLEET, Flag.STRAY_REAPING, on=False, why="roll-out"),
        lambda world: hold(world, Mode.MAINTENANCE, host_scope(HOST)),
        lambda world: hold(world, Mode.OBSERVE_ONLY, vm_scope("stray-1")),
    ):
        world = World(strays=StrayPolicy.REAP)
        set_up(world)
        world.host.boot("stray-1")
        world.clock.advance(400_000)

        for _ in range(4):
            world.reconciliation.sweep()

        assert len(world.host.alive) == 1
        assert [event.vm_id for event in told(world, EventKind.STRAY)] == ["stray-1"]
    assert len(told(world, EventKind.WOULD_HAVE)) == 1


def test_a_hold_is_lifted_by_its_id_and_several_only_by_name() -> None:
    world = World()
    first = modes(world).hold(FLEET, Mode.PAUSED, why="network work")
    modes(world).hold(FLEET, Mode.PAUSED, why="power work")

    with pytest.raises(Refused, match=r"held 2 times.*network work.*power work"):
        modes(world).lift(FLEET)
    assert modes(world).lift(FLEET, hold_id=first.id) == [first]
    assert [each.hold.why for each in modes(world).all()[1].holds_on("vm-1", HOST, world.server.now_ms)] == [
        "power work"
    ]
    assert len(modes(world).lift(FLEET, every=True)) == 1
    with pytest.raises(Refused, match="nothing of that kind"):
        modes(world).lift(FLEET)


@pytest.mark.parametrize("scope", ["vm:../x", "host:", "vm-1", "fleet:x", "image:x"])
def test_a_scope_is_checked(world: World, scope: str) -> None:
    with pytest.raises(ValueError, match="must"):
        modes(world).hold(scope, Mode.PAUSED, why="x")


# What a request overrides: docs/manual-recovery.md has the same table.


def _backoff(world: World) -> None:
    world.put(a_lost_vm(episode=an_episode(attempt=1, next_attempt_ms=world.server.now_ms + 60_000)))


def _given_up(world: World) -> None:
    ended = an_episode(attempt=3, end=EpisodeEnd.FAILED, ended_ms=1, error="no disk")
    world.put(a_lost_vm(state=State.FAILED, episode=ended))


def _slot(world: World) -> None:
    world.put(a_lost_vm())
    full = {f"other-{number}": world.server.now_ms + 60_000 for number in range(1000)}
    world.server.contents.slots[f"host:{HOST}"] = full


def _breaker(world: World) -> None:
    world.put(a_lost_vm())
    opened = Breaker(BreakerState.OPEN, generation=1, opened_ms=world.server.now_ms, cooldown_ms=60_000)
    world.server.contents.breakers[f"host:{HOST}"] = opened


def _held(mode: Mode) -> Callable[[World], None]:
    def set_up(world: World) -> None:
        world.put(a_lost_vm())
        hold(world, mode)

    return set_up


def _switched_off(world: World) -> None:
    world.put(a_lost_vm())
    modes(world).switch(FLEET, Flag.RECOVERY, on=False, why="roll-out")


def _healthy(world: World) -> None:
    world.boot("vm-1")


def _stopped(world: World) -> None:
    world.put(a_vm(state=State.STOPPED, desired=Desired.STOPPED, process=None))


def _kill_switch(world: World) -> None:
    world.put(a_lost_vm())
    world.host.paused = True


def _guard(world: World) -> None:
    world.put(a_lost_vm())
    world.host._starting.add("vm-1")


HINDRANCES: dict[str, tuple[Callable[[World], None], set[Force | None]]] = {
    "backoff": (_backoff, {Force.PLAIN, Force.FORCE, Force.KILL_HEALTHY}),
    "failed": (_given_up, {Force.PLAIN, Force.FORCE, Force.KILL_HEALTHY}),
    "recovery switched off": (_switched_off, {Force.PLAIN, Force.FORCE, Force.KILL_HEALTHY}),
    "slot": (_slot, {Force.FORCE, Force.KILL_HEALTHY}),
    "breaker": (_breaker, {Force.FORCE, Force.KILL_HEALTHY}),
    "paused": (_held(Mode.PAUSED), {Force.FORCE, Force.KILL_HEALTHY}),
    "maintenance": (_held(Mode.MAINTENANCE), {Force.FORCE, Force.KILL_HEALTHY}),
    "observe-only": (_held(Mode.OBSERVE_ONLY), {Force.FORCE, Force.KILL_HEALTHY}),
    "healthy": (_healthy, {Force.KILL_HEALTHY}),
    "stopped": (_stopped, set()),
    "kill switch": (_kill_switch, set()),
    "lock of the vm": (_guard, set()),
}


@pytest.mark.parametrize("force", [None, *Force])
@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_a_request_overrides_what_the_table_says_and_nothing_else(
    world: World, hindrance: str, force: Force | None
) -> None:
    set_up, overridden_by = HINDRANCES[hindrance]
    set_up(world)
    before = list(world.host.alive)

    result = recover(world, force)

    started = [vm_id for vm_id, _ in world.host.started]
    assert started == (["vm-1"] if force in overridden_by else []), result
    if not started:
        assert list(world.host.alive) == before
    assert world.host.doubled == []


def test_the_table_in_the_docs_says_what_the_code_does() -> None:
    text = (Path(__file__).parents[2] / "docs" / "manual-recovery.md").read_text(encoding="utf-8")
    section = text.partition("## What a request overrides")[2].partition("##")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if "|" in line][2:]

    table = {
        re.split(r"[:,]", row[0])[0]: {force for force, cell in zip(Force, row[1:], strict=True) if cell == "yes"}
        for row in rows
    }

    assert table == {name: overridden for name, (_, overridden) in HINDRANCES.items()}


def test_the_word_to_kill_a_healthy_vm_is_good_for_one_attempt(world: World) -> None:
    world.boot("vm-1")
    recover(world, Force.KILL_HEALTHY)
    first = world.record().process

    assert isinstance(recover(world, Force.KILL_HEALTHY), Ignored)  # the same message, once more
    assert world.record().process == first
    assert world.record().force is Force.PLAIN
    assert len(world.host.started) == 1


def test_a_forced_request_that_waits_for_nobody_takes_no_place_of_others(world: World) -> None:
    _slot(world)
    assert isinstance(recover(world), Waiting)

    assert isinstance(recover(world, Force.FORCE), Finished)
    assert world.rows["vm-1"].line is None
