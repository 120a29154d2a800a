"""The sweeps of a host: what fell between messages is found again from the records, and from what really runs.

Orphan detection is quick and often; reconciliation compares records and processes both ways, and is rarer.
"""

import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from workers.domain.audit import EventKind, event
from workers.domain.evidence import Observation
from workers.domain.health import is_due
from workers.domain.modes import Flag
from workers.domain.recovery import held_by, is_told
from workers.domain.vm import Desired, State, VmRecord, move
from workers.ports import Change, Ignorance, Prober, Snapshot, Stored, Telemetry, VmHost, VmStore, Work
from workers.services.health import HealthChecks, chunks, needs_a_place
from workers.services.ledger import Ledger
from workers.services.strays import Strays

_CHUNK = 500
ACTOR = "reconcile"
# States in which a host that has gone silent leaves its VMs unjudged.
_JUDGED = (State.HEALTHY, State.DEGRADED, State.UNHEALTHY, State.STARTING)
# States in which no VMM of the VM should live, so that what it left behind may be tidied up.
_AT_REST = (State.STOPPED, State.FAILED)


@dataclass(slots=True)
class SweepReport:
    looked_at: int = 0
    found_dead: int = 0
    driven_again: int = 0
    strays: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class _Due:
    """What one part of a sweep found to do."""

    changes: list[Change] = field(default_factory=list)
    enlist: list[str] = field(default_factory=list)


class OrphanDetection:
    """What no check and no message took care of within `detection_interval_ms` is driven again."""

    def __init__(
        self,
        store: VmStore,
        prober: Prober,
        checks: HealthChecks,
        ledger: Ledger,
        telemetry: Telemetry,
        *,
        host: str,
        detection_interval_ms: int,
        recovers: bool,
        bound_logs: Callable[[Collection[str]], None],
        put_unreadable: Callable[[Mapping[str, str]], None],
    ) -> None:
        self._store, self._prober, self._checks = store, prober, checks
        self._ledger, self._telemetry = ledger, telemetry
        self._host, self._detection_interval_ms = host, detection_interval_ms
        self._recovers, self._bound_logs, self._put_unreadable = recovers, bound_logs, put_unreadable

    def sweep(self) -> SweepReport:
        """Look at every record of the host. Raises StoreUnavailable."""
        with self._telemetry.span(Work.DETECT_ORPHANS):
            return self._sweep()

    def _sweep(self) -> SweepReport:
        report = SweepReport()
        unreadable: dict[str, str] = {}
        vm_ids = self._store.ids(host=self._host)
        self._checks.keep_only(vm_ids)
        for part in chunks(vm_ids, _CHUNK):
            snapshot = self._store.read(part)
            report.looked_at += len(snapshot.found)
            unreadable |= snapshot.unreadable
            self._find_dead(snapshot, report)
            self._drive(snapshot, report)
            self._bound_logs(snapshot.found)
        for vm_id, why in unreadable.items():
            self._telemetry.ignored(vm_id, why, Ignorance.UNREADABLE)
        self._put_unreadable(unreadable)
        report.unreadable = len(unreadable)
        return report

    def _find_dead(self, snapshot: Snapshot, report: SweepReport) -> None:
        looks: dict[str, Observation] = {}
        for vm_id, stored in snapshot.found.items():
            record = stored.record
            if not _is_watched(record, snapshot):
                continue
            if record.process is not None and (seen := self._prober.look_at_process(record)):
                looks[vm_id] = seen
        report.found_dead += sum(seen.ruling.certain for seen in looks.values())
        certain = {vm_id: seen for vm_id, seen in looks.items() if seen.ruling.certain}
        if certain:
            news = {vm_id: seen for vm_id, seen in certain.items() if snapshot.found[vm_id].record.state in _JUDGED}
            self._telemetry.looked(snapshot.found, news, snapshot.now_ms)
            self._checks.settle(snapshot, certain)

    def _drive(self, snapshot: Snapshot, report: SweepReport) -> None:
        due = _Due()
        for stored in snapshot.found.values():
            if _is_watched(stored.record, snapshot):
                self._look_for_work(stored, snapshot, due)
        report.driven_again += len(due.enlist)
        self._ledger.write(due.changes, enlist=due.enlist if self._recovers else ())

    def _look_for_work(self, stored: Stored, snapshot: Snapshot, due: _Due) -> None:
        record, now_ms = stored.record, snapshot.now_ms
        if stored.leased or _is_held_back(record, snapshot):
            return
        if record.desired is Desired.STOPPED:
            if record.state is not State.STOPPED:
                self._ledger.stop(record)
            return
        abandoned = record.attempt_running
        waiting = record.state in (State.ORPHANED, State.UNHEALTHY) or record.process is None
        if abandoned or (waiting and is_due(record, now_ms)):
            if (orphaned := self._orphaned(record, now_ms)) is not None:
                due.changes.append(_transition(stored, orphaned, "detect_orphans", "unhealthy and not recovered"))
            if needs_a_place(stored):
                due.enlist.append(record.vm_id)

    def _orphaned(self, record: VmRecord, now_ms: int) -> VmRecord | None:
        """Sick for a whole detection interval with nobody at work: an orphan, whatever keeps recovery away."""
        if record.state is not State.UNHEALTHY or now_ms - record.since_ms < self._detection_interval_ms:
            return None
        return move(record, State.ORPHANED, now_ms=now_ms)


