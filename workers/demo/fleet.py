"""All that a demo or a bench installs: folder, Redis, processes, records; made in order, and taken down in order."""

import contextlib
import secrets
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from workers.bootstrap import Fleet, drivers
from workers.demo.casting import Cast
from workers.demo.home import Home, write_private
from workers.demo.outside import end_all
from workers.demo.processes import BEAT, FLOWER, WORKER, Ended, Processes, SamplerProcess
from workers.demo.profile import HOST, SHORT, variable
from workers.demo.timeline import Timeline
from workers.domain.errors import ReliabilityError
from workers.domain.vm import VmRecord
from workers.embedded import EmbeddedServer, free_port
from workers.host.rundir import HostFiles
from workers.messages import NoWakeups
from workers.settings import CONFIG_ENV, load
from workers.specs import spec_from
from workers.vmm.driver import Driver

USER = "demo"
RECOVER_TASK = "workers.tasks.recovery.recover_vm"


class LeftBehind(ReliabilityError):
    """Something of the demo could not be removed; the text says what."""


class DemoFleet:
    """`start` and the rest may be called in the main thread only; `close` at any time, also after a failed `start`.

    `own` are settings beside those that every one has; `is_sampled`: a process beside looks for doublings all the time.
    """

    def __init__(
        self,
        home: Home,
        cast: Cast,
        vm_ids: Sequence[str],
        log: IO[bytes],
        *,
        metrics_port: int | None = None,
        own: Mapping[str, str] = SHORT,
        is_sampled: bool = True,
    ) -> None:
        self.home, self.cast, self.vm_ids = home, cast, vm_ids
        self.server = EmbeddedServer(home.server)
        self.sampler = SamplerProcess(home.state, home.samples)
        self._own, self._is_sampled = own, is_sampled
        self.files = HostFiles(home.state)
        self.password = secrets.token_urlsafe(16)
        self.flower_port = free_port()
        self.worker_port = metrics_port or free_port()
        self.beat_port = metrics_port + 1 if metrics_port else free_port()
        self._log = log
        self._processes: Processes | None = None
        self._timeline: Timeline | None = None

    def start(self) -> None:
        """Bring up everything but Flower, and declare the VMs."""
        self.server.start()
        self._start_processes()
        self.driver: Driver = drivers(self.settings)[self.cast.driver]
        self.records = Fleet(self.settings)
        if self._is_sampled:
            self.sampler.start()
        self._timeline = Timeline(self.records.events)
        self._timeline.start()
        self._declare()
        self._write_files()

    def _start_processes(self) -> None:
        self.environment = self._environment()
        self.settings = load(self.environment, self.home.root).settings
        self._processes = Processes(self.environment, self.home.root, self._log)
        self._processes.start(WORKER)
        self._processes.start(BEAT)

    def restart(self, own: Mapping[str, str]) -> None:
        """Begin worker and beat anew with these settings of its own; the VMs run on."""
        self.processes.stop()
        self._own = own
        self._start_processes()

    @property
    def processes(self) -> Processes:
        if self._processes is None:
            raise RuntimeError("call start() first")
        return self._processes

    @property
    def timeline(self) -> Timeline:
        if self._timeline is None:
            raise RuntimeError("call start() first")
        return self._timeline

    @property
    def flower_url(self) -> str:
        return f"http://127.0.0.1:{self.flower_port}"

    @property
    def monitored_urls(self) -> tuple[str, str]:
        """Where the worker and the beat show themselves."""
        return f"http://127.0.0.1:{self.worker_port}", f"http://127.0.0.1:{self.beat_port}"

    def curl(self, vm_id: str) -> str:
        """Return a line that asks Flower for a recovery. The password stands in a file, not on the command line."""
        target = f"{self.flower_url}/api/task/async-apply/{RECOVER_TASK}"
        return f"""curl --config {self.home.curlrc} {target} -d '{{"args": ["{vm_id}"]}}'"""

    def _declare(self) -> None:
        plain = {"driver": self.cast.driver, "host": HOST, **self.cast.spec}
        specs = [spec_from({"id": vm_id, **plain}) for vm_id in self.vm_ids]
        self.records.registry(NoWakeups(), actor="demo").apply(specs)

    def start_flower(self) -> None:
        self.processes.start(FLOWER)

    def _environment(self) -> dict[str, str]:
        home, cast = self.home, self.cast
        settings = {
            "host": HOST,
            "state_dir": str(home.state),
            "image_roots": ":".join(map(str, cast.image_roots)),
            "redis.url": self.server.url(0),
            "broker.url": self.server.url(1),
            "flower.port": str(self.flower_port),
            "telemetry.worker_port": str(self.worker_port),
            "telemetry.beat_port": str(self.beat_port),
            "flower.basic_auth": f"{USER}:{self.password}",
            "log.format": "logfmt",
            **self._own,
        }
        named = {variable(key): value for key, value in settings.items()}
        # The variables of a VMM keep their case.
        for key, value in cast.settings.items():
            section, _, own = key.partition(".environment.")
            named[variable(f"{section}.environment") + f"__{own}" if own else variable(key)] = value
        return named | {CONFIG_ENV: str(home.no_settings)}

    def _write_files(self) -> None:
        write_private(self.home.curlrc, f'user = "{USER}:{self.password}"\n')
        lines = [f"export {name}={shlex.quote(value)}" for name, value in self.environment.items()]
        write_private(self.home.env, "\n".join(lines) + "\n")

    def socket_of(self, record: VmRecord) -> Path:
        return Path(record.socket) if record.socket else self.files.run(record.vm_id, record.generation).socket

    def start_again(self) -> list[Ended]:
        return self._processes.start_again() if self._processes else []

    def close(self) -> None:
        """Leave no process, socket or file; one step that fails keeps no other from being done. Raises LeftBehind."""
        with contextlib.ExitStack() as last_first:
            last_first.callback(self.home.remove_folder)
            if self._timeline is not None:
                last_first.callback(self._timeline.end)
            last_first.callback(self.server.stop)
            last_first.callback(self.sampler.stop)
            last_first.callback(_end_vmms, self.home)
            if self._processes is not None:
                last_first.callback(self._processes.stop)
            _pause(self.home)
        if self.home.root.exists():
            raise LeftBehind(f"could not be removed: {self.home.root}")


def _pause(home: Home) -> None:
    """From here on the worker starts and signals nothing (the kill switch of its host)."""
    if home.state.exists():
        (home.state / "PAUSE").touch()


def _end_vmms(home: Home) -> None:
    if stubborn := end_all(home):
        raise LeftBehind(f"these processes did not go after SIGKILL: {', '.join(map(str, stubborn))}")
