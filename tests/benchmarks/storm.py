"""Benchmark of a storm: a thousand VMs of one host are killed at once, beside others that must not feel it.

Prints how long it took until all were back, against what the caps allow as measured in the same run; how to read it
stands in README.md.
"""

import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

import redis

from tests.benchmarks.commandline import Options, end
from tests.benchmarks.figures import Better, Figure, document, table, write
from tests.benchmarks.measures import MACHINE, cpu_of, goal, machine_busy, memory_of, spread
from tests.benchmarks.stage import (
    BROKER_DB,
    HOST,
    MOST_STANDINS,
    RECORDS_DB,
    STANDIN,
    Pair,
    Stage,
    allow_many_files,
    ended_by_signals,
    say,
    stage,
)
from tests.support.hosts import holders
from tests.support.processes import wait_until
from workers.bootstrap import Fleet
from workers.domain.audit import EventKind
from workers.domain.vm import State
from workers.services.health import chunks
from workers.store.keys import Keys

_SAMPLE_S = 0.2
_CALM_S = 3  # so many intervals are watched before the storm
_GIVE_UP_S = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """`waves` of `per_host` VMs are lost before and after the storm: how long does one recovery take at the cap?"""

    hurt: int
    unhurt: int
    per_host: int
    boot_ms: int
    interval_s: float
    waves: int

    @property
    def rehearsed(self) -> int:
        return 2 * self.waves * self.per_host

    @property
    def vms(self) -> int:
        return self.rehearsed + self.hurt + self.unhurt


@dataclass(slots=True)
class Watched:
    """What was seen from outside over one stretch of time: the most of each."""

    seconds: float = 0.0
    samples: int = 0
    late_s: float = 0.0
    rss_mib: float = 0.0
    queues: dict[str, int] = field(default_factory=dict)
    cpu_s: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Findings:
    plan: Plan
    vmm: str
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)
    rehearsed_ms: list[int] = field(default_factory=list)
    storm_ms: list[int] = field(default_factory=list)
    known_after_s: float = 0.0
    back_after_s: float = 0.0
    twice: int = 0
    lost: int = 0
    unhurt_recovered: int = 0
    peak_mib: float = 0.0
    calm: Watched = field(default_factory=Watched)
    storm: Watched = field(default_factory=Watched)
    events: dict[str, int] = field(default_factory=dict)

    @property
    def one_s(self) -> float:
        """One recovery at the cap. A wave starts all of its own at the same moment, which may make them slower."""
        return min(statistics.median(took) for took in (self.rehearsed_ms, self.storm_ms) if took) / 1000

    @property
    def ideal_s(self) -> float:
        return self.plan.hurt / self.plan.per_host * self.one_s

    @property
    def used(self) -> float:
        """The part of the slots' time in which an attempt was running."""
        return sum(self.storm_ms) / 1000 / (self.plan.per_host * self.back_after_s)


