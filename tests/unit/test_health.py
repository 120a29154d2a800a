"""What observations do to a record: thresholds, certainty, doubt."""

from dataclasses import replace

import pytest

from tests.support.builders import NOW_MS, a_health_policy, a_lost_vm, a_process, a_vm, an_episode, seen
from workers.domain.audit import EventKind
from workers.domain.evidence import RULINGS, Evidence, Observation, Sockets, Verdict, doubt_the_monitor
from workers.domain.health import Judgement, judge
from workers.domain.vm import Desired, EpisodeEnd, Reason, State, VmRecord

POLICY = a_health_policy()
CERTAIN = [Evidence.PROCESS_ENDED, Evidence.ZOMBIE, Evidence.PID_REUSED, Evidence.BOOTED_ANEW]
INCONCLUSIVE = [evidence for evidence in Evidence if RULINGS[evidence].verdict is Verdict.INCONCLUSIVE]
BY_THRESHOLD = [
    Evidence.SOCKET_MISSING,
    Evidence.SOCKET_REFUSED,
    Evidence.NO_ANSWER,
    Evidence.BROKEN_ANSWER,
    Evidence.SERVER_ERROR,
    Evidence.GUEST_FAILED,
]


def after(record: VmRecord, *looks: Evidence, every_ms: int = 2000) -> Judgement:
    judgement = Judgement(record)
    for number, evidence in enumerate(looks):
        judgement = judge(judgement.record, seen(evidence), POLICY, NOW_MS + number * every_ms)
    return judgement


def test_every_evidence_has_a_ruling() -> None:
    assert set(RULINGS) == set(Evidence)


@pytest.mark.parametrize("evidence", CERTAIN)
def test_a_certain_death_needs_no_threshold(evidence: Evidence) -> None:
    judgement = after(a_vm(), evidence)

    assert judgement.record.state is State.ORPHANED
    assert judgement.record.open_episode is not None
    assert judgement.record.open_episode.reason is Reason.PROCESS_DEAD
    assert judgement.due_in_ms == 0


@pytest.mark.parametrize("evidence", BY_THRESHOLD)
def test_two_failures_raise_doubt_and_the_third_one_wakes_recovery(evidence: Evidence) -> None:
    doubted = after(a_vm(), evidence, evidence)
    lost = after(a_vm(), evidence, evidence, evidence)

    assert doubted.record.state is State.DEGRADED
    assert doubted.look_again_ms == POLICY.failing_interval_ms
    assert doubted.due_in_ms is None
    assert lost.record.state is (
        State.UNHEALTHY if RULINGS[evidence].reason is Reason.HEALTH_CHECK_FAILED else State.ORPHANED
    )
    assert lost.due_in_ms == 0


@pytest.mark.parametrize("evidence", [Evidence.OTHER_LISTENER, Evidence.OTHER_VM])
def test_an_answer_of_somebody_else_is_confirmed_by_a_second_look(evidence: Evidence) -> None:
    assert after(a_vm(), evidence).record.state is State.DEGRADED
    lost = after(a_vm(), evidence, evidence)
    assert lost.record.state is State.ORPHANED
    assert lost.record.open_episode is not None
    assert lost.record.open_episode.reason is Reason.PROCESS_MISMATCH


@pytest.mark.parametrize("evidence", INCONCLUSIVE)
def test_what_we_could_not_tell_never_counts_towards_killing(evidence: Evidence) -> None:
    judgement = after(a_vm(), *[evidence] * 50)

    assert judgement.record == a_vm()
    assert judgement.due_in_ms is None


def test_inconclusive_looks_do_not_wash_away_failures() -> None:
    looks = [Evidence.NO_ANSWER, Evidence.MONITOR_FAULT, Evidence.NO_ANSWER, Evidence.MONITOR_FAULT, Evidence.NO_ANSWER]
    assert after(a_vm(), *looks).record.state is State.UNHEALTHY


