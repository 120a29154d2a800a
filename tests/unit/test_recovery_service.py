"""Recovery of one VM against fakes: the order of things, and what happens when something else happens meanwhile."""

import pytest

from tests.support.builders import (
    NOW_MS,
    a_lost_vm,
    a_spec,
    a_vm,
    an_episode,
)
from tests.support.fakes import World
from workers.domain.audit import EventKind
from workers.domain.errors import Unwanted
from workers.domain.evidence import Evidence
from workers.domain.recovery import WakeUp
from workers.domain.vm import Desired, EpisodeEnd, State
from workers.ports import Change, Take
from workers.services.recovery import Finished, ForHost, Ignored, Result, RetryIn, Waiting
from workers.simulator.host import Faults

BY_HAND = WakeUp(request_id="request-1", actor="alice")


def recover(world: World, wake: WakeUp | None = None, vm_id: str = "vm-1") -> Result:
    return world.recovery.recover(vm_id, wake or WakeUp())


@pytest.fixture
def world() -> World:
    return World()


def test_a_dead_vm_is_started_again_and_its_new_process_watched(world: World) -> None:
    world.put(a_lost_vm())

    result = recover(world)

    assert isinstance(result, Finished)
    record = world.record()
    assert record.state is State.HEALTHY
    assert record.process is not None
    assert record.process.pid in world.host.alive
    assert world.watched == {"vm-1": record.process}
    assert world.host.started == [("vm-1", record.generation)]
    assert not world.store.read(["vm-1"]).found["vm-1"].leased
    assert world.kinds() == [EventKind.ATTEMPT_STARTED, EventKind.RECOVERED]


def test_what_the_manager_told_only_this_host_keeps_a_vm_from_being_started(world: World) -> None:
    def told_to_stop(vm_id: str, _asked: int, _seen: int) -> None:
        raise Unwanted(vm_id, "stopping")

    world.put(a_lost_vm())
    world.host.check_generation = told_to_stop

    recover(world)

    episode = world.record().open_episode
    assert world.host.started == []
    assert episode is not None
    assert (episode.attempt, world.record().state) == (0, State.ORPHANED)


def test_a_hung_vm_is_fenced_before_the_new_one_starts(world: World) -> None:
    old = world.host.boot("vm-1", hung=True)
    world.put(a_lost_vm(state=State.UNHEALTHY, process=old.process))

    assert isinstance(recover(world), Finished)

    assert old.process.pid not in world.host.alive
    assert len(world.host.alive) == 1
    assert world.host.doubled == []


def test_a_vm_that_answers_again_is_left_alone(world: World) -> None:
    vmm = world.host.boot("vm-1")
    world.put(a_lost_vm(state=State.UNHEALTHY, process=vmm.process))

    assert isinstance(recover(world), Finished)

    assert list(world.host.alive) == [vmm.process.pid]
    assert world.host.started == []
    assert world.record().state is State.HEALTHY
    assert world.record().episode is not None


def test_a_vmm_the_record_does_not_know_is_taken_over_not_doubled(world: World) -> None:
    unknown = world.host.boot("vm-1", generation=9)
    world.put(a_lost_vm())

    assert isinstance(recover(world), Finished)

    assert world.record().process == unknown.process
    assert world.host.started == []
    assert EventKind.ADOPTED in world.kinds()


def test_a_guarded_vmm_the_record_does_not_know_and_that_does_not_serve_is_fenced(world: World) -> None:
    world.host.boot("vm-1", generation=9, hung=True)
    world.put(a_lost_vm())

    assert isinstance(recover(world), Finished)
    assert len(world.host.alive) == 1
    assert world.host.doubled == []


def test_a_vmm_left_by_a_start_that_was_cut_short_is_no_recovery(world: World) -> None:
    half = world.host.boot("vm-1", generation=9)
    world.put(
        a_vm(
            state=State.RECOVERING, generation=9, episode=an_episode(attempt=1, running=True, attempt_started_ms=NOW_MS)
        )
    )
    world.host.evidence["vm-1"] = Evidence.DRIFT

    result = recover(world)

    assert isinstance(result, RetryIn)
    world.clock.advance(result.wait_ms)
    assert isinstance(recover(world, result.wake), Finished)
    assert half.process.pid not in world.host.alive
    assert len(world.host.started) == 1
    assert world.host.doubled == []


def test_a_known_vmm_that_was_paused_is_left_alone(world: World) -> None:
    vmm = world.host.boot("vm-1")
    world.put(a_lost_vm(state=State.UNHEALTHY, process=vmm.process))
    world.host.evidence["vm-1"] = Evidence.DRIFT
    assert isinstance(recover(world), Finished)
    assert list(world.host.alive) == [vmm.process.pid]


