"""How the VMs look from outside: which processes there are, whether they answer, and the end of all of them."""

import contextlib
import http
import os
import select
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from workers.demo.home import Home
from workers.demo.sampler import Vmm, all_pids, live_start, vm_id_of, vmms_below
from workers.domain.evidence import Evidence
from workers.vmm.driver import Driver
from workers.vmm.http1 import BrokenAnswer, exchange, request
from workers.vmm.talk import Silence, connect, hold, listener_pid

_ANSWER_S = 1.0
_KILL_ROUNDS = 50
_ROUND_S = 0.1


def pids(home: Home) -> dict[str, list[Vmm]]:
    """Return every live VMM of the demo by VM id."""
    found: dict[str, list[Vmm]] = {}
    for vmm in vmms_below(str(home.state)):
        found.setdefault(vmm.vm_id, []).append(vmm)
    return found


def are_free(names: Collection[str], home: Home) -> bool:
    """Whether no process of this machine has one of these names, and no other demo is about to start one.

    Who looks for the VMMs of a VM by its name, as the product does, must not find those of another demo.
    """
    return not home.siblings() and not any(vm_id_of(pid, "") in names for pid in all_pids())


def serves(driver: Driver, vm_id: str, socket: Path) -> int | None:
    """Ask the API as a client would; return the pid that answers as this VM, else None."""
    try:
        with connect(str(socket)) as sock:
            evidence, _ = hold(sock, driver.probe(vm_id), timeout_s=_ANSWER_S, between=_nothing)
            return listener_pid(sock) if evidence is Evidence.ANSWERS else None
    except (OSError, Silence):
        return None


def ask_for_fault(socket: Path, body: bytes) -> None:
    """Tell a stand-in how to misbehave. Raises OSError."""
    try:
        with connect(str(socket)) as sock:
            response = hold(sock, exchange(request("PUT", "/faults", body)), timeout_s=_ANSWER_S, between=_nothing)
    except BrokenAnswer as error:
        raise OSError(f"{socket}: PUT /faults: {error}") from error
    if response.status != http.HTTPStatus.NO_CONTENT:
        raise OSError(f"{socket}: PUT /faults: {response.status} {response.body!r}")


def _nothing() -> None:
    pass


def end_all(home: Home) -> list[int]:
    """SIGKILL every VMM of the demo until none is left; nobody may start any by now. Returns who would not go."""
    left: list[int] = []
    quiet = 0
    for _ in range(_KILL_ROUNDS):
        left = [pid for pid in all_pids() if _is_ours(pid, home) and not _kill(pid, home)]
        if not any(_is_ours(pid, home) for pid in all_pids()):
            quiet += 1
            # Twice: a child of the worker may have been about to exec at the first look.
            if quiet > 1:
                return []
        time.sleep(_ROUND_S)
    return left


def _is_ours(pid: int, home: Home) -> bool:
    """A live process that has a lock file of the demo as its stdin, or works in its folder under the name of a VM."""
    if live_start(pid) is None:
        return False
    with contextlib.suppress(OSError):
        if os.readlink(f"/proc/{pid}/fd/0").startswith(f"{home.locks}/"):
            return True
    return vm_id_of(pid, str(home.state)) is not None


def _kill(pid: int, home: Home) -> bool:
    """Whether it has gone. Identity is checked after the pidfd is open: from then on it means this process only."""
    with _pidfd(pid) as fd:
        if fd is None or not _is_ours(pid, home):
            return True
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        return bool(select.select([fd], [], [], 1.0)[0])


@contextlib.contextmanager
def _pidfd(pid: int) -> Iterator[int | None]:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield None
        return
    try:
        yield fd
    finally:
        os.close(fd)
