"""The outside of one host for tests of the services: fakes of its ports, and the services joined on them.

Store and host are those of the simulator, which pass the contract suites of their ports.
"""

import itertools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from tests.support.builders import (
    HERE,
    HOST,
    NOW_MS,
    a_health_policy,
    a_recovery_policy,
    a_spec,
    a_vm,
    some_limits,
)
from workers.domain.audit import Event, EventKind
from workers.domain.epoch import Known
from workers.domain.evidence import Evidence, Observation
from workers.domain.strays import StrayPolicy, StrayRules
from workers.domain.vm import Incarnation, State, VmRecord
from workers.ports import Change, Ignorance, Outcome, Stored, StrayFound, Work
from workers.services.host_services import HostPolicies, HostPorts, HostServices, host_services
from workers.simulator.host import SimHost
from workers.simulator.memory_server import MemoryData, MemoryModes, MemoryServer, Row
from workers.simulator.memory_store import MemoryVmStore

_FOREVER_MS = 10**12


class FakeClock:
    """Server time in µs, and the host's own clock; moves when it is told to, and when somebody sleeps."""

    def __init__(self, now_us: int = NOW_MS * 1000) -> None:
        self.now_us = now_us

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def advance(self, ms: int) -> None:
        self.now_us += ms * 1000

    def monotonic(self) -> float:
        return self.now_us / 1_000_000

    def sleep(self, seconds: float) -> None:
        self.now_us += round(seconds * 1_000_000)


@dataclass
class FakeMemory:
    known: Known | None = None
    saved: Known | None = None

    def saw(self, event_id: str) -> None:
        if self.known is not None:
            self.known = self.known.seeing(event_id)

    def trust(self, known: Known) -> None:
        self.known = known

    def save(self) -> None:
        self.saved = self.known


@dataclass(frozen=True)
class Wake:
    vm_id: str
    episode: str | None = None
    attempt: int | None = None
    delay_ms: int = 0


@dataclass
class RecordingWakeups:
    recovers: list[Wake] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)

    def recover(
        self, vm_id: str, host: str, *, episode: str | None = None, attempt: int | None = None, delay_ms: int = 0
    ) -> None:
        del host
        self.recovers.append(Wake(vm_id, episode, attempt, delay_ms))

    def stop(self, vm_id: str, host: str) -> None:
        del host
        self.stops.append(vm_id)

    @property
    def woken(self) -> list[str]:
        return [wake.vm_id for wake in self.recovers]


@dataclass
class RecordingTelemetry:
    events: list[Event] = field(default_factory=list)
    looks: list[tuple[str, Evidence]] = field(default_factory=list)
    why_ignored: list[str] = field(default_factory=list)
    causes: list[Ignorance] = field(default_factory=list)
    message_ages: list[int] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        del record
        self.events += events

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        del now_ms
        assert looks.keys() <= found.keys()
        self.looks += [(vm_id, seen.evidence) for vm_id, seen in looks.items()]

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        self.why_ignored.append(f"{vm_id}: {why}")
        self.causes.append(cause)

    def checks_came(self, age_ms: int) -> None:
        self.message_ages.append(age_ms)

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        del record
        self.works.append(work)
        return nullcontext()


class World:
    """One host with its worker's services, a store, and whatever the test puts there.

    `policy` changes the recovery policy; `limits`, `health` and `strays` those.
    """

    def __init__(
        self,
        *,
        limits: dict[str, Any] | None = None,
        health: dict[str, Any] | None = None,
        strays: StrayPolicy = StrayPolicy.REPORT,
        **policy: Any,
    ) -> None:
        self.clock = FakeClock()
        self.server = MemoryServer(lambda: self.clock.now_us)
        self.server.serve(HOST, _FOREVER_MS)
        self.memory = FakeMemory()
        self.limits = some_limits(**(limits or {}))
        self.store = MemoryVmStore(self.server, self.limits, self.memory)
        self.modes = MemoryModes(self.server)
        self.data = MemoryData(self.server, (f"epoch-{n}" for n in itertools.count()), lease_ms=30_000)
        self.host = SimHost(HERE, self.clock)
        self.wakeups, self.telemetry = RecordingWakeups(), RecordingTelemetry()
        self.watched: dict[str, Incarnation] = {}
        self.found_strays: list[StrayFound] = []
        self.silent: list[str] = []
        self.unreadable: dict[str, str] = {}
        self.bounded: list[str] = []
        self.budget = 10
        self.trouble: str | None = None
        self.policy = a_recovery_policy(lease_ms=self.limits.lease_ms, **policy)
        self.policies = HostPolicies(
            HOST,
            a_health_policy(**(health or {})),
            self.policy,
            StrayRules(strays, min_age_s=300),
            detection_interval_ms=60_000,
            record_version=0,
        )
        self._owners = (f"owner-{n}" for n in itertools.count())
        self.services = self.join()
        self.checks, self.recovery = self.services.checks, self.services.recovery
        self.orphans, self.reconciliation = self.services.orphans, self.services.reconciliation
        self.tending = self.services.tending

    def join(self, store: Any = None, host: Any = None) -> HostServices:
        """Join the services once more, as another worker has them, around these."""
        host = host or self.host
        ports = HostPorts(
            store or self.store,
            self.data,
            self.modes,
            self.memory,
            host,
            host,
            self.wakeups,
            self.telemetry,
            self.clock,
            watch=self.watched.__setitem__,
            trouble=lambda: self.trouble,
            sockets=self.host.sockets,
            new_owner=lambda: next(self._owners),
            jitter=lambda: 0.0,
            bound_logs=self.bounded.extend,
            silent_hosts=lambda: self.silent,
            put_unreadable=self.unreadable.update,
            put_strays=self._keep_strays,
            may_destroy=self._spend,
            not_saved=lambda _error: None,
        )
        return host_services(ports, self.policies)

    def _keep_strays(self, found: Sequence[StrayFound]) -> None:
        self.found_strays = list(found)

    def _spend(self) -> bool:
        self.budget -= 1
        return self.budget >= 0

    @property
    def rows(self) -> dict[str, Row]:
        return self.server.contents.rows

    def put(self, *records: VmRecord) -> None:
        changes = [Change(r.vm_id, 0, r, check_in_ms=0, spec=a_spec(r.vm_id)) for r in records]
        assert all(outcome is Outcome.DONE for outcome in self.store.write(changes).outcomes)

    def boot(self, vm_id: str = "vm-1", **changes: Any) -> VmRecord:
        """A healthy VM with a live process."""
        record = a_vm(vm_id, process=self.host.boot(vm_id).process, **changes)
        self.put(record)
        return record

    def record(self, vm_id: str = "vm-1") -> VmRecord:
        return self.rows[vm_id].record

    def state(self, vm_id: str = "vm-1") -> State:
        return self.record(vm_id).state

    def forget(self, vm_id: str = "vm-1") -> None:
        assert self.store.write([Change(vm_id, self.rows[vm_id].rev, None)]).outcomes == [Outcome.DONE]

    def update(self, vm_id: str = "vm-1", **changes: Any) -> None:
        """What somebody else writes."""
        row = self.rows[vm_id]
        row.record, row.rev = replace(row.record, **changes), row.rev + 1

    @property
    def events(self) -> list[Event]:
        return [event for _, event in self.server.contents.events]

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]