def test_an_unguarded_stranger_that_says_it_is_the_vm_is_never_signalled(world: World) -> None:
    stranger = world.host.boot("vm-1", guarded=False, hung=True)
    world.put(a_lost_vm())

    result = recover(world)

    assert isinstance(result, RetryIn)
    assert list(world.host.alive) == [stranger.process.pid]
    assert world.record().episode == a_lost_vm().episode
    assert world.kinds() == [EventKind.DEFERRED]


@pytest.mark.parametrize(
    "evidence", [Evidence.MONITOR_FAULT, Evidence.FOREIGN_PLACE, Evidence.BACKLOG_FULL, Evidence.UNKNOWN_STATE]
)
def test_what_we_cannot_judge_is_left_alone_and_costs_no_attempt(world: World, evidence: Evidence) -> None:
    vmm = world.host.boot("vm-1")
    world.put(a_lost_vm(process=vmm.process))
    world.host.evidence["vm-1"] = evidence

    assert isinstance(recover(world), RetryIn)

    assert list(world.host.alive) == [vmm.process.pid]
    assert world.record().episode == a_lost_vm().episode


def test_a_paused_host_does_nothing_and_spends_no_attempt(world: World) -> None:
    world.put(a_lost_vm())
    world.host.paused = True

    assert isinstance(recover(world), Ignored)

    assert world.host.started == []
    assert world.record() == a_lost_vm()
    assert world.kinds() == [EventKind.DEFERRED]
    world.host.paused = False
    assert isinstance(recover(world), Finished)


def test_a_failed_attempt_is_written_down_with_the_time_of_the_next_one(world: World) -> None:
    world.put(a_lost_vm())
    world.host.faults["vm-1"] = Faults(refuse_starts=1)

    result = recover(world)

    assert isinstance(result, RetryIn)
    assert result.wait_ms == world.policy.retry_interval_ms
    assert result.wake.attempt == 2
    record = world.record()
    assert record.state is State.ORPHANED
    assert record.episode is not None
    assert record.episode.next_attempt_ms == world.clock.now_ms + world.policy.retry_interval_ms


def test_three_failed_attempts_end_in_failed_and_nothing_is_tried_again(world: World) -> None:
    world.put(a_lost_vm())
    world.host.faults["vm-1"] = Faults(refuse_starts=9)
    wake = WakeUp()
    for _ in range(2):
        result = recover(world, wake)
        assert isinstance(result, RetryIn)
        wake = result.wake
        world.clock.advance(result.wait_ms)

    assert isinstance(recover(world, wake), Finished)

    assert world.record().state is State.FAILED
    assert isinstance(recover(world, wake), Ignored)
    assert isinstance(recover(world), Ignored)
    assert len(world.host.started) == 3


def test_an_early_wake_up_waits_for_the_rest(world: World) -> None:
    world.put(a_lost_vm(episode=an_episode(attempt=1, next_attempt_ms=NOW_MS + 700)))
    result = recover(world)
    assert isinstance(result, RetryIn)
    assert result.wait_ms == 700
    assert world.host.started == []


def test_a_doubled_message_changes_nothing(world: World) -> None:
    world.put(a_lost_vm())
    wake = WakeUp(episode="vm-1@1", attempt=1)
    recover(world, wake)
    before = world.record()

    assert isinstance(recover(world, wake), Ignored)

    assert world.record() == before
    assert len(world.host.started) == 1


def test_nobody_acts_while_another_attempt_holds_the_lease(world: World) -> None:
    world.put(a_lost_vm())
    world.store.write([Change("vm-1", 1, a_lost_vm(), take=Take("somebody", 30_000, ()))])
    assert isinstance(recover(world), Ignored)
    assert world.host.started == []


def test_an_attempt_whose_worker_died_counts_and_waits_its_backoff(world: World) -> None:
    world.put(a_vm(state=State.RECOVERING, episode=an_episode(attempt=1, running=True, attempt_started_ms=NOW_MS)))

    result = recover(world)

    assert isinstance(result, RetryIn)
    assert result.wait_ms == world.policy.retry_interval_ms
    assert world.host.started == []
    assert world.record().state is State.ORPHANED
    world.clock.advance(result.wait_ms)
    assert isinstance(recover(world, result.wake), Finished)
    assert world.record().episode is not None
    assert world.record().episode.attempt == 2  # type: ignore[union-attr] # just checked


def test_an_attempt_whose_worker_died_after_the_start_is_completed_not_repeated(world: World) -> None:
    new = world.host.boot("vm-1", generation=9)
    world.put(a_vm(state=State.RECOVERING, generation=9, episode=an_episode(attempt=1, running=True)))

    assert isinstance(recover(world), Finished)

    episode = world.record().episode
    assert world.record().process == new.process
    assert episode is not None
    assert (episode.attempt, episode.end) == (1, EpisodeEnd.RECOVERED)
    assert world.host.started == []


