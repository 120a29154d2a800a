"""Operator modes on a real worker: nothing is done while one holds, and after it all is caught up with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.chaos import Arena, arena, die, hang, sweeps_pass
from workers.domain.audit import EventKind
from workers.domain.modes import FLEET, Flag, Mode, vm_scope
from workers.domain.vm import State
from workers.embedded import EmbeddedServer


@pytest.fixture
def here(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Arena]:
    with arena(tmp_path, fresh_server) as made:
        made.site.start_beat()
        yield made


@pytest.mark.parametrize("mode", [Mode.MAINTENANCE, Mode.OBSERVE_ONLY])
def test_a_held_vm_that_dies_and_one_that_hangs_stay_as_they_are_until_they_are_let_go(here: Arena, mode: Mode) -> None:
    site = here.site
    worker = site.start_successor()
    before = site.run_vms("held-1", "held-2", "free-1")
    modes = site.fleet.operator_modes(actor="alice")
    for vm_id in ("held-1", "held-2"):
        modes.hold(vm_scope(vm_id), mode, why="disk work")

    here.injure("held-1", die)
    here.injure("held-2", hang)
    here.injure("free-1", die)
    site.wait_healthy("free-1", after=before["free-1"])
    site.wait_state("held-1", State.ORPHANED)
    site.wait_state("held-2", State.UNHEALTHY, State.ORPHANED)
    sweeps_pass(worker, 3)

    assert site.live("held-1") == []
    assert site.live("held-2") == [before["held-2"].process.pid]  # type: ignore[union-attr] # it was healthy
    kind = EventKind.WOULD_HAVE if mode is Mode.OBSERVE_ONLY else EventKind.HELD
    told = [entry.event.vm_id for entry in site.events() if entry.event.kind is kind]
    assert sorted(told) == ["held-1", "held-2"]

    for vm_id in ("held-1", "held-2"):
        modes.lift(vm_scope(vm_id))
    here.account(f"{mode}", worker=worker)


def test_recovery_switched_off_for_the_fleet_and_on_again(here: Arena) -> None:
    site = here.site
    worker = site.start_successor()
    site.run_vms("off-1")
    modes = site.fleet.operator_modes(actor="alice")
    modes.switch(FLEET, Flag.RECOVERY, on=False, why="roll-out")

    here.injure("off-1", die)
    site.wait_state("off-1", State.ORPHANED)
    sweeps_pass(worker, 3)
    assert site.live("off-1") == []

    modes.unswitch(FLEET, Flag.RECOVERY)
    here.account("recovery switched off", worker=worker)
