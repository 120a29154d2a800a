"""What the benchmark of deaths found, in figures and tables; reads what others wrote down, and measures nothing."""

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.figures import Better, Figure, shown
from tests.benchmarks.timed_worker import BEGAN, CHECKED, KNOWN, RECEIVED
from workers.crashpoints import Point

KNOWN_P99_MS = 5.0
BEYOND_P50_MS, BEYOND_P99_MS = 25.0, 100.0

# The way of a recovery, as the worker passes it: what it has just done at each point.
STAGES: Sequence[tuple[str, str]] = (
    (KNOWN, "killed, and the watcher knows"),
    (Point.BEFORE_VERDICTS, "record read and judged, the check logged"),
    (Point.BEFORE_CALL, "record written, its events told"),
    (Point.AFTER_CALL, "message published"),
    (RECEIVED, "broker, to the consumer"),
    (BEGAN, "to a thread of the pool"),
    (Point.RECORD_READ, "record read"),
    (Point.LOOKED, "kill switch, lock, processes and API looked at"),
    (Point.BEFORE_ADMISSION, "gates"),
    (Point.AFTER_ADMISSION, "admitted: lease, slots, breakers, attempt"),
    (Point.FENCED, "the old process fenced off"),
    (Point.LOCKED, "images looked at, lock taken"),
    (Point.BEFORE_INTENT, "no other VMM of this VM in /proc"),
    (Point.AFTER_INTENT, "intent on the disk"),
    (Point.BEFORE_EXEC, "still wanted: record read again"),
    (Point.AFTER_EXEC, "VMM executed"),
    (Point.AFTER_IDENTITY, "identity on the disk"),
    (Point.CONFIGURED, "its API came up (its own time), configured"),
    (Point.VERIFIED, "its API says that it runs this VM"),
    (Point.BEFORE_END, "record read again, result judged"),
    (Point.AFTER_END, "committed: record, slots, audit; told"),
)


@dataclass(frozen=True, slots=True)
class Note:
    at: float
    name: str
    detail: str = ""


@dataclass(slots=True)
class Lost:
    """One VM that was killed: monotonic seconds of what followed; `marks` are of its worker, the others from outside.

    `recorded` and `back` are when who waits for the audit in Redis has read the loss, and the recovery.
    """

    vm_id: str
    killed: float
    recorded: float = math.nan
    back: float = math.nan
    marks: Mapping[str, float] = field(default_factory=dict)

    @property
    def known_ms(self) -> float:
        """A check may see it before the watcher's thread has its turn: then that is when it was known."""
        first = min(self.marks.get(KNOWN, math.inf), self.marks.get(Point.BEFORE_VERDICTS, math.inf))
        return (first - self.killed) * 1000

    @property
    def recorded_ms(self) -> float:
        return (self.recorded - self.killed) * 1000

    @property
    def back_ms(self) -> float:
        return (self.back - self.killed) * 1000


@dataclass(frozen=True, slots=True)
class Run:
    """Deaths one after the other, and how long the same VMM takes from exec to its API, measured right before."""

    deaths: Sequence[Lost]
    bare_ms: Sequence[float]
    checks_per_s: float = 0.0

    @property
    def beyond_ms(self) -> list[float]:
        own = statistics.median(self.bare_ms)
        return [death.back_ms - own for death in self.deaths]


def notes_of(text: str) -> Iterator[Note]:
    """Read what a timed worker wrote; a line that is being written is left out."""
    for line in text.splitlines(keepends=True):
        if line.endswith("\n"):
            at, name, *detail = line.split()
            yield Note(float(at), name, " ".join(detail))


