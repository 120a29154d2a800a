"""One watcher over very many VMMs: what it takes, and how soon it knows a death among them, at rest and beside work."""

import os
import random
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from queue import Queue
from typing import TypeVar

from tests.benchmarks.deaths_report import KNOWN_P99_MS, percentile
from tests.benchmarks.figures import Figure
from tests.benchmarks.measures import memory_of
from tests.benchmarks.stage import say
from workers.agent import SWITCH_INTERVAL_S
from workers.domain.vm import Incarnation
from workers.host.identity import incarnation_of, read_vantage
from workers.host.watcher import Death, Watcher

T = TypeVar("T")
_RUNS, _DEATHS = 4, 100
_KIB_PER_MIB = 1024
_CHANCE = random.SystemRandom()


def watched(vmms: int, binary: str, folder: Path) -> Iterator[Figure]:
    """Yield the figures; the VMMs are children of this process, and are ended at the end."""
    say(f"watching {vmms} VMMs …")
    vantage = read_vantage(folder)
    known: Queue[Death] = Queue()

    def tell(deaths: Sequence[Death]) -> Sequence[Death]:
        for death in deaths:
            known.put(death)
        return ()

    with _children(vmms, binary, folder) as pids:
        unwatched = _CHANCE.sample(pids, min(_RUNS * _DEATHS, vmms // 3))
        rest = set(pids).difference(unwatched)
        processes = {f"vm-{pid}": _incarnation(incarnation_of(pid, vantage)) for pid in rest}
        before, files = memory_of(os.getpid()), _open_files()
        watcher = Watcher(vantage, on_deaths=tell, on_cause=lambda *_: None)
        began = time.monotonic()
        for vm_id, process in processes.items():
            watcher.watch(vm_id, process)
        took_s = time.monotonic() - began
        watcher.start()
        try:
            yield Figure("all put under watch", "s", [took_s])
            yield Figure("descriptors per VMM watched", "each", [(_open_files() - files) / len(processes)])
            kib = (memory_of(os.getpid()).rss - before.rss) * _KIB_PER_MIB
            yield Figure("memory per VMM watched", "KiB", [kib / len(processes)])
            victims = _CHANCE.sample(list(processes.values()), 2 * len(unwatched))
            yield from _deaths("by the kernel alone", unwatched, _ended_ms, limit=None)
            yield from _deaths("at rest", victims[::2], partial(_known_ms, known))
            with _beside_work():
                yield from _deaths("beside a busy thread", victims[1::2], partial(_known_ms, known))
        finally:
            watcher.stop()


def _deaths(
    name: str, victims: Sequence[T], die: Callable[[T], float], *, limit: float | None = KNOWN_P99_MS
) -> Iterator[Figure]:
    """`die` kills one and returns after how many ms that was known."""
    runs = [[die(victim) for victim in victims[run::_RUNS]] for run in range(_RUNS)]
    many = "death among many known"
    yield Figure(f"{many}, {name}: p50", "ms", [percentile(run, 0.5) for run in runs])
    yield Figure(f"{many}, {name}: p99", "ms", [percentile(run, 0.99) for run in runs], limit=limit)


def _ended_ms(pid: int) -> float:
    """What nobody can be quicker than: a bare poll(2) on the one pidfd."""
    fd, poll = os.pidfd_open(pid), select.poll()
    try:
        poll.register(fd, select.POLLIN)
        time.sleep(_CHANCE.uniform(0.002, 0.01))
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        poll.poll()
        return (time.monotonic() - killed) * 1000
    finally:
        os.close(fd)
        os.waitpid(pid, 0)


def _known_ms(known: "Queue[Death]", process: Incarnation) -> float:
    time.sleep(_CHANCE.uniform(0.002, 0.01))
    killed = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)  # our own child, which nobody but the watcher reaps
    while (death := known.get(timeout=30)).process != process:
        pass
    return (death.at - killed) * 1000


@contextmanager
def _beside_work() -> Iterator[None]:
    """A thread that never waits, and turns of the interpreter as long as a worker has them."""
    before, stop = sys.getswitchinterval(), threading.Event()
    sys.setswitchinterval(SWITCH_INTERVAL_S)

    def work() -> None:
        while not stop.is_set():
            sum(range(200))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(before)


@contextmanager
def _children(number: int, binary: str, folder: Path) -> Iterator[list[int]]:
    place = folder / "many"
    place.mkdir()
    environment = {"TINYVMM_OWNER": str(os.getpid())}
    pids: list[int] = []
    try:
        for each in range(number):
            argv = [binary, "--api-sock", str(place / f"{each}.sock"), "--id", f"vm-{each}"]
            pids.append(os.posix_spawn(binary, argv, environment))
        yield pids
    finally:
        for pid in pids:
            _end(pid)


def _end(pid: int) -> None:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return  # the watcher has reaped it, and its pid may be anybody's by now
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _incarnation(found: Incarnation | None) -> Incarnation:
    if found is None:
        raise SystemExit("a VMM to be watched ended by itself")
    return found


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
