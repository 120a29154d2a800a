"""Episodes and attempts: when a loss begins one, whether an attempt may act now, and what each outcome does."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from workers.domain.audit import Event, EventKind, event
from workers.domain.backoff import delay_ms
from workers.domain.breaker import Result
from workers.domain.exits import ExitAction, ExitTable, action_for
from workers.domain.modes import InForce, Mode, Modes
from workers.domain.vm import Desired, Episode, EpisodeEnd, Force, Incarnation, Reason, State, VmRecord, move

ACTOR = "recovery"

_ACTED = "this request has acted already"
_RECOVERABLE = frozenset({State.STARTING, State.UNHEALTHY, State.ORPHANED, State.RECOVERING})
# What a plain request takes up; the others need the word that a VM which may be well is to be killed.
_ASKABLE = _RECOVERABLE | {State.FAILED}
MAYBE_WELL = frozenset({State.HEALTHY, State.DEGRADED, State.UNKNOWN})


@dataclass(frozen=True, slots=True)
class CrashPolicy:
    """What the end of a VMM means for the VM's next episode.

    A VM that is lost again within `stable_period_ms` goes on with its last episode. An end that is no failure (a guest
    that rebooted) begins a new one, but not more than `restart_burst` times in a row. After `max_retries` there is
    nothing to wait for.
    """

    stable_period_ms: int
    max_retries: int
    restart_burst: int = 5
    exits: Mapping[str, ExitTable] = field(default_factory=dict)

    def action_for(self, driver: str, cause: str | None) -> ExitAction:
        return action_for(self.exits, driver, cause)


@dataclass(frozen=True, slots=True)
class RecoveryPolicy:
    """Durations in ms. `max_retries` counts attempts in all; `recovery_timeout_ms` the time spent inside them."""

    max_retries: int
    retry_interval_ms: int
    backoff_factor: float
    max_retry_interval_ms: int
    recovery_timeout_ms: int
    lease_ms: int
    crash: CrashPolicy
    # Off: only what a person asks for is done.
    enabled: bool = True
    breakers: bool = True
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
    """What a message says. Messages come late, twice or by hand, so each names what it was meant for, if anything.

    `tries` counts how often it came too early or could not be followed yet.
    """

    episode: str | None = None
    attempt: int | None = None
    request_id: str | None = None
    actor: str = ACTOR
    tries: int = 0
    force: Force = Force.PLAIN

    @property
    def is_manual(self) -> bool:
        return self.request_id is not None


def needs_attempt(record: VmRecord) -> bool:
    """Whether an attempt, now or later, is all that can help this VM."""
    return record.desired is Desired.RUNNING and record.state in _RECOVERABLE


@dataclass(frozen=True, slots=True)
class Act:
    """An attempt may be admitted."""


@dataclass(frozen=True, slots=True)
class Requested:
    """A person asks for something new: it is written into the record first, and lives on there."""


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


Gate = Act | Requested | NotYet | Stale | Exhausted | Abandoned


def gate(  # noqa: PLR0911 - one early return per way out
    record: VmRecord, wake: WakeUp, policy: RecoveryPolicy, *, leased: bool, now_ms: int, switched_on: bool = True
) -> Gate:
    """Say whether `wake` may lead to an attempt on `record`, whose lease is held by somebody if `leased`.

    `switched_on`: nobody has switched recovery off for it at run time.
    """
    if record.desired is Desired.STOPPED:
        return Stale("vm is to be stopped")
    if leased:
        return Stale("an attempt is in flight")
    if record.attempt_running:
        return Abandoned()
    if _asks_anew(record, wake):
        return Requested() if _may_ask(record, wake) else Stale(f"vm is {record.state}")
    if why := _why_stale(record, wake, policy, switched_on=switched_on):
        return Stale(why)
    episode = record.open_episode
    if episode is None:
        return Act()
    if policy.is_exhausted(episode):
        return Exhausted(_exhaustion(episode, policy))
    if episode.next_attempt_ms > now_ms:
        # A repeated request is no second message for the attempt that waits.
        return Stale(_ACTED) if wake.is_manual else NotYet(episode.next_attempt_ms - now_ms)
    return Act()


def _may_ask(record: VmRecord, wake: WakeUp) -> bool:
    return record.state in _ASKABLE or (wake.force is Force.KILL_HEALTHY and record.state in MAYBE_WELL)


def _why_stale(record: VmRecord, wake: WakeUp, policy: RecoveryPolicy, *, switched_on: bool) -> str | None:
    episode = record.open_episode
    if record.state not in _RECOVERABLE:
        return f"vm is {record.state}"
    if not (policy.enabled and switched_on) and (episode is None or episode.request_id is None):
        return _ACTED if wake.is_manual else "recovery is switched off"
    return "message of an older attempt or episode" if _is_for_another(episode, wake) else None


def _asks_anew(record: VmRecord, wake: WakeUp) -> bool:
    """Each request is taken up once, however often its message comes."""
    taken_up = {record.last_request, record.episode.request_id if record.episode else None}
    return wake.is_manual and wake.request_id not in taken_up


def request(record: VmRecord, wake: WakeUp, policy: RecoveryPolicy, *, now_ms: int) -> tuple[VmRecord, Event]:
    """Take up what a person asked for: an attempt is due now, whatever the backoff, also after the last one failed."""
    episode = record.open_episode
    if episode is None or policy.is_exhausted(episode):
        reason = Reason.NOT_STARTED if record.state is State.STARTING else Reason.MANUAL
        episode = _new_episode(record, reason, now_ms)
    to = State.ORPHANED if record.state in MAYBE_WELL | {State.FAILED} else record.state
    asked = replace(episode, next_attempt_ms=now_ms, request_id=wake.request_id, force=wake.force)
    after = replace(move(record, to, now_ms=now_ms), episode=asked, last_request=wake.request_id)
    how = "" if wake.force is Force.PLAIN else f" ({wake.force})"
    why = f"recovery requested{how}: an attempt is due now"
    return after, event(EventKind.OVERRIDE, after, actor=wake.actor, why=why, before=record.state)


def _is_for_another(episode: Episode | None, wake: WakeUp) -> bool:
    if wake.episode is None:
        return False
    if episode is None or episode.id != wake.episode:
        return True
    return wake.attempt is not None and wake.attempt <= episode.attempt


def _exhaustion(episode: Episode, policy: RecoveryPolicy) -> str:
    if episode.attempt >= policy.max_retries and episode.error is None:
        return f"each of {episode.attempt} attempts brought it back, and it did not stay"
    if episode.attempt >= policy.max_retries:
        return f"{episode.attempt} of {policy.max_retries} attempts failed; last: {episode.error}"
    return f"{episode.spent_ms} ms of {policy.recovery_timeout_ms} ms spent; last: {episode.error}"


def lose(
    record: VmRecord,
    to: State,
    reason: Reason,
    *,
    why: str,
    actor: str,
    now_ms: int,
    crash: CrashPolicy,
    cause: str | None = None,
) -> tuple[VmRecord, tuple[Event, ...]]:
    """Open an episode, or go on with the last one where the VM did not stay up; give up where starting cannot help."""
    action = crash.action_for(record.driver, cause)
    episode, restarts = _next_episode(record, reason, action, now_ms, crash)
    moved = move(record, to, now_ms=now_ms)
    after = replace(moved, episode=episode, restarts=restarts, last_exit=cause or record.last_exit)
    events = (event(EventKind.TRANSITION, after, actor=actor, why=why, before=record.state),)
    if action is not ExitAction.NEVER:
        return after, events
    failed, told = fail(after, never_again(cause), now_ms=now_ms)
    return failed, (*events, told)


def never_again(cause: str | None) -> str:
    return f"{cause}: starting it again would end the same way; mend its configuration"


def _next_episode(
    record: VmRecord, reason: Reason, action: ExitAction, now_ms: int, crash: CrashPolicy
) -> tuple[Episode, int]:
    """Return the episode, and how many restarts in a row were no failure."""
    last = record.episode
    if last is not None and last.is_open:
        return last, record.restarts
    is_stable = last is None or not _is_unstable_since(last, now_ms, crash.stable_period_ms)
    restarts = 0 if is_stable else record.restarts
    if action is ExitAction.RESTART and restarts < crash.restart_burst:
        return _new_episode(record, reason, now_ms), restarts + 1
    if last is None or is_stable:
        return _new_episode(record, reason, now_ms), 0
    waits_until_ms = now_ms if last.attempt >= crash.max_retries else last.next_attempt_ms
    # Its time counts from this loss: in between it served.
    again = replace(last, reason=reason, started_ms=now_ms, end=None, ended_ms=0, running=False, request_id=None)
    return replace(again, next_attempt_ms=waits_until_ms), restarts


def _new_episode(record: VmRecord, reason: Reason, now_ms: int) -> Episode:
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


def admit(
    record: VmRecord, wake: WakeUp, policy: RecoveryPolicy, *, now_us: int, seen_generation: int = 0
) -> tuple[VmRecord, Event]:
    """Begin the next attempt: number, generation and the earliest time of the one after it, before anything is done.

    The generation grows also where the record was lost or rolled back: beyond server time and what the host has seen.
    """
    now_ms = now_us // 1000
    episode = record.open_episode or _new_episode(record, Reason.NOT_STARTED, now_ms)
    attempt = episode.attempt + 1
    begun = replace(
        episode,
        attempt=attempt,
        running=True,
        attempt_started_ms=now_ms,
        next_attempt_ms=now_ms + policy.backoff_ms(attempt + 1),
        # The word that a VM which is well may be killed is good for one attempt.
        force=Force.PLAIN if episode.force is Force.PLAIN else Force.FORCE,
    )
    to = State.STARTING if begun.reason is Reason.NOT_STARTED else State.RECOVERING
    generation = max(record.generation + 1, seen_generation + 1, now_us)
    after = replace(move(record, to, now_ms=now_ms), episode=begun, generation=generation, held=None)
    why = f"attempt {attempt} of {policy.max_retries}"
    return after, event(EventKind.ATTEMPT_STARTED, after, actor=wake.actor, why=why, before=record.state)


def attempt_result(before: VmRecord, after: VmRecord) -> Result | None:
    """Say what the end of an attempt counts for in the breakers; None where none ended, or it says nothing."""
    if not before.attempt_running or after.attempt_running or after.desired is Desired.STOPPED:
        return None
    recovered = after.episode is not None and after.episode.end is EpisodeEnd.RECOVERED
    return Result.SUCCESS if recovered else Result.FAILURE


def fail_attempt(
    record: VmRecord, error: str, policy: RecoveryPolicy, *, now_ms: int, jitter: float, counts: bool = True
) -> tuple[VmRecord, Event]:
    """End the running attempt without success; the VM waits for the next one, or a person is asked.

    One that says nothing about the VM (the kill switch cut it short) does not count: its number is given again.
    """
    episode = _running(record)
    failed = replace(
        episode,
        attempt=episode.attempt if counts else episode.attempt - 1,
        running=False,
        error=error,
        spent_ms=episode.spent_ms + max(0, now_ms - episode.attempt_started_ms),
        next_attempt_ms=now_ms + policy.backoff_ms(episode.attempt + 1, jitter),
    )
    if policy.is_exhausted(failed):
        return fail(replace(record, episode=failed), _exhaustion(failed, policy), now_ms=now_ms, error=error)
    to = State.STARTING if failed.reason is Reason.NOT_STARTED else State.ORPHANED
    after = replace(move(record, to, now_ms=now_ms), episode=failed)
    return after, event(EventKind.ATTEMPT_FAILED, after, actor=ACTOR, why=error, before=record.state)


def fail(record: VmRecord, why: str, *, now_ms: int, error: str | None = None) -> tuple[VmRecord, Event]:
    """End the episode: only a person, or the VM itself, gets it out of `failed`. `error` is what went wrong last."""
    reason = Reason.NOT_STARTED if record.process is None else record.doubt or Reason.MANUAL
    episode = record.open_episode or _new_episode(record, reason, now_ms)
    ended = replace(episode, running=False, end=EpisodeEnd.FAILED, ended_ms=now_ms, error=error or why)
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


STOP = "stopped"
RECOVER = "recovered"


def hold_back(record: VmRecord, by: InForce, what: str) -> tuple[VmRecord, Event] | None:
    """Say once per hold and episode what is not done because of it; None where it was said.

    `what` is RECOVER or STOP: the word after "would have".
    """
    token = _token(record, by, what)
    if record.held == token:
        return None
    episode = record.open_episode
    after = replace(record, held=token)
    is_observed = by.mode is Mode.OBSERVE_ONLY
    kind = EventKind.WOULD_HAVE if is_observed else EventKind.HELD
    does = f"would have {what} it" if is_observed else f"not {what}"
    told = event(kind, after, actor=ACTOR, why=f"{does}: {by.words}")
    attempt = episode.attempt + 1 if episode and what == RECOVER else None
    return after, replace(told, scope=by.scope, attempt=attempt)


def held_by(record: VmRecord, modes: Modes, now_ms: int) -> InForce | None:
    """What keeps anybody from recovering this VM; a person's forced request goes before all of them."""
    return modes.in_force(record, now_ms) if record.force is Force.PLAIN else None


