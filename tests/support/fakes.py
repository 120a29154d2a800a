"""Fakes of the ports, for tests of the services; the store's fake passes the same contract suite as the real one."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from workers.domain.audit import Event
from workers.domain.errors import GuardBusy, Paused, StartFailed, StopFailed, StoreUnavailable, UnknownVm
from workers.domain.evidence import Evidence, Observation
from workers.domain.vm import Incarnation, State, VmRecord
from workers.ports import Change, Outcome, Renew, Running, Snapshot, Stored, Take, Written
from workers.specs import VmSpec


class FakeClock:
    """Server time in µs; moves only when it is told to."""

    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def advance(self, ms: int) -> None:
        self.now_us += ms * 1000


@dataclass
class _Row:
    record: VmRecord
    rev: int
    spec: VmSpec | None = None
    owner: str | None = None
    lease_end_ms: int = 0
    slot_end_ms: int = 0
    checked_ms: int | None = None
    due_ms: int | None = None


class FakeVmStore:
    """`away` makes every call fail like a Redis that does not answer; `before_write` runs between read and write."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.rows: dict[str, _Row] = {}
        self.line: dict[str, tuple[int, int]] = {}
        self.events: list[Event] = []
        self.away = False
        self.before_write: Callable[[Sequence[Change]], None] = lambda _changes: None

    def _reach(self) -> None:
        if self.away:
            raise StoreUnavailable("the fake is away")

    def read(self, vm_ids: Collection[str]) -> Snapshot:
        self._reach()
        found = {vm_id: self._stored(self.rows[vm_id]) for vm_id in vm_ids if vm_id in self.rows}
        return Snapshot(self.clock.now_us, found)

    def _stored(self, row: _Row) -> Stored:
        return Stored(row.record, row.rev, self._holder(row), row.checked_ms)

    def _holder(self, row: _Row) -> str | None:
        return row.owner if row.lease_end_ms > self.clock.now_ms else None

    def write(self, changes: Sequence[Change], *, seen: Collection[str] = (), all_or_nothing: bool = False) -> Written:
        self.before_write(changes)
        self._reach()
        if all_or_nothing:
            refusals = [self._refusal(change) or Outcome.NOT_TRIED for change in changes]
            if any(refusal is not Outcome.NOT_TRIED for refusal in refusals):
                return Written(refusals)
        outcomes: list[Outcome] = []
        woken: list[tuple[str, str]] = []
        for change in changes:
            outcomes.append(self._refusal(change) or Outcome.DONE)
            if outcomes[-1] is Outcome.DONE:
                self._apply(change)
                woken += self._next_in_line(change) if change.release else []
        for vm_id in seen:
            if vm_id in self.rows:
                self.rows[vm_id].checked_ms = self.clock.now_ms
        return Written(outcomes, woken)

    def _refusal(self, change: Change) -> Outcome | None:
        row = self.rows.get(change.vm_id)
        if (row.rev if row else 0) != change.rev:
            return Outcome.STALE
        holder = self._holder(row) if row else None
        if change.held_by is not None and holder != change.held_by:
            return Outcome.LEASED
        if change.take is None:
            return None
        if holder not in (None, change.take.owner):
            return Outcome.LEASED
        return None if self._has_slot(change, change.take) else self._stand_in_line(change)

    def _has_slot(self, change: Change, take: Take) -> bool:
        if take.per_fleet is None or take.per_host is None or change.after is None:
            return True
        busy = [row for row in self.rows.values() if row.slot_end_ms > self.clock.now_ms]
        others = [row for row in busy if row.record.vm_id != change.vm_id]
        here = [row for row in others if row.record.host == change.after.host]
        return len(others) < take.per_fleet and len(here) < take.per_host

    def _stand_in_line(self, change: Change) -> Outcome:
        if change.vm_id in self.line or change.after is None:
            return Outcome.WAITING
        self.line[change.vm_id] = (9 - change.after.priority, self.clock.now_ms)
        return Outcome.NO_SLOT

    def _apply(self, change: Change) -> None:
        self.events += change.events
        if change.after is None:
            self.rows.pop(change.vm_id, None)
            self.line.pop(change.vm_id, None)
            return
        row = self.rows.setdefault(change.vm_id, _Row(change.after, 0))
        row.record, row.rev = change.after, change.rev + 1
        row.spec = change.spec or row.spec
        if change.take is not None:
            row.owner, row.lease_end_ms = change.take.owner, self.clock.now_ms + change.take.ttl_ms
            row.slot_end_ms = row.lease_end_ms if change.take.per_fleet is not None else 0
            self.line.pop(change.vm_id, None)
        if change.release:
            row.owner, row.lease_end_ms, row.slot_end_ms = None, 0, 0
        if change.check_in_ms is not None:
            row.due_ms = None if change.check_in_ms < 0 else self.clock.now_ms + change.check_in_ms

    def _next_in_line(self, change: Change) -> list[tuple[str, str]]:
        waiting = sorted(self.line, key=lambda vm_id: self.line[vm_id])
        host = change.after.host if change.after else ""
        own = [vm_id for vm_id in waiting if self.rows[vm_id].record.host == host]
        return [(vm_id, self.rows[vm_id].record.host) for vm_id in (own or waiting)[:1]]

    def spec(self, vm_id: str) -> VmSpec:
        self._reach()
        row = self.rows.get(vm_id)
        if row is None or row.spec is None:
            raise UnknownVm(vm_id)
        return row.spec

    def ids(self, *, host: str | None = None, state: State | None = None) -> list[str]:
        self._reach()
        records = [row.record for row in self.rows.values()]
        return sorted(r.vm_id for r in records if host in (None, r.host) and state in (None, r.state))

    def unscheduled(self, vm_ids: Sequence[str]) -> list[str]:
        self._reach()
        return [vm_id for vm_id in vm_ids if vm_id not in self.rows or self.rows[vm_id].due_ms is None]

    def renew(self, vm_id: str, owner: str, ttl_ms: int) -> bool:
        self._reach()
        row = self.rows.get(vm_id)
        if row is None or self._holder(row) != owner:
            return False
        row.lease_end_ms = self.clock.now_ms + ttl_ms
        row.slot_end_ms = row.lease_end_ms if row.slot_end_ms else 0
        return True

    def note(self, events: Sequence[Event]) -> None:
        self._reach()
        self.events += events


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


