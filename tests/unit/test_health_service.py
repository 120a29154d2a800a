"""Health checks and sweeps against fakes: batches, deadlines, and who is woken."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.support.builders import (
    HOST,
    NOW_MS,
    a_lost_vm,
    a_process,
    a_vm,
    an_episode,
)
from tests.support.fakes import Wake, World
from workers.domain.audit import EventKind
from workers.domain.epoch import Known
from workers.domain.errors import StoreUnavailable
from workers.domain.evidence import Evidence, Verdict
from workers.domain.modes import FLEET, Hold, Mode, Scope, host_scope, vm_scope
from workers.domain.vm import Desired, Reason, State, VmRecord
from workers.ports import Change, Confirmed, Ended, Snapshot, Take, Written
from workers.services.health import CheckReport, HealthChecks
from workers.simulator.memory_store import MemoryVmStore


@pytest.fixture
def world() -> World:
    return World()


def test_a_batch_is_looked_at_and_written_together(world: World) -> None:
    for number in range(20):
        world.boot(f"vm-{number}")
    world.host.kill("vm-7")
    ids = [f"vm-{number}" for number in range(20)]

    report = world.checks.check(ids)

    assert report.verdicts == {Verdict.PASS: 19, Verdict.FAIL: 1}
    assert world.state("vm-7") is State.ORPHANED
    assert [wake.vm_id for wake in world.wakeups.recovers] == ["vm-7"]
    assert set(world.watched) == set(ids) - {"vm-7"}
    assert all(world.rows[vm_id].checked_ms == NOW_MS for vm_id in ids)


def test_a_message_past_its_deadline_is_dropped(world: World) -> None:
    world.boot()
    world.host.kill("vm-1")
    assert world.checks.check(["vm-1"], deadline_ms=NOW_MS - 1).late
    assert world.state() is State.HEALTHY
    assert not world.checks.check(["vm-1"], deadline_ms=NOW_MS).late
    assert world.state() is State.ORPHANED


def test_late_messages_are_dropped_cheaply_and_the_first_timely_one_is_served(world: World) -> None:
    world.boot()
    for _ in range(3):
        assert world.checks.check(["vm-1"], deadline_ms=NOW_MS - 1).late
    world.host.kill("vm-1")

    report = world.checks.check(["vm-1"], deadline_ms=NOW_MS + 1)

    assert (report.late, report.checked) == (False, 1)
    assert world.state() is State.ORPHANED


class CountedStore(MemoryVmStore):
    """Counts round trips; `meanwhile` happens after a look and before what it found is written or confirmed."""

    def __init__(self, world: World) -> None:
        super().__init__(world.server, world.limits, world.memory)
        self.calls: list[str] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def read(self, vm_ids: Collection[str], *, with_specs: bool = False) -> Snapshot:
        self.calls.append("read")
        return super().read(vm_ids, with_specs=with_specs)

    def write(self, changes: Sequence[Change], **more: Any) -> Written:
        self.calls.append("write")
        return super().write(changes, **more)

    def confirm(self, host: str, known: Mapping[str, int]) -> Confirmed:
        self.calls.append("confirm")
        self.meanwhile()
        return super().confirm(host, known)


@dataclass
class Watchful:
    """A host whose worker has checked 20 VMs so often that one more pass says nothing new."""

    world: World
    store: CountedStore
    checks: HealthChecks
    ids: list[str]

    def check(self, deadline_ms: int | None = None) -> CheckReport:
        self.store.calls.clear()
        return self.checks.check(self.ids, deadline_ms)

    def change(self, vm_id: str, **changes: Any) -> None:
        row = self.world.rows[vm_id]
        row.record, row.rev = replace(row.record, **changes), row.rev + 1


@pytest.fixture
def watchful(world: World) -> Watchful:
    ids = [f"vm-{number}" for number in range(20)]
    for vm_id in ids:
        world.boot(vm_id)
    store = CountedStore(world)
    made = Watchful(world, store, world.join(store=store).checks, ids)
    for _ in range(4):
        assert made.check().verdicts == {Verdict.PASS: 20}
    world.telemetry.looks.clear()
    return made


def test_vms_that_were_well_and_are_well_cost_one_round_trip_together(watchful: Watchful) -> None:
    watchful.world.clock.advance(30_000)

    report = watchful.check(deadline_ms=NOW_MS + 60_000)

    assert watchful.store.calls == ["confirm"]
    assert report.verdicts == {Verdict.PASS: 20}
    assert {watchful.world.rows[vm_id].checked_ms for vm_id in watchful.ids} == {NOW_MS + 30_000}
    assert watchful.world.telemetry.looks == [(vm_id, Evidence.ANSWERS) for vm_id in watchful.ids]


def test_one_that_was_well_and_is_dead_is_found_among_them(watchful: Watchful) -> None:
    watchful.world.host.kill("vm-7")
    report = watchful.check()
    assert report.verdicts == {Verdict.PASS: 19, Verdict.FAIL: 1}
    assert watchful.world.state("vm-7") is State.ORPHANED
    assert [wake.vm_id for wake in watchful.world.wakeups.recovers] == ["vm-7"]


def test_a_look_counts_for_the_record_as_it_is_by_then(watchful: Watchful) -> None:
    """Somebody wrote since the record was read: it is read again, and the look is judged on that."""
    watchful.store.meanwhile = lambda: watchful.change("vm-7", fails=1, doubt=Reason.HEALTH_CHECK_FAILED)

    assert watchful.check().verdicts == {Verdict.PASS: 20}

    assert watchful.store.calls == ["confirm", "read", "write"]
    assert watchful.world.rows["vm-7"].record.fails == 0


@pytest.mark.parametrize("changes", [{"host": "host-b"}, {"process": a_process(pid=5)}])
def test_a_look_means_nothing_for_a_record_that_is_about_something_else_by_then(
    watchful: Watchful, changes: dict[str, Any]
) -> None:
    watchful.world.host.kill("vm-7")
    watchful.store.meanwhile = lambda: watchful.change("vm-7", **changes)

    assert watchful.check().verdicts == {Verdict.PASS: 19}

    assert watchful.world.state("vm-7") is State.HEALTHY
    assert watchful.world.wakeups.recovers == []


def test_a_vm_that_is_to_be_stopped_by_then_is_not_called_lost(watchful: Watchful) -> None:
    watchful.world.host.kill("vm-7")
    watchful.change("vm-7", desired=Desired.STOPPED)
    watchful.check()
    assert watchful.world.wakeups.stops == ["vm-7"]
    assert watchful.world.wakeups.recovers == []


def test_vms_that_are_gone_are_neither_confirmed_nor_made_anew(watchful: Watchful) -> None:
    del watchful.world.rows["vm-7"]
    assert watchful.check().checked == 19
    assert "vm-7" not in watchful.world.rows


@pytest.mark.parametrize("scope", [FLEET, host_scope(HOST), vm_scope("vm-7")])
def test_a_pause_counts_for_those_that_were_well_too(watchful: Watchful, scope: str) -> None:
    hold = Hold("h1", Mode.PAUSED, "alice", "disk work", NOW_MS)
    watchful.world.server.contents.modes[scope] = Scope((hold,))
    watchful.world.host.kill("vm-7")

    watchful.check()
    watchful.check()

    assert watchful.world.state("vm-7") is State.HEALTHY
    assert watchful.world.wakeups.recovers == []
    assert "vm-7" not in watchful.checks._known_well


def test_records_are_read_anew_where_the_data_are_not_those_that_the_host_knows(watchful: Watchful) -> None:
    watchful.world.memory.known = Known("another", "0-0")
    assert watchful.check().verdicts == {Verdict.PASS: 20}
    assert watchful.store.calls == ["confirm", "read", "write"]


def test_what_was_known_of_a_vm_is_dropped_with_it(watchful: Watchful) -> None:
    watchful.checks.keep_only(["vm-3"])
    assert set(watchful.checks._known_well) == {"vm-3"}


def test_a_message_that_is_late_costs_its_time_alone(watchful: Watchful) -> None:
    watchful.world.clock.advance(30_000)
    assert watchful.check(deadline_ms=NOW_MS + 29_999).late
    assert watchful.store.calls == ["read"]
    assert {watchful.world.rows[vm_id].checked_ms for vm_id in watchful.ids} == {NOW_MS}


@pytest.mark.parametrize("jump_ms", [-3_600_000, 3_600_000])
def test_a_jump_of_the_servers_clock_costs_no_check(watchful: Watchful, jump_ms: int) -> None:
    """Deadlines are in server time, of which the host only remembers how it passed."""
    before = watchful.world.server._now_us
    watchful.world.server._now_us = lambda: before() + jump_ms * 1000

    for _ in range(2):
        report = watchful.check(deadline_ms=NOW_MS + jump_ms + 30_000)
        assert (report.late, report.checked) == (False, 20)

    assert {watchful.world.rows[vm_id].checked_ms for vm_id in watchful.ids} == {NOW_MS + jump_ms}


def test_ids_that_are_unknown_or_of_another_host_are_left_out(world: World) -> None:
    world.put(a_vm("vm-2", host="host-b"))
    assert world.checks.check(["vm-1", "vm-2"]).checked == 0


def test_the_wake_up_names_the_episode_and_the_attempt_it_is_for(world: World) -> None:
    world.boot()
    world.host.kill("vm-1")
    world.checks.check(["vm-1"])
    assert world.wakeups.recovers == [Wake("vm-1", f"vm-1@{NOW_MS}", 1, 0)]


def test_a_record_that_changed_meanwhile_is_judged_once_more(world: World) -> None:
    world.boot()
    world.host.kill("vm-1")

    def meanwhile(_changes: object) -> None:
        world.store.before_write = lambda _again: None
        row = world.rows["vm-1"]
        row.record, row.rev = replace(row.record, desired=Desired.STOPPED), row.rev + 1

    world.store.before_write = meanwhile
    world.checks.check(["vm-1"])

    assert world.wakeups.stops == ["vm-1"]
    assert world.wakeups.recovers == []


def test_a_verdict_on_an_older_process_is_dropped(world: World) -> None:
    world.boot()
    world.host.kill("vm-1")

    def recovered_meanwhile(_changes: object) -> None:
        world.store.before_write = lambda _again: None
        row = world.rows["vm-1"]
        row.record, row.rev = replace(row.record, process=world.host.boot("vm-1").process), row.rev + 1

    world.store.before_write = recovered_meanwhile
    world.checks.check(["vm-1"])

    assert world.state() is State.HEALTHY
    assert world.wakeups.recovers == []


def test_a_death_told_by_the_kernel_is_written_and_woken_at_once(world: World) -> None:
    record = world.boot()
    assert record.process is not None
    world.checks.processes_ended({"vm-1": Ended(record.process, "signal 9")})

    assert world.state() is State.ORPHANED
    assert "signal 9" in world.events[-1].why
    assert len(world.wakeups.recovers) == 1


def test_the_death_of_an_older_incarnation_means_nothing(world: World) -> None:
    world.boot()
    world.checks.processes_ended({"vm-1": Ended(a_process(pid=5), "signal 9"), "vm-9": Ended(a_process())})
    assert world.state() is State.HEALTHY


def test_a_death_during_an_attempt_is_the_attempts_own_business(world: World) -> None:
    record = world.boot(state=State.RECOVERING, episode=an_episode(attempt=1, running=True))
    assert record.process is not None
    world.checks.processes_ended({"vm-1": Ended(record.process)})
    assert world.state() is State.RECOVERING


def test_without_redis_nothing_is_judged(world: World) -> None:
    world.boot()
    world.server.away = True
    with pytest.raises(StoreUnavailable):
        world.checks.check(["vm-1"])


def test_a_new_vm_asks_for_its_start_at_its_first_check(world: World) -> None:
    world.put(a_vm(state=State.STARTING, process=None))
    world.checks.check(["vm-1"])
    assert world.wakeups.recovers == [Wake("vm-1")]
    assert world.state() is State.STARTING


def test_the_sweep_finds_a_death_that_nobody_told(world: World) -> None:
    world.boot()
    world.host.kill("vm-1")
    report = world.orphans.sweep()
    assert report.found_dead == 1
    assert world.state() is State.ORPHANED
    assert len(world.wakeups.recovers) == 1


@pytest.mark.parametrize(
    ("record", "driven"),
    [
        (a_lost_vm(), True),
        (a_lost_vm(episode=an_episode(attempt=1, next_attempt_ms=NOW_MS)), True),
        (a_lost_vm(episode=an_episode(attempt=1, next_attempt_ms=NOW_MS + 1)), False),
        (a_vm(state=State.RECOVERING, episode=an_episode(attempt=1, running=True)), True),
        (a_vm(state=State.STARTING, process=None), True),
        (a_vm(state=State.STARTING, process=None, episode=an_episode(attempt=1, running=True)), True),
        (a_vm(state=State.FAILED, episode=an_episode(attempt=3)), False),
        (a_lost_vm(desired=Desired.STOPPED), False),
    ],
)
def test_the_sweep_drives_again_whatever_is_due(world: World, record: VmRecord, driven: bool) -> None:  # noqa: FBT001
    world.put(record)
    world.orphans.sweep()
    assert bool(world.wakeups.recovers) is driven


def test_the_sweep_leaves_an_attempt_with_a_live_lease_alone(world: World) -> None:
    record = a_vm(state=State.RECOVERING, episode=an_episode(attempt=1, running=True))
    world.put(record)
    world.store.write([Change("vm-1", 1, record, take=Take("worker", 30_000))])
    world.orphans.sweep()
    assert world.wakeups.recovers == []


def test_the_sweep_drives_a_stop_that_was_lost(world: World) -> None:
    world.boot(desired=Desired.STOPPED)
    world.orphans.sweep()
    assert world.wakeups.stops == ["vm-1"]


def test_a_vm_unhealthy_for_a_whole_interval_without_anybody_at_work_becomes_an_orphan(world: World) -> None:
    world.boot(state=State.UNHEALTHY, since_ms=NOW_MS - 60_000, episode=an_episode())
    world.orphans.sweep()
    assert world.state() is State.ORPHANED


def test_the_sweep_bounds_the_logs_of_every_vm(world: World) -> None:
    world.boot("vm-1")
    world.boot("vm-2")
    world.orphans.sweep()
    assert sorted(world.bounded) == ["vm-1", "vm-2"]


def test_a_vmm_without_a_record_is_reported_once_and_left_alone(world: World) -> None:
    world.host.boot("vm-9")
    for _ in range(3):
        world.reconciliation.sweep()

    assert [event.kind for event in world.events] == [EventKind.STRAY]
    assert [stray.running.vm_id for stray in world.found_strays] == ["vm-9"]
    assert len(world.host.alive) == 1


def test_a_vmm_beside_the_one_of_the_record_is_reported(world: World) -> None:
    world.boot()
    world.host.alive.clear()
    world.host.boot("vm-1")
    world.reconciliation.sweep()
    assert [stray.running.vm_id for stray in world.found_strays] == ["vm-1"]


def test_a_vmm_of_its_record_is_no_stray(world: World) -> None:
    world.boot()
    world.reconciliation.sweep()
    assert world.found_strays == []


def test_a_vm_that_fell_out_of_the_schedule_is_put_back(world: World) -> None:
    world.boot()
    world.rows["vm-1"].due_ms = None
    world.reconciliation.sweep()
    assert world.rows["vm-1"].due_ms == NOW_MS


def test_the_vms_of_a_silent_host_are_unknown_and_nothing_is_started(world: World) -> None:
    world.put(a_vm("vm-1", host="host-b"), a_lost_vm("vm-2", host="host-b"), a_vm("vm-3", host="host-c"))
    world.silent = ["host-b"]

    world.reconciliation.sweep()

    assert world.state("vm-1") is State.UNKNOWN
    assert world.state("vm-2") is State.ORPHANED
    assert world.state("vm-3") is State.HEALTHY
    assert world.wakeups.recovers == []


def test_a_vm_whose_host_came_back_is_judged_again(world: World) -> None:
    world.boot(state=State.UNKNOWN)
    world.checks.check(["vm-1"])
    assert world.state() is State.HEALTHY


def test_an_inconclusive_look_is_told_and_changes_nothing(world: World) -> None:
    world.boot()
    world.host.evidence["vm-1"] = Evidence.MONITOR_FAULT
    world.checks.check(["vm-1"])
    assert world.telemetry.looks == [("vm-1", Evidence.MONITOR_FAULT)]
    assert world.state() is State.HEALTHY