def test_who_finds_no_slot_waits_in_line_and_is_woken_by_who_frees_one() -> None:
    world = World(limits={"per_host": 1})
    world.put(a_lost_vm("vm-1"))
    world.put(a_lost_vm("vm-2"))
    world.host.during_fence = world.host.during_start = lambda _vm_id: None

    def meanwhile(_vm_id: str) -> None:
        world.host.during_start = lambda _again: None
        assert isinstance(recover(world, vm_id="vm-2"), Waiting)

    world.host.during_start = meanwhile
    recover(world, vm_id="vm-1")

    assert [wake.vm_id for wake in world.wakeups.recovers] == ["vm-2"]
    assert [e.vm_id for e in world.events if e.kind is EventKind.DEFERRED] == ["vm-2"]
    assert isinstance(recover(world, vm_id="vm-2"), Finished)
    assert world.record("vm-2").episode is not None
    assert world.record("vm-2").episode.attempt == 1  # type: ignore[union-attr] # just checked


def test_a_stop_that_comes_before_the_spawn_wins(world: World) -> None:
    old = world.host.boot("vm-1", hung=True)
    world.put(a_lost_vm(state=State.UNHEALTHY, process=old.process))
    world.host.during_fence = lambda _vm_id: world.update(desired=Desired.STOPPED)

    result = recover(world)

    assert isinstance(result, Finished)
    assert world.record().state is State.STOPPED
    assert world.host.alive == {}
    assert world.host.started == []


def test_a_stop_that_comes_during_the_start_wins_and_is_told(world: World) -> None:
    world.put(a_lost_vm())
    world.host.during_start = lambda _vm_id: world.update(desired=Desired.STOPPED)

    recover(world)

    assert world.record().state is State.STOPPED
    assert world.host.alive == {}
    assert EventKind.STOPPED_AGAIN in world.kinds()


def test_a_vm_forgotten_during_its_recovery_leaves_no_new_process(world: World) -> None:
    world.put(a_lost_vm())
    world.host.during_start = world.forget

    recover(world)

    assert world.host.alive == {}
    assert world.rows == {}


def test_a_record_that_is_lost_with_the_data_is_no_wish_to_end_the_vm(world: World) -> None:
    world.put(a_lost_vm())
    world.host.during_start = world.rows.__delitem__

    assert isinstance(recover(world), Ignored)

    assert [vmm.vm_id for vmm in world.host.alive.values()] == ["vm-1"]


def test_a_spec_changed_meanwhile_does_not_keep_the_attempt_from_its_commit(world: World) -> None:
    world.put(a_lost_vm())
    world.host.during_start = lambda _vm_id: world.update(priority=9)

    assert isinstance(recover(world), Finished)

    assert world.record().state is State.HEALTHY
    assert world.record().priority == 9


def test_an_attempt_that_lost_its_lease_writes_and_kills_nothing(world: World) -> None:
    world.put(a_lost_vm())

    def stall(_vm_id: str) -> None:
        world.clock.advance(world.policy.lease_ms + 1)
        row = world.rows["vm-1"]
        row.owner, row.lease_end_ms, row.token = "successor", world.clock.now_ms + 30_000, 99

    world.host.during_start = stall
    before_events = len(world.events)

    assert isinstance(recover(world), Ignored)

    assert len(world.host.alive) == 1, "the successor finds it by its lock"
    assert world.record().state is State.RECOVERING
    assert [event.kind for event in world.events[before_events:]] == [EventKind.ATTEMPT_STARTED]


def test_an_attempt_that_lost_its_lease_before_the_spawn_spawns_nothing(world: World) -> None:
    old = world.host.boot("vm-1", hung=True)
    world.put(a_lost_vm(state=State.UNHEALTHY, process=old.process))
    world.host.during_fence = lambda _vm_id: world.clock.advance(world.policy.lease_ms + 1)

    assert isinstance(recover(world), Ignored)
    assert world.host.started == []


def test_without_redis_nothing_is_started(world: World) -> None:
    old = world.host.boot("vm-1", hung=True)
    world.put(a_lost_vm(state=State.UNHEALTHY, process=old.process))
    world.host.during_fence = lambda _vm_id: setattr(world.server, "away", True)

    recover(world)

    world.server.away = False
    assert world.host.started == []
    assert world.record().state is State.RECOVERING


def test_a_vmm_that_cannot_be_killed_is_never_doubled(world: World) -> None:
    stuck = world.host.boot("vm-1", hung=True, unkillable=True)
    world.put(a_lost_vm(state=State.UNHEALTHY, process=stuck.process))

    result = recover(world)

    assert isinstance(result, Finished)
    assert result.state is State.FAILED
    assert "state D" in result.why
    assert world.host.started == []
    assert not world.store.read(["vm-1"]).found["vm-1"].leased