def test_a_full_backlog_alone_is_inconclusive_but_behind_our_own_unanswered_probe_it_is_a_failure() -> None:
    assert after(a_vm(), *[Evidence.BACKLOG_FULL] * 5).record.state is State.HEALTHY
    hung = after(a_vm(), Evidence.NO_ANSWER, Evidence.BACKLOG_FULL, Evidence.BACKLOG_FULL)
    assert hung.record.state is State.UNHEALTHY


def test_one_pass_between_failures_starts_the_count_anew() -> None:
    looks = [Evidence.NO_ANSWER, Evidence.NO_ANSWER, Evidence.ANSWERS, Evidence.NO_ANSWER, Evidence.NO_ANSWER]
    assert after(a_vm(), *looks).record.state is State.DEGRADED


def test_a_degraded_vm_is_healthy_again_after_two_passes() -> None:
    degraded = after(a_vm(), Evidence.NO_ANSWER).record
    first = judge(degraded, seen(Evidence.ANSWERS), POLICY, NOW_MS)
    second = judge(first.record, seen(Evidence.ANSWERS), POLICY, NOW_MS)

    assert first.record.state is State.DEGRADED
    assert first.look_again_ms == POLICY.failing_interval_ms
    assert second.record.state is State.HEALTHY


def test_a_steadily_healthy_vm_changes_nothing() -> None:
    settled = after(a_vm(), Evidence.ANSWERS, Evidence.ANSWERS).record
    again = judge(settled, seen(Evidence.ANSWERS), POLICY, NOW_MS)

    assert again == Judgement(settled)


def test_an_orphan_that_passes_twice_is_withdrawn_from_recovery() -> None:
    judgement = after(a_lost_vm(), Evidence.ANSWERS, Evidence.ANSWERS)

    assert judgement.record.state is State.HEALTHY
    assert judgement.record.episode is not None
    assert judgement.record.episode.end is EpisodeEnd.WITHDRAWN


def test_failures_in_the_start_period_do_not_count_but_a_death_does() -> None:
    starting = a_vm(state=State.STARTING, since_ms=NOW_MS)

    assert after(starting, *[Evidence.SOCKET_MISSING] * 10).record == starting
    assert after(starting, Evidence.PROCESS_ENDED).record.state is State.ORPHANED


def test_failures_after_the_start_period_count() -> None:
    starting = a_vm(state=State.STARTING, since_ms=NOW_MS - POLICY.start_period_ms)
    assert after(starting, *[Evidence.SOCKET_MISSING] * 3).record.state is State.ORPHANED


@pytest.mark.parametrize("evidence", [Evidence.PROCESS_ENDED, Evidence.NO_ANSWER, Evidence.ANSWERS])
def test_a_check_leaves_a_running_attempt_alone(evidence: Evidence) -> None:
    recovering = a_vm(state=State.RECOVERING, episode=an_episode(attempt=1, running=True))
    assert judge(recovering, seen(evidence), POLICY, NOW_MS) == Judgement(recovering)


@pytest.mark.parametrize("evidence", CERTAIN)
def test_an_announced_stop_is_no_orphan(evidence: Evidence) -> None:
    judgement = after(a_vm(desired=Desired.STOPPED), evidence)

    assert judgement.record.state is State.HEALTHY, "whether nothing else runs is for the stop to find out"
    assert judgement.stop_due
    assert judgement.due_in_ms is None
    assert not after(a_vm(desired=Desired.STOPPED, state=State.STOPPED), evidence).stop_due


def test_a_vm_to_be_stopped_that_fails_checks_is_not_recovered() -> None:
    judgement = after(a_vm(desired=Desired.STOPPED), *[Evidence.NO_ANSWER] * 10)
    assert judgement.record.state is State.HEALTHY
    assert judgement.due_in_ms is None


def test_a_vm_that_was_never_started_asks_for_its_first_attempt() -> None:
    new = a_vm(state=State.STARTING, process=None, generation=0)
    assert after(new, Evidence.NOT_STARTED) == Judgement(new, due_in_ms=0)


