"""Signals and exit causes through pidfds, so that a recycled pid can never be hit."""

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator

from workers.crashpoints import Point, reach
from workers.domain.errors import StopFailed, Unkillable
from workers.domain.evidence import Evidence
from workers.domain.vm import Incarnation, Vantage
from workers.host.identity import look_at, read_stat

# ioctl PIDFD_GET_INFO of Linux 6.15+ (include/uapi/linux/pidfd.h): struct pidfd_info of 72 bytes, mask first, exit
# code last but one; PIDFD_INFO_EXIT is set in the answer only after the parent has reaped the process.
_INFO_SIZE = 72
_PIDFD_GET_INFO = (3 << 30) | (_INFO_SIZE << 16) | (0xFF << 8) | 11
_PIDFD_INFO_EXIT = 0x8
_EXIT_CODE_OFFSET = 60
# How long one wait may block before the holder's lease is looked after again.
_SLICE_S = 0.5


def open_checked(process: Incarnation, vantage: Vantage) -> int | None:
    """Open a pidfd of exactly this incarnation; None when it has ended. Raises OSError where we cannot look.

    Identity is checked after opening: from then on the pidfd cannot come to mean another process.
    """
    if not vantage.shares_place(process):
        raise StopFailed(str(process.pid), "process of another machine or pid namespace; nothing was signalled")
    if vantage.boot_id != process.boot_id:
        return None
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if look_at(process, vantage) in (None, Evidence.ZOMBIE):
        return fd
    os.close(fd)
    return None


@contextlib.contextmanager
def pidfd_of(process: Incarnation, vantage: Vantage) -> Iterator[int | None]:
    """`open_checked`, closed again."""
    fd = open_checked(process, vantage)
    try:
        yield fd
    finally:
        if fd is not None:
            os.close(fd)


def wait_end(fd: int, timeout_s: float) -> bool:
    """Wait until the process has ended, at most `timeout_s`."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(max(0, int(timeout_s * 1000))))


def exit_cause(fd: int, *, reap: bool = True) -> str | None:
    """Return `exit N` or `signal N` of an ended process; None where nobody knows yet.

    Our own child is reaped, unless somebody else is to do that.
    """
    try:
        result = os.waitid(os.P_PIDFD, fd, os.WEXITED | os.WNOHANG | (0 if reap else os.WNOWAIT))
    except ChildProcessError:
        return _exit_cause_of_a_stranger(fd)
    except OSError as error:
        if error.errno != errno.EAGAIN:  # a non-blocking pidfd of a process that still lives
            raise
        return None
    if result is None:
        return None
    kind = "exit" if result.si_code == os.CLD_EXITED else "signal"
    return f"{kind} {result.si_status}"


def _exit_cause_of_a_stranger(fd: int) -> str | None:
    buffer = ctypes.create_string_buffer(struct.pack("Q", _PIDFD_INFO_EXIT), _INFO_SIZE)
    try:
        fcntl.ioctl(fd, _PIDFD_GET_INFO, buffer)
    except OSError:
        return None  # an older kernel, or a process that nobody has reaped yet
    (mask,) = struct.unpack_from("Q", buffer)
    if not mask & _PIDFD_INFO_EXIT:
        return None
    (status,) = struct.unpack_from("i", buffer, _EXIT_CODE_OFFSET)
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def terminate(fd: int, process: Incarnation, *, grace_s: float, before_signal: Callable[[], None]) -> None:
    """SIGTERM, grace, SIGKILL, and confirm that the process has gone. Raises Unkillable.

    `before_signal` runs before each signal and about twice a second in between; what it raises ends everything.
    A stopped process cannot act on SIGTERM, so it gets no grace.
    """
    stat = read_stat(process.pid)
    if stat is not None and stat.state not in ("T", "t"):
        reach(Point.BEFORE_SIGTERM)
        _signal(fd, signal.SIGTERM, before_signal)
        reach(Point.AFTER_SIGTERM)
        if _wait_in_slices(fd, grace_s, before_signal):
            return
    reach(Point.BEFORE_SIGKILL)
    _signal(fd, signal.SIGKILL, before_signal)
    reach(Point.AFTER_SIGKILL)
    if not _wait_in_slices(fd, max(grace_s, 1.0), before_signal):
        stat = read_stat(process.pid)
        raise Unkillable(str(process.pid), f"alive after SIGKILL, in state {stat.state if stat else 'unknown'}")


def _signal(fd: int, number: signal.Signals, before_signal: Callable[[], None]) -> None:
    before_signal()
    try:
        signal.pidfd_send_signal(fd, number)
    except ProcessLookupError:
        return


def _wait_in_slices(fd: int, timeout_s: float, between: Callable[[], None]) -> bool:
    deadline = time.monotonic() + timeout_s
    while not wait_end(fd, min(_SLICE_S, deadline - time.monotonic())):
        if time.monotonic() >= deadline:
            return False
        between()
    return True
