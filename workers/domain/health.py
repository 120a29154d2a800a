"""What an observation does to a record: counters, thresholds, transitions, and when to look again."""

from dataclasses import dataclass, replace
from typing import assert_never

from workers.domain.audit import Event, EventKind, event
from workers.domain.evidence import Evidence, Observation, Ruling, Verdict
from workers.domain.recovery import CrashPolicy, lose, withdraw
from workers.domain.storm import Loss
from workers.domain.vm import Desired, Episode, EpisodeEnd, Reason, State, VmRecord, move

ACTOR = "health_check"

# Here an attempt, or a person, owns what happens next; a failing check adds nothing.
_SETTLED = frozenset({State.ORPHANED, State.UNHEALTHY, State.FAILED})
_ONE_PASS_IS_ENOUGH = frozenset({State.STARTING, State.UNKNOWN, State.HEALTHY})


@dataclass(frozen=True, slots=True)
class HealthPolicy:
    """Durations in ms; thresholds are counts of consecutive verdicts."""

    interval_ms: int
    timeout_ms: int
    failing_interval_ms: int
    failure_threshold: int
    recovery_threshold: int
    start_period_ms: int
    crash: CrashPolicy


@dataclass(frozen=True, slots=True)
class Judgement:
    """The record after the observation.

    `look_again_ms` overrides the ordinary interval; `due_in_ms` asks for an attempt after that long; `loss` says that
    this VM was lost just now; `stop_due` asks for the stop that is wanted to be completed.
    """

    record: VmRecord
    events: tuple[Event, ...] = ()
    look_again_ms: int | None = None
    due_in_ms: int | None = None
    loss: Loss | None = None
    stop_due: bool = False


def judge(record: VmRecord, seen: Observation, policy: HealthPolicy, now_ms: int) -> Judgement:
    """Decide what `seen` means for `record` at server time `now_ms`."""
    seen = weigh(record, seen)
    ruling = seen.ruling
    if record.desired is Desired.STOPPED:
        return _judge_stopped(record, ruling)
    if record.state is State.RECOVERING or record.attempt_running:
        return Judgement(record)
    match ruling.verdict:
        case Verdict.PASS:
            return _passed(record, policy, now_ms)
        case Verdict.INCONCLUSIVE:
            return Judgement(record, look_again_ms=policy.failing_interval_ms if record.fails else None)
        case Verdict.FAIL:
            return _failed(record, ruling, seen, policy, now_ms)
        case _:
            assert_never(ruling.verdict)


def weigh(record: VmRecord, seen: Observation) -> Observation:
    """A full backlog right behind our own unanswered probe is that probe, still waiting: the VMM does not accept."""
    unanswered = record.fails > 0 and record.doubt in (Reason.HEALTH_CHECK_FAILED, Reason.SOCKET_UNREACHABLE)
    if seen.evidence is Evidence.BACKLOG_FULL and unanswered:
        return replace(seen, evidence=Evidence.STILL_NO_ANSWER)
    return seen


def _judge_stopped(record: VmRecord, ruling: Ruling) -> Judgement:
    """A VM that is to be stopped is no orphan; nor is it stopped yet when the process we know of is gone."""
    is_gone = ruling.certain and ruling.verdict is Verdict.FAIL
    return Judgement(record, stop_due=is_gone and record.state is not State.STOPPED)


def is_known_well(record: VmRecord, policy: HealthPolicy) -> bool:
    """Whether a check that passes says nothing new, whenever it comes: nothing follows from it."""
    if record.desired is Desired.STOPPED or record.state is not State.HEALTHY or record.attempt_running:
        return False
    return record.passes == policy.recovery_threshold and record.fails == 0 and record.doubt is None


