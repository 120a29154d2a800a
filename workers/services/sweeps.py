"""The sweeps of a host: what fell between messages is found again from the records, and from what really runs.

Orphan detection is quick and often; reconciliation compares records and processes both ways, and is rarer.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workers.domain.audit import Event, EventKind, event
from workers.domain.evidence import Observation
from workers.domain.health import is_due
from workers.domain.vm import Desired, State, move
from workers.ports import Change, Prober, Running, Snapshot, Stored, Telemetry, VmHost, VmStore, Wakeups
from workers.services.health import HealthChecks, chunks, wake

_CHUNK = 500
ACTOR = "reconcile"
# States in which a host that has gone silent leaves its VMs unjudged.
_JUDGED = (State.HEALTHY, State.DEGRADED, State.UNHEALTHY, State.STARTING)


@dataclass(slots=True)
class SweepReport:
    looked_at: int = 0
    found_dead: int = 0
    driven_again: int = 0
    strays: int = 0
    unreadable: int = 0


class OrphanDetection:
    """What no check and no message took care of within `detection_interval_ms` is driven again."""

    def __init__(
        self,
        store: VmStore,
        prober: Prober,
        checks: HealthChecks,
        wakeups: Wakeups,
        telemetry: Telemetry,
        *,
        host: str,
        detection_interval_ms: int,
        bound_logs: Callable[[str], None],
    ) -> None:
        self._store, self._prober, self._checks = store, prober, checks
        self._wakeups, self._telemetry = wakeups, telemetry
        self._host, self._detection_interval_ms = host, detection_interval_ms
        self._bound_logs = bound_logs

    def sweep(self) -> SweepReport:
        """Look at every record of the host. Raises StoreUnavailable."""
        report = SweepReport()
        for part in chunks(self._store.ids(host=self._host), _CHUNK):
            snapshot = self._store.read(part)
            report.looked_at += len(snapshot.found)
            self._tell_unreadable(snapshot, report)
            self._find_dead(snapshot, report)
            for stored in snapshot.found.values():
                self._drive(stored, snapshot.now_ms, report)
                self._bound_logs(stored.record.vm_id)
        return report

    def _tell_unreadable(self, snapshot: Snapshot, report: SweepReport) -> None:
        for vm_id, why in snapshot.unreadable.items():
            report.unreadable += 1
            self._telemetry.ignored(vm_id, why)

    def _find_dead(self, snapshot: Snapshot, report: SweepReport) -> None:
        looks: dict[str, Observation] = {}
        for vm_id, stored in snapshot.found.items():
            if stored.record.process is not None and (seen := self._prober.look_at_process(stored.record)):
                looks[vm_id] = seen
        report.found_dead += sum(seen.ruling.certain for seen in looks.values())
        self._checks.settle(snapshot, {vm_id: seen for vm_id, seen in looks.items() if seen.ruling.certain})

    def _drive(self, stored: Stored, now_ms: int, report: SweepReport) -> None:
        record = stored.record
        if stored.leased:
            return
        if record.desired is Desired.STOPPED:
            if record.state is not State.STOPPED:
                self._wakeups.stop(record.vm_id, record.host)
            return
        abandoned = record.attempt_running
        waiting = record.state in (State.ORPHANED, State.UNHEALTHY) or record.process is None
        if abandoned or (waiting and is_due(record, now_ms)):
            report.driven_again += 1
            self._mark_orphaned(stored, now_ms)
            wake(self._wakeups, record)

    def _mark_orphaned(self, stored: Stored, now_ms: int) -> None:
        """Sick for a whole detection interval with nobody at work: an orphan, whatever keeps recovery away."""
        record = stored.record
        if record.state is not State.UNHEALTHY or now_ms - record.since_ms < self._detection_interval_ms:
            return
        after = move(record, State.ORPHANED, now_ms=now_ms)
        told = event(
            EventKind.TRANSITION, after, actor="detect_orphans", why="unhealthy and not recovered", before=record.state
        )
        self._store.write([Change(record.vm_id, stored.rev, after, (told,))])
        self._telemetry.decided([told])


class Reconciliation:
    """`put_strays` keeps what was found for `status`; `silent_hosts` names hosts without a live worker."""

    def __init__(
        self,
        store: VmStore,
        host: VmHost,
        telemetry: Telemetry,
        *,
        host_name: str,
        put_strays: Callable[[Sequence[dict[str, Any]]], None],
        silent_hosts: Callable[[], Sequence[str]],
    ) -> None:
        self._store, self._host, self._telemetry = store, host, telemetry
        self._host_name = host_name
        self._put_strays, self._silent_hosts = put_strays, silent_hosts
        self._told: set[tuple[str, int, int]] = set()

    def sweep(self) -> SweepReport:
        """Compare records with processes, both ways. Raises StoreUnavailable."""
        report = SweepReport()
        self._find_strays(report)
        for part in chunks(self._store.ids(host=self._host_name), _CHUNK):
            self._schedule_again(part, report)
        for silent in self._silent_hosts():
            self._unjudge(silent)
        return report

    def _find_strays(self, report: SweepReport) -> None:
        """VMMs without a record, and VMMs beside the one of the record. They are reported; nothing is done to them."""
        found = self._host.inventory()
        snapshot = self._store.read(sorted({running.vm_id for running in found}))
        strays = [running for running in found if self._is_stray(running, snapshot)]
        report.looked_at, report.strays = len(found), len(strays)
        self._put_strays([asdict(running) for running in strays])
        new = [running for running in strays if _key(running) not in self._told]
        self._told = {_key(running) for running in strays}
        events = [_stray_event(running, self._host_name, snapshot) for running in new]
        self._store.note(events)
        self._telemetry.decided(events)

    def _is_stray(self, running: Running, snapshot: Snapshot) -> bool:
        if running.vm_id in snapshot.unreadable:
            return False
        stored = snapshot.found.get(running.vm_id)
        if stored is None or stored.record.host != self._host_name:
            return True
        settled = stored.record.state in (State.HEALTHY, State.DEGRADED) and not stored.leased
        return settled and running.process != stored.record.process

    def _schedule_again(self, vm_ids: Sequence[str], report: SweepReport) -> None:
        lost = self._store.unscheduled(vm_ids)
        snapshot = self._store.read(lost)
        changes = [Change(vm_id, stored.rev, stored.record, check_in_ms=0) for vm_id, stored in snapshot.found.items()]
        report.driven_again += len(changes)
        self._store.write(changes)

    def _unjudge(self, host: str) -> None:
        """Nobody looks at these VMs, so we do not know; nothing is started elsewhere."""
        for state in _JUDGED:
            for part in chunks(self._store.ids(host=host, state=state), _CHUNK):
                snapshot = self._store.read(part)
                changes = [_unknown(stored, snapshot.now_ms) for stored in snapshot.found.values() if not stored.leased]
                self._store.write(changes)
                self._telemetry.decided([told for change in changes for told in change.events])


def _unknown(stored: Stored, now_ms: int) -> Change:
    after = move(stored.record, State.UNKNOWN, now_ms=now_ms)
    told = event(EventKind.TRANSITION, after, actor=ACTOR, why="its host is silent", before=stored.record.state)
    return Change(after.vm_id, stored.rev, after, (told,))


def _key(running: Running) -> tuple[str, int, int]:
    return running.vm_id, running.process.pid, running.process.start_ticks


def _stray_event(running: Running, host: str, snapshot: Snapshot) -> Event:
    known = "beside the process of the record" if running.vm_id in snapshot.found else "no record of this host"
    why = f"pid {running.process.pid} says it is {running.vm_id}: {known}"
    return Event(EventKind.STRAY, running.vm_id, host, ACTOR, why)
