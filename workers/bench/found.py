"""What a bench found, and the arithmetic that makes of it what a user's own fleet would cost. Pure."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta

from workers.demo.report import Result, percentile

FLEETS = (10, 100, 1000)  # VMs of one host


@dataclass(frozen=True, slots=True)
class Load:
    """One stretch of time under checks. `cpu_s` is by process; `vmms_s` is what answering cost the VMMs themselves."""

    seconds: float
    checks: int
    failed: int
    batch: int
    cpu_s: Mapping[str, float]
    vmms_s: float
    others_share: float

    @property
    def rate(self) -> float:
        return self.checks / self.seconds

    @property
    def per_check_s(self) -> float:
        return sum(self.cpu_s.values()) / max(self.checks, 1)


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU-seconds of worker, beat and Redis together: of one batch, and of each check in it."""

    batch_s: float
    check_s: float

    def share(self, vms: int, interval_s: float, per_message: int) -> float:
        """Return the part of one processor that checking takes: VMs of a host are due together, in few batches."""
        batches = math.ceil(vms / per_message)
        return (batches * self.batch_s + vms * self.check_s) / interval_s


def cost_of(large: Load, small: Load) -> Cost:
    """Split what a check costs, by the same checks in large and small batches; noise makes no part negative."""
    per_batch = (small.per_check_s - large.per_check_s) / (1 / small.batch - 1 / large.batch)
    batch_s = max(0.0, per_batch)
    return Cost(batch_s, max(0.0, large.per_check_s - batch_s / large.batch))


@dataclass(frozen=True, slots=True)
class Checks:
    offered: float
    large: Load
    small: Load

    @property
    def cost(self) -> Cost:
        return (
            cost_of(self.large, self.small)
            if self.small.batch < self.large.batch
            else Cost(0.0, self.large.per_check_s)
        )

    @property
    def most(self) -> float:
        """Checks/s at which the worker would fill one processor, which is all that one worker can use."""
        worker_s = self.large.cpu_s["worker"]
        return self.large.checks / worker_s if worker_s else math.inf


@dataclass(frozen=True, slots=True)
class Idle:
    """At rest, with the intervals of production. `share` is of one processor."""

    share: Mapping[str, float]
    memory_mib: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Deaths:
    """`alone_s`: how long the same VMM takes from its start until its API answers, with nobody around it."""

    results: Sequence[Result]
    alone_s: Sequence[float]

    @property
    def known_s(self) -> list[float]:
        return known(self.results)

    @property
    def again_s(self) -> list[float]:
        return back(self.results)

    @property
    def beyond_s(self) -> list[float]:
        """What is left of each when the median of the VMM's own start is taken away."""
        own = percentile(self.alone_s, 50) or 0.0
        return [max(0.0, took - own) for took in self.again_s]


def known(results: Sequence[Result]) -> list[float]:
    return [each.known_after_s for each in results if each.known_after_s is not None]


def back(results: Sequence[Result]) -> list[float]:
    return [each.serving_after_s for each in results if each.is_recovered and each.serving_after_s is not None]


@dataclass(frozen=True, slots=True)
class Hangs:
    """`within` is what the settings of the bench promise."""

    results: Sequence[Result]
    within: timedelta

    @property
    def known_s(self) -> list[float]:
        return known(self.results)


@dataclass(frozen=True, slots=True)
class Server:
    """Round trips to the user's own Redis, by command; `problem` says why there are none, or not all."""

    url: str
    is_default: bool
    round_trips_s: Mapping[str, Sequence[float]]
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Disk:
    folder: str
    syncs_s: Sequence[float]
    problem: str = ""


@dataclass(slots=True)
class Found:
    """What was measured so far, None: not asked for. `vms` is None where there were none."""

    vms: int | None
    checks: Checks | None = None
    idle: Idle | None = None
    deaths: Deaths | None = None
    hangs: Hangs | None = None
    server: Server | None = None
    disk: Disk | None = None
    ended: list[str] = field(default_factory=list)
