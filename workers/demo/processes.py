"""The processes a user would start: worker, beat and Flower, each in its own session, restarted as systemd would."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

WORKER, BEAT, FLOWER = "worker", "beat", "flower"
# What the user's shell sets for other installations must not reach ours.
_FOREIGN = ("RELIABILITY_", "CELERY_", "FLOWER_")
_GRACE_S = 5.0


@dataclass(frozen=True, slots=True)
class Ended:
    """A process that ended without being asked to, and was started again."""

    name: str
    status: int

    def __str__(self) -> str:
        how = f"signal {-self.status}" if self.status < 0 else f"exit {self.status}"
        return f"{self.name} ended by itself ({how})"


@dataclass
class Processes:
    """`settings` are the environment variables of the fleet; secrets go by there, never by a command line."""

    settings: Mapping[str, str]
    cwd: Path
    log: IO[bytes]
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        # A session of their own: Ctrl-C on the terminal is for the demo alone, which ends them in order.
        self._running[name] = subprocess.Popen(
            [sys.executable, "-m", "workers.cli", name],
            cwd=self.cwd,
            env=clean_environment() | dict(self.settings),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def pid(self, name: str) -> int:
        return self._running[name].pid

    def kill(self, name: str) -> None:
        """SIGKILL, and gone when this returns."""
        process = self._running.pop(name)
        process.kill()
        process.wait()

    def start_again(self) -> list[Ended]:
        """Restart whatever has ended by itself."""
        ended = [
            Ended(name, process.returncode) for name, process in self._running.items() if process.poll() is not None
        ]
        for each in ended:
            self.start(each.name)
        return ended

    def stop(self) -> None:
        """End all of them in good order; SIGKILL for who takes too long."""
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + _GRACE_S
        for process in self._running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            process.kill()
            process.wait()
        self._running.clear()


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}


class SamplerProcess:
    """Runs `sampler` beside the demo; its lines go to a file."""

    def __init__(self, folder: Path, output: Path) -> None:
        self._command: Sequence[str] = [sys.executable, "-S", "-I", str(Path(__file__).with_name("sampler.py"))]
        self._folder, self._output = folder, output
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._output.open("ab") as output:
            self._process = subprocess.Popen(
                [*self._command, str(self._folder)], stdin=subprocess.PIPE, stdout=output, start_new_session=True
            )

    def stop(self) -> None:
        """Close its stdin, upon which it writes its summary and ends."""
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None