def is_told(record: VmRecord, by: InForce) -> bool:
    """Whether it was said what is not done to this VM because of `by`."""
    return record.held in {_token(record, by, what) for what in (RECOVER, STOP)}


def _token(record: VmRecord, by: InForce, what: str) -> str:
    episode = record.open_episode
    return f"{by.hold.id}:{by.mode}:{what}:{episode.id if episode else ''}"


def reset(record: VmRecord, *, actor: str, why: str, now_ms: int) -> tuple[VmRecord, Event] | None:
    """Clear what was counted against a VM; one that was given up is tried anew by the ordinary rules.

    None where an episode is open, or there is nothing to clear.
    """
    episode = record.episode
    if record.open_episode is not None or (episode is None and not record.restarts):
        return None
    if record.state is State.FAILED and episode is not None:
        to = State.STARTING if record.process is None else State.ORPHANED
        anew = _new_episode(record, episode.reason, now_ms)
    else:
        to, anew = record.state, None
    after = replace(move(record, to, now_ms=now_ms), episode=anew, restarts=0)
    return after, event(EventKind.RESET, after, actor=actor, why=why, before=record.state)


def stopped(record: VmRecord, *, why: str, now_ms: int) -> tuple[VmRecord, Event]:
    """The process of a VM that should not run is gone."""
    cleared = replace(record, process=None, socket=None, fails=0, passes=0, doubt=None, held=None)
    after = move(withdraw(cleared, now_ms), State.STOPPED, now_ms=now_ms)
    return after, event(EventKind.TRANSITION, after, actor=ACTOR, why=why, before=record.state)


def _running(record: VmRecord) -> Episode:
    episode = record.open_episode
    if episode is None or not episode.running:
        raise ValueError(f"vm {record.vm_id}: no attempt is running")
    return episode
