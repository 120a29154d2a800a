"""Looks at many VMs at once: process, then socket, then API, in one epoll with one deadline per VM.

Nothing is kept open to a VMM between two looks. What a look finds is evidence; what it is worth is decided elsewhere.
"""

import contextlib
import errno
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from workers.domain.evidence import Evidence, Observation
from workers.domain.vm import Incarnation, Vantage, VmRecord
from workers.host.identity import look_at
from workers.vmm.conversation import Conversation
from workers.vmm.driver import Driver, Finding
from workers.vmm.talk import CHUNK, CONNECT_EVIDENCE, connect, listener_pid

# Results are handed over as soon as nothing new came for this long, so that a hung VM delays no verdict but its own.
_QUIET_S = 0.02
# What our own limits look like; anything else that goes wrong on a connected socket is the VMM's.
_OUR_LIMITS = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})


_ENDED = frozenset({Evidence.PROCESS_ENDED, Evidence.ZOMBIE, Evidence.PID_REUSED})


@dataclass(slots=True)
class _Talk:
    vm_id: str
    sock: socket.socket
    conversation: Conversation[Finding]
    unsent: bytes
    began: float


class EpollProber:
    """`socket_of` says where the API of a record listens, `cause_of` how a process ended that was seen to.

    Thread-safe; one probe at a time per VM.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        vantage: Vantage,
        *,
        socket_of: Callable[[VmRecord], str],
        timeout_s: float,
        cause_of: Callable[[Incarnation], str | None] = lambda _process: None,
    ) -> None:
        self._drivers, self._vantage, self._socket_of = drivers, vantage, socket_of
        self._timeout_s, self._cause_of = timeout_s, cause_of
        self._busy: set[str] = set()
        self._busy_lock = threading.Lock()

    def probe(self, records: Sequence[VmRecord]) -> Iterator[dict[str, Observation]]:
        """Look at each VM once; yields observations in groups, each as soon as it is complete.

        A VM that is being probed by another thread is left out.
        """
        mine = self._reserve(records)
        try:
            for group in self._rounds(mine):
                self._release(group)
                yield group
        finally:
            self._release(record.vm_id for record in mine)

    def _rounds(self, records: Sequence[VmRecord]) -> Iterator[dict[str, Observation]]:
        try:
            epoll = select.epoll()
        except OSError as error:
            fault = Observation(Evidence.MONITOR_FAULT, f"epoll: {error.strerror}")
            yield {record.vm_id: fault for record in records}
            return
        yield from _Round(self, records, epoll).run()

    def _reserve(self, records: Sequence[VmRecord]) -> list[VmRecord]:
        with self._busy_lock:
            mine = [record for record in records if record.vm_id not in self._busy]
            self._busy.update(record.vm_id for record in mine)
        return mine

    def _release(self, vm_ids: Iterable[str]) -> None:
        with self._busy_lock:
            self._busy.difference_update(vm_ids)

    def look(self, record: VmRecord) -> Observation | _Talk:
        """Process and socket, without waiting; a _Talk when the API is to be asked."""
        began = time.monotonic()
        if (against := self.look_at_process(record)) is not None or record.process is None:
            return against or Observation(Evidence.NOT_STARTED)
        driver = self._drivers.get(record.driver)
        if driver is None:
            return Observation(Evidence.MONITOR_FAULT, f"no driver {record.driver!r} on this host")
        try:
            sock = connect(self._socket_of(record))
        except OSError as error:
            evidence = CONNECT_EVIDENCE.get(error.errno or 0, Evidence.MONITOR_FAULT)
            return Observation(evidence, f"connect: {error.strerror}", _ms_since(began))
        if (listener := listener_pid(sock)) != record.process.pid:
            sock.close()
            return Observation(Evidence.OTHER_LISTENER, f"pid {listener} listens, not {record.process.pid}")
        conversation = driver.probe(record.vm_id)
        return _Talk(record.vm_id, sock, conversation, next(conversation), began)

    def look_at_process(self, record: VmRecord) -> Observation | None:
        """What alone the process table says against this VM; None when it says nothing."""
        if record.process is None:
            return Observation(Evidence.NOT_STARTED)
        try:
            against = look_at(record.process, self._vantage)
        except OSError as error:
            return Observation(Evidence.MONITOR_FAULT, f"/proc: {error}")
        if against is None:
            return None
        pid, cause = f"pid {record.process.pid}", self._cause_of(record.process) if against in _ENDED else None
        return Observation(against, f"{pid} ended: {cause}" if cause else pid, cause=cause)

    @property
    def timeout_s(self) -> float:
        return self._timeout_s


class _Round:
    """One call of `probe`: all its sockets, and what was found so far."""

    def __init__(self, prober: EpollProber, records: Sequence[VmRecord], epoll: select.epoll) -> None:
        self._prober, self._records, self._epoll = prober, records, epoll
        self._talks: dict[int, _Talk] = {}
        self._found: dict[str, Observation] = {}

    def run(self) -> Iterator[dict[str, Observation]]:
        try:
            for record in self._records:
                self._begin(record)
            while self._talks:
                if not self._step() and self._found:
                    yield self._hand_over()
            if self._found:
                yield self._hand_over()
        finally:
            for talk in self._talks.values():
                talk.sock.close()
            self._epoll.close()

    def _hand_over(self) -> dict[str, Observation]:
        found, self._found = self._found, {}
        return found

    def _begin(self, record: VmRecord) -> None:
        looked = self._prober.look(record)
        if isinstance(looked, Observation):
            self._found[record.vm_id] = looked
            return
        fd = looked.sock.fileno()
        self._talks[fd] = looked
        self._epoll.register(fd, select.EPOLLIN)
        self._send(fd, looked)

    def _step(self) -> bool:
        """Wait for the next happenings; False when there were none for a while."""
        deadline = next(iter(self._talks.values())).began + self._prober.timeout_s
        asked = time.monotonic()
        patience = max(0.0, deadline - asked)
        if self._found:
            patience = min(patience, _QUIET_S)
        ready = self._epoll.poll(patience)
        for fd, event in ready:
            talk = self._talks[fd]
            if event & select.EPOLLOUT:
                self._epoll.modify(fd, select.EPOLLIN)
                self._send(fd, talk)
            if event & ~select.EPOLLOUT and fd in self._talks:
                self._receive(fd, talk)
        if not ready:
            self._expire(late_s=time.monotonic() - asked - patience)
        return bool(ready)

    def _expire(self, *, late_s: float) -> None:
        """Talks stand in the order they began, so the first that is not over its deadline ends the search.

        Nothing was ready to be read just before, so silence is theirs, unless we ourselves were kept from looking.
        """
        now = time.monotonic()
        timeout_s = self._prober.timeout_s
        for fd, talk in list(self._talks.items()):
            if now - talk.began < timeout_s:
                return
            if late_s > timeout_s / 2:
                self._end(fd, Evidence.MONITOR_FAULT, f"our own loop was {late_s:.1f} s late")
            else:
                self._end(fd, Evidence.NO_ANSWER, f"no answer within {timeout_s:g} s")

    def _send(self, fd: int, talk: _Talk) -> None:
        try:
            while talk.unsent:
                talk.unsent = talk.unsent[talk.sock.send(talk.unsent) :]
        except BlockingIOError:
            self._epoll.modify(fd, select.EPOLLIN | select.EPOLLOUT)
            return
        except (BrokenPipeError, ConnectionResetError):
            # It closed without reading; what it said before (Firecracker: too many connections) is still to be read.
            talk.unsent = b""
        except OSError as error:
            self._fail(fd, error)

    def _receive(self, fd: int, talk: _Talk) -> None:
        try:
            got = talk.sock.recv(CHUNK)
        except BlockingIOError:
            return
        except ConnectionResetError:
            got = b""
        except OSError as error:
            self._fail(fd, error)
            return
        try:
            talk.unsent += talk.conversation.send(got)
        except StopIteration as end:
            self._end(fd, *end.value)
            return
        if talk.unsent:
            self._send(fd, talk)

    def _fail(self, fd: int, error: OSError) -> None:
        ours = error.errno in _OUR_LIMITS
        self._end(fd, Evidence.MONITOR_FAULT if ours else Evidence.BROKEN_ANSWER, str(error.strerror))

    def _end(self, fd: int, evidence: Evidence, detail: str) -> None:
        talk = self._talks.pop(fd)
        self._epoll.unregister(fd)
        talk.sock.close()
        with contextlib.suppress(RuntimeError):
            talk.conversation.close()
        self._found[talk.vm_id] = Observation(evidence, detail, _ms_since(talk.began))


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000
