"""A real host worker and beat on a real server, with short intervals: what an operator runs, in a test's folder."""

import itertools
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from celery import Celery

from tests.support.hosts import TEST_HOST, end_all, holders
from tests.support.processes import RunningProcess, start_process, wait_until
from workers import queues
from workers.bootstrap import Fleet
from workers.domain.vm import State, VmRecord
from workers.embedded import EmbeddedServer
from workers.messages import NoWakeups
from workers.settings import load
from workers.specs import VmSpec, spec_from
from workers.store.events import Entry

REPOSITORY = Path(__file__).parents[2]
_numbers = itertools.count(1)

SHORT = {
    "HEALTH_CHECK__INTERVAL": "500ms",
    "HEALTH_CHECK__TIMEOUT": "400ms",
    "HEALTH_CHECK__FAILING_INTERVAL": "100ms",
    "RECOVERY__RETRY_INTERVAL": "300ms",
    "RECOVERY__STOP_GRACE": "300ms",
    "RECOVERY__START_TIMEOUT": "10s",
    "RECOVERY__STABLE_PERIOD": "100ms",
    "RECOVERY__DETECTION_INTERVAL": "2s",
    "RECOVERY__LEASE": "3s",
    "RECOVERY__CALL_TIMEOUT": "1s",
    "RECONCILE_INTERVAL": "3s",
    "WORKER__HOST_LEASE": "2s",
    "BEAT__MAX_INTERVAL": "50ms",
    "BROKER__POLLING_INTERVAL": "200ms",
    # Any free one: tests run beside each other, and beside what the machine does.
    "TELEMETRY__WORKER_PORT": "0",
    "TELEMETRY__BEAT_PORT": "0",
}


