"""Benchmark of whole fleets in one machine: what 1,000, 10,000 and 100,000 VMs cost Redis, the beats and the network.

The server, the beats, the messages and all scripts are real; the hosts are simulated, many in one process. Prints a
table with a column per size; how to read it stands in README.md.
"""

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks import figures, fleet_report, fleet_server
from tests.benchmarks.commandline import Options, end
from tests.benchmarks.fleet_box import BROKER_DB, PATTERN_DB, Box, box
from tests.benchmarks.fleet_model import CostModel, Shape, percentile
from tests.benchmarks.fleet_records import bytes_per_event, pattern, populate
from tests.benchmarks.fleet_report import Size, Window
from tests.benchmarks.measures import cpu_of, machine_busy
from tests.benchmarks.stage import allow_many_files, ended_by_signals, say
from tests.support.servers import RedisFlavour, binary_of
from workers.bootstrap import Fleet
from workers.store.keys import Keys

_SAMPLE_S = 0.1
_CHUNK = 1000
_TOLD_EVERY_S = 1.0
_FEWEST_LINES = 2


@dataclass(frozen=True, slots=True)
class Plan:
    sizes: Sequence[int]
    per_host: int
    interval_s: float
    settle_s: float
    window_s: float
    windows: int
    script_s: float
    beats: int
    processes: int
    model: CostModel
    incident: bool
    redis_server: bool

    @property
    def settings(self) -> dict[str, str]:
        return {"health_check__interval": f"{self.interval_s:g}s", "health_check__timeout": f"{self.interval_s / 6:g}s"}


def measure(plan: Plan, vms: int) -> Size:
    binary = binary_of(RedisFlavour.REDIS) if plan.redis_server else None
    shape = Shape(vms, plan.per_host)
    with box(plan.settings, binary) as on:
        found = Size(vms, shape.hosts, plan.interval_s, plan.model.probe_s)
        fill(on, shape, found)
        with on.hosts(shape, plan.model, plan.processes) as hosts, on.beats(plan.beats) as beats:
            say(f"  {shape.hosts} hosts run; settling {plan.settle_s:g} s …")
            time.sleep(plan.settle_s)
            meter = Meter(on, [each.pid for each in beats], [each.pid for each in hosts])
            for number in range(plan.windows):
                if plan.incident and number == plan.windows - 1:
                    os.kill(hosts[0].pid, signal.SIGUSR1)
                found.windows.append(meter.window(plan.window_s))
                say(f"  window {number + 1}: {found.windows[-1].checks:.0f} checks/s")
            found.scripts = fleet_server.time_by_script(on.client(), plan.script_s)
            found.oldest_check_s = oldest_check(on)
        weigh(on, found)
    return found


def fill(on: Box, shape: Shape, found: Size) -> None:
    """Begin with what the server takes without any VM, scripts loaded; then write the records."""
    say(f"{shape.vms:,} VMs: writing their records …")
    settings = on.settings(PATTERN_DB)
    like = pattern(settings, on.folder / "state")
    found.bytes_per_event, found.events_kept = bytes_per_event(settings), settings.events.max_length
    on.client(PATTERN_DB).execute_command("FLUSHDB", "SYNC")  # type: ignore[no-untyped-call] # redis-py
    found.empty_bytes = fleet_server.memory(on.client()).data
    populate(on.settings(), shape, like)


def weigh(on: Box, found: Size) -> None:
    """What the data take when everybody has left."""
    client, settings = on.client(), on.settings()
    kinds = fleet_server.memory_by_kind(client, settings.redis.prefix)
    found.kinds = kinds | {f"broker: {kind}": size for kind, size in broker_kinds(on).items()}
    found.stream_bytes = kinds.get("events", 0)
    found.used_bytes = fleet_server.memory(client).data


def broker_kinds(on: Box) -> dict[str, int]:
    return fleet_server.memory_by_kind(on.client(BROKER_DB), "")


def oldest_check(on: Box) -> float:
    """How long ago the VM that waits longest was checked, in s."""
    store = Fleet(on.settings()).store
    ids, oldest_ms = store.ids(), 0
    for start in range(0, len(ids), _CHUNK):
        snapshot = store.read(ids[start : start + _CHUNK])
        ages = (snapshot.now_ms - (stored.checked_ms or 0) for stored in snapshot.found.values())
        oldest_ms = max(oldest_ms, *ages)
    return oldest_ms / 1000