class Watch:
    """Looks at the worker, its queues and the unhurt VMs; a VM is late by what its last check is older than due."""

    def __init__(self, on: Stage, pair: Pair, unhurt: Sequence[str], interval_s: float) -> None:
        self._records = redis.Redis.from_url(on.server.url(RECORDS_DB))
        self._broker = redis.Redis.from_url(on.server.url(BROKER_DB))
        keys = Keys(on.settings().redis.prefix)
        self._unhurt = [keys.vm(vm_id) for vm_id in unhurt]
        self._pids = {"worker": pair.worker.pid, "beat": pair.beat.pid, "redis": on.server.pid}
        self._interval_s = interval_s

    def until(self, is_over: Callable[[], bool]) -> Watched:
        seen, began, cpu = Watched(), time.monotonic(), self._cpu()
        while not is_over():
            self._look(seen)
            if time.monotonic() - began > _GIVE_UP_S:
                say(f"given up after {_GIVE_UP_S:g} s: not all are back")
                break
            time.sleep(_SAMPLE_S)
        seen.seconds = time.monotonic() - began
        seen.cpu_s = {role: spent - cpu[role] for role, spent in self._cpu().items()}
        return seen

    def _look(self, seen: Watched) -> None:
        seen.samples += 1
        seen.rss_mib = max(seen.rss_mib, memory_of(self._pids["worker"]).rss)
        for name, length in self._lengths():
            seen.queues[name] = max(length, seen.queues.get(name, 0))
        pipe = self._records.pipeline(transaction=False)
        for key in self._unhurt:
            pipe.hget(key, "chk")
        pipe.time()
        *checked, (seconds, micros) = pipe.execute()
        now_s = seconds + micros / 1e6
        oldest_s = max(now_s - int(at or 0) / 1000 for at in checked)
        seen.late_s = max(seen.late_s, oldest_s - self._interval_s)

    def _lengths(self) -> Iterator[tuple[str, int]]:
        for key in cast("list[bytes]", self._broker.keys("*")):
            kind = self._broker.type(key)
            if kind == b"list":
                yield key.decode(), self._broker.llen(key.decode())
            elif kind == b"hash":
                yield key.decode(), self._broker.hlen(key.decode())

    def _cpu(self) -> dict[str, float]:
        return {role: cpu_of(pid) for role, pid in self._pids.items()} | {
            "benchmark": time.process_time(),
            MACHINE: machine_busy(),
        }


def measure(plan: Plan, on: Stage, found: Findings) -> None:
    say(f"starting {plan.vms} VMs …")
    with on.pair("start", recovery__per_host="7"):
        on.declare(plan.vms)
    ids = Fleet(on.settings()).store.ids(host=HOST)
    rehearsed, hurt, unhurt = ids[: plan.rehearsed], ids[plan.rehearsed :][: plan.hurt], ids[-plan.unhurt :]
    settings = {
        "recovery__per_host": str(plan.per_host),
        "worker__concurrency": str(2 * plan.per_host),
        "health_check__interval": f"{plan.interval_s:g}s",
        "health_check__timeout": f"{plan.interval_s * 0.8:g}s",
        "drivers__firecracker__environment__tinyvmm_boot_ms": str(plan.boot_ms),
    }
    with on.pair("storm", **settings) as pair:
        on.make_all_due()
        watch = Watch(on, pair, unhurt, plan.interval_s)
        say(f"{plan.waves} waves of {plan.per_host}, to see how long one recovery takes at the cap …")
        time.sleep(plan.interval_s)
        waves = [list(part) for part in chunks(rehearsed, plan.per_host)]
        found.rehearsed_ms += rehearse(on, waves[: plan.waves])
        ends_at = time.monotonic() + _CALM_S * plan.interval_s
        found.calm = watch.until(lambda: time.monotonic() > ends_at)
        say(f"killing {plan.hurt} VMs …")
        storm(on, watch, hurt, found)
        found.peak_mib = memory_of(pair.worker.pid).peak
        judge(on, hurt, unhurt, found)
        found.rehearsed_ms += rehearse(on, waves[plan.waves :])


def rehearse(on: Stage, waves: Sequence[Sequence[str]]) -> Iterator[int]:
    """As many VMs as the cap allows are lost at a time; yields how long the recovery of each took."""
    for wave in waves:
        kill(on, wave)
        wait_until(partial(all_are_back, on, wave), timeout_s=60, what="the wave")
        yield from recovered(on, wave).values()


def storm(on: Stage, watch: Watch, hurt: Sequence[str], found: Findings) -> None:
    fleet = Fleet(on.settings())
    before = fleet.events.last_id()
    killed_ms = kill(on, hurt)
    found.storm = watch.until(lambda: counts_as_back(fleet, found.plan) and all_are_back(on, hurt))
    found.storm_ms = list(recovered(on, hurt).values())
    ends = Counter[str]()
    told = list(fleet.events.since(before))
    for entry in told:
        if entry.event.kind is EventKind.RECOVERED:
            ends[entry.event.vm_id] += 1
    lost_at = [e.at_ms for e in told if e.event.after in (State.ORPHANED, State.UNHEALTHY)]
    back_at = [e.at_ms for e in told if e.event.kind is EventKind.RECOVERED]
    found.known_after_s = (max(lost_at, default=killed_ms) - killed_ms) / 1000
    found.back_after_s = (max(back_at, default=killed_ms) - killed_ms) / 1000
    found.twice = sum(ends[vm_id] > 1 for vm_id in hurt)
    found.unhurt_recovered = sum(ends[vm_id] for vm_id in ends if vm_id not in set(hurt))
    found.events = dict(Counter(entry.event.kind.value for entry in told))


