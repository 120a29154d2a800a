"""Benchmark of single deaths: when a killed VMM is known, and when its VM serves again, idle and under check load.

Kills VMMs one at a time beside a worker that checks all others, and prints figures and where the milliseconds go; how
to read them stands in README.md.
"""

import math
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import redis

from tests.benchmarks import figures
from tests.benchmarks.commandline import Options, end
from tests.benchmarks.deaths_report import Lost, Note, Run, checks_per_s, figures_of, mark, notes_of, ratio, stage_table
from tests.benchmarks.figures import Figure
from tests.benchmarks.many_watched import watched
from tests.benchmarks.stage import (
    HOST,
    MOST_STANDINS,
    RECORDS_DB,
    STANDIN,
    Stage,
    allow_many_files,
    beat_command,
    ended_by_signals,
    say,
    stage,
)
from tests.benchmarks.timed_worker import TIMES_ENV
from tests.support.hosts import holders
from workers.bootstrap import Fleet, drivers
from workers.domain.audit import EventKind
from workers.domain.vm import State
from workers.specs import spec_from
from workers.store.codec import load_event
from workers.store.keys import Keys

_GIVE_UP_S = 30.0
_BARE_STARTS = 15
_TRY_S = 0.0002
# Between two deaths, by chance: they must not fall in step with the checks.
_REST_S = (0.03, 0.1)
_CHANCE = random.SystemRandom()
_WARM_UP_S = 2.0
_IDLE, _LOADED = "idle", "under check load"


