"""Benchmark of hung VMs: VMMs are stopped (SIGSTOP), and it is measured when that is known, and when they serve again.

With the default settings and with profile `fast`, each beside the arithmetic of its settings and with what its checks
cost; how to read the table stands in README.md.
"""

import os
import random
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

from tests.benchmarks.commandline import Options, end
from tests.benchmarks.figures import Figure, document, table, write
from tests.benchmarks.measures import Meter, Window, at_share, cpu_of, spread
from tests.benchmarks.stage import HOST, MOST_STANDINS, STANDIN, Pair, Stage, allow_many_files, ended_by_signals, say
from tests.benchmarks.stage import stage as empty_stage
from tests.support.hosts import holders
from tests.support.processes import wait_until
from workers.bootstrap import Fleet
from workers.domain.audit import EventKind
from workers.domain.vm import State
from workers.ports import VmStore
from workers.settings import HealthCheck
from workers.store.events import Entry

FAST, DEFAULTS = "fast", "default"
_LOOK_S = 0.02
# What is random needs some seconds, however short the interval is.
_SPREAD_S = 10.0
_PATIENCE_S = 60.0
_RECOVERED_WITHIN_S = 15.0
_P95 = 0.95


@dataclass(frozen=True, slots=True)
class Plan:
    """In each profile `hangs` of `vms` VMs are stopped; before that, checks are watched for `seconds`."""

    vms: int
    hangs: int
    seconds: float
    seed: int
    profiles: Sequence[str]

    @property
    def settings(self) -> dict[str, str]:
        """What is measured is when a hang is known, so neither caps nor the storm guard may make one wait."""
        return {
            "recovery__per_host": str(self.hangs),
            "recovery__per_fleet": str(max(64, self.hangs)),
            "worker__concurrency": str(2 * self.hangs),
            "storm__at_least": str(100 * self.hangs),
        }


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """What the settings promise, in seconds."""

    interval_s: float
    timeout_s: float
    failing_interval_s: float
    threshold: int

    @property
    def bound_s(self) -> float:
        """The longest time until a hang is known: a whole interval, then so many timeouts with pauses in between."""
        doubt_s = self.threshold * self.timeout_s + (self.threshold - 1) * self.failing_interval_s
        return self.interval_s + doubt_s


def arithmetic(settings: HealthCheck) -> Arithmetic:
    interval, timeout, failing = (
        each.total_seconds() for each in (settings.interval, settings.timeout, settings.failing_interval)
    )
    return Arithmetic(interval, timeout, failing, settings.failure_threshold)


@dataclass(frozen=True, slots=True)
class Stopped:
    """A VMM that hangs; server time in ms. `is_worst`: stopped right after a check, the others at random."""

    vm_id: str
    pid: int
    at_ms: int
    is_worst: bool


@dataclass(frozen=True, slots=True)
class Hang:
    """How one went on, in seconds after the stop; `again_s`: recovered and verified, with a new process."""

    vm_id: str
    is_worst: bool
    known_s: float
    attempt_s: float
    again_s: float


@dataclass(slots=True)
class Findings:
    profile: str
    bound: Arithmetic
    hangs: list[Hang] = field(default_factory=list)
    cost: list[Window] = field(default_factory=list)
    untouched_recovered: int = 0

    @property
    def known_s(self) -> list[float]:
        return [hang.known_s for hang in self.hangs]

    @property
    def again_s(self) -> list[float]:
        return [hang.again_s for hang in self.hangs]

    @property
    def last_s(self) -> float:
        return max(self.known_s)

    def cpu_per_thousand(self, vms: int) -> list[float]:
        """CPU-seconds per second of worker, beat and server, for 1,000 VMs."""
        return [sum(window.cpu_s.values()) / window.seconds * 1000 / vms for window in self.cost]


def measure(plan: Plan, on: Stage) -> Iterator[Findings]:
    say(f"starting {plan.vms} VMs …")
    with on.pair("start", recovery__per_host="7"):
        on.declare(plan.vms)
    # Each hangs once only: who is lost again soon after goes on with the episode before.
    ids = Fleet(on.settings()).store.ids(host=HOST)
    for number, profile in enumerate(plan.profiles):
        yield one_profile(plan, on, profile, ids[number * plan.hangs :][: plan.hangs])


