"""Health checks and sweeps against fakes: batches, deadlines, and who is woken."""

from dataclasses import replace

import pytest

from tests.support.builders import (
    NOW_MS,
    a_lost_vm,
    a_process,
    a_vm,
    an_episode,
)
from tests.support.fakes import Wake, World
from workers.domain.audit import EventKind
from workers.domain.errors import StoreUnavailable
from workers.domain.evidence import Evidence, Verdict
from workers.domain.vm import Desired, State, VmRecord
from workers.ports import Change, Ended, Take


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
