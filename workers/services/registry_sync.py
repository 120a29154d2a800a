"""Compares what the manager's registry lists with the records of this host; part of reconciliation, and never its harm.

VMs we were never told of are registered. VMs that are gone from the registry are reported, and forgotten only where
that was asked for; a VMM is never touched.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import structlog

from workers.domain.audit import Event, EventKind, event
from workers.domain.errors import ReliabilityError, StoreUnavailable
from workers.domain.registry_diff import Difference, Listed, Notes, Recorded, compare
from workers.ports import Clock, Snapshot, VmStore
from workers.services.ledger import Ledger
from workers.services.registry import Registry
from workers.specs import SpecError, VmSpec, as_spec, is_vm_id

_log = structlog.get_logger(component="registry")

ACTOR = "registry"
_CHUNK = 500
_PROBLEMS_KEPT = 20
# Reconciliations do not come to the second: one that is a little early is not left out.
_EARLY = 0.9
_UNLISTED = "the registry lists it no more"


class Source(Protocol):
    def entries(self) -> Sequence[object]:
        """Return everything the registry lists, within a deadline. Raises ReliabilityError."""
        ...


class NoteBook(Protocol):
    """Where notes are kept between comparisons. Raises StoreUnavailable."""

    def registry_notes(self, host: str) -> Notes: ...

    def put_registry_notes(self, host: str, notes: Notes, *, ttl_ms: int) -> None: ...


@dataclass(frozen=True, slots=True)
class SyncRules:
    """`interval_s`: at most so often. `ttl_ms`: for how long notes are kept."""

    host: str
    interval_s: float
    ttl_ms: int
    forget_missing: bool


@dataclass(slots=True)
class _Read:
    """What could be made of a listing."""

    specs: dict[str, VmSpec] = field(default_factory=dict)
    elsewhere: dict[str, str] = field(default_factory=dict)
    unreadable: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    whole: bool = True

    def listed(self) -> Listed:
        return Listed(frozenset(self.specs) | self.unreadable, self.elsewhere, self.whole)


class RegistrySync:
    """`is_halted`: the data are not trusted, or the kill switch is on; then nothing is compared."""

    def __init__(
        self,
        source: Source,
        store: VmStore,
        ledger: Ledger,
        notes: NoteBook,
        *,
        rules: SyncRules,
        clock: Clock,
        is_halted: Callable[[], bool],
    ) -> None:
        self._source, self._store, self._ledger, self._notes = source, store, ledger, notes
        self._registry = Registry(store, ledger, actor=ACTOR)
        self._rules, self._clock, self._is_halted = rules, clock, is_halted
        self._last: float | None = None
        self._one_at_a_time = threading.Lock()

    def sync_if_due(self) -> None:
        """Raises StoreUnavailable."""
        if self._is_halted() or not self._one_at_a_time.acquire(blocking=False):
            return
        try:
            now = self._clock.monotonic()
            if self._last is None or now - self._last >= _EARLY * self._rules.interval_s:
                self._last = now
                self._sync()
        finally:
            self._one_at_a_time.release()

    def _sync(self) -> None:
        before = self._notes.registry_notes(self._rules.host)
        asked_ms = self._store.read([]).now_ms
        try:
            read = _read(self._source.entries(), self._rules.host)
        except ReliabilityError as error:
            self._note_trouble(before, str(error))
            return
        recorded = self._recorded(read, asked_ms)
        found = compare(read.listed(), recorded, before)
        if found.doubt:
            self._note_trouble(before, found.doubt)
            return
        self._act(found, read, before)

    def _note_trouble(self, before: Notes, why: str) -> None:
        """What was known stays; said once, for as long as it lasts."""
        if why != before.trouble:
            _log.warning("registry not followed", why=why)
            self._ledger.note(Event(EventKind.UNLISTED, "", self._rules.host, ACTOR, why, scope="registry"))
        self._keep(replace(before, trouble=why))

    def _keep(self, notes: Notes) -> None:
        self._notes.put_registry_notes(self._rules.host, notes, ttl_ms=self._rules.ttl_ms)

    def _recorded(self, read: _Read, asked_ms: int) -> Recorded:
        here: dict[str, int] = {}
        for snapshot in self._snapshots(self._store.ids(host=self._rules.host)):
            here |= {vm_id: stored.record.created_ms for vm_id, stored in snapshot.found.items()}
        anywhere: set[str] = set()
        forgotten: set[str] = set()
        others = sorted(read.specs.keys() - here.keys())
        for snapshot in self._snapshots(others):
            anywhere |= snapshot.found.keys() | snapshot.unreadable.keys()
        for start in range(0, len(others), _CHUNK):
            forgotten |= self._store.forgotten(others[start : start + _CHUNK]).keys()
        return Recorded(here, here.keys() | anywhere | read.unreadable, forgotten, asked_ms)

    def _snapshots(self, vm_ids: Sequence[str]) -> list[Snapshot]:
        return [self._store.read(vm_ids[start : start + _CHUNK]) for start in range(0, len(vm_ids), _CHUNK)]

    def _act(self, found: Difference, read: _Read, before: Notes) -> None:
        problems = read.problems + [
            f"{vm_id}: it is listed, and was forgotten here: `reliability apply` takes it back"
            for vm_id in found.forgotten
        ]
        problems += [f"{vm_id}: it is listed for host {read.elsewhere[vm_id]}" for vm_id in found.moved]
        problems += self._register([read.specs[vm_id] for vm_id in found.new])
        if read.whole:
            before = Notes(self._report_gone(found.gone, before.missing), found.suspects)
        self._keep(replace(before, trouble="", problems=problems[:_PROBLEMS_KEPT]))

    def _register(self, specs: Sequence[VmSpec]) -> list[str]:
        """One by one, so that a VM that is refused keeps no other back; returns why those were."""
        problems = []
        for spec in specs:
            try:
                self._registry.apply([spec])
            except StoreUnavailable:
                raise
            except ReliabilityError as error:
                problems.append(str(error))
            else:
                _log.info("vm taken from the registry", vm_id=spec.id)
        return problems

    def _report_gone(self, vm_ids: Sequence[str], before: Mapping[str, int]) -> dict[str, int]:
        """Return who stays missing, since when."""
        missing: dict[str, int] = {}
        for snapshot in self._snapshots(vm_ids):
            for vm_id, stored in snapshot.found.items():
                if vm_id not in before:
                    self._ledger.note(event(EventKind.UNLISTED, stored.record, actor=ACTOR, why=_UNLISTED))
                if not (self._rules.forget_missing and self._forget(vm_id)):
                    missing[vm_id] = before.get(vm_id, snapshot.now_ms)
        return missing

    def _forget(self, vm_id: str) -> bool:
        try:
            self._registry.forget(vm_id)
        except StoreUnavailable:
            raise
        except ReliabilityError as error:
            # An attempt is in flight, or its record changes: the next comparison tries again.
            _log.info("unlisted vm not forgotten yet", vm_id=vm_id, why=str(error))
            return False
        return True


def _read(entries: Sequence[object], host: str) -> _Read:
    read = _Read()
    for number, entry in enumerate(entries):
        try:
            spec = as_spec(entry)
        except SpecError as error:
            _take_what_is_left(read, number, entry, error, host)
            continue
        if spec.id in read.specs or spec.id in read.elsewhere:
            read.problems.append(f"{spec.id}: it is listed twice; the first one counts")
        elif spec.host not in (None, host):
            read.elsewhere[spec.id] = str(spec.host)
        else:
            read.specs[spec.id] = spec.model_copy(update={"host": host})
    return read


def _take_what_is_left(read: _Read, number: int, entry: object, error: SpecError, host: str) -> None:
    """An entry that cannot be used still says that its VM is listed; without its id nobody can be said to be absent."""
    vm_id = entry.get("id") if isinstance(entry, dict) else None
    read.problems.append(f"entry {number}: {'; '.join(each.line for each in error.complaints)}")
    if isinstance(entry, dict) and isinstance(vm_id, str) and is_vm_id(vm_id):
        other = entry.get("host")
        if other in (None, host):
            read.unreadable.add(vm_id)
        else:
            read.elsewhere.setdefault(vm_id, str(other))
    else:
        read.whole = False
