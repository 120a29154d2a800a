"""Whether this process lives: everything that should go on is seen, and everything that should end does."""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stall:
    """Something that stands still, for so many seconds; `limit_s` is how many it may."""

    what: str
    for_s: float
    limit_s: float

    def __str__(self) -> str:
        return f"{self.what} has stood still for {self.for_s:.0f} s, the limit is {self.limit_s:.0f} s"


@dataclass(slots=True)
class _Watched:
    """`needs` names what it cannot go on without."""

    what: str
    since: float
    within_s: float
    needs: str | None


@dataclass
class Vitals:
    """May be called from any thread, and costs about a microsecond.

    `patience_s` is for how long what should go on may stand still, beyond what it takes in good times. While what
    something `needs` is in trouble it is not waited for, and after that its time begins anew.
    """

    patience_s: float = 30.0
    monotonic: Callable[[], float] = time.monotonic
    _pulses: dict[str, _Watched] = field(default_factory=dict)
    _open: dict[Hashable, _Watched] = field(default_factory=dict)
    _troubles: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def pulse(self, what: str, every_s: float = 0.0, *, needs: str | None = None) -> None:
        """It goes on, and may take `every_s` until its next pulse."""
        self._pulses[what] = _Watched(what, self.monotonic(), every_s + self.patience_s, needs)

    def over(self, what: str) -> None:
        """It ended on purpose: nobody waits for its next pulse."""
        self._pulses.pop(what, None)

    def begin(self, token: Hashable, what: str, within_s: float | None = None, *, needs: str | None = None) -> None:
        """Something began that should end within so many seconds, `patience_s` if not said; `token` is its own."""
        with self._lock:
            self._open[token] = _Watched(what, self.monotonic(), within_s or self.patience_s, needs)

    def end(self, token: Hashable) -> None:
        with self._lock:
            self._open.pop(token, None)

    def trouble(self, what: str, why: str) -> None:
        """It does not work now, which is nobody's death: there is no work to be had until it does."""
        self._troubles[what] = why

    def well(self, what: str) -> None:
        if what not in self._troubles:
            return
        for each in self._watched():
            if each.needs == what:
                each.since = self.monotonic()
        self._troubles.pop(what, None)

    @property
    def troubles(self) -> dict[str, str]:
        return dict(self._troubles)

    def _watched(self) -> list[_Watched]:
        with self._lock:
            return [*list(self._pulses.values()), *self._open.values()]

    def ages_s(self) -> dict[str, float]:
        """How long ago each pulse came, and each thing that is not ended yet began (the oldest of a name)."""
        now = self.monotonic()
        ages = sorted(((each.what, now - each.since) for each in self._watched()), key=lambda each: each[1])
        return dict(ages)

    def stalls(self) -> list[Stall]:
        now = self.monotonic()
        return [
            Stall(each.what, now - each.since, each.within_s)
            for each in self._watched()
            if now - each.since > each.within_s and each.needs not in self._troubles
        ]


# Celery makes transports, consumers and tasks without a way to hand them anything: they tell the process's own.
VITALS = Vitals()
MAIN_LOOP, WATCHER, HEARTBEAT, CONSUMER, SCHEDULER = "main loop", "watcher", "heartbeat", "consumer", "scheduler"
REDIS, BROKER, HOST_LEASE = "redis", "broker", "host lease"
