"""What people would use instead: supervisord, runit and monit, each set up as is sensible for VMMs; measures nothing.

Each runs in a folder of its own, listens to no network, and is ended with all that it started. Each starts a VMM by the
same kind of script, since a VMM refuses to start where its old socket is left.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.benchmarks.peer_prober import Door
from tests.support.processes import RunningProcess, start_process, wait_until
from workers.vmm.firecracker import program

_UV_S = 60.0


class Missing(Exception):
    """The supervisor is not there; the text says how to install it."""


class Team(Protocol):
    """A supervisor that runs, and the VMs that it keeps alive."""

    @property
    def doors(self) -> Sequence[Door]: ...

    def young(self, doors: Sequence[Door]) -> Sequence[Door]:
        """Return as many VMs whose processes are in their first moments; those behind `doors` have just come back."""
        ...

    def settle(self, doors: Sequence[Door]) -> Mapping[str, float]:
        """Return when nothing is left to do for VMs that have come back.

        The result is when each was on record as back, by the wall clock; empty where no record is kept.
        """
        ...

    def ideal_s(self, doors: Sequence[Door]) -> float | None:
        """How long its own limits let these take that came back together; None where it has no limits."""
        ...


class Supervisor(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def turn_s(self) -> float:
        """How often it looks, where it does not hear of a death; kills then come at any moment of a turn."""
        ...

    def check(self) -> None:
        """Raises Missing."""
        ...

    def run(self, binary: str, vms: int) -> AbstractContextManager[Team]:
        """Keep so many VMs alive; `binary` is what the setting `drivers.firecracker.binary` takes."""
        ...


@dataclass(frozen=True, slots=True)
class PeerTeam:
    """Peers know neither first starts nor records: what has just come back is young, and all is done."""

    doors: Sequence[Door]

    def young(self, doors: Sequence[Door]) -> Sequence[Door]:
        return doors

    def settle(self, _doors: Sequence[Door]) -> Mapping[str, float]:
        return {}

    def ideal_s(self, _doors: Sequence[Door]) -> float | None:
        return None


@dataclass(frozen=True, slots=True)
class Charge:
    """A VM that a peer looks after, and the files for it."""

    vm: str
    folder: Path

    @property
    def socket(self) -> Path:
        return self.folder / f"{self.vm}.sock"

    @property
    def pidfile(self) -> Path:
        return self.folder / f"{self.vm}.pid"

    def script(self, path: Path, binary: str, *, in_background: bool = False) -> Path:
        """Write the script that removes the old socket and becomes the VMM, or leaves it behind with a pid file."""
        command = shlex.join([*program(binary).resolve(), "--api-sock", str(self.socket), "--id", self.vm])
        start = f"exec {command}"
        if in_background:
            start = f"{command} </dev/null >>{self.folder}/console.log 2>&1 &\necho $! >{self.pidfile}"
        # The tiny VMM ends with this benchmark; monit hands no environment on.
        text = f"#!/bin/sh\nexport TINYVMM_OWNER={os.getpid()}\nrm -f {self.socket}\n{start}\n"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o700)
        return path


@contextmanager
def _folder(prefix: str, vms: int) -> Iterator[tuple[Path, list[Charge]]]:
    folder = Path(tempfile.mkdtemp(prefix=f"rel-{prefix}-")).resolve()
    try:
        yield folder, [Charge(f"{prefix}-{number:03d}", folder) for number in range(vms)]
    finally:
        end_all_below(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _team(command: Sequence[str], folder: Path, charges: Sequence[Charge], end: signal.Signals) -> Iterator[PeerTeam]:
    with start_process(command, log_path=folder / "log", cwd=folder) as process:
        try:
            yield PeerTeam([Door(charge.vm, str(charge.socket)) for charge in charges])
        finally:
            _end(process, end)


def _end(process: RunningProcess, by: signal.Signals) -> None:
    process.popen.send_signal(by)
    with suppress(subprocess.TimeoutExpired):
        process.popen.wait(10)


def end_all_below(folder: Path) -> None:
    """SIGKILL every process that runs in this folder or names it; what restarts them may be among them."""

    def none_is_left() -> bool:
        found = list(_processes_below(folder))
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not found

    wait_until(none_is_left, timeout_s=20, what=f"the end of all processes in {folder}")


def _processes_below(folder: Path) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().split(b"\0")
            # A zombie has neither.
            if (entry / "cwd").readlink().is_relative_to(folder) or any(os.fsencode(folder) in word for word in words):
                yield int(entry.name)


@dataclass(frozen=True, slots=True)
class Supervisord:
    """autorestart=true, everything else as it comes; `startsecs` 0 takes no start for a failed one."""

    startsecs: int = 1
    name: str = "supervisord"
    turn_s: float = 1.0

    def check(self) -> None:
        _supervisord()

    @contextmanager
    def run(self, binary: str, vms: int) -> Iterator[Team]:
        # Two of them may run at the same time.
        with _folder(f"sup{self.startsecs}", vms) as (folder, charges):
            scripts = [charge.script(folder / f"run-{charge.vm}", binary) for charge in charges]
            programs = (
                f"[program:{script.name}]\ncommand={script}\nautorestart=true\nstartsecs={self.startsecs}\n"
                for script in scripts
            )
            head = f"[supervisord]\nnodaemon=true\npidfile={folder}/pid\nlogfile={folder}/main.log\n"
            config = folder / "supervisord.conf"
            config.write_text(f"{head}childlogdir={folder}\n{''.join(programs)}", encoding="utf-8")
            with _team([_supervisord(), "-c", str(config)], folder, charges, signal.SIGTERM) as team:
                yield team


def _supervisord() -> str:
    """Raises Missing. `uv` brings it where it is not installed, as it would for a user."""
    found = shutil.which("supervisord")
    if found is None and shutil.which("uv") is not None:
        asked = ["uv", "tool", "run", "--from", "supervisor", "sh", "-c", "command -v supervisord"]
        with suppress(subprocess.TimeoutExpired):
            answer = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=_UV_S)
            found = answer.stdout.strip() or None
    if found is None:
        raise Missing("not installed: uv tool install supervisor")
    return found


@dataclass(frozen=True, slots=True)
class Runit:
    """One `runsv` per VM below `runsvdir`, nothing set; it hears of a death, and waits where the start is young."""

    name: str = "runit"
    turn_s: float = 0.0

    def check(self) -> None:
        for needed in ("runsvdir", "runsv"):
            _program(needed, "runit")

    @contextmanager
    def run(self, binary: str, vms: int) -> Iterator[Team]:
        with _folder("runit", vms) as (folder, charges):
            services = folder / "services"
            for charge in charges:
                charge.script(services / charge.vm / "run", binary)
            with _team([_program("runsvdir", "runit"), str(services)], folder, charges, signal.SIGHUP) as team:
                yield team


@dataclass(frozen=True, slots=True)
class Monit:
    """A check of each pid file every second, the shortest cycle there is; the default action is to start it again."""

    name: str = "monit"
    turn_s: float = 1.0

    def check(self) -> None:
        _program("monit", "monit")

    @contextmanager
    def run(self, binary: str, vms: int) -> Iterator[Team]:
        with _folder("monit", vms) as (folder, charges):
            scripts = [charge.script(folder / f"run-{charge.vm}", binary, in_background=True) for charge in charges]
            checks = (
                f'check process {charge.vm} with pidfile {charge.pidfile}\n  start program = "{script}"\n'
                for charge, script in zip(charges, scripts, strict=True)
            )
            files = "".join(f"set {name}file {folder}/{name}\n" for name in ("pid", "id", "state"))
            config = folder / "monitrc"
            config.write_text(f"set daemon 1\n{files}{''.join(checks)}", encoding="utf-8")
            config.chmod(0o600)
            reaper = [sys.executable, "-S", "-I", str(Path(__file__).with_name("subreaper.py"))]
            # As on a host where they run already: monit itself would start them one after the other.
            start_all = ["/bin/sh", "-c", 'for start in ./run-*; do $start; done; exec "$@"', "sh"]
            command = [*reaper, *start_all, _program("monit", "monit"), "-I", "-c", str(config)]
            with _team(command, folder, charges, signal.SIGTERM) as team:
                yield team


def _program(name: str, package: str) -> str:
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"not installed: apt-get install {package}")
    return found
