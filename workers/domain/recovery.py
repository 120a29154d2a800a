"""Episodes and attempts: when a loss begins one, whether an attempt may act now, and what each outcome does."""

from dataclasses import dataclass, replace

from workers.domain.audit import Event, EventKind, event
from workers.domain.backoff import delay_ms
from workers.domain.vm import Desired, Episode, EpisodeEnd, Incarnation, Reason, State, VmRecord, move

ACTOR = "recovery"

_RECOVERABLE = frozenset({State.STARTING, State.UNHEALTHY, State.ORPHANED, State.RECOVERING})


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """Durations in ms. `max_retries` counts attempts in all; `recovery_timeout_ms` the time spent inside them."""

    max_retries: int
    retry_interval_ms: int
    backoff_factor: float
    max_retry_interval_ms: int
    recovery_timeout_ms: int
    stable_period_ms: int
    lease_ms: int
    per_host: int
    per_fleet: int
    allow_data_loss: bool = False

    def backoff_ms(self, attempt: int, jitter: float = 0.0) -> int:
        return delay_ms(
            attempt,
            base_ms=self.retry_interval_ms,
            factor=self.backoff_factor,
            cap_ms=self.max_retry_interval_ms,
            jitter=jitter,
        )

    def is_exhausted(self, episode: Episode) -> bool:
        return episode.attempt >= self.max_retries or episode.spent_ms >= self.recovery_timeout_ms


@dataclass(frozen=True, slots=True)
class WakeUp:
    """What a message says. Messages come late, twice or by hand, so each names what it was meant for, if anything."""

    episode: str | None = None
    attempt: int | None = None
    request_id: str | None = None
    actor: str = ACTOR

    @property
    def is_manual(self) -> bool:
        return self.request_id is not None


@dataclass(frozen=True, slots=True)
class Act:
    """An attempt may be admitted."""


@dataclass(frozen=True, slots=True)
class NotYet:
    wait_ms: int


@dataclass(frozen=True, slots=True)
class Stale:
    """The message means nothing any more; nothing is changed."""

    why: str