def one_profile(plan: Plan, on: Stage, profile: str, victims: Sequence[str]) -> Findings:
    settings = on.settings(profile=profile, **plan.settings)
    found = Findings(profile, arithmetic(settings.health_check))
    with on.pair(profile, profile=profile, **plan.settings) as pair:
        fleet = Fleet(on.settings())
        began_ms = fleet.store.read(()).now_ms
        on.make_all_due()
        wait_until(lambda: _oldest_check(fleet) > began_ms, timeout_s=_PATIENCE_S, what="a check of each VM")
        say(f"profile {profile}: what its checks cost, for {plan.seconds:g} s …")
        found.cost = list(windows(plan, found.bound, on, pair))
        say(f"profile {profile}: stopping {len(victims)} VMMs; each is known after {found.bound.bound_s:g} s at most …")
        after = fleet.events.last_id()
        stopped = stop_all(plan, on, found.bound, victims)
        last = wait_for(fleet, after, stopped, found.bound)
        found.hangs = [hang_of(each, last) for each in stopped]
        found.untouched_recovered = sum(entry.event.vm_id not in victims for entry in ended_in(last))
        check_processes(on, stopped)
    return found


def windows(plan: Plan, bound: Arithmetic, on: Stage, pair: Pair) -> Iterator[Window]:
    """Of one interval each, so that each holds every check once."""
    pids = {"worker": pair.worker.pid, "beat": pair.beat.pid, "redis": on.server.pid}
    meter = Meter(lambda: 0, lambda: {role: cpu_of(pid) for role, pid in pids.items()})
    for _ in range(max(1, round(plan.seconds / bound.interval_s))):
        yield meter.window(lambda: time.sleep(bound.interval_s))


def stop_all(plan: Plan, on: Stage, bound: Arithmetic, victims: Sequence[str]) -> list[Stopped]:
    """Half of them at random moments, half at the worst: right after a check."""
    dice, began = random.Random(plan.seed), time.monotonic()  # noqa: S311 - moments, no secrets
    spread_s = max(bound.interval_s, _SPREAD_S)
    latest = {True: spread_s - bound.interval_s, False: spread_s}
    waiting = {vm_id: dice.uniform(0, latest[bool(n % 2)]) for n, vm_id in enumerate(victims)}
    worst = set(victims[1::2])
    pids = {vm_id: pid for pid, vm_id in holders(on.locks)}
    store, checked, stopped = Fleet(on.settings()).store, dict[str, int | None](), list[Stopped]()
    while waiting:
        ready = [vm_id for vm_id, at_s in waiting.items() if time.monotonic() - began >= at_s]
        seen = {
            vm_id: stored.checked_ms for vm_id, stored in store.read([v for v in ready if v in worst]).found.items()
        }
        for vm_id in ready:
            if vm_id not in worst or checked.setdefault(vm_id, seen[vm_id]) != seen[vm_id]:
                del waiting[vm_id]
                stopped.append(Stopped(vm_id, pids[vm_id], hang(store, pids[vm_id]), vm_id in worst))
        time.sleep(_LOOK_S)
    return stopped


def hang(store: VmStore, pid: int) -> int:
    """Stop a VMM; returns server time in ms right before."""
    fd = os.pidfd_open(pid)
    try:
        at_ms = store.read(()).now_ms
        signal.pidfd_send_signal(fd, signal.SIGSTOP)
    finally:
        os.close(fd)
    return at_ms


def _oldest_check(fleet: Fleet) -> int:
    return min(stored.checked_ms or 0 for stored in fleet.store.read(fleet.store.ids(host=HOST)).found.values())


def wait_for(fleet: Fleet, after: str, stopped: Sequence[Stopped], bound: Arithmetic) -> list[Entry]:
    """Return all events since, when each of the stopped is healthy again."""
    hung = {each.vm_id for each in stopped}

    def told() -> list[Entry]:
        entries = list(fleet.events.since(after))
        return entries if hung <= {entry.event.vm_id for entry in ended_in(entries)} else []

    return wait_until(told, timeout_s=bound.bound_s + _PATIENCE_S, what="all that hung to be healthy again")


