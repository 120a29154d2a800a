"""What people and managers declare: apply specs, forget VMs. All of one request is written, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from workers.domain.audit import EventKind, event
from workers.domain.errors import ReliabilityError, UnknownVm, UnreadableRecord
from workers.domain.recovery import withdraw
from workers.domain.vm import Desired, State, VmRecord, move
from workers.ports import Change, Outcome, Snapshot, Stored, VmStore
from workers.services.ledger import Ledger
from workers.specs import VmSpec

_TRIES = 5


class ApplyRefused(ReliabilityError):
    """`problems` has one line per VM; nothing was changed."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = list(problems)


class Applied(StrEnum):
    CREATED = "created"
    CHANGED = "changed"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, slots=True)
class _Plan:
    result: dict[str, Applied]
    changes: list[Change]


class Registry:
    """`actor` stands in the audit."""

    def __init__(self, store: VmStore, ledger: Ledger, *, actor: str) -> None:
        self._store, self._ledger, self._actor = store, ledger, actor

    def apply(self, specs: Sequence[VmSpec]) -> dict[str, Applied]:
        """Create or change all these VMs, or none. Raises ApplyRefused, StoreUnavailable. Every spec names its host."""
        for _ in range(_TRIES):
            snapshot = self._store.read([spec.id for spec in specs])
            plan = self._plan(specs, snapshot)
            written = self._store.write(plan.changes, all_or_nothing=True)
            if all(outcome is Outcome.DONE for outcome in written.outcomes):
                self._ledger.follow(written)
                self._stop(plan.changes)
                return plan.result
        raise ApplyRefused(["the records keep changing; nothing was written, try again"])

    def preview(self, specs: Sequence[VmSpec]) -> dict[str, Applied]:
        """Say what `apply` would do, and do nothing. Raises ApplyRefused, StoreUnavailable."""
        return self._plan(specs, self._store.read([spec.id for spec in specs])).result

    def _stop(self, changes: Sequence[Change]) -> None:
        for change in changes:
            record = change.after
            if record is not None and record.desired is Desired.STOPPED and record.state is not State.STOPPED:
                self._ledger.stop(record)

    def _plan(self, specs: Sequence[VmSpec], snapshot: Snapshot) -> _Plan:
        problems: list[str] = []
        plan = _Plan({}, [])
        for spec in specs:
            stored = snapshot.found.get(spec.id)
            problem = snapshot.unreadable.get(spec.id) or (_refusal(spec, stored.record) if stored else None)
            if problem:
                problems.append(f"{spec.id}: {problem}")
            elif stored is None:
                plan.result[spec.id] = Applied.CREATED
                plan.changes.append(self._create(spec, snapshot.now_ms))
            elif self._store.spec(spec.id) == spec:
                plan.result[spec.id] = Applied.UNCHANGED
            else:
                plan.result[spec.id] = Applied.CHANGED
                plan.changes.append(self._change(spec, stored, snapshot.now_ms))
        if problems:
            raise ApplyRefused(problems)
        return plan

    def _create(self, spec: VmSpec, now_ms: int) -> Change:
        desired = Desired(spec.desired)
        record = VmRecord(
            vm_id=spec.id,
            host=_host_of(spec),
            driver=spec.driver,
            desired=desired,
            state=State.STARTING if desired is Desired.RUNNING else State.STOPPED,
            since_ms=now_ms,
            priority=spec.priority,
            created_ms=now_ms,
        )
        told = event(EventKind.REGISTERED, record, actor=self._actor, why=f"applied, {desired}")
        return Change(spec.id, 0, record, (told,), check_in_ms=0, spec=spec)

    def _change(self, spec: VmSpec, stored: Stored, now_ms: int) -> Change:
        before = stored.record
        after = replace(before, desired=Desired(spec.desired), priority=spec.priority)
        if before.state is State.STOPPED and after.desired is Desired.RUNNING:
            after = move(withdraw(after, now_ms), State.STARTING, now_ms=now_ms)
        told = event(EventKind.CHANGED, after, actor=self._actor, why=f"applied, {after.desired}", before=before.state)
        return Change(spec.id, stored.rev, after, (told,), check_in_ms=0, spec=spec)

    def forget(self, vm_id: str) -> None:
        """Drop the record; the VMM runs on. Raises UnknownVm, UnreadableRecord, ApplyRefused, StoreUnavailable."""
        for _ in range(_TRIES):
            snapshot = self._store.read([vm_id])
            if vm_id in snapshot.unreadable:
                raise UnreadableRecord(vm_id, snapshot.unreadable[vm_id])
            stored = snapshot.found.get(vm_id)
            if stored is None:
                raise UnknownVm(vm_id)
            if stored.leased:
                raise ApplyRefused([f"{vm_id}: an attempt is in flight; try again when it has ended"])
            told = event(EventKind.FORGOTTEN, stored.record, actor=self._actor, why="record dropped, the VMM runs on")
            if self._ledger.write_one(Change(vm_id, stored.rev, None, (told,))) is Outcome.DONE:
                return
        raise ApplyRefused([f"{vm_id}: its record keeps changing; try again"])


def _host_of(spec: VmSpec) -> str:
    if spec.host is None:
        raise ValueError(f"vm {spec.id}: field host: is not set")
    return spec.host


def _refusal(spec: VmSpec, record: VmRecord) -> str | None:
    """A VM may run where it is now, under the driver it has now, so neither changes under a running system."""
    for name, wanted, has in (("host", spec.host, record.host), ("driver", spec.driver, record.driver)):
        if wanted != has:
            return (
                f"field {name}: is {has!r} and cannot become {wanted!r}; stop it, `reliability forget {spec.id}`, apply"
            )
    return None
