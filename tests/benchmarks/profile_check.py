"""Where the time of a health check goes: the worker's part in this process, on a real store and real sockets.

Prints CPU-seconds per 1,000 checks of each step, measured without a profiler, and what cProfile says after that.
"""

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.benchmarks.bare_loop import BareLoop
from tests.benchmarks.measures import cpu_of, median, spread
from tests.benchmarks.stage import HOST, Stage, allow_many_files, stage
from workers.bootstrap import Fleet
from workers.bootstrap_host import build_host_runtime
from workers.domain.vm import VmRecord
from workers.ports import Work
from workers.services.health import chunks

WHOLE, TELLING = "check of VMs known to be well", "  telemetry: logs and metrics"
_RUNS = 7
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    work: Callable[[list[str]], object]


def steps(on: Stage) -> list[Step]:
    runtime = build_host_runtime(on.settings(health_check__timeout="2s"), None)
    checks = runtime._services.checks
    store, prober = Fleet(on.settings()).store, checks._prober
    records: dict[str, VmRecord] = {
        vm_id: stored.record for vm_id, stored in store.read(store.ids(host=HOST)).found.items()
    }
    snapshot = store.read(list(records))
    groups = list(prober.probe(list(records.values())))
    sockets = on.sockets()
    bare = BareLoop(())

    def tell(ids: list[str]) -> None:
        """What a batch of healthy VMs costs beside the check: one message, one span, the groups of its looks."""
        with checks._telemetry.span(Work.HEALTH_CHECK):
            checks._telemetry.checks_came(5)
            wanted = frozenset(ids)
            for group in groups:
                looks = {vm_id: seen for vm_id, seen in group.items() if vm_id in wanted}
                checks._telemetry.looked(snapshot.found, looks, snapshot.now_ms)

    def anew(ids: list[str]) -> None:
        checks.keep_only(())
        checks.check(ids)

    revisions = {vm_id: stored.rev for vm_id, stored in snapshot.found.items()}
    return [
        Step(WHOLE, checks.check),
        Step("  probe", lambda ids: list(prober.probe([records[vm_id] for vm_id in ids]))),
        Step("    bare: connect, ask, close", lambda ids: bare.run_once([sockets[vm_id] for vm_id in ids])),
        Step("  confirm in Redis", lambda ids: store.confirm(HOST, {vm_id: revisions[vm_id] for vm_id in ids})),
        Step(TELLING, tell),
        Step("check of VMs seen for the first time", anew),
        Step("  read the records", store.read),
        Step("  look at /proc", lambda ids: [prober.look_at_process(records[vm_id]) for vm_id in ids]),
        Step("  write: times only", lambda ids: store.write((), seen=ids)),
    ]


def cost(step: Step, batches: list[list[str]], server: int) -> tuple[float, float]:
    """CPU-seconds per 1,000 checks of this process, and of the server for it."""
    checks = sum(map(len, batches))
    mine, its = time.process_time(), cpu_of(server)
    rounds = max(1, 4000 // checks)
    for _ in range(rounds):
        for batch in batches:
            step.work(batch)
    return tuple(  # type: ignore[return-value] # two of them
        spent * 1000 / (checks * rounds) for spent in (time.process_time() - mine, cpu_of(server) - its)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--sort", default="tottime")
    given = parser.parse_args()
    allow_many_files()
    with stage() as on:
        with on.pair("start", recovery__per_host="7"):
            on.declare(given.vms)
        ids = Fleet(on.settings()).store.ids(host=HOST)
        batches = [list(part) for part in chunks(ids, given.batch)]
        all_steps = steps(on)
        print(f"CPU-s per 1,000 checks, median (least-most) of {_RUNS} runs: this process, server")
        mine: dict[str, float] = {}
        for step in all_steps:
            costs = [cost(step, batches, on.server.pid) for _ in range(_RUNS)]
            mine[step.name] = median([c[0] for c in costs])
            print(f"{step.name:38} {spread([c[0] for c in costs], '.4f')}   {spread([c[1] for c in costs], '.4f')}")
        print(f"telemetry is {mine[TELLING] / mine[WHOLE]:.1%} of the worker's part of a check (goal 3 %)")
        profile = cProfile.Profile()
        profile.enable()
        for batch in batches:
            all_steps[0].work(batch)
        profile.disable()
        print(f"\ncProfile of {len(ids)} checks:")
        pstats.Stats(profile, stream=sys.stdout).sort_stats(given.sort).print_stats(_SHOWN)


if __name__ == "__main__":
    main()
