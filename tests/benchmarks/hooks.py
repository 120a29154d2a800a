"""How long a hook of `ReliabilityManager` takes: with Redis there, away and hanging, and on a slow or full disk.

Starts its own server; nothing else. Every hook is called for `--vms` VMs in each state.
"""

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from tests.benchmarks.figures import Figure, document, table, write
from tests.benchmarks.measures import at_share
from workers.embedded import EmbeddedServer
from workers.integration import ReliabilityManager
from workers.settings import load
from workers.telemetry.logging import configure_logging

THERE, AWAY, HANGING = "redis there", "redis away", "redis hanging"
_CONFIG = {"driver": "firecracker", "kernel": "/images/vmlinux"}
_GOAL_MS = 50.0
_WRITERS = 2
_PATIENCE_S = 60.0

Took = dict[str, list[float]]


def hooks(manager: ReliabilityManager, vm_id: str, pid: int) -> Mapping[str, Callable[[], object]]:
    return {
        "on_vm_created": lambda: manager.on_vm_created(vm_id, pid, _CONFIG, socket="/run/vm.sock"),
        "on_vm_error": lambda: manager.on_vm_error(vm_id, "an error"),
        "operation": lambda: manager.begin_operation(vm_id, "snapshot", timedelta(minutes=1)),
        "on_vm_stopping": lambda: manager.on_vm_stopping(vm_id),
        "on_vm_stopped": lambda: manager.on_vm_stopped(vm_id),
        "on_vm_started": lambda: manager.on_vm_started(vm_id),
        "on_vm_deleted": lambda: manager.on_vm_deleted(vm_id),
    }


def measure(manager: ReliabilityManager, vms: int) -> Took:
    """Milliseconds of each call."""
    took: Took = {}
    with subprocess.Popen(["sleep", "600"]) as vmm:
        for number in range(vms):
            for name, call in hooks(manager, f"vm-{number}", vmm.pid).items():
                began = time.perf_counter()
                call()
                took.setdefault(name, []).append((time.perf_counter() - began) * 1000)
        # A deleted VM is forgotten when nothing of it runs.
        vmm.kill()
    return took


@contextmanager
def hanging(server: EmbeddedServer) -> Iterator[None]:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@contextmanager
def away(server: EmbeddedServer) -> Iterator[None]:
    server.kill()
    try:
        yield
    finally:
        server.start()


@contextmanager
def slow_disk(folder: Path) -> Iterator[None]:
    """Others write and sync as fast as they can on the same file system."""
    ends = threading.Event()

    def write(number: int) -> None:
        with (folder / f"load-{number}").open("wb", buffering=0) as file:
            while not ends.is_set():
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
                file.seek(0)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(_WRITERS)]
    for writer in writers:
        writer.start()
    try:
        yield
    finally:
        ends.set()
        for writer in writers:
            writer.join()


@contextmanager
def no_disk(state_dir: Path) -> Iterator[None]:
    """Where the journal was, nothing can be written."""
    hooks_dir, aside = state_dir / "hooks", state_dir / "aside"
    hooks_dir.rename(aside)
    hooks_dir.symlink_to("/proc/self/fdinfo")
    try:
        yield
    finally:
        hooks_dir.unlink()
        aside.rename(hooks_dir)


@contextmanager
def redis_there() -> Iterator[None]:
    yield


def delivered(manager: ReliabilityManager) -> float:
    """Seconds until Redis has taken everything, or as long as anybody waits for it."""
    began = time.monotonic()
    while manager.undelivered and time.monotonic() - began < _PATIENCE_S:
        time.sleep(0.02)
    return time.monotonic() - began


def show(state: str, took: Took, drained_s: float) -> None:
    print(f"\n{state} (all in Redis {drained_s:.2f} s later)")
    print(f"  {'hook':16} {'p50':>8} {'p99':>8} {'max':>8}  ms")
    for name, values in took.items():
        figures = [at_share(values, 0.5), at_share(values, 0.99), max(values)]
        note = f"  over {_GOAL_MS:g} ms" if figures[-1] > _GOAL_MS else ""
        print(f"  {name:16} " + " ".join(f"{figure:8.2f}" for figure in figures) + note)


def run(folder: Path, server: EmbeddedServer, vms: int) -> dict[str, Took]:
    state_dir = folder / "state"
    own = {"HOST": "bench", "STATE_DIR": str(state_dir), "REDIS__URL": server.url(0), "BROKER__URL": server.url(1)}
    manager = ReliabilityManager(load({f"RELIABILITY_{name}": value for name, value in own.items()}, folder).settings)
    manager.start()
    states = {
        THERE: redis_there(),
        AWAY: away(server),
        HANGING: hanging(server),
        "redis there, disk slow": slow_disk(folder),
        "redis there, disk full": no_disk(state_dir),
    }
    found: dict[str, Took] = {}
    for state, within in states.items():
        with within:
            found[state] = measure(manager, vms)
        show(state, found[state], delivered(manager))
    manager.stop()
    return found


def figures(found: Mapping[str, Took]) -> Iterator[Figure]:
    """What Redis does must not slow hooks down; a disk that takes long does."""
    for state in (AWAY, HANGING):
        ratios = [
            statistics.median(found[state][hook]) / statistics.median(values) for hook, values in found[THERE].items()
        ]
        yield Figure(f"a hook, {state}, over {THERE}", "ratio", ratios)
    for state, took in found.items():
        calls = [each for values in took.values() for each in values]
        yield Figure(f"a hook, {state}", "ms", calls)
        limit = _GOAL_MS if state in (THERE, AWAY, HANGING) else None
        yield Figure(f"the slowest hook, {state}", "ms", [max(calls)], limit=limit)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, default=200, help="for how many VMs each hook is called (200)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures and every single call there too")
    options = parser.parse_args()
    configure_logging("error", "logfmt")

    folder = Path(tempfile.mkdtemp(prefix="hooks-"))
    try:
        with EmbeddedServer(folder / "redis") as server:
            found = run(folder, server, options.vms)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print("\n" + table(list(figures(found))))
    if options.json:
        write(options.json, document("hooks", list(figures(found)), states=found))


if __name__ == "__main__":
    main()
