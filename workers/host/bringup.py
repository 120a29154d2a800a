"""The first seconds of a VMM: its socket appears, it is configured, and it must say that it runs this VM."""

import socket
import time
from typing import TypeVar

from workers.crashpoints import Point, reach
from workers.domain.errors import StartFailed
from workers.domain.evidence import Evidence
from workers.domain.vm import Incarnation
from workers.host.pidfd import exit_cause, wait_end
from workers.host.rundir import Run
from workers.ports import Renew
from workers.specs import VmSpec
from workers.vmm.conversation import Conversation
from workers.vmm.driver import Driver
from workers.vmm.talk import CONNECT_EVIDENCE, Silence, connect, hold, listener_pid

T = TypeVar("T")

# A new VMM's socket is tried again after a fiftieth of the time it has taken so far, so that it is seen to serve at
# most so much later than it does; within these bounds. Its death ends each wait at once.
_TRY_SHARE, _SHORTEST_TRY_S, _LONGEST_TRY_S = 0.02, 0.001, 0.02


class NewVmm:
    """Everything here raises StartFailed, and what `while_waiting` raises, which is called between waits.

    `deadline` is monotonic time; `pidfd` belongs to `process`.
    """

    def __init__(
        self,
        driver: Driver,
        spec: VmSpec,
        run: Run,
        process: Incarnation,
        pidfd: int,
        *,
        deadline: float,
        while_waiting: Renew,
    ) -> None:
        self._driver, self._spec, self._run, self._process, self._pidfd = driver, spec, run, process, pidfd
        self._began, self._deadline, self._while_waiting = time.monotonic(), deadline, while_waiting

    def bring_up(self) -> None:
        self._talk(self._driver.configure(self._spec), "configuration")
        reach(Point.CONFIGURED)
        while True:
            evidence, detail = self._talk(self._driver.probe(self._spec.id), "verification")
            if evidence is Evidence.ANSWERS:
                return
            if evidence is Evidence.OTHER_VM:
                raise StartFailed(self._spec.id, detail)
            self._pause(f"{evidence}: {detail}")

    def _talk(self, conversation: Conversation[T], step: str) -> T:
        with self._connected() as sock:
            try:
                left = max(0.0, self._deadline - time.monotonic())
                return hold(sock, conversation, timeout_s=left, between=self._between)
            except Silence:
                raise StartFailed(self._spec.id, f"no answer during {step}") from None
            except OSError as error:
                raise StartFailed(self._spec.id, f"{step}: {error.strerror}") from error

    def _connected(self) -> socket.socket:
        """Return a connection to the new process itself: whoever else listened there would not be it."""
        while True:
            try:
                sock = connect(str(self._run.socket))
            except OSError as error:
                if error.errno not in CONNECT_EVIDENCE:
                    raise StartFailed(self._spec.id, f"socket: {error.strerror}") from error
                self._pause(f"socket: {error.strerror}")
                continue
            listener = listener_pid(sock)
            if listener == self._process.pid:
                return sock
            sock.close()
            raise StartFailed(self._spec.id, f"pid {listener} listens on the socket of pid {self._process.pid}")

    def _pause(self, missing: str) -> None:
        """Wait a little, unless the process has ended or time is up."""
        share_s = _TRY_SHARE * (time.monotonic() - self._began)
        if wait_end(self._pidfd, min(_LONGEST_TRY_S, max(_SHORTEST_TRY_S, share_s))):
            raise self._ended()
        if time.monotonic() >= self._deadline:
            raise StartFailed(self._spec.id, f"not serving in time: {missing}")
        self._while_waiting()

    def _between(self) -> None:
        if wait_end(self._pidfd, 0):
            raise self._ended()
        self._while_waiting()

    def _ended(self) -> StartFailed:
        cause = exit_cause(self._pidfd)
        if cause is not None:
            self._run.write_exit(cause)
        return StartFailed(self._spec.id, f"ended before it served: {cause or 'cause unknown'}", cause)
