"""Episodes and attempts: who may act when, and what each outcome writes down."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.builders import NOW_MS, a_lost_vm, a_process, a_recovery_policy, a_vm, an_episode
from workers.domain.audit import EventKind
from workers.domain.backoff import delay_ms
from workers.domain.errors import IllegalTransition
from workers.domain.recovery import (
    Abandoned,
    Act,
    Exhausted,
    NotYet,
    Requested,
    Stale,
    WakeUp,
    admit,
    fail,
    fail_attempt,
    gate,
    lose,
    request,
    succeed,
)
from workers.domain.vm import EDGES, Desired, EpisodeEnd, Reason, State, VmRecord, move

POLICY = a_recovery_policy()
NOW_US = NOW_MS * 1000
BY_HAND = WakeUp(request_id="request-1", actor="alice")


def gated(record: VmRecord, wake: WakeUp | None = None, *, leased: bool = False) -> object:
    return gate(record, wake or WakeUp(), POLICY, leased=leased, now_ms=NOW_MS)


def test_an_orphan_may_be_recovered() -> None:
    assert gated(a_lost_vm()) == Act()


@pytest.mark.parametrize("state", [State.HEALTHY, State.DEGRADED, State.FAILED, State.STOPPED, State.UNKNOWN])
def test_a_vm_that_needs_nothing_is_left_alone(state: State) -> None:
    assert isinstance(gated(a_vm(state=state)), Stale)


def test_a_vm_to_be_stopped_is_never_recovered_not_even_by_hand() -> None:
    stopping = a_lost_vm(desired=Desired.STOPPED)
    assert isinstance(gated(stopping), Stale)
    assert isinstance(gated(stopping, BY_HAND), Stale)


def test_nobody_acts_beside_a_live_lease() -> None:
    assert isinstance(gated(a_lost_vm(), leased=True), Stale)
    assert isinstance(gated(a_lost_vm(), BY_HAND, leased=True), Stale)


@pytest.mark.parametrize(
    "wake", [WakeUp(episode="vm-1@0"), WakeUp(episode="vm-1@1", attempt=1), WakeUp(episode="vm-1@1", attempt=0)]
)
def test_a_message_of_an_older_attempt_or_episode_changes_nothing(wake: WakeUp) -> None:
    assert isinstance(gated(a_lost_vm(episode=an_episode(attempt=1)), wake), Stale)


def test_a_wake_up_before_the_backoff_waits_for_the_rest_of_it() -> None:
    waiting = a_lost_vm(episode=an_episode(attempt=1, next_attempt_ms=NOW_MS + 1234))
    assert gated(waiting) == NotYet(1234)


def test_a_person_need_not_wait_for_the_backoff() -> None:
    waiting = a_lost_vm(episode=an_episode(attempt=1, next_attempt_ms=NOW_MS + 1234))
    assert gated(waiting, BY_HAND) == Requested()

    asked, told = request(waiting, BY_HAND, POLICY, now_ms=NOW_MS)

    assert gated(asked, BY_HAND) == Act()
    assert gated(asked) == Act(), "the record asks by itself from here on"
    assert asked.episode is not None
    assert (asked.episode.attempt, asked.episode.request_id) == (1, "request-1")
    assert (told.kind, told.actor) == (EventKind.OVERRIDE, "alice")


def test_an_attempt_without_anybody_behind_it_is_abandoned() -> None:
    abandoned = a_vm(state=State.RECOVERING, episode=an_episode(attempt=1, running=True))
    assert gated(abandoned) == Abandoned()
    assert gated(abandoned, WakeUp(episode="vm-1@1", attempt=1)) == Abandoned()
    assert gated(abandoned, BY_HAND) == Abandoned()


@pytest.mark.parametrize("spent", [{"attempt": 3}, {"attempt": 1, "spent_ms": POLICY.recovery_timeout_ms}])
def test_attempts_and_time_are_limited(spent: dict[str, int]) -> None:
    assert isinstance(gated(a_lost_vm(episode=an_episode(**spent))), Exhausted)


def test_a_person_gets_a_vm_out_of_failed_with_a_new_episode() -> None:
    failed = a_vm(state=State.FAILED, episode=an_episode(attempt=3, end=EpisodeEnd.FAILED))

    assert gated(failed, BY_HAND) == Requested()
    asked, _ = request(failed, BY_HAND, POLICY, now_ms=NOW_MS)
    assert gated(asked, BY_HAND) == Act()
    after, _ = admit(asked, BY_HAND, POLICY, now_us=NOW_US)
    assert after.state is State.RECOVERING
    assert after.episode is not None
    assert (after.episode.attempt, after.episode.reason) == (1, Reason.MANUAL)


def test_one_request_of_a_person_is_taken_up_once() -> None:
    waiting = an_episode(attempt=1, request_id="request-1", next_attempt_ms=NOW_MS + 1)
    assert isinstance(gated(a_lost_vm(episode=waiting), BY_HAND), Stale)
    ended = an_episode(attempt=1, request_id="request-1", end=EpisodeEnd.FAILED)
    assert isinstance(gated(a_vm(state=State.FAILED, episode=ended), BY_HAND), Stale)


def test_a_repeated_request_wakes_what_is_due_as_any_message_does() -> None:
    due = a_lost_vm(episode=an_episode(attempt=1, request_id="request-1"))
    assert gated(due, BY_HAND) == Act()


def test_an_attempt_is_numbered_and_its_successor_timed_before_it_acts() -> None:
    after, event = admit(a_lost_vm(), WakeUp(), POLICY, now_us=NOW_US)

    episode = after.open_episode
    assert episode is not None
    assert (episode.attempt, episode.running) == (1, True)
    assert episode.next_attempt_ms == NOW_MS + POLICY.retry_interval_ms
    assert after.state is State.RECOVERING
    assert event.kind is EventKind.ATTEMPT_STARTED


@given(generation=st.integers(0, 2**52), now_us=st.integers(0, 2**52))
def test_generations_always_grow_also_when_their_counter_was_lost(generation: int, now_us: int) -> None:
    after, _ = admit(a_lost_vm(generation=generation), WakeUp(), POLICY, now_us=now_us)
    assert after.generation > generation
    assert after.generation >= now_us


def test_the_first_start_of_a_vm_is_no_recovery() -> None:
    new = a_vm(state=State.STARTING, process=None)
    after, _ = admit(new, WakeUp(), POLICY, now_us=NOW_US)
    assert after.state is State.STARTING
    assert after.episode is not None
    assert after.episode.reason is Reason.NOT_STARTED


def test_a_failed_attempt_waits_for_the_next_one() -> None:
    running, _ = admit(a_lost_vm(), WakeUp(), POLICY, now_us=NOW_US)
    after, event = fail_attempt(running, "no kernel", POLICY, now_ms=NOW_MS + 500, jitter=0)

    episode = after.open_episode
    assert episode is not None
    assert (episode.running, episode.error, episode.spent_ms) == (False, "no kernel", 500)
    assert episode.next_attempt_ms == NOW_MS + 500 + POLICY.retry_interval_ms
    assert after.state is State.ORPHANED
    assert event.kind is EventKind.ATTEMPT_FAILED


def test_the_last_attempt_that_fails_asks_for_a_person() -> None:
    running = a_vm(state=State.RECOVERING, episode=an_episode(attempt=3, running=True, attempt_started_ms=NOW_MS))
    after, event = fail_attempt(running, "no kernel", POLICY, now_ms=NOW_MS, jitter=0)

    assert after.state is State.FAILED
    assert after.open_episode is None
    assert "no kernel" in event.why


def test_success_ends_the_episode_and_forgets_the_doubts() -> None:
    running, _ = admit(a_lost_vm(fails=3, doubt=Reason.HEALTH_CHECK_FAILED), WakeUp(), POLICY, now_us=NOW_US)
    after, event = succeed(running, a_process(pid=200), why="serves", now_ms=NOW_MS + 20)

    assert after.state is State.HEALTHY
    assert after.process == a_process(pid=200)
    assert (after.fails, after.doubt) == (0, None)
    assert after.episode is not None
    assert after.episode.end is EpisodeEnd.RECOVERED
    assert event.kind is EventKind.RECOVERED


def test_a_vm_found_serving_counts_as_no_recovery() -> None:
    after, event = succeed(a_lost_vm(), a_process(pid=200), why="found", now_ms=NOW_MS)
    assert after.episode is not None
    assert after.episode.end is EpisodeEnd.WITHDRAWN
    assert event.kind is EventKind.ADOPTED


def test_failing_ends_the_episode() -> None:
    after, _ = fail(a_lost_vm(), "exhausted", now_ms=NOW_MS)
    assert after.state is State.FAILED
    assert after.open_episode is None


def test_only_the_edges_of_the_table_are_legal() -> None:
    for before in State:
        for to in State:
            record = a_vm(state=before)
            if to is before or to in EDGES[before]:
                assert move(record, to, now_ms=NOW_MS).state is to
            else:
                with pytest.raises(IllegalTransition):
                    move(record, to, now_ms=NOW_MS)


def test_every_state_can_be_left_and_reached() -> None:
    assert all(EDGES[state] for state in State)
    assert set().union(*EDGES.values()) == set(State)


def test_staying_in_a_state_does_not_renew_its_age() -> None:
    record = a_vm(since_ms=5)
    assert move(record, State.HEALTHY, now_ms=NOW_MS) == record


@given(
    attempt=st.integers(1, 10_000),
    base=st.integers(1, 10**6),
    factor=st.floats(1, 100),
    jitter=st.floats(0, 1, exclude_max=True),
)
def test_waits_grow_are_bounded_and_jitter_only_adds(attempt: int, base: int, factor: float, jitter: float) -> None:
    cap = 10 * base
    plain = delay_ms(attempt, base_ms=base, factor=factor, cap_ms=cap)
    jittered = delay_ms(attempt, base_ms=base, factor=factor, cap_ms=cap, jitter=jitter)
    following = delay_ms(attempt + 1, base_ms=base, factor=factor, cap_ms=cap)

    assert (plain == 0) == (attempt == 1)
    assert plain <= following <= cap
    assert plain <= jittered <= cap * 1.1


def test_the_default_waits_are_none_30_s_and_60_s() -> None:
    assert [POLICY.backoff_ms(attempt) for attempt in (1, 2, 3)] == [0, 30_000, 60_000]


def test_a_late_wake_up_for_the_attempt_that_is_due_still_acts() -> None:
    due = a_lost_vm(episode=an_episode(attempt=1, next_attempt_ms=NOW_MS - 1))
    assert gated(due, WakeUp(episode="vm-1@1", attempt=2)) == Act()


def test_spent_time_adds_up_over_attempts() -> None:
    once = a_vm(
        state=State.RECOVERING, episode=an_episode(attempt=2, running=True, attempt_started_ms=NOW_MS, spent_ms=70)
    )
    after, _ = fail_attempt(once, "x", replace(POLICY, max_retries=9), now_ms=NOW_MS + 30, jitter=0)
    assert after.episode is not None
    assert after.episode.spent_ms == 100


def test_a_request_that_was_taken_up_is_not_taken_up_again_in_a_later_episode() -> None:
    asked, _ = request(a_lost_vm(), BY_HAND, POLICY, now_ms=NOW_MS)
    begun, _ = admit(asked, BY_HAND, POLICY, now_us=NOW_US)
    recovered, _ = succeed(begun, a_process(pid=200), why="serves", now_ms=NOW_MS)
    again, _ = lose(
        recovered,
        State.ORPHANED,
        Reason.PROCESS_DEAD,
        why="gone",
        actor="test",
        now_ms=NOW_MS + 1,
        crash=POLICY.crash,
    )
    assert isinstance(gated(again, BY_HAND), Stale)
    assert gated(again, WakeUp(request_id="request-2")) == Requested()
