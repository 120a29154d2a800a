"""Benchmark of beats: what it costs to schedule the checks of small and large fleets, and what a killed beat loses.

Real beats and a real server; records and host leases as the product writes them, and in the place of the workers one
reader of all their queues. How to read the table stands in README.md.
"""

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.check_mail import (
    Letter,
    Mail,
    doubles,
    kill_between_claim_and_message,
    lags,
    longest_waits,
    turns,
)
from tests.benchmarks.commandline import Options, end
from tests.benchmarks.due_fleet import DueFleet
from tests.benchmarks.figures import Figure, document, table, write
from tests.benchmarks.measures import cpu_of_single_threaded
from tests.benchmarks.stage import BROKER_DB, HOST, RECORDS_DB, Stage, beat_command, ended_by_signals, say, stage
from tests.support.processes import RunningProcess
from workers.embedded import EmbeddedServer
from workers.settings import Settings
from workers.store.keys import Keys

_FLEETS = ("small", "middle", "large")
_WINDOWS = 3
_IDLE_S = 5.0
_SETTLE_S = 1.5  # a beat catches up first with what fell due while it was started
_MOST_SHARE, _SHARE_AT_PER_S = 0.25, 100_000 / 30
_MOST_RATIO, _MOST_LAG_MS, _MOST_WAIT = 1.5, 1000, 2.1


@dataclass(frozen=True, slots=True)
class Plan:
    """`seconds` is how long a fleet is measured; the small one, and several beats, are measured for one interval."""

    vms: tuple[int, ...]
    interval_s: float
    seconds: float
    beats: tuple[int, ...]
    kills: int

    @property
    def interval_ms(self) -> int:
        return int(self.interval_s * 1000)

    def measured_s(self, fleet: str) -> float:
        """So few hosts as a small fleet has are not due evenly over the interval."""
        return max(self.seconds, self.interval_s) if fleet == "small" else self.seconds


@dataclass(frozen=True, slots=True)
class Window:
    """What beats and server spent on so many VMs; how late their messages were; the longest time one claim took."""

    seconds: float
    vms: int
    beats_cpu_s: Sequence[float]
    redis_cpu_s: float
    lag_p50_ms: float
    lag_p99_ms: float
    claim_ms: float

    @property
    def shares(self) -> list[float]:
        return [cpu_s / self.seconds for cpu_s in self.beats_cpu_s]

    @property
    def share(self) -> float:
        return sum(self.shares)

    @property
    def beat_per_thousand(self) -> float:
        return sum(self.beats_cpu_s) * 1000 / max(1, self.vms)

    @property
    def redis_per_thousand(self) -> float:
        return self.redis_cpu_s * 1000 / max(1, self.vms)

    def beyond(self, idle_share: float) -> float:
        """Return what 1,000 VMs cost a beat beyond what it takes when there are none."""
        return (sum(self.beats_cpu_s) - idle_share * self.seconds) * 1000 / max(1, self.vms)


@dataclass(slots=True)
class Findings:
    plan: Plan
    idle_share: float = 0.0
    fleets: dict[str, list[Window]] = field(default_factory=dict)
    settling_ms: list[float] = field(default_factory=list)
    beside: dict[int, list[Window]] = field(default_factory=dict)
    doubles: dict[int, int] = field(default_factory=dict)
    killed: int = 0
    delayed_vms: int = 0
    longest_wait: float = 0.0


