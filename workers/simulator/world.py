"""A simulated fleet: machines with workers, beats, a lossy broker and a server, all on one virtual clock.

The services are the real ones, with the real settings' policies. What happens to them is said from outside: by
scenarios, and by random schedules.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from workers.bootstrap import health_policy, limits, recovery_policy, stray_rules
from workers.domain.audit import Event, EventKind
from workers.domain.errors import ReliabilityError, StoreUnavailable
from workers.domain.modes import Flag, Mode
from workers.domain.recovery import WakeUp
from workers.domain.vm import Force
from workers.ports import StrayFound
from workers.services.host_services import HostPolicies
from workers.services.ledger import Ledger
from workers.services.modes import OperatorModes
from workers.services.registry import Registry
from workers.settings import Settings
from workers.simulator.broker import Broker, Message
from workers.simulator.clockwork import Clockwork
from workers.simulator.machine import HostData, HostModes, HostStore, Machine
from workers.simulator.memory_server import Contents, MemoryData, MemoryModes, MemoryServer
from workers.simulator.memory_store import MemoryVmStore
from workers.simulator.ports import SimTelemetry, SimWakeups
from workers.simulator.schedule import MemorySchedule
from workers.simulator.worker import SimWorker
from workers.specs import VmSpec, spec_from

START_US = 1_800_000_000_000_000
_DEATH_KNOWN_S = 0.001
_AGAIN_S = 0.5
_DETECT, _RECONCILE = "detect_orphans", "reconcile"
_UNWATCHED = frozenset({"stopped", "failed"})


class SimBeat:
    """Claims what is due and sends it, until it is killed."""

    def __init__(self, world: "World") -> None:
        self._world, self.is_gone = world, False
        self._schedule = MemorySchedule(world.server, world.check_interval_ms, world.sweeps)
        self._tick()

    def kill(self) -> None:
        self.is_gone = True
        self._world.beats.remove(self)

    def _tick(self) -> None:
        if self.is_gone:
            return
        world, patience_s = self._world, self._world.settings.beat.max_interval.total_seconds()
        try:
            due = self._schedule.claim(world.settings.beat.claim_limit)
            for host, vm_ids in due.checks:
                deadline_ms = due.now_ms + world.check_interval_ms
                world.broker.send(Message("check", host, {"vm_ids": list(vm_ids), "deadline_ms": deadline_ms}))
            for kind, host in due.sweeps:
                world.broker.send(Message(kind, host))
            if due.next_in_ms is not None:
                patience_s = min(patience_s, max(0.01, due.next_in_ms / 1000))
        except StoreUnavailable:
            patience_s = 1.0
        world.clockwork.after(patience_s, self._tick)


@dataclass
class World:
    """`hosts` names the machines. `preemption`: how often a worker's task is paused at what it does to the outside.

    `stall`: how often such a pause is long enough to lose a lease.
    """

    settings: Settings
    hosts: Sequence[str]
    seed: int = 0
    boot_s: float = 0.25
    preemption: float = 0.0
    stall: float = 0.0
    beats_wanted: int = 1
    make_store: Callable[[Machine, SimWorker], MemoryVmStore] = lambda machine, _worker: HostStore(machine)
    make_data: Callable[[Machine], MemoryData] = HostData
    make_modes: Callable[[Machine], MemoryModes] = HostModes
    clockwork: Clockwork = field(default_factory=lambda: Clockwork(START_US))
    skew_us: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)  # noqa: S311 - it has to be repeatable, not secret
        self.numbers = itertools.count(1)
        self.epoch_ids = (f"epoch-{number}" for number in itertools.count(1))
        self.server = MemoryServer(lambda: self.clockwork.now_us + self.skew_us)
        self.limits = limits(self.settings)
        self._health, self._recovery = health_policy(self.settings), recovery_policy(self.settings)
        self._stray_rules = stray_rules(self.settings)
        self.check_interval_ms = _ms(self.settings.health_check.interval)
        self.sweeps: Mapping[str, int] = {
            _DETECT: _ms(self.settings.recovery.detection_interval),
            _RECONCILE: _ms(self.settings.reconcile_interval),
        }
        visibility_s = self.settings.visibility_timeout.total_seconds()
        self.broker = Broker(self.clockwork, self.dice, visibility_s)
        self.telemetry = SimTelemetry()
        self.strays: dict[str, Sequence[StrayFound]] = {}
        self._spent: dict[str, list[int]] = {}
        self.machines = {name: Machine(self, name) for name in self.hosts}
        operator = MemoryVmStore(self.server, self.limits)
        self.ledger = Ledger(operator, SimWakeups(self.broker), self.telemetry)
        self.registry = Registry(operator, self.ledger, actor="operator")
        self.data = MemoryData(self.server, self.epoch_ids, lease_ms=self.limits.lease_ms)
        self.modes = OperatorModes(MemoryModes(self.server), actor="operator", settle_ms=self.sweeps[_DETECT])
        # When each hold was set, in time that nobody sets back.
        self.held_us: dict[str, int] = {}
        self.beats: list[SimBeat] = []
        self.backup: Contents | None = None
        self.refusals: list[str] = []

    # The Clock port of every host: they have no clocks of their own to be wrong.

    def monotonic(self) -> float:
        return self.clockwork.now_us / 1_000_000

    def sleep(self, seconds: float) -> None:
        self.clockwork.sleep(seconds)

    def policies(self, host: str) -> HostPolicies:
        return HostPolicies(
            host,
            self._health,
            self._recovery,
            self._stray_rules,
            detection_interval_ms=self.sweeps[_DETECT],
            record_version=0,
        )

    def start(self) -> None:
        """Start a worker on each machine, and the beats."""
        for machine in self.machines.values():
            machine.start_worker()
        for _ in range(self.beats_wanted):
            self.start_beat()

    def start_beat(self) -> None:
        self.beats.append(SimBeat(self))

    def silent_hosts(self) -> Sequence[str]:
        after_ms = 3 * _ms(self.settings.worker.host_lease)
        leases = self.server.contents.host_leases
        return [name for name, until in leases.items() if self.server.now_ms - until > after_ms]

    def spend(self, host: str) -> bool:
        recent = [when for when in self._spent.get(host, []) if self.server.now_ms - when < 3_600_000]  # noqa: PLR2004 - an hour
        if len(recent) >= self.settings.strays.reaped_per_hour:
            return False
        self._spent[host] = [*recent, self.server.now_ms]
        return True

    def spec(self, vm_id: str, host: str, **fields: Any) -> VmSpec:
        plain = {"id": vm_id, "host": host, "driver": "firecracker", "kernel": "/images/vmlinux"}
        return spec_from(plain | fields)

    def machine_of(self, vm_id: str) -> Machine:
        """The machine of this VM, by its record or by what runs; the first one where nobody knows it any more."""
        row = self.server.contents.rows.get(vm_id)
        if row is not None:
            return self.machines[row.record.host]
        known = [m for m in self.machines.values() if m.sim.of(vm_id) or vm_id in m.sim.run_dirs]
        return (known or list(self.machines.values()))[0]

    def apply(self, *specs: VmSpec) -> None:
        try:
            self.registry.apply(specs)
        except ReliabilityError as error:
            self.refusals.append(str(error))

    def want(self, vm_id: str, desired: str) -> None:
        """Change only whether this VM is to run, if it is registered."""
        row = self.server.contents.rows.get(vm_id)
        if row is not None and row.spec is not None:
            self.apply(row.spec.model_copy(update={"desired": desired}))

    def confirm(self) -> None:
        with suppress(StoreUnavailable):
            self.data.confirm(Event(EventKind.CONFIRMED, "", "", "operator", "the data are right", scope="fleet"))

    def rebuild(self) -> None:
        for name in self.machines:
            self.broker.send(Message("rebuild", name))

    def hold(self, scope: str, mode: Mode, for_s: float) -> None:
        with suppress(ReliabilityError):
            made = self.modes.hold(scope, mode, why="a person works on it", for_ms=round(for_s * 1000))
            self.held_us[made.id] = self.clockwork.now_us

    def lift(self, scope: str) -> None:
        with suppress(ReliabilityError):
            self.modes.lift(scope, every=True)

    def switch(self, scope: str, flag: Flag, *, on: bool) -> None:
        with suppress(ReliabilityError):
            self.modes.switch(scope, flag, on=on, why="a person says so")

    def recover(self, vm_id: str, force: Force = Force.PLAIN) -> None:
        """A person asks for it."""
        wake = WakeUp(request_id=f"request-{next(self.numbers)}", actor="operator", force=force)
        host = next(iter(self.machines))
        row = self.server.contents.rows.get(vm_id)
        arguments = {"vm_id": vm_id, "wake": wake}
        self.broker.send(Message("recover", row.record.host if row else host, arguments))

    @property
    def events(self) -> list[tuple[str, Event]]:
        return self.server.contents.events

    def close(self) -> None:
        self.clockwork.close()


def _ms(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
