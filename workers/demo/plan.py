"""Which fault is injected when, and on which VM. Pure: the caller brings the randomness."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path


class Fault(StrEnum):
    """Every kind, in the order in which each is shown once."""

    SIGKILL = "sigkill"
    SIGSTOP = "sigstop"
    SOCKET_REMOVED = "socket_removed"
    OTHER_VM = "other_vm"
    REFUSES_STARTS = "refuses_starts"
    WORKER_KILLED = "worker_killed"
    REDIS_KILLED = "redis_killed"

    @property
    def label(self) -> str:
        return _LABELS[self]

    @property
    def hits_a_vm(self) -> bool:
        """Else it hits what looks after the VMs, and no VM may notice."""
        return self not in (Fault.WORKER_KILLED, Fault.REDIS_KILLED)


_LABELS = {
    Fault.SIGKILL: "SIGKILL",
    Fault.SIGSTOP: "SIGSTOP",
    Fault.SOCKET_REMOVED: "socket removed",
    Fault.OTHER_VM: "wrong identity",
    Fault.REFUSES_STARTS: "refuses 2 starts",
    Fault.WORKER_KILLED: "SIGKILL",
    Fault.REDIS_KILLED: "SIGKILL",
}
REFUSED_STARTS = 2
DRIVERS = ("firecracker", "qemu")


class Unavailable(Exception):
    """Something has to be installed first; the text says what, in one line."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for. `metrics_port` is the worker's, the next one the beat's; None: any free ones."""

    vms: int
    faults: int
    driver: str
    seed: int
    json_file: Path | None
    keep: bool
    metrics_port: int | None = None


@dataclass(frozen=True, slots=True)
class Step:
    fault: Fault
    vm_id: str | None

    @property
    def target(self) -> str:
        if self.vm_id is not None:
            return self.vm_id
        return "worker" if self.fault is Fault.WORKER_KILLED else "redis"


def names(vms: int, infix: str = "") -> list[str]:
    """Return `vm-01` and so on."""
    width = max(2, len(str(vms)))
    return [f"vm-{infix}{number:0{width}}" for number in range(1, vms + 1)]


def plan(vm_ids: Sequence[str], faults: int, kinds: Sequence[Fault], rng: random.Random) -> list[Step]:
    """One of each kind first, then those that hit a VM; no VM twice while there is one that was not hit yet."""
    of_vms = [kind for kind in kinds if kind.hits_a_vm]
    chosen = [*kinds, *(rng.choice(of_vms) for _ in range(faults - len(kinds)))][:faults]
    victims = _victims(vm_ids, rng)
    return [Step(fault, next(victims) if fault.hits_a_vm else None) for fault in chosen]


def _victims(vm_ids: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Go round and round in one random order, so that a VM has the longest rest between two faults."""
    order = rng.sample(vm_ids, len(vm_ids))
    while True:
        yield from order
