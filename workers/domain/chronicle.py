"""What the event stream tells about one VM: its attempts, and what was seen of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from workers.domain.audit import Event, EventKind
from workers.domain.evidence import RULINGS, Evidence, Ruling
from workers.domain.vm import Reason, State
from workers.domain.words import iso

_ENDS = frozenset({State.FAILED, State.STOPPED, State.HEALTHY})


class Told(Protocol):
    """An event, and when it was written: server time in ms."""

    @property
    def at_ms(self) -> int: ...

    @property
    def event(self) -> Event: ...


@dataclass(frozen=True, slots=True)
class Tried:
    """One attempt. `ended_ms` 0: it has not ended; `outcome` is `runs`, `failed`, `recovered` or `withdrawn`."""

    number: int
    started_ms: int
    actor: str
    generation: int | None
    ended_ms: int = 0
    outcome: str = "runs"
    error: str | None = None


def attempts_of(events: Iterable[Told], trace_id: str) -> list[Tried]:
    """Return the attempts of this episode, in order. One that did not count has its number twice."""
    found: list[Tried] = []
    for each in events:
        told = each.event
        if told.trace_id != trace_id:
            continue
        if told.kind is EventKind.ATTEMPT_STARTED:
            found.append(Tried(told.attempt or 0, each.at_ms, told.actor, told.generation))
        elif found and not found[-1].ended_ms and (outcome := _outcome(told)):
            error = _error_in(told) if outcome == "failed" else None
            found[-1] = replace(found[-1], ended_ms=each.at_ms, outcome=outcome, error=error)
    return found


def _error_in(told: Event) -> str:
    """What went wrong last, without the id that it begins with."""
    return told.why.rpartition("; last: ")[2].removeprefix(f"vm {told.vm_id}: ")


def _outcome(told: Event) -> str | None:
    match told.kind:
        case EventKind.ATTEMPT_FAILED:
            return "failed"
        case EventKind.RECOVERED:
            return "recovered"
        case EventKind.TRANSITION | EventKind.ADOPTED if told.after in _ENDS:
            return "failed" if told.after is State.FAILED else "withdrawn"
        case _:
            return None


def tried_fields(tried: Tried) -> dict[str, Any]:
    return {
        "attempt": tried.number,
        "started": iso(tried.started_ms),
        "ended": iso(tried.ended_ms),
        "actor": tried.actor,
        "generation": tried.generation,
        "outcome": tried.outcome,
        "error": tried.error,
    }


@dataclass(frozen=True, slots=True)
class Sight:
    """What was found by a look that changed something, and what it counts for."""

    evidence: Evidence
    detail: str
    at_ms: int

    @property
    def ruling(self) -> Ruling:
        return RULINGS[self.evidence]

    @property
    def words(self) -> str:
        return f"{self.evidence}: {self.detail}" if self.detail else str(self.evidence)


def sight_fields(seen: Sight | None, reason: str | None) -> dict[str, Any]:
    """`reason` is the one that is known where nothing tells what was seen."""
    ruling = seen.ruling if seen else None
    return {
        "evidence": str(seen.evidence) if seen else None,
        "detail": seen.detail if seen else None,
        "verdict": str(ruling.verdict) if ruling else None,
        "certain": ruling.certain if ruling else None,
        "reason": str(ruling.reason) if ruling and ruling.reason else reason,
        "seen": iso(seen.at_ms) if seen else None,
    }


def last_sight(events: Sequence[Told]) -> Sight | None:
    """Return the last one that an event tells of; what changed nothing is in no event."""
    return next((seen for each in reversed(events) if (seen := _sight(each))), None)


def _sight(each: Told) -> Sight | None:
    if each.event.kind is not EventKind.TRANSITION:
        return None
    name, _, detail = each.event.why.partition(": ")
    return Sight(Evidence(name), detail, each.at_ms) if name in _NAMES else None


def failures_needed(doubt: Reason | None, threshold: int) -> int:
    """Return after how many failures in a row, with such a reason, a VM is lost."""
    stricter = [ruling.at_most for ruling in RULINGS.values() if ruling.reason is doubt and ruling.at_most]
    return min([threshold, *stricter])


_NAMES = frozenset(map(str, Evidence))
