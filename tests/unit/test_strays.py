"""VMMs that no record names: what is decided about each, and what is done."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.builders import a_spec, a_vm
from tests.support.fakes import World
from workers.domain.audit import EventKind
from workers.domain.errors import StoreUnavailable
from workers.domain.strays import Stray, StrayPolicy, StrayRules, decide
from workers.domain.vm import State
from workers.ports import Kept
from workers.simulator.host import SimVmm

REPORT, ADOPT, REAP = StrayPolicy.REPORT, StrayPolicy.ADOPT, StrayPolicy.REAP


def a_stray(**changes: Any) -> Stray:
    """One that nothing speaks against: ours, old, seen twice, of a known spec."""
    plain = {"guarded": True, "age_s": 300.0, "sightings": 2, "has_spec": True, "beside": False, "forgotten": False}
    return Stray(**(plain | changes))


@pytest.mark.parametrize("policy", StrayPolicy)
def test_a_stray_that_nothing_speaks_against_gets_what_the_policy_says(policy: StrayPolicy) -> None:
    assert decide(a_stray(), StrayRules(policy, min_age_s=300))[0] is policy


@pytest.mark.parametrize("policy", [ADOPT, REAP])
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"beside": True}, "names another process"),
        ({"forgotten": True}, "lets the vm run on"),
        ({"guarded": False}, "somebody else's"),
        ({"sightings": 1}, "too young, or seen too few times"),
        ({"age_s": 299.9}, "too young, or seen too few times"),
    ],
    ids=["beside", "forgotten", "unguarded", "first sighting", "young"],
)
def test_one_reason_against_it_is_enough_to_only_report_it(
    policy: StrayPolicy, changes: dict[str, Any], why: str
) -> None:
    decision, said = decide(a_stray(**changes), StrayRules(policy, min_age_s=300))

    assert decision is REPORT
    assert why in said


def test_what_nobody_knows_the_spec_of_can_be_reaped_and_not_adopted() -> None:
    unknown = a_stray(has_spec=False)

    assert decide(unknown, StrayRules(ADOPT, min_age_s=300))[0] is REPORT
    assert decide(unknown, StrayRules(REAP, min_age_s=300))[0] is REAP


def a_world(policy: StrayPolicy) -> World:
    return World(strays=policy)


def lose(world: World, vm_id: str = "vm-1", *, kernel: Path | str = "/images/vmlinux", **traits: Any) -> SimVmm:
    """A VMM that was started by us, of a VM whose record is lost."""
    vmm = world.host.boot(vm_id, **traits)
    spec = a_spec(vm_id, kernel=kernel)
    world.host.run_dirs[vm_id] = Kept(vm_id, vmm.generation, "firecracker", spec, vmm.process, served=True)
    return vmm


def sweep(world: World, times: int = 1) -> None:
    for _ in range(times):
        world.clock.advance(300_000)
        world.reconciliation.sweep()


def test_a_stray_is_adopted_at_the_second_sighting_and_is_the_vm_it_was() -> None:
    world = a_world(ADOPT)
    vmm = lose(world)
    sweep(world)
    assert "vm-1" not in world.rows

    sweep(world)

    record = world.record()
    assert (record.process, record.generation, record.state) == (vmm.process, vmm.generation, State.UNKNOWN)
    assert world.rows["vm-1"].spec == a_spec("vm-1")
    assert world.kinds() == [EventKind.STRAY, EventKind.ADOPTED]
    sweep(world)
    assert world.found_strays == [], "it is none any more"


def test_a_stray_is_reaped_at_the_second_sighting() -> None:
    world = a_world(REAP)
    lose(world)
    sweep(world)
    assert world.host.of("vm-1") is not None

    sweep(world)

    assert world.host.of("vm-1") is None
    assert world.kinds() == [EventKind.STRAY, EventKind.REAPED]
    assert world.rows == {}


def test_the_sightings_of_one_process_do_not_count_for_the_next() -> None:
    world = a_world(REAP)
    lose(world)
    sweep(world)
    world.host.kill("vm-1")
    successor = lose(world)

    sweep(world)

    assert world.host.of("vm-1") is successor
    assert world.kinds() == [EventKind.STRAY, EventKind.STRAY]


def test_a_stray_that_was_out_of_sight_once_is_counted_anew() -> None:
    world = a_world(REAP)
    vmm = lose(world)
    sweep(world)
    world.put(a_vm(process=vmm.process))
    sweep(world)
    del world.rows["vm-1"]

    sweep(world)

    assert world.host.of("vm-1") is vmm


def test_the_policy_to_report_does_nothing_however_often_it_is_seen() -> None:
    world = a_world(REPORT)
    vmm = lose(world)

    sweep(world, 5)

    assert world.host.of("vm-1") is vmm
    assert world.rows == {}
    assert [found.decision for found in world.found_strays] == [REPORT]
    assert world.kinds() == [EventKind.STRAY], "said once"


@pytest.mark.parametrize("policy", [ADOPT, REAP])
def test_nothing_is_done_while_the_host_is_halted(policy: StrayPolicy) -> None:
    world = a_world(policy)
    vmm = lose(world)
    world.tending.tend()
    world.host.paused = True
    world.tending.tend()

    sweep(world, 3)

    assert world.host.of("vm-1") is vmm
    assert world.rows == {}


def test_a_spent_budget_stops_reaping_is_told_and_is_not_spent_by_adopting() -> None:
    world = a_world(REAP)
    world.budget = 1
    lose(world, "vm-1")
    lose(world, "vm-2")

    sweep(world, 2)

    assert [vmm.vm_id for vmm in world.host.alive.values()] == ["vm-2"]
    assert "budget" in world.events[-1].why
    adopting = a_world(ADOPT)
    adopting.budget = 0
    lose(adopting)
    sweep(adopting, 2)
    assert "vm-1" in adopting.rows


def test_a_record_that_appears_before_the_signal_saves_the_vmm() -> None:
    world = a_world(REAP)
    vmm = lose(world)
    world.host.during_fence = lambda _vm_id: world.put(a_vm(process=vmm.process))

    sweep(world, 2)

    assert world.host.of("vm-1") is vmm
    assert "there is a record of it now" in world.events[-1].why


def test_a_freeze_that_comes_before_the_signal_saves_the_vmm() -> None:
    world = a_world(REAP)
    world.tending.tend()
    vmm = lose(world)
    sweep(world)

    def lose_the_data(_vm_id: str) -> None:
        world.server.lose_data()
        world.tending.tend()

    world.host.during_fence = lose_the_data
    sweep(world)

    assert world.host.of("vm-1") is vmm


def test_redis_that_goes_away_before_the_signal_saves_the_vmm() -> None:
    world = a_world(REAP)
    vmm = lose(world)
    sweep(world)

    def go_away(_vm_id: str) -> None:
        world.server.away = True

    world.host.during_fence = go_away
    with pytest.raises(StoreUnavailable):
        sweep(world)

    assert world.host.of("vm-1") is vmm


def test_a_forgotten_vm_runs_on_and_does_not_rise_again() -> None:
    for policy in (ADOPT, REAP):
        world = a_world(policy)
        vmm = lose(world)
        world.put(a_vm(process=vmm.process))
        world.forget()

        sweep(world, 3)

        assert world.host.of("vm-1") is vmm
        assert world.rows == {}


def test_a_vm_that_only_the_host_knows_as_forgotten_does_not_rise_again() -> None:
    world = a_world(ADOPT)
    lose(world)
    world.host.note_forgotten("vm-1", 1)

    sweep(world, 3)

    assert world.rows == {}


@pytest.mark.parametrize(
    "changes",
    [{"served": False}, {"spec": None}, {"process": None}],
    ids=["never served", "no spec", "another process"],
)
def test_what_its_run_directory_does_not_vouch_for_is_not_adopted(changes: dict[str, Any]) -> None:
    world = a_world(ADOPT)
    lose(world)
    world.host.run_dirs["vm-1"] = replace(world.host.run_dirs["vm-1"], **changes)

    sweep(world, 3)

    assert [found.decision for found in world.found_strays] == [REPORT]
    assert world.rows == {}


def test_a_vmm_without_our_lock_is_never_signalled() -> None:
    world = a_world(REAP)
    vmm = lose(world, guarded=False)

    sweep(world, 3)

    assert world.host.of("vm-1") is vmm


def test_a_stray_that_cannot_be_killed_is_told_and_tried_again() -> None:
    world = a_world(REAP)
    vmm = lose(world, unkillable=True)
    sweep(world, 2)
    assert world.kinds() == [EventKind.STRAY, EventKind.DEFERRED]
    vmm.unkillable = False

    sweep(world)

    assert world.kinds()[-1] is EventKind.REAPED
