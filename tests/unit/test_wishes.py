"""What a manager wants of a VM, in the records: once, in its order, and never over what is newer."""

from dataclasses import replace
from typing import Any

import pytest

from tests.support import fakes
from tests.support.builders import HOST, NOW_MS, a_lost_vm, a_process, a_spec, a_vm
from workers.domain.audit import EventKind
from workers.domain.vm import EDGES, Desired, Incarnation, State, VmRecord
from workers.ports import Change, Take
from workers.services.ledger import Ledger
from workers.services.wishes import ACTOR, Taken, Want, Wish, Wishes
from workers.telemetry.story import NoTelemetry

NEW = a_process(200)


class World(fakes.World):
    """`alive` are the processes that are seen to live; `declared_ms` is when a person last declared a VM."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: set[Incarnation] = {NEW}
        self.declared_ms: dict[str, int] = {}
        ledger = Ledger(self.store, self.wakeups, NoTelemetry())
        self.wishes = Wishes(
            self.store,
            ledger,
            host=HOST,
            lives=self.alive.__contains__,
            declared_ms=lambda vm_id: self.declared_ms.get(vm_id, 0),
        )

    def wish(self, want: Want, number: int = 10, **told: Any) -> Taken:
        return self.wishes.take(Wish("vm-1", number, want, "on_vm", **told))

    def lease(self) -> None:
        assert self.store.write([Change("vm-1", 1, self.record(), take=Take("somebody", 30_000))]).outcomes == ["done"]


@pytest.fixture
def world() -> World:
    return World()


def test_a_created_vm_is_registered_with_its_process_and_looked_at_now(world: World) -> None:
    taken = world.wish(Want.RUNNING, spec=a_spec(priority=8), process=NEW, socket="/run/vm-1.sock")

    record = world.record()
    assert taken is Taken.DONE
    assert (record.state, record.desired, record.priority) == (State.STARTING, Desired.RUNNING, 8)
    assert (record.process, record.socket, record.created_ms) == (NEW, "/run/vm-1.sock", NOW_MS)
    assert world.rows["vm-1"].due_ms == NOW_MS
    assert [(event.kind, event.actor) for event in world.events] == [(EventKind.REGISTERED, ACTOR)]


def test_a_wish_is_taken_once_however_often_it_comes(world: World) -> None:
    world.wish(Want.RUNNING, spec=a_spec(), process=NEW)
    world.update(process=a_process(300))
    assert world.wish(Want.RUNNING, spec=a_spec(), process=NEW) is Taken.AGAIN
    assert world.wish(Want.STOPPED, number=9) is Taken.AGAIN
    assert (world.record().process, world.record().desired) == (a_process(300), Desired.RUNNING)


def test_what_a_person_declared_later_outranks_a_wish(world: World) -> None:
    world.put(a_vm())
    world.declared_ms["vm-1"] = 1000
    assert world.wish(Want.STOPPED, at_ms=999) is Taken.OUTRANKED
    assert world.record() == a_vm()
    assert world.wish(Want.STOPPED, at_ms=1000) is Taken.DONE


def test_a_wish_whose_time_is_not_known_counts_as_the_newest(world: World) -> None:
    world.put(a_vm())
    world.declared_ms["vm-1"] = 1000
    assert world.wish(Want.STOPPED) is Taken.DONE


@pytest.mark.parametrize("state", list(State))
def test_another_process_is_named_in_every_state_by_a_legal_edge(world: World, state: State) -> None:
    world.put(a_lost_vm(state=state, process=a_process(), fails=2))

    assert world.wish(Want.RUNNING, process=NEW, socket="/s") is Taken.DONE

    record = world.record()
    assert record.state is state or record.state in EDGES[state]
    assert record.state in (State.STARTING, State.UNKNOWN, State.ORPHANED)
    assert (record.process, record.socket, record.fails, record.open_episode) == (NEW, "/s", 0, None)


def test_a_late_wish_does_not_bring_back_a_process_that_has_ended(world: World) -> None:
    world.put(a_vm())
    world.alive.clear()
    assert world.wish(Want.RUNNING, process=NEW) is Taken.DONE
    assert world.record() == a_vm(wish=10)


def test_while_an_attempt_is_in_flight_no_process_is_named(world: World) -> None:
    world.put(a_lost_vm())
    world.lease()
    assert world.wish(Want.RUNNING, process=NEW) is Taken.LATER
    assert world.record() == a_lost_vm()


@pytest.mark.parametrize("state", [State.STOPPED, State.FAILED])
def test_a_vm_that_is_started_without_a_process_waits_for_one(world: World, state: State) -> None:
    world.put(a_vm(state=state, desired=Desired.STOPPED, process=None))
    assert world.wish(Want.RUNNING) is Taken.DONE
    assert (world.record().state, world.record().desired) == (State.STARTING, Desired.RUNNING)


def test_a_wish_that_does_not_say_what_an_unknown_vm_is_changes_nothing(world: World) -> None:
    assert world.wish(Want.RUNNING, process=NEW) is Taken.UNDECLARED
    assert world.wish(Want.STOPPED) is Taken.NEEDLESS
    assert world.wish(Want.DELETED) is Taken.NEEDLESS
    assert world.store.ids() == []


@pytest.mark.parametrize(("lives", "state"), [(True, State.UNKNOWN), (False, State.STOPPED)])
def test_a_vm_that_was_stopped_before_it_was_known_is_registered_as_such(
    world: World, *, lives: bool, state: State
) -> None:
    if not lives:
        world.alive.clear()
    assert world.wish(Want.STOPPED, spec=a_spec(), process=NEW) is Taken.DONE
    assert (world.record().state, world.record().desired) == (state, Desired.STOPPED)
    assert world.record().process == (NEW if lives else None)


@pytest.mark.parametrize("record", [a_vm(host="host-b"), a_vm(driver="qemu")], ids=["host", "driver"])
def test_host_and_driver_of_a_vm_stay(world: World, record: VmRecord) -> None:
    world.put(record)
    assert world.wish(Want.RUNNING, spec=a_spec(), process=NEW) is Taken.REFUSED
    assert world.record() == record


def test_a_deleted_vm_is_forgotten_when_nothing_of_it_runs(world: World) -> None:
    world.put(a_vm())
    assert world.wish(Want.DELETED) is Taken.DONE
    assert world.store.ids() == []
    assert [(event.kind, event.actor) for event in world.events] == [(EventKind.FORGOTTEN, ACTOR)]


def test_a_deleted_vm_that_still_runs_is_wanted_stopped_until_it_does_not(world: World) -> None:
    world.put(a_vm(process=NEW))
    assert [world.wish(Want.DELETED), world.wish(Want.DELETED)] == [Taken.LATER, Taken.LATER]
    assert world.record().desired is Desired.STOPPED
    world.alive.clear()
    assert world.wish(Want.DELETED) is Taken.DONE


def test_a_deleted_vm_is_wanted_stopped_under_a_running_attempt(world: World) -> None:
    world.put(a_lost_vm())
    world.lease()
    assert world.wish(Want.DELETED) is Taken.LATER
    assert world.record().desired is Desired.STOPPED


def test_a_vm_that_takes_the_place_of_a_deleted_one_has_nothing_of_it(world: World) -> None:
    world.put(a_lost_vm(driver="qemu", generation=7))
    assert world.wish(Want.RUNNING, spec=a_spec(), process=NEW, anew=True) is Taken.DONE
    record = world.record()
    assert (record.driver, record.generation, record.episode, record.process) == ("firecracker", 0, None, NEW)
    assert world.kinds() == [EventKind.FORGOTTEN, EventKind.REGISTERED]


def test_a_stop_is_taken_whatever_the_spec_that_comes_with_it(world: World) -> None:
    world.put(a_vm(driver="qemu"))
    assert world.wish(Want.STOPPED, spec=a_spec(memory_mib=512)) is Taken.DONE
    assert world.record() == a_vm(driver="qemu", desired=Desired.STOPPED, wish=10)
    assert world.store.spec("vm-1") == a_spec()
    assert world.wish(Want.STOPPED, number=11, spec=a_spec(memory_mib=512), anew=True) is Taken.DONE
    assert (world.record().driver, world.record().state) == ("firecracker", State.STOPPED)


def test_an_error_is_told_in_the_audit_and_has_the_vm_looked_at(world: World) -> None:
    world.put(a_vm())
    world.rows["vm-1"].due_ms = NOW_MS + 30_000
    assert world.wishes.note_error("vm-1", "disk is gone") is Taken.DONE
    assert world.rows["vm-1"].due_ms == NOW_MS
    assert world.events[-1].why == "on_vm_error: disk is gone"
    assert world.record() == a_vm()
    assert world.wishes.note_error("vm-2", "x") is Taken.UNDECLARED


def test_a_record_that_changes_meanwhile_is_read_again(world: World) -> None:
    world.put(a_vm())

    def meanwhile(_changes: object) -> None:
        world.store.before_write = lambda _again: None
        world.update(fails=1)

    world.store.before_write = meanwhile
    assert world.wish(Want.STOPPED) is Taken.DONE
    assert world.record() == replace(a_vm(), fails=1, desired=Desired.STOPPED, wish=10)