def _passed(record: VmRecord, policy: HealthPolicy, now_ms: int) -> Judgement:
    if is_known_well(record, policy):
        return Judgement(record)
    passes = min(record.passes + 1, policy.recovery_threshold)
    seen = replace(record, fails=0, passes=passes, doubt=None)
    if record.state is State.HEALTHY:
        return Judgement(replace(seen, episode=_worth_keeping(record.episode)))
    needed = 1 if record.state in _ONE_PASS_IS_ENOUGH else policy.recovery_threshold
    if passes < needed:
        return Judgement(seen, look_again_ms=policy.failing_interval_ms)
    after = move(withdraw(seen, now_ms), State.HEALTHY, now_ms=now_ms)
    why = f"{passes} consecutive checks passed"
    ended = after.episode if record.open_episode else None
    told = event(EventKind.TRANSITION, after, actor=ACTOR, why=why, before=record.state, ended=ended)
    return Judgement(after, (told,))


def _worth_keeping(episode: Episode | None) -> Episode | None:
    """Nothing ever follows from a first start that went well; in most records it would be the only episode."""
    is_over = episode is not None and episode.reason is Reason.NOT_STARTED and episode.end is EpisodeEnd.RECOVERED
    return None if is_over else episode


def _failed(record: VmRecord, ruling: Ruling, seen: Observation, policy: HealthPolicy, now_ms: int) -> Judgement:
    reason = ruling.reason or Reason.HEALTH_CHECK_FAILED
    if reason is Reason.NOT_STARTED:
        return _not_started(record, seen, now_ms)
    if record.state in _SETTLED:
        return Judgement(replace(record, passes=0))
    if ruling.certain:
        return _lose(record, State.ORPHANED, reason, seen=seen, policy=policy, now_ms=now_ms)
    if record.state is State.STARTING and now_ms - record.since_ms < policy.start_period_ms:
        return Judgement(record, look_again_ms=policy.failing_interval_ms)
    doubted = replace(record, fails=record.fails + 1, passes=0, doubt=reason)
    if doubted.fails >= min(policy.failure_threshold, ruling.at_most or policy.failure_threshold):
        to = State.UNHEALTHY if reason is Reason.HEALTH_CHECK_FAILED else State.ORPHANED
        return _lose(doubted, to, reason, seen=seen, policy=policy, now_ms=now_ms)
    after = move(doubted, State.DEGRADED, now_ms=now_ms)
    changed = after.state is not record.state
    events = (event(EventKind.TRANSITION, after, actor=ACTOR, why=_words(seen), before=record.state),)
    return Judgement(after, events if changed else (), look_again_ms=policy.failing_interval_ms)


def _not_started(record: VmRecord, seen: Observation, now_ms: int) -> Judgement:
    """It waits for its first start; also where its host was silent before it came to that."""
    due_in_ms = 0 if is_due(record, now_ms) else None
    if record.state is not State.UNKNOWN:
        return Judgement(record, due_in_ms=due_in_ms)
    after = move(record, State.STARTING, now_ms=now_ms)
    told = event(EventKind.TRANSITION, after, actor=ACTOR, why=_words(seen), before=record.state)
    return Judgement(after, (told,), due_in_ms=due_in_ms)


def _lose(
    record: VmRecord, to: State, reason: Reason, *, seen: Observation, policy: HealthPolicy, now_ms: int
) -> Judgement:
    after, events = lose(
        record, to, reason, why=_words(seen), actor=ACTOR, now_ms=now_ms, crash=policy.crash, cause=seen.cause
    )
    loss = Loss.CERTAIN if seen.ruling.certain else Loss.UNCERTAIN
    if after.open_episode is None:
        return Judgement(after, events, loss=loss)
    return Judgement(after, events, due_in_ms=max(0, after.open_episode.next_attempt_ms - now_ms), loss=loss)


def is_due(record: VmRecord, now_ms: int) -> bool:
    """Whether nothing but a wake-up is missing for an attempt: no attempt runs, none has to wait, none is forbidden."""
    if record.desired is Desired.STOPPED or record.state in (State.FAILED, State.HEALTHY, State.STOPPED):
        return False
    episode = record.open_episode
    return episode is None or (not episode.running and episode.next_attempt_ms <= now_ms)


def _words(seen: Observation) -> str:
    return f"{seen.evidence}: {seen.detail}" if seen.detail else str(seen.evidence)
