"""Benchmark of the way of a health check, beat to queue to worker to Redis, beside the naive way and a bare epoll loop.

Prints one table. All three ways ask the same VMMs on the same server in one run; how to read it stands in README.md.
"""

import json
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.bare_loop import BareLoop
from tests.benchmarks.check_report import BARE, NAIVE, OURS, Findings, figures, report
from tests.benchmarks.commandline import Options, end
from tests.benchmarks.figures import document, write
from tests.benchmarks.measures import VMMS, Meter, Window, cpu_of, cpu_of_single_threaded, memory_of
from tests.benchmarks.stage import (
    HOST,
    MOST_STANDINS,
    NAIVE_BROKER_DB,
    NAIVE_DB,
    RECORDS_DB,
    STANDIN,
    Stage,
    allow_many_files,
    ended_by_signals,
    say,
    stage,
)
from tests.support.processes import wait_until
from workers.bootstrap import Fleet

_WINDOWS = 4
_WARM_UP_S = 1.5
_HELP_RUNS = 5


@dataclass(frozen=True, slots=True)
class Plan:
    vms: int
    seconds: float
    rate: float

    @property
    def window_s(self) -> float:
        return self.seconds / _WINDOWS

    @property
    def interval_ms(self) -> int:
        """Short enough to offer the rate; a check needs some time, and its timeout is shorter still."""
        return max(50, round(self.vms / self.rate * 1000))


def measure(plan: Plan, on: Stage, findings: Findings) -> None:
    say(f"starting {plan.vms} VMs …")
    with on.pair("start", recovery__per_host="7") as pair:
        findings.memory["worker, 0 VMs"] = memory_of(pair.worker.pid)
        findings.healthy_after_s = on.declare(plan.vms)
        findings.memory[f"worker, {plan.vms} VMs just started"] = memory_of(pair.worker.pid)
    vmms = on.vmm_pids()
    say(f"{len(vmms)} VMMs run; checking {plan.seconds:g} s each way …")
    ours(plan, on, vmms, findings)
    findings.windows[BARE] = list(bare(plan, on, vmms))
    findings.windows[NAIVE] = list(naive(plan, on, vmms))
    findings.help_s = [help_time() for _ in range(_HELP_RUNS)]


def ours(plan: Plan, on: Stage, vmms: Sequence[int], findings: Findings) -> None:
    interval = f"{plan.interval_ms}ms"
    # A machine busy with a benchmark may answer late; that must not become a recovery here.
    patience = {"timeout": f"{plan.interval_ms * 4 // 5}ms", "failing_interval": interval, "failure_threshold": "100"}
    settings = {f"health_check__{name}": value for name, value in (patience | {"interval": interval}).items()}
    findings.offered_rate = plan.vms * 1000 / plan.interval_ms
    with on.pair("check", **settings) as pair:
        pids = {"beat": pair.beat.pid, "worker": pair.worker.pid, "redis": on.server.pid}
        meter = Meter(_commands(on, "hset", "hdel"), _cpu(pids, vmms))
        on.make_all_due()
        time.sleep(_WARM_UP_S)
        findings.windows[OURS] = list(_windows(plan, meter))
        findings.oldest_check_s = oldest_check(on)
        findings.memory[f"worker, {plan.vms} VMs under check load"] = memory_of(pair.worker.pid)


def oldest_check(on: Stage) -> float:
    """How long ago the VM that waits longest was checked: no VM is left behind to make the rate."""
    fleet = Fleet(on.settings())
    snapshot = fleet.store.read(fleet.store.ids(host=HOST))
    return max((snapshot.now_ms - (stored.checked_ms or 0)) / 1000 for stored in snapshot.found.values())


def bare(plan: Plan, on: Stage, vmms: Sequence[int]) -> Iterator[Window]:
    loop = BareLoop(list(on.sockets().values()))
    vmms_s = _cpu({}, vmms)
    meter = Meter(lambda: loop.checks, lambda: {"loop": time.process_time(), **vmms_s()})
    loop.run(min(_WARM_UP_S, plan.window_s))
    for _ in range(_WINDOWS):
        yield meter.window(lambda: loop.run(plan.window_s))


def naive(plan: Plan, on: Stage, vmms: Sequence[int]) -> Iterator[Window]:
    sockets = on.folder / "sockets.json"
    sockets.write_text(json.dumps(on.sockets()), encoding="utf-8")
    places = {"NAIVE_BROKER": on.server.url(NAIVE_BROKER_DB), "NAIVE_REDIS": on.server.url(NAIVE_DB)}
    module = "tests.benchmarks.naive_worker"
    work = [sys.executable, "-m", "celery", "-A", module, "worker", "-P", "threads", "-c", "8", "--loglevel", "WARNING"]
    with (
        on.process(work, "naive-worker", places) as worker,
        on.process([sys.executable, "-m", module, str(sockets)], "naive-sender", places) as sender,
    ):
        pids = {"sender": sender.pid, "worker": worker.pid, "redis": on.server.pid}
        # A check is an HSET of its own; the other HSET of a message is the broker's, which makes one ZADD with it.
        meter = Meter(_commands(on, "hset", "zadd"), _cpu(pids, vmms))
        begun = meter.checks()
        wait_until(lambda: meter.checks() > begun + min(plan.vms, 100), timeout_s=60, what="the naive worker")
        time.sleep(min(_WARM_UP_S, plan.window_s))
        yield from _windows(plan, meter)


def _windows(plan: Plan, meter: Meter) -> Iterator[Window]:
    for _ in range(_WINDOWS):
        yield meter.window(lambda: time.sleep(plan.window_s))


def _commands(on: Stage, name: str, less: str) -> Callable[[], int]:
    """Count on the server: calls of one command, scripts included, less those of another one."""
    client = redis.Redis.from_url(on.server.url(RECORDS_DB))

    def count() -> int:
        stats: dict[str, Any] = client.info("commandstats")
        return int(stats.get(f"cmdstat_{name}", {}).get("calls", 0) - stats.get(f"cmdstat_{less}", {}).get("calls", 0))

    return count


def _cpu(pids: Mapping[str, int], vmms: Sequence[int]) -> Callable[[], Mapping[str, float]]:
    return lambda: {role: cpu_of(pid) for role, pid in pids.items()} | {VMMS: cpu_of_single_threaded(vmms)}


def help_time() -> float:
    command = Path(sysconfig.get_path("scripts")) / "reliability"
    began = time.monotonic()
    subprocess.run([str(command), "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def main() -> int:
    plan, out = _arguments()
    allow_many_files()
    with ended_by_signals(), stage() as on:
        if on.vmm == STANDIN:
            plan = Plan(min(plan.vms, MOST_STANDINS), plan.seconds, plan.rate)
            say(f"no C compiler (cc): {plan.vms} stand-in VMMs in Python instead")
        findings = Findings(plan.vms, Path(on.vmm).name)
        measure(plan, on, findings)
    print(report(findings))
    if out:
        write(out, document("check_path", figures(findings), found=asdict(findings)))
    return 0


def _arguments() -> tuple[Plan, Path | None]:
    parser = Options(description=__doc__)
    parser.number("--vms", 1000, "how many VMs")
    parser.number("--seconds", 20.0, "how long each way is measured")
    parser.number("--rate", 12000.0, "checks/s that the schedule of ours asks for")
    parser.json("all windows")
    given = parser.parse_args()
    return Plan(given.vms, given.seconds, given.rate), given.json


if __name__ == "__main__":
    end(main)