@dataclass
class RecordingTelemetry:
    events: list[Event] = field(default_factory=list)
    looks: list[tuple[str, Evidence]] = field(default_factory=list)
    why_ignored: list[str] = field(default_factory=list)

    def decided(self, events: Sequence[Event]) -> None:
        self.events += events

    def looked(self, record: VmRecord, seen: Observation) -> None:
        self.looks.append((record.vm_id, seen.evidence))

    def ignored(self, vm_id: str, why: str) -> None:
        self.why_ignored.append(f"{vm_id}: {why}")


@dataclass
class FakeVmm:
    """One VMM process of the fake host."""

    vm_id: str
    process: Incarnation
    generation: int
    guarded: bool = True
    hung: bool = False
    unkillable: bool = False


class FakeVmHost:
    """VmHost and Prober in one: a table of processes. `doubled` remembers if two of one VM ever lived at once."""

    def __init__(self, place: Incarnation) -> None:
        self.alive: dict[int, FakeVmm] = {}
        self.started: list[tuple[str, int]] = []
        self.refuse_starts = 0
        self.paused = False
        self.doubled: list[str] = []
        self.evidence: dict[str, Evidence] = {}
        self.during_start: Callable[[str], None] = lambda _vm_id: None
        self.during_fence: Callable[[str], None] = lambda _vm_id: None
        self._place, self._next_pid = place, 1000

    def boot(self, vm_id: str, generation: int = 7, **traits: Any) -> FakeVmm:
        self._next_pid += 1
        vmm = FakeVmm(vm_id, replace(self._place, pid=self._next_pid), generation, **traits)
        if any(other.vm_id == vm_id for other in self.alive.values()):
            self.doubled.append(vm_id)
        self.alive[vmm.process.pid] = vmm
        return vmm

    def kill(self, vm_id: str) -> None:
        self.alive = {pid: vmm for pid, vmm in self.alive.items() if vmm.vm_id != vm_id}

    def _of(self, vm_id: str) -> FakeVmm | None:
        return next((vmm for vmm in self.alive.values() if vmm.vm_id == vm_id), None)

    def check_kill_switch(self) -> None:
        if self.paused:
            raise Paused("PAUSE")

    def running(self, vm_id: str) -> Running | None:
        vmm = self._of(vm_id)
        if vmm is None:
            return None
        return Running(vm_id, "firecracker", vmm.process, "api.sock", vmm.guarded, vmm.generation)

    def inventory(self) -> list[Running]:
        return [running for vmm in self.alive.values() if (running := self.running(vmm.vm_id))]

    def fence(self, vm_id: str, process: Incarnation, *, before_signal: Renew) -> str:
        vmm = self.alive.get(process.pid)
        if vmm is None or vmm.process != process:
            return "gone already"
        self.during_fence(vm_id)
        before_signal()
        if vmm.unkillable:
            raise StopFailed(vm_id, f"pid {process.pid}: alive after SIGKILL, in state D")
        del self.alive[process.pid]
        return "signal 9"

    def start(self, spec: VmSpec, generation: int, *, before_exec: Renew, while_waiting: Renew) -> Incarnation:
        if self._of(spec.id) is not None:
            raise GuardBusy(spec.id)
        before_exec()
        self.started.append((spec.id, generation))
        if self.refuse_starts:
            self.refuse_starts -= 1
            raise StartFailed(spec.id, "exit 1")
        vmm = self.boot(spec.id, generation)
        self.during_start(spec.id)
        while_waiting()
        return vmm.process

    def probe(self, records: Sequence[VmRecord]) -> Iterator[dict[str, Observation]]:
        yield {record.vm_id: Observation(self._look(record)) for record in records}

    def look_at_process(self, record: VmRecord) -> Observation | None:
        if record.process is None:
            return Observation(Evidence.NOT_STARTED)
        vmm = self.alive.get(record.process.pid)
        return None if vmm and vmm.process == record.process else Observation(Evidence.PROCESS_ENDED)

    def _look(self, record: VmRecord) -> Evidence:
        if record.vm_id in self.evidence:
            return self.evidence[record.vm_id]
        dead = self.look_at_process(record)
        if dead is not None or record.process is None:
            return dead.evidence if dead else Evidence.NOT_STARTED
        return Evidence.NO_ANSWER if self.alive[record.process.pid].hung else Evidence.ANSWERS
