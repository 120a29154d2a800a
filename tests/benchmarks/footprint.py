"""Benchmark of what is needed while nothing happens: start of a worker, memory, descriptors and CPU, by VMs of a host.

A worker is killed and started again beside a thousand VMs that live on; how to read the table stands in README.md.
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.benchmarks.commandline import Options, end
from tests.benchmarks.crowd import Crowd
from tests.benchmarks.figures import Figure, document, shown, table, write
from tests.benchmarks.measures import Memory, Meter, Window, cpu_of, memory_of
from tests.benchmarks.stage import (
    HOST,
    MOST_STANDINS,
    STANDIN,
    Stage,
    allow_many_files,
    beat_command,
    ended_by_signals,
    say,
    stage,
    worker_command,
)
from tests.support.processes import RunningProcess, wait_until
from workers.bootstrap import Fleet

EMPTY, FULL, CROWDED = "empty host", "full host", "crowded host"
_SERVES, _WATCHES = "this worker serves the host", "watching"
_PATIENCE_S = 120.0
_EMPTY_WINDOWS, _FULL_WINDOWS = 3, 2
_WORKER_MIB = 90.0
# The last VM was checked right before its worker ended, so a whole interval is fair; then the new one has to be up.
_INTERVALS = 1.1


@dataclass(frozen=True, slots=True)
class Plan:
    vms: int
    most: int
    restarts: int
    seconds: float

    @property
    def sizes(self) -> dict[str, int]:
        sizes = {EMPTY: 0, FULL: self.vms}
        return sizes | {CROWDED: self.most} if self.most > self.vms else sizes


@dataclass(frozen=True, slots=True)
class Start:
    """Of a worker, in seconds from its exec: has the host, watches all processes, is up, has checked all VMs."""

    serves_s: float
    watched_s: float
    up_s: float
    checked_s: float


@dataclass(frozen=True, slots=True)
class Size:
    """What was found with so many VMs."""

    vms: int
    first: Start
    restarts: Sequence[Start]
    memory: Memory
    descriptors: int
    idle: Sequence[Window]


@dataclass(slots=True)
class Findings:
    plan: Plan
    vmm: str
    interval_s: float
    sizes: dict[str, Size] = field(default_factory=dict)


class Host:
    """One worker at a time, beside a beat that goes on."""

    def __init__(self, on: Stage, beat: RunningProcess) -> None:
        self._on, self._store, self._started = on, Fleet(on.settings()).store, 0
        self._pids = {"beat": beat.pid, "redis": on.server.pid}

    def measure(self, plan: Plan, vms: int, *, restarts: int, idle: int) -> Size:
        """All VMs were just checked when a worker is killed: the next check of some is a whole interval away."""
        lives = [
            self._life(plan, vms, settles=left == restarts > 0, idle=0 if left else idle)
            for left in range(restarts, -1, -1)
        ]
        _, memory, descriptors, windows = lives[-1]
        first, *others = (start for start, *_ in lives)
        return Size(vms, first, others, memory, descriptors, windows)

    def _life(self, plan: Plan, vms: int, *, settles: bool, idle: int) -> tuple[Start, Memory, int, list[Window]]:
        """From the start of a worker to its SIGKILL."""
        self._started += 1
        began_ms, began = self._now_ms(), time.monotonic()
        with self._on.process(worker_command(), f"worker-{self._started}", self._on.environment()) as worker:
            start = self._start(worker, vms, began_ms, began)
            windows = list(self._idle(worker, plan.seconds / idle, idle)) if idle else []
            if settles:
                # The first check of a new VM comes at once; only the second one is in its place in the interval.
                self._last_check(self._now_ms())
            return start, memory_of(worker.pid), len(descriptors_of(worker.pid)), windows

    def _now_ms(self) -> int:
        return self._store.read(()).now_ms

    def _start(self, worker: RunningProcess, vms: int, began_ms: int, began: float) -> Start:
        def after(text: str) -> float:
            worker.wait_for_log(text, timeout_s=_PATIENCE_S)
            return time.monotonic() - began

        serves_s = after(_SERVES)
        wait_until(lambda: pidfds_of(worker.pid, vms) >= vms, timeout_s=_PATIENCE_S, what=f"{vms} watched processes")
        watched_s = time.monotonic() - began
        up_s = after(_WATCHES)
        return Start(serves_s, watched_s, up_s, (self._last_check(began_ms) - began_ms) / 1000)

    def _last_check(self, began_ms: int) -> int:
        """Wait until every VM was checked after that; returns when the last one was, in ms of server time."""
        left, last = set(self._store.ids(host=HOST)), began_ms
        deadline = time.monotonic() + _PATIENCE_S
        while left:
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {_PATIENCE_S:g} s in vain for checks of {len(left)} VMs")
            found = self._store.read(left).found
            seen = {vm_id: stored.checked_ms or 0 for vm_id, stored in found.items()}
            done = {vm_id for vm_id, checked_ms in seen.items() if checked_ms > began_ms}
            last = max([last, *(seen[vm_id] for vm_id in done)])
            left -= done
            # Reading thousands of records is work on the machine that is measured.
            time.sleep(0.1 + len(left) / 10_000)
        return last

    def _idle(self, worker: RunningProcess, seconds: float, windows: int) -> Iterator[Window]:
        pids = self._pids | {"worker": worker.pid}
        meter = Meter(lambda: 0, lambda: {role: cpu_of(pid) for role, pid in pids.items()})
        for _ in range(windows):
            yield meter.window(lambda: time.sleep(seconds))


def descriptors_of(pid: int) -> list[str]:
    return os.listdir(f"/proc/{pid}/fd")


def pidfds_of(pid: int, enough: int) -> int:
    """How many processes it watches; 0 where it has fewer descriptors than would be enough."""
    names = descriptors_of(pid)
    return sum(_is_pidfd(f"/proc/{pid}/fd/{name}") for name in names) if len(names) >= enough else 0


def _is_pidfd(link: str) -> bool:
    with suppress(OSError):
        return "pidfd" in os.readlink(link)
    return False


def measure(plan: Plan, on: Stage, found: Findings) -> None:
    crowd = Crowd(on)
    with on.process(beat_command(), "beat", on.environment()) as beat:
        host = Host(on, beat)
        for name, vms in plan.sizes.items():
            say(f"{name}: {vms} VMs …")
            crowd.grow(vms)
            idle = {EMPTY: _EMPTY_WINDOWS, FULL: _FULL_WINDOWS, CROWDED: 0}[name]
            found.sizes[name] = host.measure(plan, vms, restarts=plan.restarts if name == FULL else 0, idle=idle)


def figures(found: Findings) -> Iterator[Figure]:
    full = found.sizes[FULL]
    ratios = [start.checked_s / found.interval_s for start in full.restarts]
    yield Figure("start of a worker to all VMs checked, over one interval", "ratio", ratios, limit=_INTERVALS)
    for name, size in found.sizes.items():
        yield from _figures_of(name, size, full.restarts if name == FULL else [size.first])
    for name in (EMPTY, FULL):
        for role in ("worker", "beat", "redis"):
            costs = [window.cpu_s[role] * 60 / window.seconds for window in found.sizes[name].idle]
            yield Figure(f"CPU of {role}, {name}", "CPU-s/min", costs)


def _figures_of(name: str, size: Size, starts: Sequence[Start]) -> Iterator[Figure]:
    yield Figure(f"start of a worker to having the host, {name}", "s", [start.serves_s for start in starts])
    if size.vms:
        yield Figure(f"start of a worker to all processes watched, {name}", "s", [start.watched_s for start in starts])
        yield Figure(f"start of a worker to all VMs checked, {name}", "s", [start.checked_s for start in starts])
    limit = _WORKER_MIB if name == FULL else None
    yield Figure(f"worker at its peak, {name}", "MiB", [size.memory.peak], limit=limit)
    yield Figure(f"worker RSS, {name}", "MiB", [size.memory.rss])
    yield Figure(f"worker PSS, {name}", "MiB", [size.memory.pss])
    yield Figure(f"descriptors of the worker, {name}", "files", [size.descriptors])


def report(found: Findings) -> Iterator[str]:
    sizes = ", ".join(f"{name} {size.vms} VMs" for name, size in found.sizes.items())
    yield f"{sizes} ({found.vmm}), each checked every {found.interval_s:g} s; {os.cpu_count()} processors"
    yield f"the worker of the full host SIGKILLed and started again {len(found.sizes[FULL].restarts)} times"
    for name, size in found.sizes.items():
        for window in size.idle:
            others = f"others {window.others_share:.0%} of the machine"
            yield f"  {name}, {window.seconds:.0f} s: {_shares(window.cpu_s, window.seconds)}; {others}"
    yield ""
    yield table(list(figures(found)))


def _shares(cpu_s: Mapping[str, float], seconds: float) -> str:
    return ", ".join(f"{role} {shown(spent / seconds * 100)} %" for role, spent in cpu_s.items()) + " of a processor"


def main() -> int:
    plan, out = _arguments()
    allow_many_files()
    with ended_by_signals(), stage() as on:
        if on.vmm == STANDIN:
            plan = Plan(MOST_STANDINS, 0, plan.restarts, plan.seconds)
            say(f"no C compiler (cc): {plan.vms} stand-in VMMs in Python instead")
        interval_s = on.settings().health_check.interval.total_seconds()
        found = Findings(plan, Path(on.vmm).name, interval_s)
        measure(plan, on, found)
    print("\n".join(report(found)))
    if out:
        write(out, document("footprint", list(figures(found)), **asdict(found)))
    return 0


def _arguments() -> tuple[Plan, Path | None]:
    parser = Options(description=__doc__)
    parser.number("--vms", 1000, "how many VMs the full host has")
    parser.number("--most", 10_000, "how many the crowded one has, 0 for none")
    parser.number("--restarts", 2, "how often the worker of the full host is killed")
    parser.number("--seconds", 30.0, "how long idle hosts are watched")
    parser.json()
    given = parser.parse_args()
    if given.vms < 1 or given.restarts < 1:
        parser.error("--vms and --restarts have to be at least 1")
    return Plan(given.vms, given.most, given.restarts, given.seconds), given.json


if __name__ == "__main__":
    end(main)
