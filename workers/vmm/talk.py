"""Sockets of VMMs: connecting to one, and holding a conversation to its end within a deadline."""

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from workers.domain.evidence import Evidence
from workers.vmm.conversation import Conversation, T

# sun_path of sockaddr_un holds 108 bytes with its end (unix(7)).
_SUN_PATH_MAX = 107
_UCRED = struct.Struct("3i")
BareSocket = socket.SocketType
S = TypeVar("S", bound=BareSocket)
_KIND = socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
CHUNK = 1 << 16

CONNECT_EVIDENCE: dict[int, Evidence] = {
    errno.ENOENT: Evidence.SOCKET_MISSING,
    errno.ENOTDIR: Evidence.SOCKET_MISSING,
    errno.ECONNREFUSED: Evidence.SOCKET_REFUSED,
    errno.ENOTSOCK: Evidence.SOCKET_REFUSED,
    errno.EAGAIN: Evidence.BACKLOG_FULL,
}


class Silence(TimeoutError):
    """The peer did not finish its answer in time."""


def connect(path: str) -> socket.socket:
    """Return a connected non-blocking stream socket. Raises OSError, also where nobody listens (CONNECT_EVIDENCE)."""
    return _joined(socket.socket(socket.AF_UNIX, _KIND), path)


def connect_bare(path: str) -> BareSocket:
    """The same without what the standard library puts around a socket: it costs as much as connecting does."""
    return _joined(BareSocket(socket.AF_UNIX, _KIND), path)


def _joined(sock: S, path: str) -> S:
    try:
        if len(path) <= _SUN_PATH_MAX and (path.isascii() or len(os.fsencode(path)) <= _SUN_PATH_MAX):
            sock.connect(path)
        else:
            _connect_through_folder(sock, Path(path))
    except OSError:
        sock.close()
        raise
    return sock


def _connect_through_folder(sock: BareSocket, path: Path) -> None:
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sock.connect(f"/proc/self/fd/{folder}/{path.name}")
    finally:
        os.close(folder)


def listener_pid(sock: BareSocket) -> int:
    """Return the pid of the process that listens at the other end (SO_PEERCRED, unix(7))."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[0])


def hold(sock: socket.socket, conversation: Conversation[T], *, timeout_s: float, between: Callable[[], None]) -> T:
    """Drive a conversation on a connected socket. Raises Silence, and whatever the conversation raises.

    `between` is called at least twice a second while we wait; what it raises ends the conversation.
    """
    deadline = time.monotonic() + timeout_s
    try:
        to_send = next(conversation)
        while True:
            _send_all(sock, to_send, deadline, between)
            to_send = conversation.send(_receive(sock, deadline, between))
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]  # a generator's result reaches us untyped
    finally:
        with contextlib.suppress(RuntimeError):
            conversation.close()


def _send_all(sock: socket.socket, data: bytes, deadline: float, between: Callable[[], None]) -> None:
    while data:
        try:
            data = data[sock.send(data) :]
        except BlockingIOError:
            _wait(sock, select.POLLOUT, deadline, between)
        except (BrokenPipeError, ConnectionResetError):
            return  # it closed without reading; what it said before is still to be read


def _receive(sock: socket.socket, deadline: float, between: Callable[[], None]) -> bytes:
    while True:
        try:
            return sock.recv(CHUNK)
        except BlockingIOError:
            _wait(sock, select.POLLIN, deadline, between)
        except ConnectionResetError:
            return b""


def _wait(sock: socket.socket, event: int, deadline: float, between: Callable[[], None]) -> None:
    poll = select.poll()
    poll.register(sock, event)
    left = deadline - time.monotonic()
    if left <= 0:
        raise Silence
    if not poll.poll(min(left, 0.5) * 1000):
        between()