def test_a_failed_vm_asks_for_nothing_however_often_it_fails() -> None:
    failed = a_vm(state=State.FAILED, episode=an_episode(attempt=3, end=EpisodeEnd.FAILED))
    judgement = after(failed, *[Evidence.PROCESS_ENDED] * 5)
    assert judgement.record.state is State.FAILED
    assert judgement.due_in_ms is None


def test_a_vm_that_dies_again_too_soon_goes_on_with_its_episode_and_waits_for_its_backoff() -> None:
    recovered = an_episode(
        attempt=1, end=EpisodeEnd.RECOVERED, ended_ms=NOW_MS - 5_000, next_attempt_ms=NOW_MS + 25_000
    )
    judgement = after(a_vm(episode=recovered), Evidence.PROCESS_ENDED)

    assert judgement.record.open_episode is not None
    assert judgement.record.open_episode.attempt == 1
    assert judgement.due_in_ms == 25_000


def test_a_first_start_is_no_recovery_to_go_on_with() -> None:
    started = an_episode(reason=Reason.NOT_STARTED, attempt=1, end=EpisodeEnd.RECOVERED, ended_ms=NOW_MS - 5_000)
    judgement = after(a_vm(episode=started), Evidence.PROCESS_ENDED)

    assert judgement.record.open_episode is not None
    assert judgement.record.open_episode.attempt == 0
    assert judgement.due_in_ms == 0


def test_a_vm_that_was_stable_begins_a_new_episode() -> None:
    recovered = an_episode(attempt=2, end=EpisodeEnd.RECOVERED, ended_ms=NOW_MS - POLICY.crash.stable_period_ms)
    judgement = after(a_vm(episode=recovered), Evidence.PROCESS_ENDED)

    assert judgement.record.open_episode is not None
    assert judgement.record.open_episode.attempt == 0
    assert judgement.due_in_ms == 0


def test_an_older_episode_is_not_told_as_the_reason_of_a_new_doubt() -> None:
    recovered = an_episode(attempt=1, end=EpisodeEnd.RECOVERED, ended_ms=NOW_MS - 5_000)
    (event,) = after(a_vm(episode=recovered), Evidence.SOCKET_MISSING).events
    assert (event.reason, event.attempt) == (Reason.SOCKET_UNREACHABLE, None)
    (event,) = after(a_lost_vm(), Evidence.ANSWERS, Evidence.ANSWERS).events
    assert event.reason is Reason.PROCESS_DEAD, "the episode that this pass ended"


def test_every_transition_is_one_event_that_says_why() -> None:
    judgement = judge(a_vm(), Observation(Evidence.PROCESS_ENDED, "pid 100"), POLICY, NOW_MS)

    (event,) = judgement.events
    assert event.kind is EventKind.TRANSITION
    assert (event.before, event.after) == (State.HEALTHY, State.ORPHANED)
    assert event.why == "process_ended: pid 100"
    assert event.reason is Reason.PROCESS_DEAD


@pytest.mark.parametrize(("gone", "of", "doubted"), [(4, 8, False), (5, 10, True), (5, 11, False), (300, 500, True)])
def test_many_sockets_gone_at_once_are_the_monitors_fault(gone: int, of: int, doubted: bool) -> None:  # noqa: FBT001
    """However few of the VMs are looked at, the whole host counts."""
    looks = {"gone": seen(Evidence.SOCKET_MISSING), "hung": seen(Evidence.NO_ANSWER), "fine": seen(Evidence.ANSWERS)}

    result = doubt_the_monitor(looks, None, Sockets(gone, of), at_least=5, share=0.5)

    assert result["gone"].evidence is (Evidence.MONITOR_FAULT if doubted else Evidence.SOCKET_MISSING)
    assert (result["hung"], result["fine"]) == (looks["hung"], looks["fine"])


def test_looking_from_another_place_says_nothing_about_a_process() -> None:
    elsewhere = replace(a_process(), machine_id="machine-2")
    assert after(a_vm(process=elsewhere), *[Evidence.FOREIGN_PLACE] * 9).record.state is State.HEALTHY