class Meter:
    """Measures a stretch of time from outside; only how overdue the schedule is has to be asked for meanwhile."""

    def __init__(self, on: Box, beats: Sequence[int], hosts: Sequence[int]) -> None:
        self._on, self._client = on, on.client()
        self._pids = {"beats": beats, "hosts": hosts}
        self._due = Keys(on.settings().redis.prefix).due

    def window(self, seconds: float) -> Window:
        before, cpu, busy = fleet_server.reading(self._client, self._on.server.pid), self._cpu(), machine_busy()
        lags_ms = list(self._lags(seconds))
        after = fleet_server.reading(self._client, self._on.server.pid)
        took = after.at - before.at
        spent = {role: (now - cpu[role]) / took for role, now in self._cpu().items()}
        told = [_between(lines, before.at, after.at) for lines in self._on.told()]
        ages = [age for lines in told for line in lines[1:] for age in line["ages_ms"]]
        late = [late for lines in told for line in lines[1:] for late in line["late_ms"]]
        return Window(
            server=fleet_server.work(before, after),
            beat_cpu=spent["beats"],
            hosts_cpu=spent["hosts"],
            machine=(machine_busy() - busy) / took / (os.cpu_count() or 1),
            checks=sum(_rate(lines, "checks") for lines in told),
            messages=sum(_rate(lines, "messages") for lines in told),
            errors=sum(lines[-1]["errors"] - lines[0]["errors"] for lines in told),
            events=_events(told),
            ages_ms=(percentile(ages, 0.5), percentile(ages, 0.99)),
            lags_ms=(percentile(lags_ms, 0.5), percentile(lags_ms, 0.99)),
            hosts_late_ms=percentile(late, 0.99),
        )

    def _lags(self, seconds: float) -> Iterator[float]:
        """For how long (ms) the first member of the schedule has been due, again and again."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            pipe = self._client.pipeline(transaction=False)
            pipe.time()
            pipe.zrange(self._due, 0, 0, withscores=True)
            (at, micros), first = pipe.execute()
            yield max(0.0, at * 1000 + micros / 1000 - first[0][1]) if first else 0.0
            time.sleep(_SAMPLE_S)

    def _cpu(self) -> dict[str, float]:
        return {role: sum(map(cpu_of, pids)) for role, pids in self._pids.items()}


def _between(lines: Sequence[dict[str, Any]], begin: float, end: float) -> list[dict[str, Any]]:
    """From the last line before the window on."""
    found = [line for line in lines if begin - _TOLD_EVERY_S <= line["at"] <= end]
    if len(found) < _FEWEST_LINES:
        raise RuntimeError(
            "the simulated hosts do not keep up: this machine is too slow, or too busy, for such a fleet"
        )
    return found


def _rate(lines: Sequence[dict[str, Any]], what: str) -> float:
    seconds = lines[-1]["at"] - lines[0]["at"]
    return float((lines[-1][what] - lines[0][what]) / seconds)


def _events(told: Sequence[Sequence[dict[str, Any]]]) -> dict[str, int]:
    found = Counter[str]()
    for lines in told:
        found.update(lines[-1]["events"])
        found.subtract(lines[0]["events"])
    return {kind: number for kind, number in found.items() if number}


def main() -> int:
    plan, out, plot = _arguments()
    allow_many_files()
    if plan.redis_server and binary_of(RedisFlavour.REDIS) is None:
        say("--redis-server: there is no redis-server on the PATH: install it, or leave the option out")
        return 2
    with ended_by_signals():
        sizes = [measure(plan, vms) for vms in plan.sizes]
    print(fleet_report.report(sizes))
    found = fleet_report.found(sizes)
    print("\n" + figures.table(found))
    if out:
        figures.write(out, figures.document("fleet_in_a_box", found, sizes=[asdict(size) for size in sizes]))
    if plot:
        plot.write_text(fleet_report.plotted(sizes), encoding="utf-8")
    return 0


def _arguments() -> tuple[Plan, Path | None, Path | None]:
    parser = Options(description=__doc__)

    parser.number("--sizes", "1000,10000,100000", "how many VMs, one fleet after the other")
    parser.number("--per-host", 50, "VMs on each host")
    parser.number("--interval", 30.0, "health_check.interval in seconds")
    parser.number("--settle", 35.0, "seconds before the first window, longer than the interval")
    parser.number("--seconds", 30.0, "length of a window")
    parser.number("--windows", 2, "how many windows of each size")
    parser.number("--script-seconds", 10.0, "how long scripts are timed one by one afterwards")
    parser.number("--beats", 1, "how many beats")
    parser.number("--processes", 4, "how many processes stand for the hosts")
    parser.number("--unanswered", CostModel().unanswered, "share of looks that get no answer")
    parser.number("--deaths", CostModel().deaths, "deaths per 10,000 VMs and hour")
    parser.add_argument("--no-incident", action="store_true", help="no host loses all its VMs in the last window")
    parser.add_argument("--redis-server", action="store_true", help="redis-server of the PATH, not the embedded one")
    parser.json()
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw how the costs grow there, as SVG")
    given = parser.parse_args()
    plan = Plan(
        [int(size) for size in given.sizes.split(",")],
        given.per_host,
        given.interval,
        given.settle,
        given.seconds,
        given.windows,
        given.script_seconds,
        given.beats,
        given.processes,
        CostModel(given.unanswered, given.deaths),
        not given.no_incident,
        given.redis_server,
    )
    return plan, given.json, given.plot


if __name__ == "__main__":
    end(main)
