"""The box: a server, the records of a fleet, processes that stand for its hosts, and beats, in one temporary folder.

Everything that is started here is ended when the box is left. What is measured in it is left to others.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis

from tests.benchmarks.fleet_model import CostModel, Shape
from tests.benchmarks.stage import beat_command
from tests.support.processes import RunningProcess, start_process, wait_until
from workers.embedded import EmbeddedServer
from workers.settings import Settings, load

RECORDS_DB, BROKER_DB, PATTERN_DB = range(3)
_ROOT = Path(__file__).resolve().parents[2]
_FOREIGN = ("RELIABILITY_", "CELERY_", "FLOWER_", "OTEL_")
# Beside the connections that the hosts of the box open.
_MORE_CONNECTIONS = 1000


@dataclass(frozen=True, slots=True)
class Box:
    folder: Path
    server: EmbeddedServer
    given: Mapping[str, str]

    def environment(self, db: int = RECORDS_DB) -> dict[str, str]:
        ours = {
            "config": str(self.folder / "reliability.toml"),
            "host": "bench",
            "state_dir": str(self.folder / "state"),
            "redis__url": self.server.url(db),
            "broker__url": self.server.url(BROKER_DB),
            "telemetry__beat_port": "0",
            "log__format": "logfmt",
        }
        return {f"RELIABILITY_{name.upper()}": value for name, value in (ours | dict(self.given)).items()}

    def settings(self, db: int = RECORDS_DB) -> Settings:
        return load(self.environment(db), self.folder).settings

    def client(self, db: int = RECORDS_DB) -> redis.Redis:
        return redis.Redis.from_url(self.server.url(db))

    @contextmanager
    def hosts(self, shape: Shape, model: CostModel, processes: int) -> Iterator[list[RunningProcess]]:
        """Run the hosts of the fleet; returns when each has its lease and asks for messages."""
        self.client().config_set("maxclients", str(shape.hosts + _MORE_CONNECTIONS))
        of = min(processes, shape.hosts)
        fixed = ["--vms", shape.vms, "--per-host", shape.per_host, "--of", of, "--folder", self.folder]
        fixed += ["--unanswered", model.unanswered, "--deaths", model.deaths]
        module = [sys.executable, "-m", "tests.benchmarks.fleet_hosts"]
        commands = [[*module, *map(str, fixed), "--index", str(index)] for index in range(of)]
        with self._running(commands, "hosts") as started:
            for index, process in enumerate(started):
                self._wait_for_log(index, process, timeout_s=60 + shape.vms / 200)
            yield started

    @contextmanager
    def beats(self, number: int) -> Iterator[list[RunningProcess]]:
        with self._running([beat_command()] * number, "beat") as started:
            yield started

    @contextmanager
    def _running(self, commands: Sequence[list[str]], name: str) -> Iterator[list[RunningProcess]]:
        with ExitStack() as ends:
            started = [
                ends.enter_context(
                    start_process(
                        command, log_path=self.folder / f"{name}-{number}.log", env=self.environment(), cwd=_ROOT
                    )
                )
                for number, command in enumerate(commands)
            ]
            yield started
            for process in started:
                process.stop()

    def _wait_for_log(self, index: int, process: RunningProcess, *, timeout_s: float) -> None:
        wait_until(
            lambda: self.log(index).exists() or not process.is_alive, timeout_s=timeout_s, what="the simulated hosts"
        )
        if not process.is_alive:
            raise RuntimeError("a process of simulated hosts ended before its hosts ran")

    def log(self, index: int) -> Path:
        return self.folder / f"hosts-{index}.jsonl"

    def told(self) -> list[list[dict[str, Any]]]:
        """What each process of hosts has told so far, a line per second."""
        found = []
        for log in sorted(self.folder.glob("hosts-*.jsonl")):
            lines = log.read_text(encoding="utf-8").splitlines(keepends=True)
            found.append([json.loads(line) for line in lines if line.endswith("\n")])
        return found


@contextmanager
def box(given: Mapping[str, str], binary: Path | None) -> Iterator[Box]:
    """Start a server, of this program or the embedded one; `given` are settings beside those that it needs."""
    for name in [name for name in os.environ if name.startswith(_FOREIGN)]:
        del os.environ[name]
    folder = Path(tempfile.mkdtemp(prefix="rel-box-")).resolve()
    try:
        for part in ("server", "state"):
            (folder / part).mkdir()
        (folder / "reliability.toml").touch()
        with EmbeddedServer(folder / "server", binary=binary) as server:
            yield Box(folder, server, given)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
