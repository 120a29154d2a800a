"""Looks at many VMs at once: process, then socket, then API, in one epoll with one deadline per VM.

Nothing is kept open to a VMM between two looks, but what it said is: who says the same again needs no parsing. What a
look finds is evidence; what it is worth is decided elsewhere.
"""

import contextlib
import errno
import select
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from workers.domain.evidence import Evidence, Observation, Verdict
from workers.domain.vm import Incarnation, Vantage, VmRecord
from workers.host.identity import look_at
from workers.vmm.conversation import Conversation
from workers.vmm.driver import Driver, Finding, has_stateless_probe
from workers.vmm.talk import CHUNK, CONNECT_EVIDENCE, BareSocket, connect_bare, listener_pid

# Results are handed over as soon as nothing new came for this long, so that a hung VM delays no verdict but its own.
_QUIET_S = 0.02
# What our own limits look like; anything else that goes wrong on a connected socket is the VMM's.
_OUR_LIMITS = frozenset({errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_ENDED = frozenset({Evidence.PROCESS_ENDED, Evidence.ZOMBIE, Evidence.PID_REUSED})
# More than a host has; beyond it all are met anew.
_MOST_KNOWN = 20_000


@dataclass(slots=True)
class _Acquaintance:
    """What does not change from look to look: how the VM of `record` is asked, and what it answered last time.

    `said` are the chunks it sent, each with what the driver sent back; `finding` is what that meant.
    """

    record: VmRecord
    process: Incarnation
    driver: Driver
    path: str
    opening: bytes | None = None
    said: tuple[tuple[bytes, bytes], ...] = ()
    finding: Finding = (Evidence.BROKEN_ANSWER, "")

    def remember(self, opening: bytes, heard: Sequence[tuple[bytes, bytes]], finding: Finding) -> None:
        """Only what is well, and only where the driver vouches that it will mean the same next time."""
        if finding[0] is Evidence.ANSWERS and has_stateless_probe(self.driver):
            self.opening, self.said, self.finding = opening, tuple(heard), finding


@dataclass(slots=True)
class _Talk:
    """As long as all is said that was said last time, `turn` counts it, and there is no conversation yet."""

    vm: _Acquaintance
    sock: BareSocket
    opening: bytes
    unsent: bytes
    began: float
    turn: int = 0
    conversation: Conversation[Finding] | None = None
    heard: list[tuple[bytes, bytes]] | None = None
    watched: int = 0

    def hear(self, got: bytes) -> bytes | Finding:
        """Return what is to be sent next, or what was found when the talk is over."""
        said = self.vm.said
        if self.conversation is None and self.turn < len(said) and said[self.turn][0] == got:
            self.turn += 1
            return self.vm.finding if self.turn == len(said) else said[self.turn - 1][1]
        try:
            if self.conversation is None:
                self.conversation = self._begun_anew()
            answer = self.conversation.send(got)
        except StopIteration as end:
            finding: Finding = end.value
            self.vm.remember(self.opening, [*(self.heard or ()), (got, b"")], finding)
            return finding
        self.heard = [*(self.heard or ()), (got, answer)]
        return answer

    def _begun_anew(self) -> Conversation[Finding]:
        """From here on it says something new: bring a conversation to this point."""
        conversation = self.vm.driver.probe(self.vm.record.vm_id)
        next(conversation)
        self.heard = list(self.vm.said[: self.turn])
        for heard, _ in self.heard:
            conversation.send(heard)
        return conversation


def _lives(vm: _Acquaintance, living: Mapping[str, Incarnation]) -> bool:
    """Whether its process is known to live; of equal incarnations one is kept, which is cheaper to compare."""
    alive = living.get(vm.record.vm_id)
    if alive is not vm.process and alive == vm.process:
        vm.process = alive
    return alive is vm.process


class EpollProber:
    """`socket_of` says where the API of a record listens, `cause_of` how a process ended that was seen to.

    `living` gives processes that are known to live right now, by VM id; of all others /proc is read. Thread-safe; one
    probe at a time per VM.
    """

    def __init__(
        self,
        drivers: Mapping[str, Driver],
        vantage: Vantage,
        *,
        socket_of: Callable[[VmRecord], str],
        timeout_s: float,
        cause_of: Callable[[Incarnation], str | None] = lambda _process: None,
        living: Callable[[], Mapping[str, Incarnation]] = dict,
    ) -> None:
        self._drivers, self._vantage, self._socket_of = drivers, vantage, socket_of
        self._timeout_s, self._cause_of, self.living = timeout_s, cause_of, living
        self._known: dict[str, _Acquaintance] = {}
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

    def look(self, record: VmRecord, living: Mapping[str, Incarnation]) -> Observation | _Talk:
        """Process and socket, without waiting; a _Talk when the API is to be asked."""
        vm = self._known.get(record.vm_id)
        if vm is None or vm.record is not record:
            met = self._meet(record)
            if isinstance(met, Observation):
                return met
            vm = met
        if not _lives(vm, living) and (against := self.look_at_process(record)) is not None:
            return against
        return self._ask(vm)

    def _ask(self, vm: _Acquaintance) -> Observation | _Talk:
        began = time.monotonic()
        try:
            sock = connect_bare(vm.path)
        except OSError as error:
            evidence = CONNECT_EVIDENCE.get(error.errno or 0, Evidence.MONITOR_FAULT)
            return self.look_again(vm.record, Observation(evidence, f"connect: {error.strerror}", _ms_since(began)))
        if (listener := listener_pid(sock)) != vm.process.pid:
            sock.close()
            return Observation(Evidence.OTHER_LISTENER, f"pid {listener} listens, not {vm.process.pid}")
        if vm.opening is not None:
            return _Talk(vm, sock, vm.opening, vm.opening, began)
        try:
            conversation = vm.driver.probe(vm.record.vm_id)
            opening = next(conversation)
            return _Talk(vm, sock, opening, opening, began, conversation=conversation)
        except StopIteration as end:
            sock.close()
            return Observation(*end.value)

    def _meet(self, record: VmRecord) -> Observation | _Acquaintance:
        """A record that was not looked at before."""
        driver = self._drivers.get(record.driver)
        if record.process is None or driver is None:
            missing = Observation(Evidence.MONITOR_FAULT, f"no driver {record.driver!r} on this host")
            return self.look_at_process(record) or missing
        vm = _Acquaintance(record, record.process, driver, self._socket_of(record))
        before = self._known.get(record.vm_id)
        if before is not None and before.driver is driver:
            vm.opening, vm.said, vm.finding = before.opening, before.said, before.finding
        if len(self._known) >= _MOST_KNOWN:
            self._known.clear()
        self._known[record.vm_id] = vm
        return vm

    def look_again(self, record: VmRecord, seen: Observation) -> Observation:
        """A VM that does not answer may have died since its process was looked at: that is what counts then."""
        return seen if seen.ruling.verdict is Verdict.PASS else self.look_at_process(record) or seen

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
            living = self._prober.living()
            for record in self._records:
                self._begin(record, living)
            if self._talks:
                self._gather()
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

    def _begin(self, record: VmRecord, living: Mapping[str, Incarnation]) -> None:
        looked = self._prober.look(record, living)
        if isinstance(looked, Observation):
            self._found[record.vm_id] = looked
            return
        fd = looked.sock.fileno()
        self._talks[fd] = looked
        self._send(fd, looked)

    def _gather(self) -> None:
        """Answers come about as questions went: who waits for the last wakes up once, and need not watch the rest."""
        last = next(reversed(self._talks))
        self._watch(last, self._talks[last], select.EPOLLIN)
        self._epoll.poll(_QUIET_S)
        for fd, talk in list(self._talks.items()):
            self._receive(fd, talk)
            if not talk.watched and fd in self._talks:
                self._watch(fd, talk, select.EPOLLIN)

    def _watch(self, fd: int, talk: _Talk, events: int) -> None:
        if not talk.watched:
            self._epoll.register(fd, events)
        elif talk.watched != events:
            self._epoll.modify(fd, events)
        talk.watched = events

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
                self._watch(fd, talk, select.EPOLLIN)
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
            self._watch(fd, talk, select.EPOLLIN | select.EPOLLOUT)
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
        answer = talk.hear(got)
        if isinstance(answer, tuple):
            self._end(fd, *answer)
            return
        talk.unsent += answer
        if talk.unsent:
            self._send(fd, talk)

    def _fail(self, fd: int, error: OSError) -> None:
        ours = error.errno in _OUR_LIMITS
        self._end(fd, Evidence.MONITOR_FAULT if ours else Evidence.BROKEN_ANSWER, str(error.strerror))

    def _end(self, fd: int, evidence: Evidence, detail: str) -> None:
        talk = self._talks.pop(fd)
        if talk.watched:
            # A child that is just being started may hold the socket too: then closing alone does not end the watch.
            self._epoll.unregister(fd)
        talk.sock.close()
        if talk.conversation is not None:
            with contextlib.suppress(RuntimeError):
                talk.conversation.close()
        seen = Observation(evidence, detail, _ms_since(talk.began))
        record = talk.vm.record
        self._found[record.vm_id] = seen if evidence is Evidence.ANSWERS else self._prober.look_again(record, seen)


def _ms_since(began: float) -> float:
    return (time.monotonic() - began) * 1000
