"""A real host in a folder of its own: lock files, run directories and stand-in VMMs, without Redis or Celery."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.builders import a_spec
from workers.domain.vm import Incarnation, Vantage, VmRecord
from workers.host.identity import read_vantage
from workers.host.rundir import HostFiles
from workers.host.vmm_host import LocalVmmHost
from workers.specs import VmSpec
from workers.vmm.driver import Driver
from workers.vmm.firecracker import FirecrackerDriver
from workers.vmm.prober import EpollProber

# Unlike any other on this machine, so that tests that run at the same time leave each other alone.
TEST_HOST = f"test-{os.getpid()}"


def no_check() -> None:
    """A lease that is always ours."""


@dataclass
class LocalHost:
    """`faults(vm_id, json)` writes what the next start of this stand-in shall do wrong."""

    folder: Path
    files: HostFiles
    drivers: dict[str, Driver]
    vantage: Vantage
    vmms: LocalVmmHost
    kernel: Path

    def spec(self, vm_id: str = "vm-1", **fields: Any) -> VmSpec:
        return a_spec(vm_id, kernel=self.kernel, **fields)

    def start(self, vm_id: str = "vm-1", generation: int = 10) -> Incarnation:
        return self.vmms.start(self.spec(vm_id), generation, before_exec=no_check, while_waiting=no_check)

    def fence(self, process: Incarnation, vm_id: str = "vm-1") -> str:
        return self.vmms.fence(vm_id, process, before_signal=no_check)

    def faults(self, vm_id: str, text: str) -> None:
        (self.folder / "faults" / f"{vm_id}.json").write_text(text, encoding="utf-8")

    def prober(
        self, timeout_s: float = 1.0, living: Callable[[], Mapping[str, Incarnation]] = dict, **drivers: Driver
    ) -> EpollProber:
        known = self.drivers | drivers
        return EpollProber(known, self.vantage, socket_of=self.socket_of, timeout_s=timeout_s, living=living)

    def socket_of(self, record: VmRecord) -> str:
        return record.socket or str(self.files.run(record.vm_id, record.generation).socket)


@contextmanager
def local_host(
    folder: Path,
    *,
    stop_grace_s: float = 0.5,
    start_timeout_s: float = 5.0,
    binary: str = "standin",
    host_name: str = TEST_HOST,
    cgroup: Path | None = None,
) -> Iterator[LocalHost]:
    """Yield a host; ends every VMM that holds one of its locks, or runs in its folders, at the end."""
    for name in ("images", "faults"):
        (folder / name).mkdir()
    kernel = folder / "images" / "vmlinux"
    kernel.write_bytes(b"kernel")
    files = HostFiles(folder / "state")
    files.prepare()
    vantage = read_vantage(files.state_dir)
    drivers: dict[str, Driver] = {"firecracker": FirecrackerDriver(binary, {"STANDIN_FAULTS": str(folder / "faults")})}
    vmms = LocalVmmHost(
        files,
        drivers,
        vantage,
        host_name=host_name,
        image_roots=[folder / "images"],
        stop_grace_s=stop_grace_s,
        start_timeout_s=start_timeout_s,
        cgroup=cgroup,
    )
    try:
        yield LocalHost(folder, files, drivers, vantage, vmms, kernel)
    finally:
        end_all(files.locks)


def holders(locks: Path) -> list[tuple[int, str]]:
    """Seen from outside, in /proc: (pid, vm id) of every live process whose stdin is one of these lock files."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            stdin = Path(os.readlink(entry / "fd" / "0"))
            state = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            if stdin.parent == locks and state not in "ZX":
                found.append((int(entry.name), stdin.stem))
    return found


def end_all(locks: Path) -> None:
    for pid, _ in holders(locks):
        with suppress(ProcessLookupError):
            fd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(fd, signal.SIGKILL)
            finally:
                os.close(fd)