@dataclass(frozen=True, slots=True)
class Plan:
    vms: int
    standins: int
    deaths: int
    runs: int
    rate: float
    watched: int

    @property
    def of_standins(self) -> int:
        """Deaths in a run; each VM is lost once, for a second loss would not be the first of its episode."""
        return min(self.deaths, self.standins // (2 * self.runs))


class Audit:
    """Waits for entries of the event stream, so that each is dated when it can be read."""

    def __init__(self, on: Stage) -> None:
        self._redis = redis.Redis.from_url(on.server.url(RECORDS_DB))
        self._key = Keys(on.settings().redis.prefix).events
        self._after = b"$"

    def follow(self) -> None:
        rows = cast("list[Any]", self._redis.xrevrange(self._key, count=1))
        self._after = rows[0][0] if rows else b"0"

    def until_back(self, lost: Lost) -> None:
        """Date the loss and the recovery of this VM."""
        deadline = time.monotonic() + _GIVE_UP_S
        while math.isnan(lost.back):
            for entry, fields in self._next():
                now = time.monotonic()
                self._after, event = entry, load_event(fields[b"e"])
                if event.vm_id != lost.vm_id:
                    continue
                if event.kind is EventKind.TRANSITION and event.after is State.ORPHANED:
                    lost.recorded = now
                elif event.kind is EventKind.RECOVERED:
                    lost.back = now
            if time.monotonic() > deadline:
                raise SystemExit(f"{lost.vm_id} is not back after {_GIVE_UP_S:g} s")

    def _next(self) -> list[tuple[bytes, dict[bytes, bytes]]]:
        found = cast("list[Any]", self._redis.xread({self._key: self._after}, block=1000))
        return found[0][1] if found else []


@contextmanager
def timed_pair(on: Stage, name: str, **settings: str) -> Iterator[Path]:
    """A timed worker and a beat; yields the file of the worker's times once it watches."""
    times = on.folder / f"{name}.times"
    environment = on.environment(**settings)
    command = [sys.executable, "-m", "tests.benchmarks.timed_worker"]
    with (
        on.process(command, f"{name}-worker", environment | {TIMES_ENV: str(times)}) as worker,
        on.process(beat_command(), f"{name}-beat", environment) as beat,
    ):
        worker.wait_for_log("watching", timeout_s=60)
        yield times
        beat.stop()
        worker.stop()


def settings_for(plan: Plan, *, loaded: bool) -> dict[str, str]:
    """The guard against storms is off: deaths come one at a time, but far faster than in real life."""
    settings = {"storm__at_least": "100000"}
    if not loaded:
        return settings
    interval_ms = max(50, round(plan.vms / plan.rate * 1000))
    return settings | {
        "health_check__interval": f"{interval_ms}ms",
        "health_check__timeout": f"{interval_ms * 4 // 5}ms",
        "health_check__failing_interval": f"{interval_ms}ms",
        # A machine busy with a benchmark may answer late; that must not become a recovery here.
        "health_check__failure_threshold": "100",
    }


def measure(plan: Plan, on: Stage, name: str, per_run: int, victims: list[str], *, loaded: bool) -> list[Run]:
    label = f"{name}-{'loaded' if loaded else 'idle'}"
    say(f"{label}: {plan.runs} x {per_run} deaths …")
    with timed_pair(on, label, **settings_for(plan, loaded=loaded)) as times:
        if loaded:
            on.make_all_due()
        time.sleep(_WARM_UP_S)
        return [_run(on, times, [victims.pop() for _ in range(per_run)]) for _ in range(plan.runs)]


def _run(on: Stage, times: Path, victims: Sequence[str]) -> Run:
    bare = [bare_start_ms(on) for _ in range(_BARE_STARTS)]
    audit, pids = Audit(on), {vm_id: pid for pid, vm_id in holders(on.locks)}
    audit.follow()
    began, deaths = time.monotonic(), []
    for vm_id in victims:
        time.sleep(_CHANCE.uniform(*_REST_S))
        deaths.append(kill(vm_id, pids[vm_id]))
        audit.until_back(deaths[-1])
    ended = time.monotonic()
    time.sleep(_REST_S[1])
    notes: list[Note] = list(notes_of(times.read_text(encoding="ascii")))
    mark(deaths, notes)
    return Run(deaths, bare, checks_per_s(notes, began, ended))


def kill(vm_id: str, pid: int) -> Lost:
    fd = os.pidfd_open(pid)
    try:
        lost = Lost(vm_id, time.monotonic())
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    finally:
        os.close(fd)
    return lost


def bare_start_ms(on: Stage) -> float:
    """From exec to the first answer of its API: the same program, arguments and environment, without us."""
    spec = spec_from({"id": "bare", "host": HOST, "driver": "firecracker", "kernel": str(on.folder / "images/vmlinux")})
    launch = drivers(on.settings())["firecracker"].launch(spec)
    with tempfile.TemporaryDirectory(dir=on.folder) as folder, Path(os.devnull).open("r+b") as null:
        vmm = subprocess.Popen(
            launch.argv, cwd=folder, env=dict(launch.environment), stdin=null, stdout=null, stderr=null
        )
        began = time.monotonic()
        try:
            while not _answers(f"{folder}/api.sock"):
                time.sleep(_TRY_S)
            return (time.monotonic() - began) * 1000
        finally:
            vmm.kill()
            vmm.wait()


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as api:
        api.settimeout(5)
        try:
            api.connect(path)
            api.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            return b"200" in api.recv(4096)
        except (FileNotFoundError, ConnectionRefusedError):
            return False


def both_loads(plan: Plan, on: Stage, name: str, vms: int, per_run: int) -> dict[str, list[Run]]:
    say(f"starting {vms} x {name} …")
    with on.pair(f"{name}-start", recovery__per_host="7"):
        on.declare(vms)
    victims = Fleet(on.settings()).store.ids(host=HOST)
    _CHANCE.shuffle(victims)
    return {
        f"{name}, {load}": measure(plan, on, name, per_run, victims, loaded=load == _LOADED)
        for load in (_IDLE, _LOADED)
    }


def found_of(runs: dict[str, list[Run]]) -> Iterator[Figure]:
    yield from figures_of(runs)
    for name in dict.fromkeys(label.partition(", ")[0] for label in runs):
        over, under = runs[f"{name}, {_LOADED}"], runs[f"{name}, {_IDLE}"]
        yield ratio(f"death to verified, {name}: under check load over idle", over, under)


def main() -> int:
    plan, out = _arguments()
    allow_many_files()
    runs: dict[str, list[Run]] = {}
    with ended_by_signals():
        with stage() as on:
            tiny = on.vmm != STANDIN
            if tiny:
                runs |= both_loads(plan, on, "tiny VMM", plan.vms, plan.deaths)
        if plan.standins:
            with stage() as on:
                few = replace(plan, vms=plan.standins)
                runs |= both_loads(few, replace(on, vmm=STANDIN), "stand-in VMM", few.vms, few.of_standins)
        many: list[Figure] = []
        if plan.watched and tiny:
            with stage() as on:
                many = list(watched(plan.watched, on.vmm, on.folder))
    found = [*found_of(runs), *many]
    print(figures.table(found))
    rates = {label: round(sum(run.checks_per_s for run in each) / len(each)) for label, each in runs.items()}
    print("\nchecks/s meanwhile: " + ", ".join(f"{label} {rate}" for label, rate in rates.items()))
    print(f"\nWhere the time goes\n{stage_table(runs)}")
    if out:
        figures.write(out, figures.document("deaths", found, checks_per_s=rates))
    return 0


def _arguments() -> tuple[Plan, Path | None]:
    parser = Options(description=__doc__)

    parser.number("--vms", 1000, "how many tiny VMMs are checked while some of them die")
    parser.number("--standins", 48, "how many stand-in VMMs in Python; 0 leaves them out")
    parser.number("--deaths", 100, "how many die in each run")
    parser.number("--runs", 3, "how many runs, idle and under load each")
    parser.number("--rate", 4000.0, "checks/s that are due under load")
    parser.number("--watched", 10_000, "how many processes one watcher watches at the end; 0 leaves that out")
    parser.json("the figures")
    given = parser.parse_args()
    plan = Plan(given.vms, given.standins, given.deaths, given.runs, given.rate, given.watched)
    if 2 * plan.deaths * plan.runs > plan.vms:
        parser.error("each VM dies once: --vms must be at least 2 x --deaths x --runs")
    if plan.standins and not 2 * plan.runs <= plan.standins <= MOST_STANDINS:
        parser.error(f"--standins must be 0, or from 2 x --runs to {MOST_STANDINS}")
    return plan, given.json


if __name__ == "__main__":
    end(main)
