"""What keeps this host itself from looking properly: asked before a VM is doubted for what only we have seen."""

import os
from pathlib import Path

from workers.ports import Clock


class Trouble:
    """`redis_back_s`: for so long after Redis came back, what seems to fail may be the backlog of our own silence."""

    def __init__(self, runs: Path, clock: Clock, *, redis_back_s: float) -> None:
        self._runs, self._clock, self._redis_back_s = runs, clock, redis_back_s
        self._redis_back_at: float | None = None

    def redis_is_back(self) -> None:
        self._redis_back_at = self._clock.monotonic()

    def now(self) -> str | None:
        """Return what is wrong with us right now, None when nothing is."""
        back = self._redis_back_at
        if back is not None and self._clock.monotonic() - back < self._redis_back_s:
            return "redis has just come back"
        try:
            os.close(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            return f"no file descriptor is free: {error.strerror}"
        try:
            with os.scandir(self._runs) as entries:
                next(entries, None)
        except OSError as error:
            return f"run directory {self._runs}: {error.strerror}"
        return None
