"""What a simulated fleet is made of: its sizes, its names, and how often a look at a VM finds what.

Pure: the same numbers give the same fleet in every process that takes part.
"""

import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.benchmarks.measures import at_share
from workers.domain.vm import Incarnation, Vantage

_HOUR_S = 3600.0
_PER = 10_000
_FIRST_PID = 100_000
_PID_NS = 4_026_531_836


@dataclass(frozen=True, slots=True)
class Shape:
    """So many VMs, `per_host` on each host but the last."""

    vms: int
    per_host: int = 50

    @property
    def hosts(self) -> int:
        return -(-self.vms // self.per_host)

    def host(self, number: int) -> str:
        return f"host-{number:04d}"

    def vm_ids(self, host: int) -> list[str]:
        first = host * self.per_host
        return [f"vm-{number:08d}" for number in range(first, min(first + self.per_host, self.vms))]

    def part(self, index: int, of: int) -> range:
        """The hosts that process `index` of so many stands for."""
        return range(index, self.hosts, of)


@dataclass(frozen=True, slots=True)
class CostModel:
    """What goes wrong: a share of looks that get no answer, deaths per 10,000 VMs and hour, in one place `incident`.

    `probe_s` is the CPU that one look costs a real host; nothing spends it here, it is only counted.
    """

    unanswered: float = 0.001
    deaths: float = 10.0
    probe_s: float = 70e-6

    def death_every_s(self, vms: int) -> float | None:
        """How long it takes on average until the next of so many VMs dies; None for ever."""
        per_hour = self.deaths * vms / _PER
        return _HOUR_S / per_hour if per_hour > 0 else None

    def deaths_from(self, chance: random.Random, vms: int) -> Iterator[float]:
        """Yield the seconds from one death to the next: they come by themselves, at no regular time."""
        every_s = self.death_every_s(vms)
        while every_s is not None:
            yield chance.expovariate(1 / every_s)

    def answers(self, chance: random.Random) -> bool:
        return chance.random() >= self.unanswered


def vantage_of(host: str) -> Vantage:
    """A machine of its own for each host, with ids as long as real ones."""
    boot, machine = (uuid.uuid5(uuid.NAMESPACE_DNS, f"{kind}.{host}") for kind in ("boot", "machine"))
    return Vantage(str(boot), machine.hex, _PID_NS)


def process_of(number: int, vantage: Vantage) -> Incarnation:
    """The incarnation that VM `number` of a host had when the fleet was made."""
    pid = _FIRST_PID + number
    return Incarnation(pid, 10_000_000 + pid, vantage.boot_id, vantage.machine_id, vantage.pid_ns)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed; 0 of none."""
    return at_share(values, share) if values else 0.0
