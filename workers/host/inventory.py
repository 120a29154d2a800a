"""Finds the VMMs of this host in /proc: by the lock file they hold as stdin, else by what their command line says."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from workers.domain.vm import Incarnation, Vantage
from workers.host.identity import age_s, incarnation_of
from workers.host.rundir import SOCKET_NAME, HostFiles
from workers.ports import Running
from workers.specs import is_vm_id
from workers.vmm.driver import Claim, Driver

# Set in the environment of every VMM we start. Two hosts by name may share a machine (a demo, a test, a second fleet):
# the VMMs of the other one are neither ours to adopt nor strays.
HOST_VARIABLE = "METALD_RELIABILITY_HOST"
# Command lines that were understood once: more than the processes of most hosts.
_COMMANDS_KEPT = 2048
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Sighting:
    """A process that is a VMM: it holds the lock `guarded_id`, or runs the program of `driver` and makes this claim."""

    process: Incarnation
    driver: str
    claim: Claim | None
    guarded_id: str | None
    argv: Sequence[str]
    cwd: str

    @property
    def vm_id(self) -> str:
        """Whom it says it is, in words that may be no id at all."""
        return self.guarded_id or (self.claim.vm_id if self.claim else "")


class Inventory:
    def __init__(self, files: HostFiles, drivers: Mapping[str, Driver], vantage: Vantage, *, host_name: str) -> None:
        self._files, self._drivers, self._vantage = files, drivers, vantage
        self._host_name, self._locks = host_name, str(files.locks)
        # What most processes are stays the same from scan to scan: no VMM.
        self._claim = lru_cache(maxsize=_COMMANDS_KEPT)(self._identify)

    def all(self, *, known_pids: Collection[int] = ()) -> list[Running]:
        """Every live VMM but those with a known pid. Processes of others that we may not look into are passed over."""
        return [running for pid in _pids() if pid not in known_pids for running in self._look(pid)]

    def find(self, vm_id: str, *, known_pids: Collection[int] = ()) -> list[Running]:
        return [running for pid in _pids() if pid not in known_pids for running in self._look(pid, only=vm_id)]

    def is_vmm_of(self, pid: int, vm_id: str) -> bool:
        """Whether this process is, by its lock or its own words, a VMM of this VM."""
        return any(running.vm_id == vm_id for running in self._look(pid))

    def sightings(self) -> list[Sighting]:
        """Every live process that is a VMM by its lock or its program, whoever started it."""
        return [seen for pid in _pids() if (seen := self._see(pid))]

    def unseen(self) -> list[int]:
        """Processes that call themselves a VMM, and that we may not look into."""
        return [pid for pid in _pids() if self._is_hidden_vmm(pid)]

    def _look(self, pid: int, *, only: str | None = None) -> Iterator[Running]:
        seen = self._see(pid)
        if seen is None or only not in (None, seen.vm_id) or not is_vm_id(seen.vm_id) or self.is_of_another_host(pid):
            return
        claim = seen.claim
        yield Running(
            seen.vm_id,
            seen.driver,
            seen.process,
            os.path.join(seen.cwd, claim.socket or SOCKET_NAME) if claim else None,
            guarded=seen.guarded_id is not None,
            generation=_generation(seen.cwd),
            age_s=age_s(seen.process),
        )

    def _see(self, pid: int) -> Sighting | None:
        try:
            guarded = self._guarded_id(pid)
            exe = os.readlink(f"/proc/{pid}/exe")
            command = _read(f"/proc/{pid}/cmdline")
            driver, claim = self._claim(command, exe)
            if guarded is None and claim is None:
                return None
            cwd = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            return None  # it ended meanwhile, is a kernel thread, or is not ours to look into
        process = incarnation_of(pid, self._vantage)
        return Sighting(process, driver, claim, guarded, tuple(_words(command)), cwd) if process else None

    def _is_hidden_vmm(self, pid: int) -> bool:
        try:
            os.readlink(f"/proc/{pid}/exe")
        except PermissionError:
            with suppress(OSError):
                command = _read(f"/proc/{pid}/cmdline")
                return self._claim(command, _words(command)[0])[1] is not None
        except OSError:
            pass
        return False

    def _guarded_id(self, pid: int) -> str | None:
        """The VM whose lock file is the stdin of this process."""
        stdin = os.readlink(f"/proc/{pid}/fd/0")
        folder, _, name = stdin.rpartition("/")
        return name.removesuffix(".lock") if folder == self._locks and name.endswith(".lock") else None

    def is_of_another_host(self, pid: int) -> bool:
        try:
            environment = _read(f"/proc/{pid}/environ").split(b"\0")
        except OSError:
            return False
        name = f"{HOST_VARIABLE}=".encode()
        return any(entry.startswith(name) and entry != name + self._host_name.encode() for entry in environment)

    def _identify(self, command: bytes, exe: str) -> tuple[str, Claim | None]:
        argv = _words(command)
        for name, driver in self._drivers.items():
            if claim := driver.identify(argv, exe):
                return name, claim
        return "", None


def _words(command: bytes) -> list[str]:
    return command.decode(errors="replace").split("\0")


def _read(path: str) -> bytes:
    """A whole file of /proc, without what `open` does beside: this is asked for each process of the host."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(fd, _CHUNK):
            parts.append(part)
            if len(part) < _CHUNK:
                break
        return b"".join(parts)
    finally:
        os.close(fd)


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _generation(cwd: str) -> int | None:
    """A VMM of ours runs in the folder of its generation."""
    name = Path(cwd).name
    return int(name) if name.isdigit() else None
