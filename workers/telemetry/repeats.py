"""Lets a log record that only repeats an earlier one through once in a while, with a count of those left out.

Nothing is lost from the count: each occurrence is a line, or is counted in `repeated` of a later line that is like it.
Records are dicts of fields here; how they are written is left to `logging`.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from structlog.types import EventDict

WINDOW_S = 60.0
_KEYS_MAX = 1000
# What differs although the same was said again.
_OF_THE_MOMENT = frozenset({"timestamp", "task_id", "trace_id", "span_id"})


@dataclass(slots=True)
class _Window:
    ends: float
    left_out: int = 0
    latest: EventDict | None = None

    def owed(self) -> EventDict:
        """Make the latest occurrence the line: it is not among those that the line stands for."""
        return _counted(self.latest or {}, self.left_out - 1)


class Repeats:
    """Not thread-safe: the handler that owns it holds its lock around every call. `clock` counts seconds, forwards."""

    def __init__(self, clock: Callable[[], float], *, exempt: str, window_s: float = WINDOW_S) -> None:
        self._clock = clock
        self._exempt = exempt
        self._window_s = window_s
        self._windows: OrderedDict[bytes, _Window] = OrderedDict()  # by their ends: all are of one length

    def passing(self, origin: str, level: int, event: EventDict) -> list[EventDict]:
        """Take a record; return those to write now, oldest first: what windows that ended owe, and this one or not."""
        now = self._clock()
        if level < logging.WARNING or origin == self._exempt:
            return [*self._ended(now), event]
        key = _key(origin, level, event)
        known = self._windows.get(key)
        if known is not None and now < known.ends:
            known.left_out += 1
            known.latest = event
            return [*self._ended(now)]
        self._windows.pop(key, None)
        self._windows[key] = _Window(now + self._window_s)
        return [*self._ended(now), _counted(event, known.left_out if known else 0)]

    def rest(self) -> list[EventDict]:
        """End all windows; return what they owe."""
        owed = [each.owed() for each in self._windows.values() if each.latest is not None]
        self._windows.clear()
        return owed

    def _ended(self, now: float) -> Iterator[EventDict]:
        """End windows whose time has come, and the oldest ones if there are too many."""
        while self._windows:
            key, window = next(iter(self._windows.items()))
            is_over = window.ends <= now
            if not is_over and len(self._windows) <= _KEYS_MAX:
                return
            self._windows.pop(key, None)
            if window.latest is None:
                continue
            if is_over:  # what it owes is a line as well, from which the next window counts
                self._windows[key] = _Window(now + self._window_s)
            yield window.owed()


def _counted(event: EventDict, left_out: int) -> EventDict:
    return {**event, "repeated": left_out} if left_out else event


def _key(origin: str, level: int, event: EventDict) -> bytes:
    same = {name: value for name, value in event.items() if name not in _OF_THE_MOMENT}
    return blake2b(repr((origin, level, same)).encode(errors="replace"), digest_size=16).digest()
