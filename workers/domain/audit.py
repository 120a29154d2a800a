"""One entry of the event stream: who decided what about which VM, and why."""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from workers.domain.vm import Episode, Reason, State, VmRecord


class EventKind(StrEnum):
    REGISTERED = "registered"
    CHANGED = "changed"
    FORGOTTEN = "forgotten"
    TRANSITION = "transition"
    ATTEMPT_STARTED = "attempt_started"
    ATTEMPT_FAILED = "attempt_failed"
    RECOVERED = "recovered"
    ADOPTED = "adopted"
    DEFERRED = "deferred"
    OVERRIDE = "override"
    STOPPED_AGAIN = "stopped_again"
    STRAY = "stray"
    REAPED = "reaped"
    REBUILT = "rebuilt"
    BREAKER = "breaker"
    STORM_BEGAN = "storm_began"
    STORM_ENDED = "storm_ended"
    QUARANTINE = "quarantine"
    FROZEN = "frozen"
    THAWED = "thawed"
    CONFIRMED = "confirmed"
    UNLISTED = "unlisted"
    MODE = "mode"  # an operator mode, or a run-time flag, was set or lifted
    WOULD_HAVE = "would_have"  # observe-only: decided, and not done
    HELD = "held"  # not done because of a pause or a maintenance
    RESET = "reset"


class Deferral(StrEnum):
    """What keeps a recovery, or the end of a stray, back."""

    SLOT = "slot"
    STORM = "storm"
    BREAKER = "breaker"
    PAUSED = "paused"
    QUARANTINE = "quarantine"
    HALTED = "halted"
    DOUBT = "doubt"
    BUDGET = "budget"
    HANDED_BACK = "handed_back"


@dataclass(frozen=True, slots=True)
class Event:
    """`why` is for people; every other field is for machines. The stream's id gives the time.

    `cause` is what a deferral is due to. `trace_id` is the same for all of an episode: see `trace_id_of`. `vm_id` and
    `host` are empty where a decision is about none in particular; then `scope` says what it is about.
    """

    kind: EventKind
    vm_id: str
    host: str
    actor: str
    why: str
    before: State | None = None
    after: State | None = None
    reason: Reason | None = None
    generation: int | None = None
    attempt: int | None = None
    request_id: str | None = None
    scope: str | None = None
    cause: Deferral | None = None
    trace_id: str | None = None


def trace_id_of(episode: Episode) -> str:
    """Return the trace that tells this episode: 32 hex digits, the same for whoever works on it, wherever."""
    return hashlib.sha256(episode.id.encode()).hexdigest()[:32]


def event(
    kind: EventKind,
    record: VmRecord,
    *,
    actor: str,
    why: str,
    before: State | None = None,
    ended: Episode | None = None,
    cause: Deferral | None = None,
) -> Event:
    """Return an event that takes its ids from `record`, the record as it is after the decision.

    `ended` is the episode that this decision ended; without it, the open one is told, and never an older one.
    """
    episode = ended or record.open_episode
    return Event(
        kind=kind,
        vm_id=record.vm_id,
        host=record.host,
        actor=actor,
        why=why,
        before=before,
        after=record.state if before is not None else None,
        reason=episode.reason if episode else record.doubt,
        generation=record.generation or None,
        attempt=episode.attempt if episode and episode.attempt else None,
        request_id=episode.request_id if episode else None,
        cause=cause,
        trace_id=trace_id_of(episode) if episode else None,
    )