@dataclass(frozen=True, slots=True)
class Exhausted:
    why: str


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The attempt that should be running has nobody behind it any more."""


Gate = Act | NotYet | Stale | Exhausted | Abandoned


def gate(record: VmRecord, wake: WakeUp, policy: RecoveryPolicy, *, leased: bool, now_ms: int) -> Gate:  # noqa: PLR0911 - one early return per way out
    """Say whether `wake` may lead to an attempt on `record`, whose lease is held by somebody if `leased`."""
    episode = record.open_episode
    if record.desired is Desired.STOPPED:
        return Stale("vm is to be stopped")
    if leased:
        return Stale("an attempt is in flight")
    if wake.is_manual:
        return _gate_manual(record, wake)
    if record.state not in _RECOVERABLE:
        return Stale(f"vm is {record.state}")
    if _is_for_another(episode, wake):
        return Stale("message of an older attempt or episode")
    if episode is None:
        return Act()
    if episode.running:
        return Abandoned()
    if policy.is_exhausted(episode):
        return Exhausted(_exhaustion(episode, policy))
    if episode.next_attempt_ms > now_ms:
        return NotYet(episode.next_attempt_ms - now_ms)
    return Act()


def _gate_manual(record: VmRecord, wake: WakeUp) -> Gate:
    """A person overrides backoff and `failed`; never a running VM, and each request acts once."""
    if record.episode is not None and record.episode.request_id == wake.request_id:
        return Stale("this request has acted already")
    if record.state not in _RECOVERABLE | {State.FAILED}:
        return Stale(f"vm is {record.state}")
    if record.attempt_running:
        return Abandoned()
    return Act()


def _is_for_another(episode: Episode | None, wake: WakeUp) -> bool:
    if wake.episode is None:
        return False
    if episode is None or episode.id != wake.episode:
        return True
    return wake.attempt is not None and wake.attempt <= episode.attempt and not episode.running


def _exhaustion(episode: Episode, policy: RecoveryPolicy) -> str:
    if episode.attempt >= policy.max_retries:
        return f"{episode.attempt} of {policy.max_retries} attempts failed; last: {episode.error}"
    return f"{episode.spent_ms} ms of {policy.recovery_timeout_ms} ms spent; last: {episode.error}"


def lose(
    record: VmRecord, to: State, reason: Reason, *, why: str, actor: str, now_ms: int, stable_period_ms: int
) -> tuple[VmRecord, tuple[Event, ...]]:
    """Open an episode, or go on with the last one where the VM did not stay up for `stable_period_ms`."""
    after = replace(move(record, to, now_ms=now_ms), episode=_next_episode(record, reason, now_ms, stable_period_ms))
    return after, (event(EventKind.TRANSITION, after, actor=actor, why=why, before=record.state),)


def _next_episode(record: VmRecord, reason: Reason, now_ms: int, stable_period_ms: int) -> Episode:
    last = record.episode
    if last is not None and last.is_open:
        return last
    if last is not None and _is_unstable_since(last, now_ms, stable_period_ms):
        return replace(last, reason=reason, end=None, ended_ms=0, running=False)
    return Episode(id=f"{record.vm_id}@{now_ms}", reason=reason, started_ms=now_ms)


def _is_unstable_since(last: Episode, now_ms: int, stable_period_ms: int) -> bool:
    """A first start is no recovery: a VM that dies soon after it begins an episode of its own."""
    recovered = last.end is EpisodeEnd.RECOVERED and last.reason is not Reason.NOT_STARTED
    return recovered and now_ms - last.ended_ms < stable_period_ms


def withdraw(record: VmRecord, now_ms: int) -> VmRecord:
    """Nothing is left to do for the open episode, if there is one."""
    episode = record.open_episode
    if episode is None:
        return record
    return replace(record, episode=replace(episode, end=EpisodeEnd.WITHDRAWN, running=False, ended_ms=now_ms))


def admit(record: VmRecord, wake: WakeUp, policy: RecoveryPolicy, *, now_us: int) -> tuple[VmRecord, Event]:
    """Begin the next attempt: number, generation and the earliest time of the one after it, before anything is done."""
    now_ms = now_us // 1000
    episode = _episode_for(record, wake, policy, now_ms)
    attempt = episode.attempt + 1
    begun = replace(
        episode,
        attempt=attempt,
        running=True,
        attempt_started_ms=now_ms,
        next_attempt_ms=now_ms + policy.backoff_ms(attempt + 1),
        request_id=wake.request_id or episode.request_id,
    )
    to = State.STARTING if begun.reason is Reason.NOT_STARTED else State.RECOVERING
    generation = max(record.generation + 1, now_us)
    after = replace(move(record, to, now_ms=now_ms), episode=begun, generation=generation)
    why = f"attempt {attempt} of {policy.max_retries}"
    return after, event(EventKind.ATTEMPT_STARTED, after, actor=wake.actor, why=why, before=record.state)


def _episode_for(record: VmRecord, wake: WakeUp, policy: RecoveryPolicy, now_ms: int) -> Episode:
    episode = record.open_episode
    if episode is not None and not (wake.is_manual and policy.is_exhausted(episode)):
        return episode
    reason = Reason.NOT_STARTED if record.state is State.STARTING else Reason.MANUAL
    return Episode(id=f"{record.vm_id}@{now_ms}", reason=reason, started_ms=now_ms)


def fail_attempt(
    record: VmRecord, error: str, policy: RecoveryPolicy, *, now_ms: int, jitter: float
) -> tuple[VmRecord, Event]:
    """End the running attempt without success; the VM waits for the next one, or a person is asked."""
    episode = _running(record)
    failed = replace(
        episode,
        running=False,
        error=error,
        spent_ms=episode.spent_ms + max(0, now_ms - episode.attempt_started_ms),
        next_attempt_ms=now_ms + policy.backoff_ms(episode.attempt + 1, jitter),
    )
    if policy.is_exhausted(failed):
        return fail(replace(record, episode=failed), _exhaustion(failed, policy), now_ms=now_ms)
    to = State.STARTING if failed.reason is Reason.NOT_STARTED else State.ORPHANED
    after = replace(move(record, to, now_ms=now_ms), episode=failed)
    return after, event(EventKind.ATTEMPT_FAILED, after, actor=ACTOR, why=error, before=record.state)


def fail(record: VmRecord, why: str, *, now_ms: int) -> tuple[VmRecord, Event]:
    """End the episode: only a person, or the VM itself, gets it out of `failed`."""
    episode = record.open_episode
    ended = replace(episode, running=False, end=EpisodeEnd.FAILED, ended_ms=now_ms) if episode else None
    after = replace(move(record, State.FAILED, now_ms=now_ms), episode=ended)
    return after, event(EventKind.TRANSITION, after, actor=ACTOR, why=why, before=record.state, ended=ended)


def succeed(
    record: VmRecord, process: Incarnation, *, why: str, now_ms: int, socket: str | None = None
) -> tuple[VmRecord, Event]:
    """The VMM `process` was seen to serve this VM: by a started and verified attempt, or by a look that found it."""
    episode = record.open_episode
    recovered = episode is not None and episode.running
    end = EpisodeEnd.RECOVERED if recovered else EpisodeEnd.WITHDRAWN
    spent = episode.spent_ms + max(0, now_ms - episode.attempt_started_ms) if episode and recovered else 0
    after = replace(
        move(record, State.HEALTHY, now_ms=now_ms),
        process=process,
        socket=socket,
        fails=0,
        passes=0,
        doubt=None,
        episode=replace(episode, running=False, end=end, ended_ms=now_ms, spent_ms=spent) if episode else None,
    )
    kind = EventKind.RECOVERED if recovered else EventKind.ADOPTED
    ended = after.episode if episode else None
    return after, event(kind, after, actor=ACTOR, why=why, before=record.state, ended=ended)


def _running(record: VmRecord) -> Episode:
    episode = record.open_episode
    if episode is None or not episode.running:
        raise ValueError(f"vm {record.vm_id}: no attempt is running")
    return episode
