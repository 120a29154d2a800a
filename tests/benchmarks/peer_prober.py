"""Kills VMMs, and sees from outside when the API of each answers again from a new process; knows no supervisor."""

import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

_ASK = b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n\r\n"
_CREDENTIALS = struct.Struct("3i")
_READ_BYTES = 65536
_OK = b" 200 "
# How often each socket is tried: a try costs some µs, and what is measured needs the processors more than we do.
_EVERY_S, _EACH_S = 0.0005, 0.000025


@dataclass(frozen=True, slots=True)
class Door:
    """Where the API of one VM answers, whatever process serves it. `state` is what it must say, "" for anything."""

    vm: str
    path: str
    state: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Monotonic times of the first answer at all, and of the first one with the state that was waited for."""

    pid: int
    first_s: float
    ready_s: float


@dataclass(frozen=True, slots=True)
class Killed:
    """Right before the first signal, on the monotonic clock and on the wall's."""

    at_s: float
    wall_s: float


class NoAnswer(Exception):
    """Some did not answer in time; the text names the first of them."""


def state_in(received: bytes) -> str | None:
    """Return the state that an answer to `GET /` names, "" where it names none; None while it is not complete."""
    head, end, body = received.partition(b"\r\n\r\n")
    if not end or len(body) < _content_length(head):
        return None
    try:
        return str(json.loads(body)["state"]) if _OK in head.partition(b"\r\n")[0] + b" " else ""
    except (ValueError, KeyError, TypeError):
        return ""


def _content_length(head: bytes) -> int:
    fields = (line.partition(b":") for line in head.split(b"\r\n"))
    return next((int(value) for name, _, value in fields if name.lower() == b"content-length"), 0)


class _Visit:
    """One door that is tried until it opens, and then asked until it gives the answer that is waited for."""

    def __init__(self, door: Door, old_pid: int) -> None:
        self.door, self._old_pid = door, old_pid
        self._sock = _new_socket()
        self._pid = 0
        self._received = b""
        self._first_s = 0.0

    def look(self) -> Answer | None:
        """Go on as far as it goes without waiting."""
        try:
            if not self._pid:
                self._enter()
            received = self._sock.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            received = b""
        if not received:
            self._leave()
            return None
        self._received += received
        return self._judge()

    def close(self) -> None:
        self._sock.close()

    def _enter(self) -> None:
        """Raises OSError where nobody but the old process listens."""
        self._sock.connect(self.door.path)
        pid, _, _ = _CREDENTIALS.unpack(self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        self._pid = pid
        if pid == self._old_pid:
            raise ConnectionRefusedError(self.door.path)
        self._sock.send(_ASK)

    def _leave(self) -> None:
        if self._pid:
            self._sock.close()
            self._sock = _new_socket()
        self._pid, self._received, self._first_s = 0, b"", 0.0

    def _judge(self) -> Answer | None:
        state = state_in(self._received)
        if state is None:
            return None
        now_s = time.monotonic()
        self._first_s = self._first_s or now_s
        if self.door.state in ("", state):
            return Answer(self._pid, self._first_s, now_s)
        self._received = b""
        self._sock.send(_ASK)
        return None


def _new_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)


def await_answers(doors: Sequence[Door], old_pids: Mapping[str, int], *, timeout_s: float) -> dict[str, Answer]:
    """Return the first right answer of each VM, by VM, of another process than the old one. Raises NoAnswer."""
    visits = [_Visit(door, old_pids.get(door.vm, 0)) for door in doors]
    try:
        return _visit_all(visits, time.monotonic() + timeout_s)
    finally:
        for visit in visits:
            visit.close()


def _visit_all(visits: Sequence[_Visit], deadline: float) -> dict[str, Answer]:
    answers: dict[str, Answer] = {}
    waiting = list(visits)
    while waiting:
        for visit in waiting:
            if answer := visit.look():
                answers[visit.door.vm] = answer
        waiting = [visit for visit in waiting if visit.door.vm not in answers]
        if waiting and time.monotonic() > deadline:
            raise NoAnswer(f"{len(waiting)} of {len(visits)} VMs do not answer, first {waiting[0].door.vm}")
        time.sleep(max(_EVERY_S, _EACH_S * len(waiting)))
    return answers


def kill(pids: Sequence[int]) -> Killed:
    """SIGKILL these processes within a moment."""
    with _pidfds(pids) as fds:
        killed = Killed(time.monotonic(), time.time())
        for fd in fds:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    return killed


def age_s(pid: int) -> float:
    """How long this process has lived (proc(5): field 22 of stat, ticks since the boot)."""
    started = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


@contextmanager
def _pidfds(pids: Sequence[int]) -> Iterator[list[int]]:
    with ExitStack() as stack:
        fds = []
        for pid in pids:
            fds.append(os.pidfd_open(pid))
            stack.callback(os.close, fds[-1])
        yield fds