class Bench:
    """The stage with a fleet, its mail, and how both are measured."""

    def __init__(self, on: Stage, plan: Plan) -> None:
        self._on, self._plan = on, plan
        self._options = {
            "health_check__interval": f"{plan.interval_ms}ms",
            "health_check__timeout": f"{plan.interval_ms // 6}ms",
            "telemetry__beat_port": "0",
        }
        settings: Settings = on.settings(**self._options)
        self._records = redis.Redis.from_url(on.server.url(RECORDS_DB))
        self._due_key = Keys(settings.redis.prefix).due.encode()
        self.fleet = DueFleet(settings)
        self.mail = Mail(redis.Redis.from_url(on.server.url(BROKER_DB)), BROKER_DB, plan.interval_ms)
        self._records.config_set("slowlog-log-slower-than", 500)
        self._records.config_set("slowlog-max-len", 20_000)

    @contextmanager
    def other_broker(self) -> Iterator[tuple[Mail, str]]:
        """Run a second server for messages alone, which can be held up while claims go on."""
        folder = self._on.folder / "broker"
        folder.mkdir()
        with EmbeddedServer(folder) as server:
            url = server.url(BROKER_DB)
            yield Mail(redis.Redis.from_url(url), BROKER_DB, self._plan.interval_ms), url

    @contextmanager
    def beats(self, number: int, **options: str) -> Iterator[list[RunningProcess]]:
        """Run so many; returns when all of them claim."""
        with ExitStack() as running:
            names = [f"beat-{number}-{which}" for which in range(number)]
            environment = self._on.environment(**self._options | options)
            beats = [running.enter_context(self._on.process(beat_command(), name, environment)) for name in names]
            for beat in beats:
                beat.wait_for_log("Starting", timeout_s=60)
            time.sleep(_SETTLE_S)
            yield beats
            for beat in beats:
                _go_on(beat)
                beat.stop()

    def windows(self, beats: Sequence[RunningProcess], seconds: float, places: dict[str, int]) -> list[Window]:
        return [self._window(beats, seconds / _WINDOWS, places) for _ in range(_WINDOWS)]

    def _window(self, beats: Sequence[RunningProcess], seconds: float, places: dict[str, int]) -> Window:
        pids = [*(beat.pid for beat in beats), self._on.server.pid]
        self._records.slowlog_reset()
        before, mark, began = [_cpu(pid) for pid in pids], len(self.mail.letters), time.monotonic()
        time.sleep(seconds)
        took = time.monotonic() - began
        spent = [_cpu(pid) - earlier for pid, earlier in zip(pids, before, strict=True)]
        letters = self.mail.since(mark)
        late = lags(letters, places, self._plan.interval_ms) or [0.0, 0.0]
        hundredths = statistics.quantiles(late, n=100, method="inclusive")
        return Window(took, _vms(letters), spent[:-1], spent[-1], hundredths[49], hundredths[98], self._claim_ms())

    def _claim_ms(self) -> float:
        """Return the longest claim in the log of slow commands, 0 where all took less than half a millisecond."""
        slow: list[dict[str, Any]] = self._records.slowlog_get(-1)
        claims = [entry["duration"] / 1000 for entry in slow if b" " + self._due_key + b" " in entry["command"]]
        return max(claims, default=0.0)


def _cpu(pid: int) -> float:
    return cpu_of_single_threaded([int(thread) for thread in os.listdir(f"/proc/{pid}/task")])


def _vms(letters: Sequence[Letter]) -> int:
    return sum(len(letter.vm_ids) for letter in letters)


def _go_on(beat: RunningProcess) -> None:
    if beat.popen.poll() is None:
        beat.popen.send_signal(signal.SIGCONT)


def measure(plan: Plan, on: Stage, found: Findings) -> None:
    bench = Bench(on, plan)
    with bench.fleet.kept(), bench.mail.read():
        with bench.beats(1) as beats:
            found.idle_share = bench.windows(beats, _IDLE_S, {})[-1].share
        for name, vms in zip(_FLEETS, plan.vms, strict=True):
            say(f"{name} fleet: {vms:,} VMs")
            _grow(bench, vms, found)
            places = bench.fleet.places(plan.interval_ms)
            with bench.beats(1) as beats:
                found.fleets[name] = bench.windows(beats, plan.measured_s(name), places)
        for number in plan.beats:
            say(f"{number} beats side by side")
            with bench.beats(number) as beats:
                mark = len(bench.mail.letters)
                found.beside[number] = bench.windows(beats, plan.interval_s, places)
            numbers = turns(bench.mail.since(mark), places, plan.interval_ms)
            found.doubles[number] = doubles(numbers.values())
        if plan.kills:
            say(f"{plan.kills} beats are killed between claim and message")
            _kill(bench, plan, places, found)


def _grow(bench: Bench, vms: int, found: Findings) -> None:
    began = time.monotonic()
    bench.fleet.grow(vms)
    grown = time.monotonic()
    found.settling_ms = bench.fleet.settle() or found.settling_ms
    say(f"  written in {grown - began:.1f} s, given their places in {time.monotonic() - grown:.1f} s")


def _kill(bench: Bench, plan: Plan, places: dict[str, int], found: Findings) -> None:
    """Let one beat after the other run alone; all but the last are killed when they have claimed and not yet sent."""
    with bench.other_broker() as (mail, url), mail.read(), bench.beats(plan.kills + 1, broker__url=url) as beats:
        since_ms = time.time() * 1000
        time.sleep(plan.interval_s)  # each VM was seen then, and waits for the next time
        for beat in beats[1:]:
            beat.popen.send_signal(signal.SIGSTOP)
        for beat, successor in pairwise(beats):
            kill_between_claim_and_message(beat, mail.broker, HOST)
            _go_on(successor)
            time.sleep(_SETTLE_S)
        time.sleep(plan.interval_s)
        waits = longest_waits(mail.since(0), places, since_ms, time.time() * 1000)
    found.killed = plan.kills
    found.delayed_vms = sum(wait > 1.5 * plan.interval_ms for wait in waits)
    found.longest_wait = max(waits) / plan.interval_ms


