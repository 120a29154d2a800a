"""Real QEMU guests for tests: whether they can run here, starting one as production does, and looking at it.

The command line is the QEMU driver's own. Guests are emulated (tcg), so that every machine runs the same.
Whoever tests how a worker starts and finds VMMs uses the worker; this is for tests that need a VMM and nothing else.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.conftest import require
from tests.support.processes import wait_until
from workers.host.rundir import CONSOLE, SOCKET_NAME, VMM_LOG
from workers.specs import QemuSpec
from workers.vmm import guest_image
from workers.vmm.conversation import Conversation, T
from workers.vmm.guest_image import GuestImage, Missing
from workers.vmm.qemu import QemuDriver
from workers.vmm.qmp import QmpError, status_conversation
from workers.vmm.talk import connect, hold

QEMU = "qemu-system-x86_64"
DRIVER = QemuDriver(QEMU, "tcg", {})

# 2 s on an idle core; 8 s were seen with three busy processes on two cores.
BOOT_TIMEOUT_S = 45.0
_ANSWER_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Guest:
    """A running QEMU and its run directory."""

    popen: subprocess.Popen[bytes]
    folder: Path

    @property
    def pid(self) -> int:
        return self.popen.pid

    @property
    def socket(self) -> Path:
        return self.folder / SOCKET_NAME

    def console(self) -> str:
        return _text(self.folder / CONSOLE)

    def log(self) -> str:
        return _text(self.folder / VMM_LOG)

    def wait_until_booted(self) -> None:
        """Return once the guest's first program has said so on the console; fail at once if QEMU ends before."""
        wait_until(lambda: self._is_booted() or self._has_ended(), timeout_s=BOOT_TIMEOUT_S, what="the guest to boot")
        assert self._is_booted(), f"QEMU ended with {self.popen.returncode}: {self.log()}"

    def ask(self, conversation: Conversation[T], *, timeout_s: float = _ANSWER_TIMEOUT_S) -> T:
        """Hold a conversation on the control socket, which is ours alone for that time."""
        with connect(str(self.socket)) as sock:
            return hold(sock, conversation, timeout_s=timeout_s, between=lambda: None)

    def _is_booted(self) -> bool:
        return guest_image.BOOT_MARK in self.console()

    def _has_ended(self) -> bool:
        return self.popen.poll() is not None


def require_qemu() -> None:
    require(QEMU, shutil.which(QEMU) is not None, "apt-get install qemu-system-x86")


def require_guest_image() -> GuestImage:
    """Return what a guest boots from; skip the test (or fail it in the full run) if QEMU or a part is missing."""
    require_qemu()
    found = guest_image.find_guest_image(guest_image.default_cache(os.environ))
    if isinstance(found, Missing):
        require(found.what, found=False, install=found.install_hint)
    assert isinstance(found, GuestImage)
    return found


def guest_spec(image: GuestImage, vm_id: str = "guest-1", **fields: Any) -> QemuSpec:
    """Build the spec of a guest that boots from this image; `fields` are more of the spec, or other values."""
    values: dict[str, Any] = {
        "id": vm_id,
        "machine": guest_image.MACHINE,
        "memory_mib": guest_image.MEMORY_MIB,
        "kernel": image.kernel,
        "initrd": image.initrd,
        "kernel_args": guest_image.KERNEL_ARGS,
        **fields,
    }
    return QemuSpec(**values)


@contextmanager
def running_guest(folder: Path, spec: QemuSpec) -> Iterator[Guest]:
    """Start QEMU with this folder as its run directory and wait until QMP answers; kill it at the end.

    Its stdin is a lock file, as in production; nobody locks it here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    launch = DRIVER.launch(spec)
    with (folder / f"{spec.id}.lock").open("ab+") as lock, (folder / VMM_LOG).open("ab") as log:
        popen = subprocess.Popen(
            launch.argv, stdin=lock, stdout=log, stderr=log, cwd=folder, env=launch.environment, start_new_session=True
        )
    guest = Guest(popen, folder)
    try:
        wait_until(lambda: _answers(guest) or popen.poll() is not None, timeout_s=_ANSWER_TIMEOUT_S, what="QMP")
        assert popen.poll() is None, f"QEMU ended with {popen.returncode}"
        yield guest
    except BaseException:
        print(f"--- QEMU (status {popen.poll()}) ---\n{guest.log()}\n--- console ---\n{guest.console()[-2000:]}")
        raise
    finally:
        popen.kill()
        popen.wait()


def _answers(guest: Guest) -> bool:
    # The socket alone is not enough: QEMU listens on it before it has opened its disks.
    try:
        guest.ask(status_conversation())
    except (FileNotFoundError, ConnectionRefusedError, QmpError):
        return False
    return True


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
