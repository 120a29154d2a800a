"""Waiting for conditions and running child processes in tests.

Knows nothing of workers or servers; whoever needs one of those builds it from these two.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.02
_STOP_TIMEOUT_S = 10.0
_TAIL_LINES = 60


def wait_until(condition: Callable[[], T], *, timeout_s: float = 10.0, what: str = "the condition") -> T:
    """Ask again until the answer is truthy and return it; AssertionError when the deadline passes."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout_s:g} s in vain for {what}")
        time.sleep(_POLL_S)
    return answer


@dataclass(frozen=True, slots=True)
class RunningProcess:
    """A child process whose whole output goes to one log file."""

    popen: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def is_alive(self) -> bool:
        return self.popen.poll() is None

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def log_tail(self) -> str:
        return "\n".join(self.log().splitlines()[-_TAIL_LINES:])

    def wait_for_log(self, text: str, *, timeout_s: float = 10.0, times: int = 1) -> None:
        """Return once the log holds the text that many times; fail at once if the process ends before."""

        def seen() -> bool:
            if self.log().count(text) >= times:
                return True
            if not self.is_alive:
                # What it wrote last may have come between the two looks.
                assert self.log().count(text) >= times, f"process {self.pid} ended before it logged {text!r}"
            return False

        wait_until(seen, timeout_s=timeout_s, what=f"{text!r} in {self.log_path.name}")

    def stop(self, *, timeout_s: float = _STOP_TIMEOUT_S) -> int:
        """Send SIGTERM and return the exit status; SIGKILL (status -9) if the timeout passes."""
        self.popen.terminate()
        try:
            return self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()


@contextmanager
def start_process(
    command: Sequence[str],
    *,
    log_path: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> Iterator[RunningProcess]:
    """Run a command with its output in a log file; kill it at the end, show the log's tail on failure.

    `env` is added to the environment of the tests. Processes which the command started itself are not ended here.
    """
    with log_path.open("ab") as log:
        popen = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            start_new_session=True,
        )
    process = RunningProcess(popen, log_path)
    try:
        yield process
    except BaseException:
        print(f"--- last lines of {log_path} (status {popen.poll()}) ---\n{process.log_tail()}")
        raise
    finally:
        popen.kill()
        popen.wait()