def figures(found: Findings) -> Iterator[Figure]:
    for name, windows in found.fleets.items():
        yield from _of_fleet(f"{name} fleet", windows)
    small, large = found.fleets["small"], found.fleets["large"]
    idle = found.idle_share
    yield Figure("beat when there are no VMs", "cores", [idle])
    yield _ratio("beat's CPU per due VM, large fleet to small", small, large, lambda each: each.beat_per_thousand)
    yield _ratio("the same without an idle beat's", small, large, lambda each: each.beyond(idle), limit=_MOST_RATIO)
    yield _ratio("Redis' CPU per due VM, large fleet to small", small, large, lambda each: each.redis_per_thousand)
    if found.settling_ms:
        yield Figure("a full claim, all of a fleet due at once", "ms", found.settling_ms)
    for number, windows in found.beside.items():
        yield Figure(f"{number} beats: share of a core, all", "cores", [each.share for each in windows])
        shares = [share / max(each.share, 1e-9) for each in windows for share in each.shares]
        yield Figure(f"{number} beats: part of the CPU of each", "parts", shares)
        yield _ratio(
            f"{number} beats: CPU per due VM, to one beat", large, windows, lambda each: each.beat_per_thousand
        )
        yield Figure(f"{number} beats: VMs claimed twice", "VMs", [found.doubles[number]], limit=0)
    if found.killed:
        yield Figure("beats killed between claim and message", "beats", [found.killed])
        yield Figure("VMs whose message was lost so", "VMs", [found.delayed_vms])
        yield Figure("longest wait of a VM meanwhile", "intervals", [found.longest_wait], limit=_MOST_WAIT)


def _of_fleet(name: str, windows: Sequence[Window]) -> Iterator[Figure]:
    due_per_s = statistics.median(each.vms / each.seconds for each in windows)
    limit = _MOST_SHARE if due_per_s > _SHARE_AT_PER_S * 0.9 else None
    yield Figure(f"{name}: due VMs", "VMs/s", [each.vms / each.seconds for each in windows])
    yield Figure(f"{name}: beat's share of a core", "cores", [each.share for each in windows], limit=limit)
    yield Figure(f"{name}: beat per 1,000 due VMs", "CPU-s", [each.beat_per_thousand for each in windows])
    yield Figure(f"{name}: Redis per 1,000 due VMs", "CPU-s", [each.redis_per_thousand for each in windows])
    yield Figure(f"{name}: lag p50", "ms", [each.lag_p50_ms for each in windows])
    yield Figure(f"{name}: lag p99", "ms", [each.lag_p99_ms for each in windows], limit=_MOST_LAG_MS)
    yield Figure(f"{name}: longest claim", "ms", [each.claim_ms for each in windows])


def _ratio(
    name: str,
    base: Sequence[Window],
    windows: Sequence[Window],
    cost: Callable[[Window], float],
    limit: float | None = None,
) -> Figure:
    one = sum(cost(each) * each.vms for each in base) / max(1, sum(each.vms for each in base))
    return Figure(name, "ratio", [cost(each) / one for each in windows], limit=limit)


def main() -> int:
    plan, out = _arguments()
    found = Findings(plan)
    with ended_by_signals(), stage() as on:
        measure(plan, on, found)
    shown = list(figures(found))
    print(table(shown))
    if out:
        write(out, document("beat_scale", shown, plan=asdict(plan)))
    return 0


def _arguments() -> tuple[Plan, Path | None]:
    parser = Options(description=__doc__)
    sizes = {"small": 1000, "middle": 10_000, "large": 100_000}
    for name, size in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=size, help=f"VMs of the {name} fleet ({size})")
    parser.number("--interval", 30.0, "health_check.interval in seconds")
    parser.number("--seconds", 12.0, "how long each fleet is measured")
    parser.add_argument("--beats", type=int, nargs="*", default=[2, 4], help="so many side by side (2 4)")
    parser.add_argument("--kills", type=int, default=6, help="how many beats are killed after a claim (6; 0: none)")
    parser.json()
    given = parser.parse_args()
    vms = tuple(getattr(given, name) for name in _FLEETS)
    return Plan(vms, given.interval, given.seconds, tuple(given.beats), given.kills), given.json


if __name__ == "__main__":
    end(main)
