"""Records made again from the run directories of a host: what is brought back, and what stays away."""

from typing import Any

import pytest

from tests.support.builders import HOST, NOW_MS, a_process, a_spec, a_vm
from tests.support.fakes import World
from workers.domain.audit import EventKind
from workers.domain.errors import StoreUnavailable
from workers.domain.vm import Desired, State
from workers.ports import Kept
from workers.services.rebuild import RebuildReport


@pytest.fixture
def world() -> World:
    return World()


def keep(world: World, vm_id: str = "vm-1", **changes: Any) -> Kept:
    plain: dict[str, Any] = {
        "generation": 9,
        "driver": "firecracker",
        "spec": a_spec(vm_id, priority=3),
        "process": a_process(),
        "served": True,
    }
    kept = Kept(vm_id, **(plain | changes))
    world.host.run_dirs[vm_id] = kept
    return kept


def rebuild(world: World) -> RebuildReport:
    return world.services.rebuild.run("request-1")


def test_a_lost_record_is_made_again_and_its_process_is_looked_at_before_anything_is_believed(world: World) -> None:
    kept = keep(world)

    report = rebuild(world)

    record = world.record()
    assert report == RebuildReport(rebuilt=1)
    assert (record.state, record.desired, record.process) == (State.UNKNOWN, Desired.RUNNING, kept.process)
    assert (record.generation, record.priority, record.host, record.created_ms) == (9, 3, HOST, NOW_MS)
    assert world.rows["vm-1"].spec == kept.spec
    assert world.rows["vm-1"].due_ms == NOW_MS, "the next beat checks it"


def test_a_vm_that_lives_is_healthy_after_the_next_look_and_is_not_started_again(world: World) -> None:
    process = world.host.boot("vm-1", generation=9).process
    keep(world, process=process)
    rebuild(world)

    for _ in range(2):
        world.clock.advance(30_000)
        world.checks.check(["vm-1"])

    assert (world.state(), world.record().process) == (State.HEALTHY, process)
    assert world.host.started == []


def test_each_rebuilt_vm_and_the_whole_are_told(world: World) -> None:
    keep(world)
    rebuild(world)

    of_vm, of_host = world.events
    assert (of_vm.kind, of_vm.vm_id) == (EventKind.REBUILT, "vm-1")
    assert "generation 9, running" in of_vm.why
    assert (of_host.kind, of_host.scope, of_host.request_id) == (EventKind.REBUILT, f"host:{HOST}", "request-1")
    assert of_host.why.startswith("1 records rebuilt, 0 were there, ")


def test_a_record_that_is_there_is_left_as_it_is(world: World) -> None:
    keep(world)
    there = a_vm(state=State.FAILED)
    world.put(there)

    assert rebuild(world) == RebuildReport(known=1)

    assert world.record() == there


def test_a_vm_that_was_stopped_on_purpose_comes_back_stopped(world: World) -> None:
    keep(world, stopped_ms=1)
    rebuild(world)

    record = world.record()
    assert (record.state, record.desired, record.process) == (State.STOPPED, Desired.STOPPED, None)


def test_a_start_that_was_cut_short_is_as_if_nothing_had_been_started(world: World) -> None:
    keep(world, served=False)
    rebuild(world)

    assert (world.state(), world.record().process) == (State.STARTING, None)


@pytest.mark.parametrize("known_to", ["redis", "host"])
def test_a_forgotten_vm_does_not_rise_again(world: World, known_to: str) -> None:
    keep(world, forgotten_ms=1 if known_to == "host" else 0)
    if known_to == "redis":
        world.put(a_vm())
        world.forget()

    assert rebuild(world) == RebuildReport(forgotten=1)

    assert world.rows == {}


def test_a_run_directory_without_a_spec_is_counted_and_makes_no_record(world: World) -> None:
    keep(world, spec=None)

    assert rebuild(world) == RebuildReport(unusable=1)

    assert world.rows == {}


def test_rebuilding_twice_changes_nothing(world: World) -> None:
    for number in range(450):
        keep(world, f"vm-{number}")
    assert rebuild(world) == RebuildReport(rebuilt=450)
    rows = {vm_id: row.rev for vm_id, row in world.rows.items()}

    assert rebuild(world) == RebuildReport(known=450)

    assert {vm_id: row.rev for vm_id, row in world.rows.items()} == rows


def test_a_frozen_host_may_rebuild_and_starts_nothing_meanwhile(world: World) -> None:
    world.tending.tend()
    world.server.lose_data()
    world.tending.tend()
    keep(world)

    assert rebuild(world).rebuilt == 1

    assert world.tending.halted is not None
    assert world.host.started == []
    assert world.wakeups.recovers == []


def test_without_redis_nothing_is_rebuilt(world: World) -> None:
    keep(world)
    world.server.away = True

    with pytest.raises(StoreUnavailable):
        rebuild(world)