@dataclass
class Cluster:
    folder: Path
    server: EmbeddedServer
    extra: Mapping[str, str] = field(default_factory=dict)
    host: str = field(default_factory=lambda: f"{TEST_HOST}-{next(_numbers)}")
    worker: RunningProcess | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        for name in ("images", "faults", "logs"):
            (self.folder / name).mkdir(exist_ok=True)
        self.kernel.write_bytes(b"kernel")
        self.fleet = Fleet(load(self.environment, self.folder).settings)

    @property
    def kernel(self) -> Path:
        return self.folder / "images" / "vmlinux"

    @property
    def state_dir(self) -> Path:
        return self.folder / "state"

    @property
    def locks(self) -> Path:
        return self.state_dir / "locks"

    @property
    def environment(self) -> dict[str, str]:
        own = {
            "HOST": self.host,
            "STATE_DIR": str(self.state_dir),
            "IMAGE_ROOTS": str(self.folder / "images"),
            "REDIS__URL": self.server.url(0),
            "BROKER__URL": self.server.url(1),
            "DRIVERS__FIRECRACKER__BINARY": "standin",
            "DRIVERS__FIRECRACKER__ENVIRONMENT__STANDIN_FAULTS": str(self.folder / "faults"),
            "LOG__LEVEL": "debug",
            "LOG__FORMAT": "logfmt",
        }
        return {f"RELIABILITY_{name}": value for name, value in (SHORT | own | dict(self.extra)).items()}

    def start_worker(
        self,
        name: str = "worker",
        *,
        within: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        include: str = "",
        **extra: str,
    ) -> RunningProcess:
        """`within` is a command that runs the worker as its own; `environ` is for the process, `extra` are settings.

        `include` is a module that it loads beside ours.
        """
        flags = ["--without-gossip", "--without-mingle", "-n", f"{name}@{self.host}"]
        flags += ["--include", include] if include else []
        return self._start(name, "worker", *flags, extra=extra, within=within, environ=environ)

    def start_beat(self, name: str = "beat", **extra: str) -> RunningProcess:
        return self._start(name, "beat", extra=extra)

    def start_successor(
        self,
        *,
        within: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        include: str = "",
        **extra: str,
    ) -> RunningProcess:
        """Start the next worker of this host, and wait until it serves."""
        name = f"worker-{next(_numbers)}"
        self.worker = self.start_worker(name, within=within, environ=environ, include=include, **extra)
        self.worker.wait_for_log("this worker serves the host", timeout_s=30)
        return self.worker

    def _start(
        self,
        name: str,
        program: str,
        *flags: str,
        extra: Mapping[str, str],
        within: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
    ) -> RunningProcess:
        command = [*within, sys.executable, "-m", "celery", "-A", "workers", program, *flags]
        settings = {f"RELIABILITY_{key}": value for key, value in extra.items()}
        environment = {**self.environment, **settings, **(environ or {})}
        log = self.folder / "logs" / f"{name}.log"
        return self._stack.enter_context(start_process(command, log_path=log, env=environment, cwd=REPOSITORY))

    def serve(self) -> RunningProcess:
        """Start beat and one worker, and wait until it serves the host."""
        self.start_beat()
        self.worker = self.start_worker()
        self.worker.wait_for_log("this worker serves the host", timeout_s=20)
        return self.worker

    def spec(self, vm_id: str, **fields: object) -> VmSpec:
        plain = {"id": vm_id, "host": self.host, "driver": "firecracker", "kernel": str(self.kernel)}
        return spec_from(plain | fields)

    def apply(self, *specs: VmSpec) -> None:
        self.fleet.registry(NoWakeups(), actor="test").apply(specs)

    def run_vms(self, *vm_ids: str) -> dict[str, VmRecord]:
        """Apply VMs and wait until all are healthy."""
        self.apply(*[self.spec(vm_id) for vm_id in vm_ids])
        return {vm_id: self.wait_healthy(vm_id) for vm_id in vm_ids}

    def record(self, vm_id: str) -> VmRecord:
        return self.fleet.store.read([vm_id]).found[vm_id].record

    def wait_state(self, vm_id: str, *states: State, timeout_s: float = 20) -> VmRecord:
        wanted = f"{vm_id} to be {' or '.join(states)}"

        def reached() -> VmRecord | None:
            record = self.record(vm_id)
            return record if record.state in states else None

        found = wait_until(reached, timeout_s=timeout_s, what=wanted)
        assert found is not None
        return found

    def wait_healthy(self, vm_id: str, *, after: VmRecord | None = None, timeout_s: float = 20) -> VmRecord:
        """Wait for a healthy VM; with `after`, for another incarnation than that record's."""
        before = after.process if after else None

        def healthy() -> VmRecord | None:
            record = self.record(vm_id)
            return record if record.state is State.HEALTHY and record.process not in (None, before) else None

        found = wait_until(healthy, timeout_s=timeout_s, what=f"{vm_id} to be healthy")
        assert found is not None
        return found

    def events(self, vm_id: str | None = None) -> list[Entry]:
        return self.fleet.events.latest(vm_id=vm_id, limit=10_000)

    def fault(self, vm_id: str, text: str) -> None:
        (self.folder / "faults" / f"{vm_id}.json").write_text(text, encoding="utf-8")

    def socket(self, record: VmRecord) -> Path:
        own = self.state_dir / "runs" / record.vm_id / str(record.generation) / "api.sock"
        return Path(record.socket) if record.socket else own

    def live(self, vm_id: str) -> list[int]:
        """Pids of this VM's live VMMs, as /proc shows them."""
        return [pid for pid, holder in holders(self.locks) if holder == vm_id]

    def close(self) -> None:
        self._stack.close()
        end_all(self.locks)


def send_by_name(site: Cluster, vm_id: str, **arguments: str) -> None:
    """What any Celery user can do: a bare send_task, by an app that knows only the broker."""
    app = Celery(broker=site.server.url(1), set_as_current=False)
    app.conf.task_default_queue = "control"
    app.send_task(queues.RECOVER_VM, args=[vm_id], kwargs=arguments)
    app.close()


@contextmanager
def cluster(folder: Path, server: EmbeddedServer, **extra: str) -> Iterator[Cluster]:
    made = Cluster(folder, server, extra)
    try:
        yield made
    except BaseException:
        if server.is_running:
            for entry in made.events():
                event = entry.event
                print(entry.at_ms % 1_000_000, event.vm_id, event.kind, event.before, event.after, event.why)
        raise
    finally:
        made.close()


def kill(record: VmRecord, number: int) -> None:
    """Do to a VMM what bad luck does."""
    assert record.process is not None
    with suppress(ProcessLookupError):
        os.kill(record.process.pid, number)
