"""The ratios that were measured before, and what moved since: reads documents of runs, measures nothing itself.

Kept in `ratios.json` are ratios alone, each measured side by side in one run, with the commit that measured them.
Times, bytes and the like belong to one machine and are never kept. Form of a document: `figures.document`.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from tests.benchmarks.figures import Better, Figure, shown

KEPT = Path(__file__).with_name("ratios.json")
TOLERANCE = 0.10  # of the kept median: two runs of one commit differ by that much on a machine that others use
_FORMAT = 1
_DIGITS = 4  # significant ones; what is finer is noise
_UNKNOWN = "unknown"


class Unusable(Exception):
    """A document that cannot be compared or kept; the text names it and says what to do."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """One figure over its runs; `limit` is what the median must reach."""

    better: Better
    limit: float | None
    runs: int
    min: float
    median: float
    max: float

    @property
    def range(self) -> str:
        return f"{shown(self.median)} ({shown(self.min)}-{shown(self.max)})"

    def overlaps(self, other: "Ratio") -> bool:
        return self.min <= other.max and other.min <= self.max


@dataclass(frozen=True, slots=True)
class Bench:
    """What one benchmark found, as far as it can be kept."""

    commit: str
    date: str
    processors: int
    ratios: Mapping[str, Ratio]


class Verdict(StrEnum):
    WORSE = "WORSE"
    BETTER = "better"
    SAME = "same"
    NEW = "new"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Move:
    """How one ratio stands to the kept one; `change` is relative to the kept median, positive where it grew."""

    bench: str
    name: str
    verdict: Verdict
    kept: Ratio | None
    now: Ratio | None

    @property
    def change(self) -> float | None:
        if self.kept is None or self.now is None or not self.kept.median:
            return None
        return (self.now.median - self.kept.median) / abs(self.kept.median)


def moves(kept: Mapping[str, Bench], now: Mapping[str, Bench], tolerance: float = TOLERANCE) -> Iterator[Move]:
    """Compare each benchmark that was measured now; what was not is left alone."""
    for bench, found in now.items():
        before = kept[bench].ratios if bench in kept else {}
        for name in dict.fromkeys([*before, *found.ratios]):
            old, new = before.get(name), found.ratios.get(name)
            yield Move(bench, name, verdict(old, new, tolerance), old, new)


def verdict(kept: Ratio | None, now: Ratio | None, tolerance: float = TOLERANCE) -> Verdict:
    """A move counts when the runs of both do not overlap, and the medians differ by more than the tolerance."""
    if kept is None:
        return Verdict.NEW
    if now is None:
        return Verdict.MISSING
    if kept.overlaps(now) or abs(now.median - kept.median) <= tolerance * abs(kept.median):
        return Verdict.SAME
    grew = now.median > kept.median
    return Verdict.BETTER if grew == (now.better is Better.HIGHER) else Verdict.WORSE


def name_of(document: Mapping[str, Any]) -> str:
    """A benchmark that was run with other options than its own has a `variant` in its document."""
    return " ".join(filter(None, (document["bench"], document.get("variant"))))


def bench_of(document: Mapping[str, Any]) -> Bench:
    ratios = {figure.name: _ratio(figure) for figure in figures_of(document) if figure.is_ratio}
    return Bench(document["commit"], document["date"], document["machine"]["processors"], ratios)


def _ratio(figure: Figure) -> Ratio:
    least, middle, most = (_rounded(each) for each in (min(figure.values), figure.median, max(figure.values)))
    return Ratio(figure.better, figure.limit, len(figure.values), least, middle, most)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def figures_of(document: Mapping[str, Any]) -> list[Figure]:
    """Return all figures, of any unit, as far as a document has them: least, median, most and how many runs."""
    return [
        Figure(each["name"], each["unit"], _values(each), Better(each["better"]), each["limit"])
        for each in document["figures"]
    ]


def _values(figure: Mapping[str, Any]) -> list[float]:
    runs, median = int(figure["runs"]), float(figure["median"])
    if runs == 1:
        return [median]
    return [float(figure["min"]), *[median] * (runs - 2), float(figure["max"])]


def missed(document: Mapping[str, Any]) -> Iterator[str]:
    """Name the figures of any unit whose limit is missed, each with how it stands."""
    for figure in figures_of(document):
        if figure.is_kept is False and figure.limit is not None:
            sign = "<=" if figure.better is Better.LOWER else ">="
            stands = f"{shown(figure.median)} {figure.unit}, limit {sign} {shown(figure.limit)}"
            yield f"{name_of(document)}: {figure.name}: {stands}"


def read_documents(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return them by name. Raises Unusable."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        document = _document(file)
        if name_of(document) in found:
            raise Unusable(f"{file}: {name_of(document)} is there twice; name one document of each benchmark")
        found[name_of(document)] = document
    return found


def _document(file: Path) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if document["format"] != _FORMAT:
            raise Unusable(f"{file}: has format {document['format']!r}, not {_FORMAT}")
        name_of(document)
        bench_of(document)
    except OSError as error:
        raise Unusable(f"{file}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"{file}: is no document of a benchmark ({error!r}); write one with --json") from error
    return document


def read_kept(file: Path = KEPT) -> dict[str, Bench]:
    """Raises Unusable."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["format"] != _FORMAT:
            raise Unusable(f"{file}: has format {found['format']!r}, not {_FORMAT}")
        return {name: _kept(bench) for name, bench in found["benches"].items()}
    except FileNotFoundError:
        return {}
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"{file}: cannot be read ({error!r}); take it from the last commit, or keep anew") from error


