"""Figures that benchmarks find, each beside its limit, as a table, and as a document that later runs are compared with.

A ratio is measured side by side in one run and may be compared between machines; an absolute figure belongs to its
machine, and is printed only.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[2]
_FORMAT = 1


class Better(StrEnum):
    LOWER = "lower"
    HIGHER = "higher"


@dataclass(frozen=True, slots=True)
class Figure:
    """`values` are one per run or window; `limit` is what the median must reach, None where none was set.

    `unit` is "ratio" for what later runs are compared with, and a unit as in "ms" for what belongs to this machine.
    """

    name: str
    unit: str
    values: Sequence[float]
    better: Better = Better.LOWER
    limit: float | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def is_ratio(self) -> bool:
        return self.unit == "ratio"

    @property
    def is_kept(self) -> bool | None:
        """Whether the median reaches the limit; None without one."""
        if self.limit is None:
            return None
        return self.median <= self.limit if self.better is Better.LOWER else self.median >= self.limit

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "unit": self.unit,
            "better": str(self.better),
            "limit": self.limit,
            "runs": len(self.values),
            "min": min(self.values),
            "median": self.median,
            "max": max(self.values),
        }


def table(figures: Sequence[Figure]) -> str:
    """One line per figure: name, median, least and most of its runs, unit, limit, and how it stands to that."""
    rows = [("figure", "median", "least-most", "runs", "unit", "limit", ""), *map(_row, figures)]
    widths = [max(len(row[column]) for row in rows) + 2 for column in range(len(rows[0]))]
    lines = ("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _row(figure: Figure) -> tuple[str, ...]:
    sign = "<=" if figure.better is Better.LOWER else ">="
    limit = "" if figure.limit is None else f"{sign} {shown(figure.limit)}"
    verdict = {None: "", True: "kept", False: "MISSED"}[figure.is_kept]
    least_most = f"{shown(min(figure.values))}-{shown(max(figure.values))}"
    return (figure.name, shown(figure.median), least_most, str(len(figure.values)), figure.unit, limit, verdict)


def shown(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def document(bench: str, figures: Sequence[Figure], **more: Any) -> dict[str, Any]:
    """Return what a benchmark writes with `--json`: where, when and from which commit, its figures, and `more`."""
    return {
        "format": _FORMAT,
        "bench": bench,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "machine": dict(machine()),
        "figures": [figure.document() for figure in figures],
    } | more


def write(out: Path, found: dict[str, Any]) -> None:
    out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def machine() -> Iterator[tuple[str, Any]]:
    yield "processors", os.cpu_count()
    yield "python", platform.python_version()
    yield "kernel", platform.release()
    yield "load", [round(load, 2) for load in os.getloadavg()]


def commit() -> str:
    """Return the commit measured, with "+" where the tree has changes; "unknown" outside a clone."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD").strip()
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no").strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=_ROOT, check=True, capture_output=True, text=True).stdout
