"""The stage of the benchmarks: an embedded server, VMMs, a worker and a beat in one temporary folder.

Everything that is started here is ended when the stage is left. What is measured on it is left to others.
"""

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tests.support.hosts import end_all, holders
from tests.support.processes import RunningProcess, start_process, wait_until
from workers.bootstrap import Fleet
from workers.domain.vm import State
from workers.embedded import EmbeddedServer
from workers.messages import NoWakeups
from workers.ports import Change
from workers.settings import Settings, load
from workers.specs import spec_from

# Of this run alone, and of what it starts: VMMs of two runs side by side must not be taken for each other's.
HOST = os.environ.setdefault("BENCH_HOST", f"bench-{os.getpid()}")
RECORDS_DB, BROKER_DB, NAIVE_DB, NAIVE_BROKER_DB = range(4)
STANDIN = "standin"
# A stand-in in Python takes 4 MiB and 30 ms of CPU to start: more of them say nothing new.
MOST_STANDINS = 50
_FOREIGN = ("RELIABILITY_", "CELERY_", "FLOWER_")
_SUN_PATH_MAX = 107  # unix(7)
_ROOT = Path(__file__).resolve().parents[2]


def worker_command() -> list[str]:
    if find_spec("workers.cli.run") is not None:
        return [sys.executable, "-m", "workers.cli", "worker"]
    return [sys.executable, "-m", "celery", "-A", "workers", "worker", "--loglevel", "INFO", "--without-gossip"]


def beat_command() -> list[str]:
    if find_spec("workers.cli.run") is not None:
        return [sys.executable, "-m", "workers.cli", "beat"]
    return [sys.executable, "-m", "celery", "-A", "workers", "beat", "--loglevel", "INFO"]


@dataclass(frozen=True, slots=True)
class Pair:
    """A worker and a beat, running."""

    worker: RunningProcess
    beat: RunningProcess


@dataclass(frozen=True, slots=True)
class Stage:
    folder: Path
    server: EmbeddedServer
    vmm: str

    @property
    def locks(self) -> Path:
        return self.folder / "state" / "locks"

    def environment(self, **settings: str) -> dict[str, str]:
        """Settings of the fleet as environment variables; `settings` in our way of writing, `beat__max_interval`."""
        common = {
            "config": str(self.folder / "reliability.toml"),
            "host": HOST,
            "state_dir": str(self.folder / "state"),
            "image_roots": str(self.folder / "images"),
            "redis__url": self.server.url(RECORDS_DB),
            "broker__url": self.server.url(BROKER_DB),
            "drivers__firecracker__binary": self.vmm,
            "log__format": "logfmt",
        }
        return {f"RELIABILITY_{name.upper()}": value for name, value in (common | settings).items()} | {
            "RELIABILITY_DRIVERS__FIRECRACKER__ENVIRONMENT__TINYVMM_OWNER": str(os.getpid())
        }

    def settings(self, **settings: str) -> Settings:
        return load(self.environment(**settings), self.folder).settings

    @contextmanager
    def pair(self, name: str, **settings: str) -> Iterator[Pair]:
        """Run a worker and a beat; returns when the worker serves its host."""
        with (
            self.process(worker_command(), f"{name}-worker", self.environment(**settings)) as worker,
            self.process(beat_command(), f"{name}-beat", self.environment(**settings)) as beat,
        ):
            worker.wait_for_log("watching", timeout_s=60)
            yield Pair(worker, beat)
            beat.stop()
            worker.stop()

    @contextmanager
    def process(self, command: list[str], name: str, environment: Mapping[str, str]) -> Iterator[RunningProcess]:
        with start_process(command, log_path=self.folder / f"{name}.log", env=environment, cwd=_ROOT) as process:
            yield process

    def declare(self, vms: int) -> float:
        """Apply so many VMs through the product; returns the seconds until all of them are healthy."""
        fleet = Fleet(self.settings())
        kernel = str(self.folder / "images" / "vmlinux")
        names = [f"bench-{number:05d}" for number in range(vms)]
        specs = [spec_from({"id": name, "host": HOST, "driver": "firecracker", "kernel": kernel}) for name in names]
        began = time.monotonic()
        fleet.registry(NoWakeups(), actor="benchmark").apply(specs)
        wait_until(
            lambda: fleet.store.counts().get(State.HEALTHY) == vms, timeout_s=60 + vms / 5, what=f"{vms} healthy VMs"
        )
        return time.monotonic() - began

    def make_all_due(self) -> None:
        """A shorter interval counts from the next check on; without this, that one may be half a minute away."""
        store = Fleet(self.settings()).store
        found = store.read(store.ids(host=HOST)).found.values()
        store.write([Change(each.record.vm_id, each.rev, each.record, check_in_ms=0) for each in found])

    def sockets(self) -> dict[str, str]:
        """Return where the API of each VM listens, by VM id."""
        runs = sorted((self.folder / "state" / "runs").iterdir())
        found = {run.name: str((run / "current").resolve() / "api.sock") for run in runs}
        if any(len(path) > _SUN_PATH_MAX for path in found.values()):
            raise ValueError(f"{self.folder} is too long a path for the naive way and the bare loop: set TMPDIR=/tmp")
        return found

    def vmm_pids(self) -> list[int]:
        return [pid for pid, _ in holders(self.locks)]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """A kill is like Ctrl-C, also where that is ignored (in the background): what was started is ended first."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def allow_many_files() -> None:
    """A worker holds a few descriptors for each VM."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def vmm_binary(folder: Path) -> str:
    """Compile the tiny VMM; without a C compiler it is the stand-in."""
    compiler = shutil.which("cc")
    if compiler is None:
        return STANDIN
    binary = folder / "tinyvmm"
    subprocess.run([compiler, "-O2", "-o", str(binary), str(Path(__file__).with_name("tinyvmm.c"))], check=True)
    return str(binary)


@contextmanager
def stage() -> Iterator[Stage]:
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="rel-bench-")).resolve()
    try:
        for part in ("images", "server", "state"):
            (folder / part).mkdir()
        (folder / "images" / "vmlinux").write_bytes(b"kernel")
        (folder / "reliability.toml").touch()
        with EmbeddedServer(folder / "server") as server:
            try:
                yield Stage(folder, server, vmm_binary(folder))
            finally:
                end_all(folder / "state" / "locks")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