def judge(on: Stage, hurt: Sequence[str], unhurt: Sequence[str], found: Findings) -> None:
    """Every VM that should run does, and once."""
    running = Counter(vm_id for _, vm_id in holders(on.locks))
    found.lost = sum(running[vm_id] < 1 for vm_id in (*hurt, *unhurt))
    found.twice += sum(running[vm_id] > 1 for vm_id in running)


def kill(on: Stage, vm_ids: Sequence[str]) -> int:
    """SIGKILL all of them within a moment; returns server time in ms right before."""
    wanted = set(vm_ids)
    fds = [os.pidfd_open(pid) for pid, vm_id in holders(on.locks) if vm_id in wanted]
    seconds, micros = redis.Redis.from_url(on.server.url(RECORDS_DB)).time()
    try:
        for fd in fds:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        for fd in fds:
            os.close(fd)
    return seconds * 1000 + micros // 1000


def recovered(on: Stage, vm_ids: Sequence[str]) -> dict[str, int]:
    """How long the attempt of each VM took that came back, in ms of server time from admission to commit."""
    store = Fleet(on.settings()).store
    found = store.read(vm_ids).found.values()
    episodes = {each.record.vm_id: each.record.episode for each in found if each.record.state is State.HEALTHY}
    return {
        vm_id: episode.spent_ms
        for vm_id, episode in episodes.items()
        # The first start was an episode too.
        if episode is not None and not episode.is_open and episode.reason.value != "not_started"
    }


def all_are_back(on: Stage, vm_ids: Sequence[str]) -> bool:
    return len(recovered(on, vm_ids)) == len(vm_ids)


def counts_as_back(fleet: Fleet, plan: Plan) -> bool:
    """Cheap to ask; only then are the records read."""
    return fleet.store.counts().get(State.HEALTHY) == plan.vms


def report(found: Findings) -> str:
    parts = (_circumstances(found), _times(found), _meanwhile(found), _goals(found), [table(list(figures(found)))])
    return "\n\n".join("\n".join(part) for part in parts)


def _circumstances(found: Findings) -> Iterator[str]:
    plan = found.plan
    yield (
        f"{plan.hurt} of {plan.vms} VMs of one host ({found.vmm}, boot {plan.boot_ms} ms) killed at once on "
        f"{os.cpu_count()} processors, cap {plan.per_host}; load average {found.load_before[0]:.2f} before, "
        f"{os.getloadavg()[0]:.2f} after"
    )
    ours = sum(spent for role, spent in found.storm.cpu_s.items() if role != MACHINE)
    others = (found.storm.cpu_s[MACHINE] - ours) / (found.storm.seconds * (os.cpu_count() or 1))
    yield f"others (the starts of VMMs among them) took {others:.0%} of the machine during the storm"


def _times(found: Findings) -> Iterator[str]:
    plan = found.plan
    yield f"one recovery, ms, at the cap in {2 * plan.waves} waves: {spread(found.rehearsed_ms, '.0f')}"
    yield f"one recovery, ms, in the storm:  {spread(found.storm_ms or [0], '.0f')}"
    yield f"all deaths known after {found.known_after_s:.2f} s, all back after {found.back_after_s:.1f} s"
    boot_s = plan.hurt / plan.per_host * plan.boot_ms / 1000
    yield (
        f"ideal {plan.hurt} / {plan.per_host} x {found.one_s * 1000:.0f} ms = {found.ideal_s:.1f} s; by the boot delay "
        f"alone {boot_s:.1f} s, of which it took {found.back_after_s / max(boot_s, 0.001):.2f} times"
    )
    yield f"slots in use {found.used:.0%} of the time: {1 / found.used:.2f} times what these attempts take at the cap"
    yield f"events: {', '.join(f'{number} {kind}' for kind, number in sorted(found.events.items()))}"


