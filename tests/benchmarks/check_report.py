"""What the benchmark of the check path found, and the table made of it; measures nothing."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tests.benchmarks.measures import VMMS, Memory, Window, median, spread

OURS, NAIVE, BARE = "this system", "one task per VM", "bare epoll loop"
_WAYS = (OURS, NAIVE, BARE)
AT_LEAST, AT_MOST = ">=", "<="
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
            *_ratios(found),
            "",
            *_goals(found),
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


def _cost(windows: Sequence[Window]) -> float:
    return median([window.per_thousand(*window.ours) for window in windows])


def _rate(windows: Sequence[Window]) -> float:
    return median([window.rate for window in windows])


def _ratios(found: Findings) -> Iterator[str]:
    cost = {way: _cost(windows) for way, windows in found.windows.items()}
    yield f"{NAIVE} / {OURS}: {cost[NAIVE] / cost[OURS]:.1f} times the CPU per check"
    yield f"{OURS} / {BARE}: {cost[OURS] / cost[BARE]:.1f} times the CPU per check"
    yield f"{OURS} / {NAIVE}: {_rate(found.windows[OURS]) / _rate(found.windows[NAIVE]):.1f} times the checks/s"


def _goals(found: Findings) -> Iterator[str]:
    yield goal("checks/s", _rate(found.windows[OURS]), AT_LEAST, 3000)
    yield goal("CPU-s per 1,000 checks, VMMs left out", _cost(found.windows[OURS]), AT_MOST, 0.3)
    yield goal("worker RSS at its peak, MiB", max(memory.peak for memory in found.memory.values()), AT_MOST, 90)
    yield goal("reliability --help, s", median(found.help_s), AT_MOST, 0.5)


def goal(name: str, value: float, relation: str, limit: float) -> str:
    kept = value >= limit if relation == AT_LEAST else value <= limit
    shown = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return f"{name}: {shown} (goal {relation} {limit:g}: {'kept' if kept else 'MISSED'})"
