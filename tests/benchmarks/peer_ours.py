"""This system among its peers: a server, a beat and a worker on the stage, with the settings of production."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tests.benchmarks.measures import median
from tests.benchmarks.peer_prober import Door
from tests.benchmarks.peer_supervisors import Team
from tests.benchmarks.stage import HOST, Stage, stage
from tests.support.processes import wait_until
from workers.bootstrap import Fleet
from workers.domain.audit import EventKind
from workers.domain.vm import State
from workers.messages import NoWakeups
from workers.settings import Settings
from workers.specs import spec_from

_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class ThisSystem:
    """`settings` are those that differ from production."""

    name: str = "this system"
    settings: Mapping[str, str] = field(default_factory=dict)
    turn_s: float = 0.0

    def check(self) -> None:
        """It is always there."""

    @contextmanager
    def run(self, binary: str, vms: int) -> Iterator[Team]:
        with stage() as made:
            on = replace(made, vmm=binary)
            with on.pair("peers", **self.settings):
                on.declare(vms)
                yield _OurTeam(on, on.settings(**self.settings))


class _OurTeam:
    def __init__(self, on: Stage, settings: Settings) -> None:
        self._on, self._fleet = on, Fleet(settings)
        self._cap = settings.recovery.per_host
        self._vms = self._fleet.store.ids(host=HOST)
        self._told = self._fleet.events.last_id()

    @property
    def doors(self) -> Sequence[Door]:
        return [self._door(vm) for vm in self._vms]

    def _door(self, vm: str) -> Door:
        """The link goes with the generation; the VM is back when its guest was started, not when its VMM was."""
        return Door(vm, str(self._on.folder / "state" / "runs" / vm / "current" / "api.sock"), "Running")

    def young(self, doors: Sequence[Door]) -> Sequence[Door]:
        """Have new VMs started: one that has just been recovered is young too, but its next loss has to wait."""
        names = [f"{door.vm}-new" for door in doors]
        kernel = str(self._on.folder / "images" / "vmlinux")
        specs = [spec_from({"id": name, "host": HOST, "driver": "firecracker", "kernel": kernel}) for name in names]
        self._fleet.registry(NoWakeups(), actor="benchmark").apply(specs)
        found = [self._door(name) for name in names]
        self.settle(found)
        return found

    def settle(self, doors: Sequence[Door]) -> Mapping[str, float]:
        names = [door.vm for door in doors]
        patience_s = _PATIENCE_S + len(names) / 2
        wait_until(lambda: self._all_serve(names), timeout_s=patience_s, what="the records of VMs that are back")
        told = list(self._fleet.events.since(self._told))
        self._told = self._fleet.events.last_id()
        return {each.event.vm_id: each.at_ms / 1000 for each in told if each.event.kind is EventKind.RECOVERED}

    def _all_serve(self, names: Sequence[str]) -> bool:
        found = self._fleet.store.read(names).found.values()
        return sum(each.record.state is State.HEALTHY for each in found) == len(names)

    def ideal_s(self, doors: Sequence[Door]) -> float | None:
        """What an attempt took, from admission to record, in as many turns as the cap makes necessary."""
        found = self._fleet.store.read([door.vm for door in doors]).found.values()
        spent_ms = [each.record.episode.spent_ms for each in found if each.record.episode is not None]
        return len(doors) / self._cap * median(spent_ms) / 1000
