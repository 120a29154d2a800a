"""The story of a simulated fleet in plain lines: what happened to it, and what was decided."""

from dataclasses import dataclass, field

from workers.domain.audit import Event, EventKind
from workers.domain.vm import State
from workers.simulator.world import World

_LOST = frozenset({State.DEGRADED, State.UNHEALTHY, State.ORPHANED})


@dataclass(frozen=True, slots=True)
class Told:
    """One line of the story as it went: a happening, or a decision; `at_s` since the story began."""

    at_s: float
    text: str
    is_happening: bool = False


@dataclass(slots=True)
class Story:
    """`begin` sets the time to zero and forgets what was before."""

    world: World
    told: list[Told] = field(default_factory=list)
    _began_us: int = 0
    _read: int = 0

    def begin(self) -> None:
        self._began_us, self._read = self.world.clockwork.now_us, len(self.world.events)

    @property
    def now_s(self) -> float:
        return (self.world.clockwork.now_us - self._began_us) / 1_000_000

    def happens(self, text: str) -> None:
        self.told.append(Told(self.now_s, text, is_happening=True))

    def listen(self) -> list[Told]:
        """Return the decisions since the last call."""
        events = self.world.events
        self._read = min(self._read, len(events))  # data may have been rolled back
        heard = [Told(self._at_s(event_id), line_of(event)) for event_id, event in events[self._read :]]
        self._read = len(events)
        self.told += heard
        return heard

    def _at_s(self, event_id: str) -> float:
        return (int(event_id.partition("-")[0]) * 1000 - self._began_us - self.world.skew_us) / 1_000_000


def line_of(event: Event) -> str:
    """Say a decision in the words of scenarios."""
    what = event.vm_id or event.scope or event.host
    kind = str(event.kind).replace("_", " ")
    match event.kind:
        case EventKind.TRANSITION:
            reason = f" ({event.reason})" if event.reason and event.after in _LOST else ""
            says = f"{what} {event.before} -> {event.after}{reason}"
        case EventKind.ATTEMPT_STARTED:
            says = f"{what} attempt {event.attempt}"
        case EventKind.ATTEMPT_FAILED:
            says = f"{what} attempt {event.attempt} failed"
        case EventKind.DEFERRED:
            says = f"{what} deferred: {event.why}"
        case EventKind.BREAKER:
            says = f"breaker {what} {event.why.partition(':')[0]}"
        case _:
            says = f"{what} {kind}"
    return says
