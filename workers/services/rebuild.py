"""Records made again from what a host has kept in its run directories, after Redis lost its data."""

from collections.abc import Sequence
from dataclasses import dataclass

from workers.domain.audit import Event, EventKind, event
from workers.domain.vm import Desired, State, VmRecord
from workers.ports import Change, Kept, Outcome, VmHost, VmStore
from workers.services.health import chunks
from workers.services.ledger import Ledger
from workers.specs import VmSpec

_CHUNK = 200
ACTOR = "rebuild"


@dataclass(slots=True)
class RebuildReport:
    rebuilt: int = 0
    known: int = 0
    forgotten: int = 0
    unusable: int = 0

    def __str__(self) -> str:
        return (
            f"{self.rebuilt} records rebuilt, {self.known} were there, {self.forgotten} VMs were forgotten, "
            f"{self.unusable} run directories tell too little"
        )


class Rebuild:
    """Destroys nothing and starts nothing, so it may run while the host is frozen: then its result can be looked at."""

    def __init__(self, store: VmStore, host: VmHost, ledger: Ledger, *, host_name: str) -> None:
        self._store, self._host, self._ledger = store, host, ledger
        self._host_name = host_name

    def run(self, request_id: str | None = None) -> RebuildReport:
        """Make a record for every VM of this host that has none. Raises StoreUnavailable."""
        report = RebuildReport()
        for part in chunks(self._host.all_kept(), _CHUNK):
            self._rebuild(part, report)
        scope = f"host:{self._host_name}"
        told = Event(EventKind.REBUILT, "", self._host_name, ACTOR, str(report), request_id=request_id, scope=scope)
        self._ledger.note(told)
        return report

    def _rebuild(self, vm_ids: Sequence[str], report: RebuildReport) -> None:
        snapshot, forgotten = self._store.read(vm_ids), self._store.forgotten(vm_ids)
        changes = []
        for vm_id in vm_ids:
            kept = self._host.kept(vm_id)
            if vm_id in snapshot.found or vm_id in snapshot.unreadable:
                report.known += 1
            elif vm_id in forgotten or kept.forgotten_ms:
                report.forgotten += 1
            elif kept.spec is None:
                report.unusable += 1
            else:
                changes.append(self._change(kept, kept.spec, snapshot.now_ms))
        outcomes = self._ledger.write(changes)
        report.rebuilt += sum(outcome is Outcome.DONE for outcome in outcomes)

    def _change(self, kept: Kept, spec: VmSpec, now_ms: int) -> Change:
        desired = Desired.STOPPED if kept.stopped_ms else Desired(spec.desired)
        record = record_of(kept, spec, host=self._host_name, desired=desired, now_ms=now_ms)
        why = f"from the run directory of generation {kept.generation}, {desired}"
        told = event(EventKind.REBUILT, record, actor=ACTOR, why=why)
        return Change(record.vm_id, 0, record, (told,), check_in_ms=0, spec=spec)


def record_of(kept: Kept, spec: VmSpec, *, host: str, desired: Desired, now_ms: int) -> VmRecord:
    """Return a record for what a host has kept; whether its process lives is for the next look to say.

    One that never served may be a start that was cut short: it is looked at as if nothing had been started yet.
    """
    process = kept.process if kept.served and desired is Desired.RUNNING else None
    state = State.UNKNOWN if process else State.STARTING
    return VmRecord(
        vm_id=kept.vm_id,
        host=host,
        driver=spec.driver,
        desired=desired,
        state=State.STOPPED if desired is Desired.STOPPED else state,
        since_ms=now_ms,
        generation=kept.generation,
        process=process,
        priority=spec.priority,
        created_ms=now_ms,
    )
