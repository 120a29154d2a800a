"""What the benchmark beside the peers found: its tables and figures; measures nothing."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain

from tests.benchmarks.figures import Better, Figure, shown

OURS = "this system"
FIRST_ANSWER = "this system, first answer"
RECORDED = "this system, on record"
AGAIN = "this system, lost again"
RAISED = "this system, 16 at once"
BARE = "VMM alone"
SUPERVISORD, EAGER, RUNIT, MONIT = "supervisord", "supervisord, startsecs 0", "runit", "monit"
_ORDER = (OURS, FIRST_ANSWER, RECORDED, AGAIN, RAISED, RUNIT, SUPERVISORD, EAGER, MONIT)

# Issue 6: figures to reach.
_TIMES_FASTER, _TIMES_RUNIT = 10.0, 3.0
_BEYOND_P50_MS, _BEYOND_P99_MS = 25.0, 100.0


class Case(StrEnum):
    OLD = "one at a time, old"
    YOUNG = "one at a time, young"
    MANY_OLD = "many at once, old"
    MANY_YOUNG = "many at once, young"

    @property
    def is_many(self) -> bool:
        return self in (Case.MANY_OLD, Case.MANY_YOUNG)


Key = tuple[Case, str]


@dataclass(slots=True)
class Findings:
    """Milliseconds from the kill to the answer, by case and by who brought it back, one list per round.

    `oldest_s` is the age of the oldest process of a case when it was killed; `ideal_ms` what its caps allow.
    `missing` says of supervisors that are not there how to install them, `skipped` why a case of others
    was not measured.
    """

    at_once: int
    vmm: Mapping[bool, str]
    ms: dict[Key, list[list[float]]] = field(default_factory=dict)
    oldest_s: dict[Key, float] = field(default_factory=dict)
    ideal_ms: dict[Key, list[float]] = field(default_factory=dict)
    bare_ms: dict[bool, list[float]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    skipped: dict[Key, str] = field(default_factory=dict)

    def add(self, case: Case, who: str, took_ms: Sequence[float], *, begins_round: bool = True) -> None:
        rounds = self.ms.setdefault((case, who), [])
        if begins_round or not rounds:
            rounds.append([])
        rounds[-1] += took_ms

    def all_ms(self, case: Case, who: str) -> list[float]:
        return list(chain.from_iterable(self.ms.get((case, who), [])))


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the least of the values that is not exceeded by so many percent of them."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def report(found: Findings) -> str:
    return "\n\n".join("\n".join(_table(found, case)) for case in Case if any(key[0] is case for key in found.ms))


def _table(found: Findings, case: Case) -> Iterator[str]:
    number = f" ({found.at_once})" if case.is_many else ""
    yield f"{case}{number}: {found.vmm[case.is_many]} killed, ms until its API answers from a new process"
    rows = [("", "p50", "p99", "least-most", "runs", ""), *_rows(found, case)]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]))]
    for row in rows:
        yield "".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _rows(found: Findings, case: Case) -> Iterator[tuple[str, ...]]:
    bare = found.bare_ms.get(case.is_many)
    if bare:
        yield _row(BARE, bare, "no supervisor: from its start")
    for who in _ORDER:
        if ms := found.all_ms(case, who):
            yield _row(who, ms, _note(found, (case, who)))
    skipped = {who: why for (of, who), why in found.skipped.items() if of is case}
    for who, why in (skipped | dict(found.missing)).items():
        yield (who, "", "", "", "", why)


def _row(who: str, ms: Sequence[float], note: str) -> tuple[str, ...]:
    least_most = f"{shown(min(ms))}-{shown(max(ms))}"
    return (who, shown(statistics.median(ms)), shown(percentile(ms, 99)), least_most, str(len(ms)), note)


def _note(found: Findings, key: Key) -> str:
    ideal = found.ideal_ms.get(key)
    parts = [f"oldest {found.oldest_s[key]:.1f} s"] if key in found.oldest_s else []
    parts += [f"its caps allow {shown(statistics.median(ideal))} ms"] if ideal else []
    return ", ".join(parts)


def figures_of(found: Findings) -> list[Figure]:
    return [*_ratios(found), *_over_ideal(found), *_beyond_bare(found), *_times(found)]


def _ratios(found: Findings) -> Iterator[Figure]:
    """Of medians where one dies at a time, of the time until all are back where many do; one value per round."""
    for case in Case:
        for peer in (SUPERVISORD, EAGER, MONIT):
            limit = _TIMES_FASTER if case is Case.OLD or (case is Case.YOUNG and peer != EAGER) else None
            yield from _ratio(found, case, (peer, OURS), Better.HIGHER, limit)
        limit = _TIMES_RUNIT if case is Case.OLD else None
        yield from _ratio(found, case, (OURS, RUNIT), Better.LOWER, limit)


def _ratio(found: Findings, case: Case, pair: tuple[str, str], better: Better, limit: float | None) -> Iterator[Figure]:
    over, under = (found.ms.get((case, who), []) for who in pair)
    middle = max if case.is_many else statistics.median
    values = [middle(a) / middle(b) for a, b in zip(over, under, strict=False)]
    if values:
        yield Figure(f"{case}: {' over '.join(pair)}", "ratio", values, better, limit)


def _over_ideal(found: Findings) -> Iterator[Figure]:
    for (case, who), ideal in found.ideal_ms.items():
        if case.is_many:
            took = [max(of_round) for of_round in found.ms[case, who]]
            values = [one / best for one, best in zip(took, ideal, strict=True)]
            yield Figure(f"{case}: {who} over what its caps allow", "ratio", values)


def _beyond_bare(found: Findings) -> Iterator[Figure]:
    bare = found.bare_ms.get(False)
    ours = found.all_ms(Case.OLD, OURS)
    if bare and ours:
        beyond = [took - statistics.median(bare) for took in ours]
        yield Figure(f"{Case.OLD}: this system beyond the VMM's own start", "ms", beyond, limit=_BEYOND_P50_MS)
        p99 = percentile(beyond, 99)
        yield Figure(f"{Case.OLD}: the same, p99", "ms", [p99], limit=_BEYOND_P99_MS)


def _times(found: Findings) -> Iterator[Figure]:
    for case, who in sorted(found.ms, key=lambda key: _ORDER.index(key[1])):
        rounds = found.ms[case, who]
        ms = [max(of_round) for of_round in rounds] if case.is_many else found.all_ms(case, who)
        yield Figure(f"{case}: {who}{', all back' if case.is_many else ''}", "ms", ms)