def ended_in(entries: Sequence[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.event.kind is EventKind.RECOVERED]


def hang_of(stopped: Stopped, entries: Sequence[Entry]) -> Hang:
    own = [entry for entry in entries if entry.event.vm_id == stopped.vm_id]
    lost = [entry.at_ms for entry in own if entry.event.after in (State.UNHEALTHY, State.ORPHANED)]
    attempts = [entry.at_ms for entry in own if entry.event.kind is EventKind.ATTEMPT_STARTED]
    ends = [entry.at_ms for entry in ended_in(own)]
    moments = ((min(each) - stopped.at_ms) / 1000 for each in (lost, attempts, ends))
    return Hang(stopped.vm_id, stopped.is_worst, *moments)


def check_processes(on: Stage, stopped: Sequence[Stopped]) -> None:
    """Each that hung has another process now, and only one. Raises RuntimeError."""
    running = dict[str, list[int]]()
    for pid, vm_id in holders(on.locks):
        running.setdefault(vm_id, []).append(pid)
    wrong = [each.vm_id for each in stopped if len(running.get(each.vm_id, ())) != 1 or each.pid in running[each.vm_id]]
    if wrong:
        raise RuntimeError(f"not exactly one new process: {', '.join(wrong)}")


def figures(found: Mapping[str, Findings], vms: int) -> Iterator[Figure]:
    for profile, each in found.items():
        bound_s = each.bound.bound_s
        yield Figure(f"last hang known, over its bound, {profile}", "ratio", [each.last_s / bound_s], limit=1)
        yield Figure(f"last hang known, after its bound, {profile}", "ms", [(each.last_s - bound_s) * 1000])
        yield Figure(f"hang known, {profile}", "s", each.known_s)
        yield Figure(f"hang to healthy again, {profile}", "s", each.again_s)
        p95 = at_share(each.again_s, _P95)
        limit = _RECOVERED_WITHIN_S if profile == FAST else None
        yield Figure(f"hang to healthy again, p95, {profile}", "s", [p95], limit=limit)
        yield Figure(f"checks of 1,000 VMs, {profile}", "CPU-s/s", each.cpu_per_thousand(vms))
    if {FAST, DEFAULTS} <= set(found):
        yield Figure("checks, fast over default", "ratio", cost_of_fast(found, vms))
    untouched = sum(each.untouched_recovered for each in found.values())
    yield Figure("recoveries of VMs that did not hang", "VMs", [untouched], limit=0)


def cost_of_fast(found: Mapping[str, Findings], vms: int) -> list[float]:
    """Each window of `fast` over the mean of the defaults."""
    usual = found[DEFAULTS].cpu_per_thousand(vms)
    return [cost * len(usual) / sum(usual) for cost in found[FAST].cpu_per_thousand(vms)]


def report(found: Mapping[str, Findings], plan: Plan, vmm: str) -> Iterator[str]:
    yield (
        f"{plan.hangs} of {plan.vms} VMs of one host ({vmm}) stopped in each profile, half at random moments, half "
        f"right after a check; {os.cpu_count()} processors, load average {os.getloadavg()[0]:.2f}"
    )
    for profile, each in found.items():
        bound = each.bound
        yield ""
        yield (
            f"{profile}: known within {bound.interval_s:g} + {bound.threshold} x {bound.timeout_s:g} + "
            f"{bound.threshold - 1} x {bound.failing_interval_s:g} = {bound.bound_s:g} s"
        )
        for name, worst in (("at random", False), ("at the worst moment", True)):
            yield from _rows(name, [hang for hang in each.hangs if hang.is_worst is worst])
        others = spread([window.others_share for window in each.cost], ".0%")
        yield f"  others took {others} of the machine while checks were watched"
    yield ""
    yield table(list(figures(found, plan.vms)))


def _rows(name: str, hangs: Sequence[Hang]) -> Iterator[str]:
    if not hangs:
        return
    yield f"  {name}, seconds after the stop: {'least':>7}{'median':>8}{'p95':>8}{'most':>8}"
    for what in ("known_s", "attempt_s", "again_s"):
        values = [cast("float", getattr(hang, what)) for hang in hangs]
        shown = "".join(f"{at_share(values, share):8.2f}" for share in (0.0, 0.5, _P95, 1.0))
        yield f"    {_WORDS[what]:{len(name) + 21}}{shown}"


_WORDS = {"known_s": "known", "attempt_s": "looked at again, attempt", "again_s": "healthy again"}


def main() -> int:
    plan, out = _arguments()
    allow_many_files()
    with ended_by_signals(), empty_stage() as on:
        if on.vmm == STANDIN:
            plan = replace(plan, vms=min(plan.vms, MOST_STANDINS), hangs=min(plan.hangs, 8))
            say(f"no C compiler (cc): {plan.vms} stand-in VMMs in Python instead")
        found = {each.profile: each for each in measure(plan, on)}
        vmm = Path(on.vmm).name
    print("\n".join(report(found, plan, vmm)))
    if out:
        more = {"plan": asdict(plan), "profiles": {profile: asdict(each) for profile, each in found.items()}}
        write(out, document("hangs", list(figures(found, plan.vms)), **more))
    return 0


def _arguments() -> tuple[Plan, Path | None]:
    parser = Options(description=__doc__)
    parser.number("--vms", 1000, "how many VMs live on the host")
    parser.number("--hangs", 40, "how many of them hang in each profile")
    parser.number("--seconds", 30.0, "how long checks are watched in each profile")
    parser.add_argument("--profile", choices=(FAST, DEFAULTS), help="only this one")
    parser.number("--seed", 1, "for the moments at which VMMs are stopped")
    parser.json("the figures and every single hang")
    given = parser.parse_args()
    if not 2 <= given.hangs <= given.vms // 2:
        parser.error("--hangs has to be at least 2, and at most half of --vms: each VM hangs once")
    profiles = (given.profile,) if given.profile else (FAST, DEFAULTS)
    return Plan(given.vms, given.hangs, given.seconds, given.seed, profiles), given.json


if __name__ == "__main__":
    end(main)