class Reconciliation:
    """`silent_hosts` names hosts without a live worker; records of another schema version are written anew."""

    def __init__(
        self,
        store: VmStore,
        host: VmHost,
        strays: Strays,
        ledger: Ledger,
        telemetry: Telemetry,
        *,
        host_name: str,
        silent_hosts: Callable[[], Sequence[str]],
        version: int,
    ) -> None:
        self._store, self._host, self._strays = store, host, strays
        self._ledger, self._telemetry = ledger, telemetry
        self._host_name, self._silent_hosts, self._version = host_name, silent_hosts, version
        self._one_at_a_time = threading.Lock()

    def sweep(self) -> SweepReport:
        """Compare records with processes, both ways; not beside another such sweep. Raises StoreUnavailable."""
        if not self._one_at_a_time.acquire(blocking=False):
            return SweepReport()
        try:
            with self._telemetry.span(Work.RECONCILE):
                return self._sweep()
        finally:
            self._one_at_a_time.release()

    def _sweep(self) -> SweepReport:
        report = SweepReport()
        report.looked_at, report.strays = self._strays.sweep()
        for part in chunks(self._store.ids(host=self._host_name), _CHUNK):
            self._schedule_again(part, report)
        for part in chunks(self._host.all_kept(), _CHUNK):
            self._tidy(part)
        for silent in self._silent_hosts():
            self._unjudge(silent)
        return report

    def _schedule_again(self, vm_ids: Sequence[str], report: SweepReport) -> None:
        """VMs that no beat would check any more, and records of another version."""
        lost = set(self._store.unscheduled(vm_ids))
        snapshot = self._store.read(vm_ids)
        changes = [
            Change(vm_id, stored.rev, stored.record, check_in_ms=0 if vm_id in lost else None)
            for vm_id, stored in snapshot.found.items()
            if vm_id in lost or (stored.version != self._version and not stored.leased)
        ]
        report.driven_again += len(lost)
        self._ledger.write(changes)

    def _tidy(self, vm_ids: Sequence[str]) -> None:
        """Keep on this host what was forgotten, and drop what VMs at rest left behind. Costs no budget."""
        snapshot, forgotten = self._store.read(vm_ids), self._store.forgotten(vm_ids)
        for vm_id in vm_ids:
            if vm_id in forgotten and not self._host.kept(vm_id).forgotten_ms:
                self._host.note_forgotten(vm_id, forgotten[vm_id])
            stored = snapshot.found.get(vm_id)
            at_rest = stored is None or (stored.record.state in _AT_REST and not stored.leased)
            if at_rest and vm_id not in snapshot.unreadable:
                self._host.tidy(vm_id)

    def _unjudge(self, host: str) -> None:
        """Nobody looks at these VMs, so we do not know; nothing is started elsewhere."""
        for state in _JUDGED:
            for part in chunks(self._store.ids(host=host, state=state), _CHUNK):
                snapshot = self._store.read(part)
                judged = [stored for stored in snapshot.found.values() if _is_judged(stored)]
                self._ledger.write([_unknown(stored, snapshot.now_ms) for stored in judged])


def _is_watched(record: VmRecord, snapshot: Snapshot) -> bool:
    return snapshot.modes.has_on(Flag.ORPHAN_DETECTION, record) and snapshot.modes.judges(record, snapshot.now_ms)


def _is_held_back(record: VmRecord, snapshot: Snapshot) -> bool:
    """Whether a mode keeps it from being acted on, and that was told: nobody need ask again before it is over."""
    held = held_by(record, snapshot.modes, snapshot.now_ms) if record.held is not None else None
    return held is not None and is_told(record, held)


def _is_judged(stored: Stored) -> bool:
    """A VM that was never started is nothing to be unsure about."""
    return stored.record.state in _JUDGED and stored.record.process is not None and not stored.leased


def _unknown(stored: Stored, now_ms: int) -> Change:
    return _transition(stored, move(stored.record, State.UNKNOWN, now_ms=now_ms), ACTOR, "its host is silent")


def _transition(stored: Stored, after: VmRecord, actor: str, why: str) -> Change:
    told = event(EventKind.TRANSITION, after, actor=actor, why=why, before=stored.record.state)
    return Change(after.vm_id, stored.rev, after, (told,))
