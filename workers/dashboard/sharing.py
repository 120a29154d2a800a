"""One reading for all who ask: however many browsers are open, a thing is read once per interval."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
# Runs a blocking reading elsewhere than in the loop.
Run = Callable[[Callable[[], T]], Awaitable[T]]

_REST = 4  # times what a reading took: no more than a fifth of a core goes into readings


@dataclass(slots=True)
class _Reading(Generic[T]):
    task: "asyncio.Future[T]"
    began: float
    fresh_until: float = float("inf")


class Shared(Generic[T]):
    """Used from one event loop. A reading that fails is told to all who ask within the interval, and then tried again.

    At most `most` keys are kept.
    """

    def __init__(
        self,
        read: Callable[[str], T],
        run: Run[T],
        *,
        fresh_s: float,
        most: int = 1,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read, self._run, self._fresh_s, self._most, self._monotonic = read, run, fresh_s, most, monotonic
        self._readings: OrderedDict[str, _Reading[T]] = OrderedDict()

    async def get(self, key: str = "") -> T:
        reading = self._readings.get(key)
        if reading is None or self._monotonic() >= reading.fresh_until:
            reading = self._begin(key)
        self._readings.move_to_end(key)
        # One browser that goes away must not take the reading from the others.
        return await asyncio.shield(reading.task)

    def forget(self, key: str) -> None:
        """Whoever asks next gets a new reading: something was changed."""
        self._readings.pop(key, None)

    def _begin(self, key: str) -> _Reading[T]:
        reading = _Reading(asyncio.ensure_future(self._run(lambda: self._read(key))), self._monotonic())
        reading.task.add_done_callback(lambda _: self._done(reading))
        self._readings[key] = reading
        while len(self._readings) > self._most:
            self._readings.popitem(last=False)
        return reading

    def _done(self, reading: _Reading[T]) -> None:
        now = self._monotonic()
        reading.fresh_until = now + max(self._fresh_s, _REST * (now - reading.began))
        if not reading.task.cancelled():
            reading.task.exception()  # taken note of: those who asked may all have gone
