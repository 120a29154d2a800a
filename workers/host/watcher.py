"""One epoll over a pidfd of every VMM of this host: a death is told in milliseconds, with its cause where known."""

import os
import select
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from workers.domain.vm import Incarnation, Vantage
from workers.host.pidfd import exit_cause, open_checked

# A stranger's exit cause appears only after its parent has reaped it; we go on asking this long, and wait for nothing.
_LATE_CAUSE_S = 10.0
_LATE_CAUSE_EVERY_S = 0.5
_RETRY_S = 0.5
# Of so many deaths the cause is kept for checks that see them, too.
_CAUSES_KEPT = 2000
# At least so often it shows that it lives.
ROUND_S = 5.0


@dataclass(frozen=True, slots=True)
class Death:
    vm_id: str
    process: Incarnation
    cause: str | None
    at: float = field(default_factory=time.monotonic, compare=False)


@dataclass(slots=True)
class _Watched:
    vm_id: str
    process: Incarnation
    asked_until: float = 0.0


class Watcher:
    """`on_deaths` is called in the watcher's thread and returns the deaths it could not deal with: they come again.

    `on_cause` hears causes that became known late, `on_round` that this goes on. None of them may raise.
    """

    def __init__(
        self,
        vantage: Vantage,
        *,
        on_deaths: Callable[[Sequence[Death]], Sequence[Death]],
        on_cause: Callable[[str, Incarnation, str], None],
        on_round: Callable[[], None] = lambda: None,
    ) -> None:
        self._vantage = vantage
        self._on_deaths, self._on_cause, self._on_round = on_deaths, on_cause, on_round
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._lock = threading.Lock()
        self._by_fd: dict[int, _Watched] = {}
        self._processes: dict[str, Incarnation] = {}
        self._late: dict[int, _Watched] = {}
        self._undelivered: list[Death] = []
        self._causes: dict[Incarnation, str] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="vmm-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        with self._lock:
            self._stopping = True
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout=5)
        for fd in (*self._by_fd, *self._late):
            os.close(fd)
        self._by_fd.clear()
        self._late.clear()
        self._epoll.close()
        os.close(self._wake)

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def pids_of_others(self, vm_id: str) -> set[int]:
        """The pids of all watched VMMs but this VM's."""
        with self._lock:
            return {process.pid for other, process in self._processes.items() if other != vm_id}

    def vm_ids(self) -> list[str]:
        """The VMs whose process is watched: to our knowledge it lives."""
        with self._lock:
            return list(self._processes)

    def living(self) -> Mapping[str, Incarnation]:
        """The watched processes that the kernel has not reported as ended up to this moment, by VM id.

        One question for all of them, where /proc would have to be read for each; a zombie has ended, too.
        """
        with self._lock:
            if self._stopping:
                return {}
            ended = {fd for fd, _ in self._epoll.poll(0, max(1, len(self._by_fd)))} - {self._wake}
            if not ended:
                return self._processes
            gone = {self._by_fd[fd].vm_id for fd in ended if fd in self._by_fd}
            return {vm_id: process for vm_id, process in self._processes.items() if vm_id not in gone}

    def cause_of(self, process: Incarnation) -> str | None:
        """How a watched incarnation ended, for who sees that before it is told; None where it is not known."""
        with self._lock:
            fd = next((fd for fd, watched in self._by_fd.items() if watched.process == process), None)
            if fd is None:
                return self._causes.get(process)
            with suppress(OSError):
                return exit_cause(fd, reap=False)
        return None

    def __len__(self) -> int:
        return len(self._processes)

    def watch(self, vm_id: str, process: Incarnation) -> None:
        """Watch this incarnation, in place of an older one of the same VM; again is harmless. Raises OSError."""
        if self._processes.get(vm_id) is process or not self._vantage.shares_place(process):
            return
        with self._lock:
            if self._processes.get(vm_id) == process:
                # Equal is enough; the same is cheaper to compare next time.
                self._processes[vm_id] = process
                return
            if self._stopping:
                return
            fd = open_checked(process, self._vantage)
            if fd is None:
                self._undelivered.append(Death(vm_id, process, None))
                os.eventfd_write(self._wake, 1)
                return
            try:
                self._epoll.register(fd, select.EPOLLIN)
            except OSError:
                # Nobody may take it for watched, and so for alive.
                os.close(fd)
                raise
            self._processes[vm_id] = process
            self._by_fd[fd] = _Watched(vm_id, process)

    def _run(self) -> None:
        while not self._stopping:
            self._on_round()
            ready = self._epoll.poll(self._patience())
            known_at = time.monotonic()
            deaths = [death for fd, _ in ready if (death := self._ended(fd, known_at))]
            with self._lock:
                deaths += self._undelivered
                self._undelivered = []
            if deaths:
                left = list(self._on_deaths(deaths))
                with self._lock:
                    self._undelivered += left
            self._ask_for_late_causes()

    def _patience(self) -> float:
        if self._undelivered:
            return _RETRY_S
        return _LATE_CAUSE_EVERY_S if self._late else ROUND_S

    def _ended(self, fd: int, known_at: float) -> Death | None:
        if fd == self._wake:
            os.eventfd_read(self._wake)
            return None
        with self._lock:
            watched = self._by_fd.pop(fd)
            self._epoll.unregister(fd)
            if self._processes.get(watched.vm_id) == watched.process:
                del self._processes[watched.vm_id]
            cause = exit_cause(fd)
            if cause is not None:
                self._remember(watched.process, cause)
        if cause is None:
            watched.asked_until = time.monotonic() + _LATE_CAUSE_S
            self._late[fd] = watched
        else:
            os.close(fd)
        return Death(watched.vm_id, watched.process, cause, known_at)

    def _remember(self, process: Incarnation, cause: str) -> None:
        while len(self._causes) >= _CAUSES_KEPT:
            del self._causes[next(iter(self._causes))]
        self._causes[process] = cause

    def _ask_for_late_causes(self) -> None:
        for fd, watched in list(self._late.items()):
            cause = exit_cause(fd)
            if cause is None and time.monotonic() < watched.asked_until:
                continue
            del self._late[fd]
            os.close(fd)
            if cause is not None:
                self._on_cause(watched.vm_id, watched.process, cause)
