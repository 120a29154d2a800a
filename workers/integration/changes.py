"""What a subscriber is told: the events that say a VM is lost, comes back, or is given up."""

from dataclasses import dataclass
from enum import StrEnum

from workers.domain.audit import Event, EventKind
from workers.domain.vm import Reason, State


class ChangeKind(StrEnum):
    UNHEALTHY = "unhealthy"
    ORPHANED = "orphaned"
    FAILED = "failed"
    RECOVERED = "recovered"


@dataclass(frozen=True, slots=True)
class Change:
    """`event_id` is the place in the event stream, and the same each time this change is told; `at_ms` server time."""

    kind: ChangeKind
    vm_id: str
    host: str
    at_ms: int
    reason: Reason | None
    attempt: int | None
    why: str
    event_id: str


_LOST = frozenset({State.UNHEALTHY, State.ORPHANED, State.RECOVERING, State.FAILED})
_BAD = {
    State.UNHEALTHY: ChangeKind.UNHEALTHY,
    State.ORPHANED: ChangeKind.ORPHANED,
    State.FAILED: ChangeKind.FAILED,
}
# An attempt that fails makes the VM an orphan again; a person's request does too, and is no loss.
_MAY_BE_BAD = frozenset({EventKind.TRANSITION, EventKind.ATTEMPT_FAILED})
_MAY_BE_BACK = frozenset({EventKind.TRANSITION, EventKind.RECOVERED, EventKind.ADOPTED})


def kind_of(event: Event) -> ChangeKind | None:
    """Say what this event is to a subscriber; None: nothing, such as a first start."""
    if event.before is event.after or event.after is None:
        return None
    if event.kind in _MAY_BE_BAD and event.after in _BAD:
        return _BAD[event.after]
    if event.kind in _MAY_BE_BACK and event.after is State.HEALTHY and event.before in _LOST:
        return ChangeKind.RECOVERED
    return None


def change_of(event_id: str, event: Event) -> Change | None:
    kind = kind_of(event)
    if kind is None:
        return None
    at_ms = int(event_id.partition("-")[0])
    return Change(kind, event.vm_id, event.host, at_ms, event.reason, event.attempt, event.why, event_id)
