"""One simulated host: the services of a real one, on the real store, around a machine whose VMs are entries of a table.

`simulated_host` is the only place that knows how a worker joins its parts.
"""

import random
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import redis

from tests.benchmarks.fleet_model import CostModel, process_of, vantage_of
from workers.bootstrap import Fleet, health_policy, milliseconds, recovery_policy, stray_rules
from workers.domain.audit import Event
from workers.domain.epoch import Known
from workers.domain.evidence import Evidence, Observation
from workers.domain.vm import Incarnation, Vantage, VmRecord
from workers.host.clock import BootClock
from workers.host.trouble import Trouble
from workers.ports import Ended, Ignorance, Kept, Stored, Wakeups, Work
from workers.runtime import HostLease, HostRuntime
from workers.services.host_services import HostPolicies, HostPorts, HostServices, host_services
from workers.settings import Settings
from workers.simulator.host import SimHost, SimVmm
from workers.store.hosts import HostWorker

if TYPE_CHECKING:
    from workers.host.watcher import Watcher
    from workers.telemetry.worker_monitor import WorkerMonitor

_CLOCK = BootClock()


@dataclass(slots=True)
class Remembered:
    """What a host knows of the data; a real one keeps it on its disk as well."""

    known: Known | None = None

    def saw(self, event_id: str) -> None:
        if self.known is not None:
            self.known = self.known.seeing(event_id)

    def trust(self, known: Known) -> None:
        self.known = known

    def save(self) -> None:
        pass


@dataclass(slots=True)
class Tally:
    """What the hosts of one process did: `checks` since ever, `ages_ms` and `late_ms` since they were last told."""

    checks: int = 0
    messages: int = 0
    errors: int = 0
    events: Counter[str] = field(default_factory=Counter)
    ages_ms: list[int] = field(default_factory=list)
    late_ms: list[int] = field(default_factory=list)

    def told(self) -> dict[str, Any]:
        """Return it all, and begin the lists anew."""
        found = {"checks": self.checks, "messages": self.messages, "errors": self.errors, "events": dict(self.events)}
        found |= {"ages_ms": self.ages_ms, "late_ms": self.late_ms}
        self.ages_ms, self.late_ms = [], []
        return found

    # Telemetry

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        del record
        self.events.update(str(event.kind) for event in events)

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        pass

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        del vm_id, why
        self.events[f"ignored, {cause}"] += 1

    def checks_came(self, age_ms: int) -> None:
        self.ages_ms.append(age_ms)

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        del work, record
        return nullcontext()


class ModelProber:
    """A look at a machine of the table, with as many looks unanswered as the model says."""

    def __init__(self, machine: SimHost, model: CostModel, tally: Tally, chance: random.Random) -> None:
        self._machine, self._model, self._tally, self._chance = machine, model, tally, chance
        self.look_at_process = machine.look_at_process

    def probe(self, records: Sequence[VmRecord]) -> Iterator[dict[str, Observation]]:
        for group in self._machine.probe(records):
            self._tally.checks += len(group)
            yield {vm_id: self._found(seen) for vm_id, seen in group.items()}

    def _found(self, seen: Observation) -> Observation:
        if seen.evidence is Evidence.ANSWERS and not self._model.answers(self._chance):
            return Observation(Evidence.NO_ANSWER, "no answer, says the model")
        return seen


class _NoWatcher:
    """Deaths are told by the table itself."""

    def watch(self, vm_id: str, process: Incarnation) -> None:
        pass

    def __len__(self) -> int:
        return 0


class _NoMonitor:
    """Nobody looks at the figures of a simulated host."""

    metrics = SimpleNamespace(keep_only=lambda _vm_ids: None)

    def surveyed(self, *_: Any, **__: Any) -> None:
        pass


