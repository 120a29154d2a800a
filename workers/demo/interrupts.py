"""Ctrl-C and friends as a question that is asked at safe moments, so that nothing is started and then forgotten."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """Somebody wants the demo to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.exit_code = 128 + signum


class Interrupts:
    """To be entered in the main thread. While it is, signals are only noted: cleaning up is not disturbed either."""

    def __init__(self) -> None:
        self._seen: int | None = None
        self._event = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for signum in _SIGNALS:
            if signum == signal.SIGHUP and signal.getsignal(signum) is signal.SIG_IGN:
                continue  # under nohup
            self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _note(self, signum: int, _frame: FrameType | None) -> None:
        self._seen = self._seen or signum
        self._event.set()

    def check(self) -> None:
        """Raises Interrupted."""
        if self._seen is not None:
            raise Interrupted(self._seen)

    def wait(self, seconds: float) -> None:
        """Raises Interrupted."""
        self._event.wait(seconds)
        self.check()