def mark(deaths: Sequence[Lost], notes: Iterable[Note]) -> None:
    """Give each death the first note of each name between its kill and the next one's: they came one at a time."""
    ordered = sorted(notes, key=lambda note: note.at)
    ends = [*(death.killed for death in deaths[1:]), math.inf]
    position = 0
    for death, end in zip(deaths, ends, strict=True):
        marks: dict[str, float] = {}
        while position < len(ordered) and ordered[position].at < end:
            note = ordered[position]
            if note.at >= death.killed and note.detail in ("", death.vm_id):
                marks.setdefault(note.name, note.at)
            position += 1
        death.marks = marks


def checks_per_s(notes: Iterable[Note], began: float, ended: float) -> float:
    done = sum(int(note.detail) for note in notes if note.name == CHECKED and began <= note.at < ended)
    return done / (ended - began)


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of all does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def figures_of(runs: Mapping[str, Sequence[Run]]) -> Iterator[Figure]:
    """`runs` by what was going on, as in "stand-in VMM, idle"."""
    for name, each in runs.items():
        known = [[death.known_ms for death in run.deaths] for run in each]
        beyond = [run.beyond_ms for run in each]
        yield Figure(f"death known, {name}: p50", "ms", [percentile(run, 0.5) for run in known])
        yield Figure(f"death known, {name}: p99", "ms", [percentile(run, 0.99) for run in known], limit=KNOWN_P99_MS)
        yield Figure(f"death known, {name}: most", "ms", [max(run) for run in known])
        recorded = [percentile([death.recorded_ms for death in run.deaths], 0.5) for run in each]
        yield Figure(f"loss read in the audit, {name}: p50", "ms", recorded)
        yield Figure(f"VMM alone, {name}: exec to API, p50", "ms", [percentile(run.bare_ms, 0.5) for run in each])
        back = [percentile([death.back_ms for death in run.deaths], 0.5) for run in each]
        yield Figure(f"death to verified, {name}: p50", "ms", back)
        p50, p99 = ([percentile(run, share) for run in beyond] for share in (0.5, 0.99))
        yield Figure(f"beyond the VMM's start, {name}: p50", "ms", p50, limit=BEYOND_P50_MS)
        yield Figure(f"beyond the VMM's start, {name}: p99", "ms", p99, limit=BEYOND_P99_MS)


def ratio(name: str, over: Sequence[Run], under: Sequence[Run]) -> Figure:
    """How much longer a death takes to verified in `over` than in `under`, run by run."""
    pairs = zip(over, under, strict=False)
    values = [_back_p50(one) / _back_p50(other) for one, other in pairs]
    return Figure(name, "ratio", values, Better.LOWER)


def _back_p50(run: Run) -> float:
    return percentile([death.back_ms for death in run.deaths], 0.5)


def stages(deaths: Sequence[Lost]) -> dict[str, list[float]]:
    """Return by stage how many ms passed since the point before, of each death that passed both."""
    took: dict[str, list[float]] = {}
    for death in deaths:
        before = death.killed
        for point, stage in STAGES:
            at = death.marks.get(point)
            if at is not None and at >= before:
                took.setdefault(stage, []).append((at - before) * 1000)
                before = at
    return took


def stage_table(columns: Mapping[str, Sequence[Run]]) -> str:
    """Where the milliseconds go: p50 and p99 of each stage, a pair of columns for each of `columns`."""
    found = {name: stages([death for run in runs for death in run.deaths]) for name, runs in columns.items()}
    width = max(len(stage) for _, stage in STAGES) + 2
    letters = dict(zip(found, "ABCDEFGH", strict=False))
    lines = [*(f"{letter}: {name}" for name, letter in letters.items()), ""]
    lines += ["ms".ljust(width) + "".join(f"{letter + ' p50':>9}{'p99':>8}" for letter in letters.values())]
    lines += [
        stage.ljust(width) + "".join(_cells(took.get(stage, ())) for took in found.values()) for _, stage in STAGES
    ]
    return "\n".join(lines)


def _cells(values: Sequence[float]) -> str:
    if not values:
        return f"{'-':>9}{'-':>8}"
    return f"{shown(percentile(values, 0.5)):>9}{shown(percentile(values, 0.99)):>8}"
