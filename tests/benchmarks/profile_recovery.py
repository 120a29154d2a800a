"""Where the time of a recovery goes: the worker's part in this process, on a real store and real VMMs, one at a time.

Prints milliseconds of wall clock and of CPU for each half of the way, measured without a profiler, and what cProfile
says after that. What lies between the halves, the message, is measured by `deaths.py`.
"""

import argparse
import cProfile
import os
import pstats
import signal
import sys
import time
from collections.abc import Iterator

from tests.benchmarks.deaths_report import percentile
from tests.benchmarks.stage import HOST, Stage, allow_many_files, ended_by_signals, say, stage
from workers.app import start_logging
from workers.bootstrap import Fleet
from workers.bootstrap_host import build_host_runtime
from workers.domain.recovery import WakeUp
from workers.domain.vm import Incarnation, State
from workers.host.pidfd import wait_end
from workers.ports import Ended
from workers.runtime import HostRuntime
from workers.services.recovery import Finished

_SHOWN = 60
_PATIENCE_S = 10.0


def lose(process: Incarnation) -> None:
    fd = os.pidfd_open(process.pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        wait_end(fd, _PATIENCE_S)
    finally:
        os.close(fd)


def recoveries(on: Stage, runtime: HostRuntime, vm_ids: list[str], profile: cProfile.Profile | None) -> Iterator[str]:
    """Lose each VM, tell its death, recover it; yields lines of what that took."""
    services, store = runtime._services, Fleet(on.settings()).store
    told: list[tuple[float, float]] = []
    recovered: list[tuple[float, float]] = []
    for vm_id in vm_ids:
        process = store.read([vm_id]).found[vm_id].record.process
        if process is None:
            raise SystemExit(f"{vm_id} has no process")
        lose(process)
        if profile is not None:
            profile.enable()
        began = _now()
        services.checks.processes_ended({vm_id: Ended(process, "signal 9")})
        middle = _now()
        result = services.recovery.recover(vm_id, WakeUp())
        ended = _now()
        if profile is not None:
            profile.disable()
        if not isinstance(result, Finished) or result.state is not State.HEALTHY:
            raise SystemExit(f"{vm_id}: {result}")
        told.append((middle[0] - began[0], middle[1] - began[1]))
        recovered.append((ended[0] - middle[0], ended[1] - middle[1]))
    for name, took in (("death told: judged and written", told), ("recovered: message read to commit", recovered)):
        yield f"{name:36}" + "".join(
            f"{percentile(values, 0.5) * 1000:10.2f}{percentile(values, 0.99) * 1000:10.2f}"
            for values in zip(*took, strict=True)
        )


def _now() -> tuple[float, float]:
    return time.monotonic(), time.thread_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=100, help="how many are lost in each of two runs (100)")
    parser.add_argument("--sort", default="cumtime", help="order of the profile (cumtime)")
    given = parser.parse_args()
    allow_many_files()
    with ended_by_signals(), stage() as on:
        say(f"starting {2 * given.vms} VMs …")
        with on.pair("start", recovery__per_host="7"):
            on.declare(2 * given.vms)
        ids = Fleet(on.settings()).store.ids(host=HOST)
        start_logging()
        runtime = build_host_runtime(on.settings(storm__at_least="100000"), None)
        runtime.lease.acquire()
        runtime._services.tending.tend()
        runtime.watch_known()
        print(f"{'ms, without the VMM`s reaper':36}  wall p50       p99   CPU p50       p99")
        print("\n".join(recoveries(on, runtime, ids[: given.vms], None)))
        profile = cProfile.Profile()
        list(recoveries(on, runtime, ids[given.vms :], profile))
        print(f"\ncProfile of {given.vms} recoveries:")
        pstats.Stats(profile, stream=sys.stdout).sort_stats(given.sort).print_stats(_SHOWN)


if __name__ == "__main__":
    main()