def test_a_stop_during_an_attempt_that_cannot_fence_claims_nothing(world: World) -> None:
    stuck = world.host.boot("vm-1", hung=True, unkillable=True)
    world.put(a_lost_vm(state=State.UNHEALTHY, process=stuck.process))
    world.host.during_fence = lambda _vm_id: world.update(desired=Desired.STOPPED)

    recover(world)

    assert list(world.host.alive) == [stuck.process.pid]
    assert world.record().state is not State.STOPPED


@pytest.mark.parametrize("allowed", [False, True])
def test_ephemeral_disks_are_started_again_only_where_their_loss_is_allowed(allowed: bool) -> None:  # noqa: FBT001
    world = World(allow_data_loss=allowed)
    hung = world.host.boot("vm-1", hung=True)
    world.put(a_lost_vm(state=State.UNHEALTHY, process=hung.process))
    world.rows["vm-1"].spec = a_spec(durability={"disks": "ephemeral"})

    result = recover(world)

    assert isinstance(result, Finished)
    assert result.state is (State.HEALTHY if allowed else State.FAILED)
    assert (hung.process.pid in world.host.alive) is not allowed
    assert allowed or "allow_data_loss" in result.why


def test_the_first_start_of_a_vm_with_ephemeral_disks_loses_nothing(world: World) -> None:
    world.put(a_vm(state=State.STARTING, process=None))
    world.rows["vm-1"].spec = a_spec(durability={"disks": "ephemeral"})
    recover(world)
    assert world.record().state is State.HEALTHY


def test_a_vm_of_another_host_is_forwarded(world: World) -> None:
    world.put(a_lost_vm(host="host-b"))
    assert recover(world) == ForHost("host-b")


def test_an_unknown_vm_is_ignored(world: World) -> None:
    assert isinstance(recover(world, vm_id="vm-9"), Ignored)


def test_a_request_by_hand_gets_a_vm_out_of_failed_once(world: World) -> None:
    world.put(a_vm(state=State.FAILED, episode=an_episode(attempt=3, end=EpisodeEnd.FAILED)))

    assert isinstance(recover(world, BY_HAND), Finished)
    assert world.record().state is State.HEALTHY
    world.host.kill("vm-1")
    assert isinstance(recover(world, BY_HAND), Ignored)
    assert len(world.host.started) == 1


def test_a_request_by_hand_never_kills_a_healthy_vm(world: World) -> None:
    vmm = world.host.boot("vm-1")
    world.put(a_vm(process=vmm.process))
    assert isinstance(recover(world, BY_HAND), Ignored)
    assert list(world.host.alive) == [vmm.process.pid]


def test_a_desired_stop_brings_the_vm_down_without_a_slot() -> None:
    world = World(limits={"per_host": 1})
    vmm = world.host.boot("vm-1")
    world.put(a_vm(process=vmm.process, desired=Desired.STOPPED))
    world.put(a_lost_vm("vm-2"))
    world.store.write([Change("vm-2", 1, a_lost_vm("vm-2"), take=Take("busy", 30_000, ()))])

    assert isinstance(world.recovery.stop("vm-1"), Finished)

    assert world.host.alive == {}
    assert world.record().state is State.STOPPED
    assert EventKind.STOPPED_AGAIN not in world.kinds()


def test_a_stop_is_not_carried_out_for_a_vm_that_should_run(world: World) -> None:
    vmm = world.host.boot("vm-1")
    world.put(a_vm(process=vmm.process))
    assert isinstance(world.recovery.stop("vm-1"), Ignored)
    assert list(world.host.alive) == [vmm.process.pid]


def test_a_write_between_look_and_admission_makes_the_look_be_taken_again(world: World) -> None:
    world.put(a_lost_vm())

    def healed(changes: object) -> None:
        del changes
        world.store.before_write = lambda _changes: None
        vmm = world.host.boot("vm-1", generation=9)
        world.update(process=vmm.process)

    world.store.before_write = healed
    recover(world)

    assert len(world.host.alive) == 1
    assert world.host.started == []
    assert world.host.doubled == []


def test_with_recovery_switched_off_only_what_a_person_asked_for_is_done_also_after_waiting() -> None:
    world = World(limits={"per_host": 1}, enabled=False)
    for vm_id in ("vm-1", "vm-2"):
        world.put(a_lost_vm(vm_id))
    assert isinstance(recover(world), Ignored)
    world.store.write([Change("vm-2", 1, a_lost_vm("vm-2"), take=Take("busy", 30_000, ()))])
    assert isinstance(recover(world, BY_HAND), Waiting)

    world.clock.advance(30_000)
    world.tending.tend()

    assert world.wakeups.woken == ["vm-1"]
    (wake,) = world.wakeups.recovers
    assert isinstance(recover(world, WakeUp(wake.episode, wake.attempt)), Finished)
    assert world.record().state is State.HEALTHY
