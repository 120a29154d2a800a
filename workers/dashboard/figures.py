"""How well recovery did over the last day, counted from the audit: how long it took, and how often it succeeded."""

from collections import deque
from dataclasses import dataclass
from typing import Any

from workers.domain.audit import Event, EventKind
from workers.domain.vm import LOSS_REASONS, State
from workers.store.events import Entry

DAY_MS = 24 * 3_600_000
_LOST = frozenset({State.UNHEALTHY, State.ORPHANED})
_BROUGHT_BACK = frozenset({EventKind.RECOVERED, EventKind.ADOPTED})


@dataclass(frozen=True, slots=True)
class _End:
    """`took_ms` is None where the loss is older than what was counted."""

    at_ms: int
    recovered: bool
    took_ms: int | None


class Figures:
    """Told every event once, oldest first. A VM that came back by itself is no recovery, nor is a first start."""

    def __init__(self, from_ms: int = 0) -> None:
        self.from_ms = from_ms
        self._lost_ms: dict[str, int] = {}
        self._ends: deque[_End] = deque()

    def tell(self, entry: Entry) -> None:
        event = entry.event
        if event.kind is EventKind.FORGOTTEN:
            self._lost_ms.pop(event.vm_id, None)
        elif event.after in _LOST:
            self._lost_ms.setdefault(event.vm_id, entry.at_ms)
        elif event.after in (State.HEALTHY, State.FAILED, State.STOPPED):
            self._ended(entry.at_ms, event, self._lost_ms.pop(event.vm_id, None))

    def _ended(self, at_ms: int, event: Event, lost_ms: int | None) -> None:
        recovered = event.after is State.HEALTHY and event.kind in _BROUGHT_BACK
        if not recovered and event.after is not State.FAILED:
            return
        if lost_ms is None and event.reason not in LOSS_REASONS:
            return
        self._ends.append(_End(at_ms, recovered, at_ms - lost_ms if recovered and lost_ms is not None else None))

    def document(self, now_ms: int) -> dict[str, Any]:
        """Durations in ms; None where nothing was measured. `from_ms`: since when it counts, 0 for the whole day."""
        while self._ends and self._ends[0].at_ms < now_ms - DAY_MS:
            self._ends.popleft()
        recovered = sum(end.recovered for end in self._ends)
        took = sorted(end.took_ms for end in self._ends if end.took_ms is not None)
        return {
            "from_ms": self.from_ms if self.from_ms > now_ms - DAY_MS else 0,
            "recovered": recovered,
            "failed": len(self._ends) - recovered,
            "success_rate": round(recovered / len(self._ends), 4) if self._ends else None,
            "mean_ms": round(sum(took) / len(took)) if took else None,
            "p95_ms": took[(len(took) * 95 - 1) // 100] if took else None,
        }