def _kept(bench: Mapping[str, Any]) -> Bench:
    ratios = {
        name: Ratio(**(fields | {"better": Better(fields["better"])})) for name, fields in bench["ratios"].items()
    }
    return Bench(bench["commit"], bench["date"], bench["processors"], ratios)


def keep(documents: Mapping[str, Mapping[str, Any]], file: Path = KEPT, *, dirty: bool = False) -> dict[str, Bench]:
    """Write what these documents found over what was kept of the same benchmarks; returns all that is kept.

    Raises Unusable for a document that no commit answers for, unless `dirty`; nothing is written then.
    """
    for name, document in documents.items():
        commit = document["commit"]
        if not dirty and (commit.endswith("+") or commit == _UNKNOWN):
            why = "outside a clone" if commit == _UNKNOWN else "with changes that are not committed"
            raise Unusable(f"{name}: was measured {why} ({commit}); commit and measure again, or say --dirty")
    benches = read_kept(file) | {name: bench_of(document) for name, document in documents.items()}
    ordered = dict(sorted(benches.items()))
    text = json.dumps(
        {"format": _FORMAT, "benches": {name: asdict(bench) for name, bench in ordered.items()}}, indent=1
    )
    file.write_text(text + "\n", encoding="utf-8")
    return ordered


def report(kept: Mapping[str, Bench], documents: Mapping[str, Mapping[str, Any]], tolerance: float) -> tuple[str, bool]:
    """Say in words what moved; and whether all is well: nothing got worse, and no limit is missed."""
    now = {name: bench_of(document) for name, document in documents.items()}
    found = list(moves(kept, now, tolerance))
    below = [line for document in documents.values() for line in missed(document)]
    lines = [_table(found)] if found else ["no ratios to compare"]
    lines += [*_origins(kept, now), *(f"limit missed: {line}" for line in below), _summary(found, below)]
    return "\n".join(lines), not below and not any(move.verdict is Verdict.WORSE for move in found)


def _table(found: Sequence[Move]) -> str:
    """The worst first."""
    order = list(Verdict)
    rows: list[tuple[str, ...]] = [("benchmark", "ratio", "kept", "now", "moved", "")]
    rows += [_row(move) for move in sorted(found, key=lambda move: order.index(move.verdict))]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]))]
    return "\n".join("".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(move: Move) -> tuple[str, ...]:
    change = "" if move.change is None else f"{move.change:+.0%}"
    return (
        move.bench,
        move.name,
        *(each.range if each else "-" for each in (move.kept, move.now)),
        change,
        move.verdict,
    )


def _origins(kept: Mapping[str, Bench], now: Mapping[str, Bench]) -> Iterator[str]:
    for name, bench in now.items():
        if (before := kept.get(name)) is None:
            continue
        said = f"{name}: kept from {before.commit} of {before.date}, measured now {bench.commit} of {bench.date}"
        other = before.processors != bench.processors
        yield said + (f"; {before.processors} processors then, {bench.processors} now" if other else "")


def _summary(found: Sequence[Move], below: Sequence[str]) -> str:
    counts = [(word, sum(move.verdict is word for move in found)) for word in Verdict]
    return ", ".join([*(f"{count} {word}" for word, count in counts if count), f"{len(below)} limits missed"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 when all is well, 1 when something got worse or a limit is missed, 2 for what cannot be used."""
    options = _parser().parse_args(arguments)
    try:
        documents = read_documents(options.files)
        if options.command == "keep":
            kept = keep(documents, options.kept, dirty=options.dirty)
            print(f"kept {', '.join(documents)}; {options.kept.name} has {len(kept)} benchmarks now")
            return 0
        text, is_well = report(read_kept(options.kept), documents, options.tolerance / 100)
    except Unusable as error:
        print(f"ratios: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0 if is_well else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    commands = parser.add_subparsers(dest="command", required=True)
    compare = commands.add_parser(
        "compare", help="say what moved since the kept ratios; status 1: worse, or a limit missed"
    )
    compare.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE * 100,
        metavar="PERCENT",
        help="moves up to this are noise (%(default)g)",
    )
    keeping = commands.add_parser(
        "keep", help="write the ratios of these documents down, over those of the same benchmarks"
    )
    keeping.add_argument(
        "--dirty", action="store_true", help="also what was measured with changes that are not committed"
    )
    for each in (compare, keeping):
        each.add_argument("files", type=Path, nargs="+", metavar="FILE", help="what a benchmark wrote with --json")
        each.add_argument("--kept", type=Path, default=KEPT, help="where the ratios are kept (ratios.json beside this)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
