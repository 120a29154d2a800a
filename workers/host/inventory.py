"""Finds the VMMs of this host in /proc: by the lock file they hold as stdin, else by what their command line says."""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from workers.domain.vm import Vantage
from workers.host.identity import age_s, incarnation_of
from workers.host.rundir import SOCKET_NAME, HostFiles
from workers.ports import Running
from workers.specs import is_vm_id
from workers.vmm.driver import Claim, Driver

# Set in the environment of every VMM we start. Two hosts by name may share a machine (a demo, a test, a second fleet):
# the VMMs of the other one are neither ours to adopt nor strays.
HOST_VARIABLE = "METALD_RELIABILITY_HOST"


class Inventory:
    def __init__(self, files: HostFiles, drivers: Mapping[str, Driver], vantage: Vantage, *, host_name: str) -> None:
        self._files, self._drivers, self._vantage = files, drivers, vantage
        self._host_name = host_name

    def all(self, *, known_pids: Collection[int] = ()) -> list[Running]:
        """Every live VMM but those with a known pid. Processes of others that we may not look into are passed over."""
        return [running for pid in _pids() if pid not in known_pids for running in self._look(pid)]

    def find(self, vm_id: str, *, known_pids: Collection[int] = ()) -> list[Running]:
        return [running for running in self.all(known_pids=known_pids) if running.vm_id == vm_id]

    def is_vmm_of(self, pid: int, vm_id: str) -> bool:
        """Whether this process is, by its lock or its own words, a VMM of this VM."""
        return any(running.vm_id == vm_id for running in self._look(pid))

    def _look(self, pid: int) -> Iterator[Running]:
        try:
            guarded = self._guarded_id(pid)
            exe = os.readlink(f"/proc/{pid}/exe")
            argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
            cwd = os.readlink(f"/proc/{pid}/cwd")
        except OSError:
            return  # it ended meanwhile, is a kernel thread, or is not ours to look into
        driver, claim = self._claim(argv, exe)
        vm_id = guarded or (claim.vm_id if claim else None)
        if vm_id is None or self._is_of_another_host(pid):
            return
        process = incarnation_of(pid, self._vantage)
        if process is None or not is_vm_id(vm_id):
            return
        socket = os.path.join(cwd, claim.socket or SOCKET_NAME) if claim else None
        yield Running(
            vm_id,
            driver,
            process,
            socket,
            guarded=guarded is not None,
            generation=_generation(cwd),
            age_s=age_s(process),
        )

    def _guarded_id(self, pid: int) -> str | None:
        """The VM whose lock file is the stdin of this process."""
        stdin = os.readlink(f"/proc/{pid}/fd/0")
        folder, _, name = stdin.rpartition("/")
        return name.removesuffix(".lock") if folder == str(self._files.locks) and name.endswith(".lock") else None

    def _is_of_another_host(self, pid: int) -> bool:
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            return False
        name = f"{HOST_VARIABLE}=".encode()
        return any(entry.startswith(name) and entry != name + self._host_name.encode() for entry in environment)

    def _claim(self, argv: Sequence[str], exe: str) -> tuple[str, Claim | None]:
        for name, driver in self._drivers.items():
            if claim := driver.identify(argv, exe):
                return name, claim
        return "", None


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _generation(cwd: str) -> int | None:
    """A VMM of ours runs in the folder of its generation."""
    name = Path(cwd).name
    return int(name) if name.isdigit() else None
