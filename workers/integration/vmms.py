"""Who the VMM is that a manager names: read from /proc at once, so that a later replay cannot take over another."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from workers.domain.vm import Incarnation, Vantage
from workers.host.identity import incarnation_of
from workers.integration.hooks import VmmProcess
from workers.vmm.driver import Claim, Driver

Process = int | VmmProcess | Incarnation | subprocess.Popen[bytes] | subprocess.Popen[str]


@dataclass(frozen=True, slots=True)
class Vmm:
    """`socket` is the API socket's absolute path; None only of one that has ended already."""

    process: Incarnation
    executable: str | None
    socket: str | None


@dataclass(frozen=True, slots=True)
class _Looked:
    """What /proc shows of a live process."""

    executable: str
    driver: str | None
    claim: Claim | None
    folder: str | None


class Vmms:
    """Every VMM whose program one of the drivers knows; of any other the manager has to name the API socket."""

    def __init__(self, drivers: Mapping[str, Driver], vantage: Vantage) -> None:
        self._drivers, self._vantage = drivers, vantage

    def named(self, vm_id: str, process: Process, *, driver: str | None, socket: str | None) -> Vmm | None:
        """Return who this is, None of one that has ended and of which nothing but its pid is known.

        Raises ValueError where it is a VMM of another VM or driver, or where its socket is not known; TypeError.
        """
        pid, told = self._told(process)
        seen = incarnation_of(pid, self._vantage)
        expected = told or seen
        if seen is None or seen != expected:
            return Vmm(expected, _executable_told(process), socket) if expected else None
        looked = self._look(pid)
        if looked is None or incarnation_of(pid, self._vantage) != seen:
            return Vmm(seen, _executable_told(process), socket)
        _check_claim(vm_id, pid, looked, driver)
        return Vmm(seen, looked.executable, _socket(socket, pid, looked))

    def _told(self, process: object) -> tuple[int, Incarnation | None]:
        match process:
            case bool():
                raise TypeError(f"field process: must be a pid, a Popen, a VmmProcess or an Incarnation, got {process}")
            case int():
                return _checked(process), None
            case subprocess.Popen():
                return _checked(process.pid), None
            case Incarnation():
                return _checked(process.pid), process
            case VmmProcess():
                return _checked(process.pid), self._told_identity(process)
            case _:
                kind = type(process).__name__
                raise TypeError(f"field process: must be a pid, a Popen, a VmmProcess or an Incarnation, got {kind}")

    def _told_identity(self, process: VmmProcess) -> Incarnation | None:
        if process.start_ticks is None:
            return None
        here = self._vantage
        boot_id = process.boot_id or here.boot_id
        return Incarnation(process.pid, process.start_ticks, boot_id, here.machine_id, here.pid_ns)

    def _look(self, pid: int) -> _Looked | None:
        try:
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            return None  # it ended meanwhile
        # Of another account's process the links may be closed to us: what it calls itself is not.
        executable = _link(f"/proc/{pid}/exe") or argv[0]
        for name, driver in self._drivers.items():
            if claim := driver.identify(argv, executable):
                return _Looked(executable, name, claim, _link(f"/proc/{pid}/cwd"))
        return _Looked(executable, None, None, None)


def _check_claim(vm_id: str, pid: int, looked: _Looked, driver: str | None) -> None:
    if driver is not None and looked.driver not in (None, driver):
        raise ValueError(f"field process: pid {pid} runs {looked.executable}, which is no {driver}")
    if looked.claim and looked.claim.vm_id not in ("", vm_id):
        raise ValueError(f"field process: pid {pid} says that it is vm {looked.claim.vm_id!r}, not {vm_id!r}")


def _socket(told: str | None, pid: int, looked: _Looked) -> str:
    if told is not None:
        if not told.startswith("/") or not told.isprintable():
            raise ValueError(f"field socket: must be an absolute path, got {told!r}")
        return told
    named = looked.claim.socket if looked.claim else None
    if named is not None and (named.startswith("/") or looked.folder):
        return os.path.join(looked.folder or "/", named)
    raise ValueError(f"field socket: pid {pid} ({looked.executable}) does not tell its API socket: name it")


def _checked(pid: int) -> int:
    if pid <= 0:
        raise ValueError(f"field process: must be the pid of a process, got {pid}")
    return pid


def _executable_told(process: Process) -> str | None:
    return process.executable if isinstance(process, VmmProcess) else None


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None