def _meanwhile(found: Findings) -> Iterator[str]:
    for name, seen in (("calm", found.calm), ("storm", found.storm)):
        queues = "  ".join(f"{queue} {most}" for queue, most in sorted(seen.queues.items())) or "none"
        cpu = "  ".join(f"{role} {spent / seen.seconds:.2f}" for role, spent in seen.cpu_s.items() if role != MACHINE)
        yield f"{name}: {seen.seconds:.1f} s, {seen.samples} looks; CPU-s per s: {cpu}"
        yield f"  worker RSS {seen.rss_mib:.1f} MiB; longest queues: {queues}"
        yield f"  an unhurt VM's check late by at most {seen.late_s:.2f} s"


def _goals(found: Findings) -> Iterator[str]:
    yield goal("all back, over the ideal at the cap", found.back_after_s / found.ideal_s, 1.3)
    yield goal("checks of the unhurt late, intervals", found.storm.late_s / found.plan.interval_s, 1)
    yield goal("worker RSS at its peak, MiB", found.peak_mib, 90)
    yield goal("messages in the longest queue", max(found.storm.queues.values(), default=0), found.plan.vms)
    yield goal("recovered or running twice", found.twice, 0)
    yield goal("lost", found.lost, 0)
    yield goal("recoveries of the unhurt", found.unhurt_recovered, 0)


def figures(found: Findings) -> Iterator[Figure]:
    late = found.storm.late_s / found.plan.interval_s
    longest = max(found.storm.queues.values(), default=0)
    yield Figure("all back, over the ideal at the cap", "ratio", [found.back_after_s / found.ideal_s], limit=1.3)
    yield Figure("slots in use", "ratio", [found.used], Better.HIGHER)
    yield Figure("all deaths known", "s", [found.known_after_s])
    yield Figure("all back", "s", [found.back_after_s])
    yield Figure("one recovery in waves at the cap", "ms", found.rehearsed_ms)
    yield Figure("one recovery in the storm", "ms", found.storm_ms or [0])
    yield Figure("checks of the unhurt late", "intervals", [late], limit=1)
    yield Figure("worker at its peak", "MiB", [found.peak_mib], limit=90)
    yield Figure("longest queue", "messages", [longest], limit=found.plan.vms)
    yield Figure("recovered or running twice", "VMs", [found.twice], limit=0)
    yield Figure("lost", "VMs", [found.lost], limit=0)
    yield Figure("recoveries of the unhurt", "VMs", [found.unhurt_recovered], limit=0)


def main() -> int:
    plan, out = _arguments()
    allow_many_files()
    with ended_by_signals(), stage() as on:
        if on.vmm == STANDIN:
            plan = Plan(MOST_STANDINS // 2, 10, 4, 0, plan.interval_s, 1)
            say(f"no C compiler (cc): {plan.vms} stand-in VMMs in Python instead")
        found = Findings(plan, Path(on.vmm).name)
        measure(plan, on, found)
    print(report(found))
    if out:
        write(out, document("storm", list(figures(found)), **asdict(found)))
    return 0


def _arguments() -> tuple[Plan, Path | None]:
    parser = Options(description=__doc__)

    parser.number("--hurt", 1000, "how many VMs are killed at once")
    parser.number("--unhurt", 200, "how many more live on the same host")
    parser.number("--per-host", 8, "the cap, recovery.per_host")
    parser.number("--boot-ms", 250, "how long a VMM takes to answer InstanceStart")
    parser.number("--interval", 5.0, "health_check.interval in seconds, at least 2")
    parser.number("--waves", 5, "how often as many VMs as the cap allows are killed, before and after")
    parser.json()
    given = parser.parse_args()
    plan = Plan(given.hurt, given.unhurt, given.per_host, given.boot_ms, given.interval, given.waves)
    return plan, given.json


if __name__ == "__main__":
    end(main)
