"""What processes and the machine have used so far, read from /proc, and what lies between two such looks."""

import os
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU-seconds: of each process by its role, of all VMMs together, of this process, and of the whole machine."""

    at_s: float
    cpu_s: Mapping[str, float]
    vmms_s: float
    own_s: float
    busy_s: float

    def since(self, before: "Usage") -> "Usage":
        spent = {role: seconds - before.cpu_s[role] for role, seconds in self.cpu_s.items()}
        return Usage(
            self.at_s - before.at_s,
            spent,
            self.vmms_s - before.vmms_s,
            self.own_s - before.own_s,
            self.busy_s - before.busy_s,
        )

    @property
    def others_share(self) -> float:
        """Of a difference: how much of the machine was used by what is not ours."""
        others_s = self.busy_s - self.vmms_s - self.own_s - sum(self.cpu_s.values())
        return max(0.0, others_s) / (self.at_s * (os.cpu_count() or 1))


def look(pids: Mapping[str, int], vmms: Collection[int]) -> Usage:
    cpu_s = {role: _cpu_s(pid) for role, pid in pids.items()}
    return Usage(time.monotonic(), cpu_s, sum(map(_cpu_s_fine, vmms)), time.process_time(), _busy_s())


def memory_mib(pid: int) -> float:
    with suppress(psutil.NoSuchProcess):
        return float(psutil.Process(pid).memory_info().rss) / _MIB
    return 0.0


def _cpu_s(pid: int) -> float:
    """Of all threads, ended ones included; in clock ticks."""
    with suppress(psutil.NoSuchProcess):
        times = psutil.Process(pid).cpu_times()
        return float(times.user + times.system)
    return 0.0


def _cpu_s_fine(pid: int) -> float:
    """Of a process with one thread, to the nanosecond: a VMM that answers a few checks does less than a clock tick."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0]) / 1e9
    except (OSError, ValueError, IndexError):  # it has ended, or the kernel counts none
        return _cpu_s(pid)


def _busy_s() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)
