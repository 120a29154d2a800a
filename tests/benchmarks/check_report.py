"""What the benchmark of the check path found, and the table made of it; measures nothing."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.figures import Better, Figure, table
from tests.benchmarks.measures import VMMS, Memory, Window, median, spread

OURS, NAIVE, BARE = "this system", "one task per VM", "bare epoll loop"
_WAYS = (OURS, NAIVE, BARE)
_HEADERS = ("", "checks/s", "CPU-s per 1,000", "of it", "VMMs themselves", "others")
_WIDTHS = (17, 20, 22, 42, 22, 8)


@dataclass(slots=True)
class Findings:
    vms: int
    vmm: str
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    healthy_after_s: float = 0.0
    oldest_check_s: float = 0.0
    offered_rate: float = 0.0
    memory: dict[str, Memory] = field(default_factory=dict)
    windows: dict[str, list[Window]] = field(default_factory=dict)
    help_s: list[float] = field(default_factory=list)


def report(found: Findings) -> str:
    return "\n".join(
        [
            *_circumstances(found),
            "",
            _row(_HEADERS),
            *(_row((way, *cells(found.windows[way]))) for way in _WAYS),
            "",
            table(figures(found)),
            "",
            *(f"{name}: RSS {m.rss:.1f} MiB, PSS {m.pss:.1f}, peak {m.peak:.1f}" for name, m in found.memory.items()),
        ]
    )


def _circumstances(found: Findings) -> Iterator[str]:
    windows = found.windows[OURS]
    yield (
        f"{found.vms} VMs of one host ({found.vmm}) on {os.cpu_count()} processors, load average "
        f"{found.load_before[0]:.2f} before, {os.getloadavg()[0]:.2f} after"
    )
    yield f"median (least-most) of {len(windows)} windows of {windows[0].seconds:.2f} s for each way"
    yield (
        f"{found.vms} VMs applied, all healthy after {found.healthy_after_s:.1f} s; "
        f"{found.offered_rate:.0f} checks/s were due, and no VM had waited for longer than {found.oldest_check_s:.2f} s"
    )


def _row(row: Sequence[str]) -> str:
    return "".join(cell.ljust(width) for cell, width in zip(row, _WIDTHS, strict=True)).rstrip()


def cells(windows: Sequence[Window]) -> tuple[str, ...]:
    roles = windows[0].ours
    parts = (f"{role} {median([window.per_thousand(role) for window in windows]):.3f}" for role in roles)
    return (
        spread([window.rate for window in windows], ".0f"),
        spread([window.per_thousand(*roles) for window in windows]),
        "  ".join(parts),
        spread([window.per_thousand(VMMS) for window in windows]),
        f"{median([window.others_share for window in windows]):.0%}",
    )


def figures(found: Findings) -> list[Figure]:
    """Each way was measured in the same run, window by window: ratios are of windows in their order."""
    costs = {way: [window.per_thousand(*window.ours) for window in windows] for way, windows in found.windows.items()}
    rates = {way: [window.rate for window in windows] for way, windows in found.windows.items()}
    peak = max(memory.peak for memory in found.memory.values())
    high = Better.HIGHER
    return [
        Figure("CPU of one task per VM over this system, per check", "ratio", _over(costs, NAIVE, OURS), high, 20),
        Figure("CPU of this system over the bare loop, per check", "ratio", _over(costs, OURS, BARE), limit=2.2),
        Figure("checks/s of this system over one task per VM", "ratio", _over(rates, OURS, NAIVE), high),
        Figure("CPU of 1,000 checks, beat, worker and Redis", "CPU-s", costs[OURS], limit=0.15),
        Figure("checks per second", "1/s", rates[OURS], high, 5000),
        Figure("worker at its peak with all VMs", "MiB", [peak], limit=90),
        Figure("reliability --help", "s", found.help_s, limit=0.5),
    ]


def _over(values: Mapping[str, Sequence[float]], above: str, below: str) -> list[float]:
    """Window by window. In a very short one nothing may have taken a whole clock tick: it says nothing."""
    ratios = [one / other for one, other in zip(values[above], values[below], strict=True) if other]
    return ratios or [math.nan]
