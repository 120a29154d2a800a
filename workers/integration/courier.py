"""The manager's own thread that delivers: hooks nudge it, and wait for nothing it does."""

import threading
import time
from collections.abc import Callable

import structlog

from workers.domain.errors import StoreUnavailable
from workers.integration.delivery import Delivered

_log = structlog.get_logger(component="integration")

# So often it looks for what other processes of this host have left, and for what could not be taken yet.
_LOOK_S = 1.0
_SHORTEST_WAIT_S, _LONGEST_WAIT_S = 0.25, 4.0
_SAY_AGAIN_S = 60.0


class Courier:
    """`deliver` raises StoreUnavailable while Redis is away; then it is asked again ever less often."""

    def __init__(self, deliver: Callable[[], Delivered]) -> None:
        self._deliver = deliver
        self._news, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._wait_s = 0.0
        self._said_at: float | None = None

    def start(self) -> None:
        """Twice is harmless; a forked process has to start its own."""
        if self._thread is None or not self._thread.is_alive():
            self._stopping.clear()
            self._thread = threading.Thread(target=self._live, name="hooks", daemon=True)
            self._thread.start()

    def nudge(self) -> None:
        self._news.set()

    def stop(self, timeout_s: float) -> None:
        """One more delivery, for as long as there is time; what is left is delivered by this host's worker."""
        self._stopping.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _live(self) -> None:
        while True:
            is_last = self._stopping.is_set()
            self._news.clear()
            self._round()
            if is_last:
                return
            if self._wait_s:
                # However many hooks nudge: Redis is away.
                self._stopping.wait(self._wait_s)
            else:
                self._news.wait(_LOOK_S)

    def _round(self) -> None:
        try:
            delivered = self._deliver()
        except StoreUnavailable as error:
            self._wait_longer(str(error))
        except OSError as error:
            _log.error("hooks cannot be read from this host's disk", error=str(error))
            self._wait_s = _LONGEST_WAIT_S
        except Exception:  # noqa: BLE001 - the hooks count on this thread
            _log.exception("hooks: this delivery failed, the next one tries again")
            self._wait_s = _LONGEST_WAIT_S
        else:
            self._is_back(delivered)

    def _wait_longer(self, error: str) -> None:
        now = time.monotonic()
        if self._said_at is None or now - self._said_at > _SAY_AGAIN_S:
            _log.warning("redis is away: hooks are kept on this host", error=error)
            self._said_at = now
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S) or _SHORTEST_WAIT_S

    def _is_back(self, delivered: Delivered) -> None:
        if self._said_at is not None:
            _log.info("redis has taken the hooks that waited", taken=delivered.taken, left=delivered.left)
        self._said_at, self._wait_s = None, 0.0
