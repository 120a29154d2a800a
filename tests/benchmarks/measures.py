"""What processes cost, read from /proc, and how a number varies from window to window; measures, and starts nothing."""

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_KIB_PER_MIB = 1024

VMMS = "vmms"
MACHINE = "machine"


@dataclass(frozen=True, slots=True)
class Memory:
    """In MiB; `peak` is the most RSS this process ever had."""

    rss: float
    pss: float
    peak: float


@dataclass(frozen=True, slots=True)
class Window:
    """What was done in one stretch of time, and the CPU-seconds that each role took for it."""

    seconds: float
    checks: int
    cpu_s: Mapping[str, float]
    others_share: float

    @property
    def rate(self) -> float:
        return self.checks / self.seconds

    def per_thousand(self, *roles: str) -> float:
        return sum(self.cpu_s[role] for role in roles) * 1000 / max(self.checks, 1)

    @property
    def ours(self) -> list[str]:
        return [role for role in self.cpu_s if role != VMMS]


def cpu_of(pid: int) -> float:
    """CPU-seconds of all threads of a process, ended ones included."""
    with suppress(FileNotFoundError, ProcessLookupError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) * _TICK_S
    return 0.0


def cpu_of_single_threaded(pids: Sequence[int]) -> float:
    """The same to the nanosecond, for a thousand processes that each do less than one clock tick of work."""
    total = 0
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])
    return total / 1e9


def machine_busy() -> float:
    """CPU-seconds that all processors together have worked (proc(5), /proc/stat: all but idle and iowait)."""
    with Path("/proc/stat").open(encoding="ascii") as stat:
        ticks = [int(field) for field in stat.readline().split()[1:9]]
    return (sum(ticks) - ticks[3] - ticks[4]) * _TICK_S


def memory_of(pid: int) -> Memory:
    rollup, status = _kib(Path(f"/proc/{pid}/smaps_rollup")), _kib(Path(f"/proc/{pid}/status"))
    return Memory(*(kib / _KIB_PER_MIB for kib in (status["VmRSS"], rollup["Pss"], status["VmHWM"])))


def _kib(file: Path) -> dict[str, int]:
    rows = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {row[0].rstrip(":"): int(row[1]) for row in rows if row[-1] == "kB"}


@dataclass(frozen=True, slots=True)
class Meter:
    """`checks` counts what was done so far; `cpu` gives the CPU-seconds so far of each role."""

    checks: Callable[[], int]
    cpu: Callable[[], Mapping[str, float]]

    def window(self, work: Callable[[], None]) -> Window:
        """Measure while `work` runs."""
        cpu, busy, checks, began = self.cpu(), machine_busy(), self.checks(), time.monotonic()
        work()
        seconds = time.monotonic() - began
        checks, spent, busy = self.checks() - checks, self.cpu(), machine_busy() - busy
        cost = {role: spent[role] - cpu[role] for role in spent}
        others = max(0.0, busy - sum(cost.values())) / (seconds * (os.cpu_count() or 1))
        return Window(seconds, checks, cost, others)


def spread(values: Sequence[float], form: str = ".3f") -> str:
    """The median, and in parentheses the least and the most."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def at_share(values: Sequence[float], share: float) -> float:
    """The value that this share of them does not exceed: 0 gives the least, 1 the most."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def goal(name: str, value: float, most: float) -> str:
    """Say whether this value is at most what it may be."""
    shown = f"{value:.0f}" if value >= 100 else f"{value:.3g}"
    return f"{name}: {shown} (goal <= {most:g}: {'kept' if value <= most else 'MISSED'})"
