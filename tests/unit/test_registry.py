"""Apply and forget: everything of one request, or nothing."""

from typing import Any

import pytest

from tests.support import fakes
from tests.support.builders import NOW_MS, a_lost_vm, a_spec, a_vm
from workers.domain.audit import EventKind
from workers.domain.errors import UnknownVm
from workers.domain.vm import Desired, State
from workers.ports import Change, Take
from workers.services.ledger import Ledger
from workers.services.registry import Applied, ApplyRefused, Registry
from workers.telemetry.story import NoTelemetry


class World(fakes.World):
    def __init__(self) -> None:
        super().__init__()
        self.registry = Registry(self.store, Ledger(self.store, self.wakeups, NoTelemetry()), actor="alice")

    def apply(self, vm_id: str = "vm-1", **fields: Any) -> Applied:
        return self.registry.apply([a_spec(vm_id, **fields)])[vm_id]


@pytest.fixture
def world() -> World:
    return World()


def test_a_new_vm_is_registered_and_checked_now(world: World) -> None:
    assert world.apply(priority=8) is Applied.CREATED
    row = world.rows["vm-1"]
    assert (row.record.state, row.record.priority, row.due_ms) == (State.STARTING, 8, NOW_MS)
    assert [(event.kind, event.actor) for event in world.events] == [(EventKind.REGISTERED, "alice")]


def test_a_new_vm_that_shall_be_stopped_is_not_started(world: World) -> None:
    world.apply(desired="stopped")
    assert world.rows["vm-1"].record.state is State.STOPPED
    assert world.wakeups.stops == []


def test_applying_the_same_again_changes_nothing(world: World) -> None:
    world.apply()
    before = world.rows["vm-1"].rev
    assert world.apply() is Applied.UNCHANGED
    assert world.rows["vm-1"].rev == before


def test_a_changed_spec_leaves_the_running_vm_alone(world: World) -> None:
    world.apply()
    world.rows["vm-1"].record = a_vm()
    assert world.apply(memory_mib=512) is Applied.CHANGED
    assert world.rows["vm-1"].record == a_vm()
    assert world.store.spec("vm-1").memory_mib == 512


def test_a_wanted_stop_is_written_first_and_then_sent(world: World) -> None:
    world.apply()
    world.rows["vm-1"].record = a_vm()
    world.apply(desired="stopped")
    assert world.rows["vm-1"].record.desired is Desired.STOPPED
    assert world.wakeups.stops == ["vm-1"]


def test_a_stopped_vm_may_be_started_again(world: World) -> None:
    world.apply(desired="stopped")
    world.apply(desired="running")
    assert world.rows["vm-1"].record.state is State.STARTING


@pytest.mark.parametrize("fields", [{"host": "host-b"}, {"driver": "qemu"}])
def test_host_and_driver_of_a_vm_stay_and_the_field_is_named(world: World, fields: dict[str, str]) -> None:
    world.apply()
    with pytest.raises(ApplyRefused, match=f"field {next(iter(fields))}"):
        world.registry.apply([a_spec("vm-2"), a_spec("vm-1", **fields)])
    assert world.store.ids() == ["vm-1"]


def test_a_record_that_changes_meanwhile_is_planned_again(world: World) -> None:
    world.apply()
    world.rows["vm-1"].record = a_vm()

    def meanwhile(_changes: object) -> None:
        world.store.before_write = lambda _again: None
        row = world.rows["vm-1"]
        row.record, row.rev = a_lost_vm(), row.rev + 1

    world.store.before_write = meanwhile
    assert world.apply(memory_mib=512) is Applied.CHANGED
    assert world.rows["vm-1"].record == a_lost_vm()


def test_a_forgotten_vm_is_gone_from_the_records_and_told(world: World) -> None:
    world.apply()
    world.registry.forget("vm-1")
    assert world.store.ids() == []
    assert world.events[-1].kind is EventKind.FORGOTTEN


def test_forgetting_an_unknown_vm_is_told(world: World) -> None:
    with pytest.raises(UnknownVm):
        world.registry.forget("vm-1")


def test_a_vm_is_not_forgotten_under_a_running_attempt(world: World) -> None:
    world.apply()
    world.store.write([Change("vm-1", 1, a_lost_vm(), take=Take("worker", 1000))])
    with pytest.raises(ApplyRefused, match="in flight"):
        world.registry.forget("vm-1")
