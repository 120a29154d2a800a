"""Time as it passes on this host."""

import time


class BootClock:
    """Counts also while the host sleeps: a lease that ran out meanwhile must not look fresh (CLOCK_BOOTTIME)."""

    def monotonic(self) -> float:
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)
