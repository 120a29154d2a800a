"""Looks at every VMM of this host, whoever started it, and asks each that can be asked what it is made of.

Reads only: /proc, and the questions of `vmm.firecracker_draft` and `vmm.qemu_draft`. What follows is decided in
`services.adoption`.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from workers.domain.draft import Draft, Look
from workers.host.inventory import Inventory, Sighting
from workers.vmm.conversation import Conversation, T
from workers.vmm.firecracker_draft import draft_firecracker, firecracker_tells
from workers.vmm.http1 import BrokenAnswer
from workers.vmm.qemu_draft import draft_qemu, draft_qemu_drives, draft_qemu_line, qemu_tells
from workers.vmm.qmp import QmpError
from workers.vmm.talk import Silence, connect, hold, listener_pid

_AT_ONCE = 16  # VMMs that are asked at the same time, so that those which hang add up to little


class NoAnswer(Exception):
    """Why a VMM could not be asked."""


class Discovery:
    """`timeout_s`: how long one VMM may take to answer."""

    def __init__(self, inventory: Inventory, *, timeout_s: float) -> None:
        self._inventory, self._timeout_s = inventory, timeout_s

    def look(self, sightings: Sequence[Sighting], *, is_known: Callable[[Sighting], bool]) -> list[Look]:
        """Ask each VMM but those that are known: QEMU serves one client per monitor, and health checks come first."""
        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            return list(pool.map(lambda seen: self._look(seen, ask=not is_known(seen)), sightings))

    def unseen(self) -> list[int]:
        """Pids of what calls itself a VMM and is not ours to look into."""
        return self._inventory.unseen()

    def _look(self, seen: Sighting, *, ask: bool) -> Look:
        draft = Draft({"id": seen.vm_id, "driver": seen.driver})
        draft.read.append("/proc")
        socket = os.path.join(seen.cwd, seen.claim.socket) if seen.claim and seen.claim.socket else None
        if socket is None:
            draft.obstacles.append(_NO_SOCKET.get(seen.driver, "it has no control socket on its command line"))
        if self._inventory.is_of_another_host(seen.process.pid):
            draft.obstacles.append("it was started by a worker of another host name on this machine")
        if _lives_elsewhere(seen.process.pid):
            draft.obstacles.append("it lives in a chroot or mount namespace of its own (jailer, container)")
        if ask:
            self._fill(draft, seen, socket)
        guarded = seen.guarded_id is not None
        return Look(seen.vm_id, seen.driver, seen.process, socket, guarded, draft)

    def _fill(self, draft: Draft, seen: Sighting, socket: str | None) -> None:
        match seen.driver:
            case "firecracker":
                self._fill_firecracker(draft, seen, socket)
            case "qemu":
                self._fill_qemu(draft, seen, socket)
            case _:
                draft.unread.append(f"all of it: driver {seen.driver!r} does not tell what its VMMs are made of")

    def _fill_firecracker(self, draft: Draft, seen: Sighting, socket: str | None) -> None:
        try:
            told = self._ask(socket, seen.process.pid, firecracker_tells())
        except NoAnswer as error:
            draft.unread.append(f"GET /vm/config: {error}")
            draft.obstacles += [f"its API cannot be asked: {error}"] if socket else []
        else:
            draft_firecracker(draft, told, seen.vm_id, seen.cwd)

    def _fill_qemu(self, draft: Draft, seen: Sighting, socket: str | None) -> None:
        argv = [word for word in seen.argv if word]
        draft_qemu_line(draft, argv, seen.cwd)
        told: Mapping[str, object] = {}
        try:
            told = self._ask(socket, seen.process.pid, qemu_tells())
        except NoAnswer as error:
            draft.unread.append(f"QMP: {error}")
            draft.obstacles += (
                [f"QMP cannot be asked: {error}; it needs a monitor that is ours alone"] if socket else []
            )
        else:
            draft_qemu(draft, told, seen.vm_id, seen.cwd)
        if "query-block" not in told:
            draft_qemu_drives(draft, argv, seen.cwd)

    def _ask(self, socket: str | None, pid: int, conversation: Conversation[T]) -> T:
        """Raises NoAnswer."""
        if socket is None:
            raise NoAnswer("it has no socket")
        try:
            with connect(socket) as sock:
                if (listener := listener_pid(sock)) != pid:
                    raise NoAnswer(f"pid {listener} listens on {socket}, not this one")
                return hold(sock, conversation, timeout_s=self._timeout_s, between=lambda: None)
        except Silence:
            raise NoAnswer(f"no answer on {socket} within {self._timeout_s:g} s") from None
        except (BrokenAnswer, QmpError) as error:
            raise NoAnswer(str(error)) from error
        except OSError as error:
            raise NoAnswer(f"{socket}: {error.strerror}") from error


_NO_SOCKET: Mapping[str, str] = {
    "firecracker": "it has no API socket (--no-api): nobody can ask how it is",
    "qemu": "it has no QMP socket: nobody can ask how it is; start it with -qmp unix:PATH,server=on,wait=off",
}


def _lives_elsewhere(pid: int) -> bool:
    """Paths that it names mean other files than ours."""
    with suppress(OSError):
        return os.readlink(f"/proc/{pid}/root") != "/" or _mounts(pid) != _mounts("self")
    return False


def _mounts(pid: int | str) -> str:
    return os.readlink(Path(f"/proc/{pid}/ns/mnt"))