@dataclass(frozen=True, slots=True)
class SimulatedHost:
    runtime: HostRuntime
    services: HostServices
    machine: SimHost

    @property
    def name(self) -> str:
        return self.runtime.host

    def populate(self, vm_ids: Sequence[str]) -> None:
        """The VMs that the records of this host name are alive."""
        for number, vm_id in enumerate(vm_ids):
            process = process_of(number, self.machine.vantage)
            self.machine.alive[process.pid] = SimVmm(vm_id, process, generation=1)
            self.machine.run_dirs[vm_id] = Kept(vm_id, generation=1, driver="firecracker", served=True)

    def begin(self) -> None:
        """What a worker does before it asks for messages; not its first sweep, for no real fleet starts all at once."""
        self.heartbeat()
        self.runtime.active = True

    def heartbeat(self) -> None:
        self.runtime.lease.acquire()
        self.runtime.tend()


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What the hosts of one process share. `folder` is an empty one, for what a host looks at on its own disk."""

    settings: Settings
    policies: HostPolicies
    client: redis.Redis
    wakeups: Wakeups
    model: CostModel
    tally: Tally
    folder: Path


def surroundings(
    settings: Settings, client: redis.Redis, wakeups: Wakeups, model: CostModel, folder: Path
) -> Surroundings:
    policies = HostPolicies(
        settings.host,
        health_policy(settings),
        recovery_policy(settings),
        stray_rules(settings),
        detection_interval_ms=milliseconds(settings.recovery.detection_interval),
        record_version=settings.redis.record_version,
    )
    return Surroundings(settings, policies, client, wakeups, model, Tally(), folder)


def simulated_host(name: str, around: Surroundings) -> SimulatedHost:
    """Join the parts of one host as `workers.bootstrap_host` does for a real one."""
    settings = around.settings.model_copy(update={"host": name})
    fleet = Fleet(settings, around.client, memory=(memory := Remembered()))
    vantage, chance = vantage_of(name), random.Random(name)  # noqa: S311 - chance of a model
    machine = SimHost(vantage, _CLOCK)
    trouble = Trouble(around.folder, _CLOCK, redis_back_s=settings.health_check.timeout.total_seconds())
    lease_ms, strays_ttl_ms = milliseconds(settings.worker.host_lease), 3 * milliseconds(settings.reconcile_interval)
    ports = HostPorts(
        fleet.store,
        fleet.data,
        fleet.modes,
        memory,
        machine,
        ModelProber(machine, around.model, around.tally, chance),
        around.wakeups,
        around.tally,
        _CLOCK,
        watch=lambda _vm_id, _process: None,
        trouble=trouble.now,
        sockets=machine.sockets,
        new_owner=lambda: uuid.uuid4().hex,
        jitter=chance.random,
        bound_logs=lambda _vm_ids: None,
        silent_hosts=lambda: fleet.hosts.silent(longer_than_ms=3 * lease_ms),
        put_unreadable=lambda why_of: fleet.hosts.put_unreadable(name, why_of, ttl_ms=strays_ttl_ms),
        put_strays=partial(fleet.hosts.put_strays, name, ttl_ms=strays_ttl_ms),
        may_destroy=lambda: fleet.hosts.may_destroy(name, per_hour=settings.strays.reaped_per_hour),
        not_saved=lambda _error: None,
    )
    services = host_services(ports, replace(around.policies, host=name))
    machine.on_death = lambda vmm, cause: services.checks.processes_ended({vmm.vm_id: Ended(vmm.process, cause)})
    return SimulatedHost(_runtime(name, services, fleet, trouble, vantage), services, machine)


def _runtime(name: str, services: HostServices, fleet: Fleet, trouble: Trouble, vantage: Vantage) -> HostRuntime:
    lease_ms = milliseconds(fleet.settings.worker.host_lease)
    worker = HostWorker(uuid.uuid4().hex, name, process_of(0, vantage), int(time.time() * 1000), "0.0.0")
    watcher, monitor = cast("Watcher", _NoWatcher()), cast("WorkerMonitor", _NoMonitor())
    return HostRuntime(
        name,
        services,
        store=fleet.store,
        trouble=trouble,
        watcher=watcher,
        lease=HostLease(fleet.hosts, worker, vantage, ttl_ms=lease_ms),
        surveys=fleet.surveys,
        monitor=monitor,
        replay_hooks=lambda: 0,
    )
