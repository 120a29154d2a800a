"""What the product itself says while the demo runs: its event stream, followed in a thread and kept in order."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from workers.domain.audit import Event
from workers.domain.errors import StoreUnavailable
from workers.store.events import Entry, EventLog

_AGAIN_S = 0.05
_BLOCK_MS = 500


@dataclass(frozen=True, slots=True)
class Seen:
    """One event. `at_s` is Redis server time, which is this host's clock, in seconds since 1970."""

    id: str
    at_s: float
    event: Event


def seen(entry: Entry, received_s: float) -> Seen:
    """The stream counts whole milliseconds; when the event reached us within the same one, that is the finer time.

    Never too early: an event is not dated before it was written.
    """
    begin, end = entry.at_ms / 1000, (entry.at_ms + 1) / 1000
    return Seen(entry.id, min(max(received_s, begin), end), entry.event)


class Timeline:
    """Goes on when Redis comes back; nothing is lost, because the stream is read on from the last id."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._seen: list[Seen] = []
        self._news = threading.Condition()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="timeline", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        """Return when the thread has ended, or cannot end because Redis hangs: it dies with the process then."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=2 * _BLOCK_MS / 1000)

    @property
    def length(self) -> int:
        return len(self._seen)

    def since(self, position: int) -> Sequence[Seen]:
        return self._seen[position:]

    def wait(self, position: int, timeout_s: float) -> None:
        """Wait until there is more than `position` events."""
        with self._news:
            self._news.wait_for(lambda: len(self._seen) > position, timeout_s)

    def _follow(self) -> None:
        last = "0-0"
        while not self._ending.is_set():
            try:
                for entry in self._log.follow(last, block_ms=_BLOCK_MS):
                    if entry is not None:
                        last = entry.id
                        self._add(seen(entry, time.time()))
                    if self._ending.is_set():
                        return
            except StoreUnavailable:
                self._ending.wait(_AGAIN_S)

    def _add(self, news: Seen) -> None:
        with self._news:
            self._seen.append(news)
            self._news.notify_all()
