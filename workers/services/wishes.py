"""What a VM's manager wants of it, written into the records: each wish once, and never over what is newer.

Wishes come late (Redis was away) and twice (whoever delivered one died right after). So a record keeps the number of
the last one that was taken, and a wish gives way to what somebody else declared after it was told.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from workers.domain.audit import EventKind, event
from workers.domain.recovery import withdraw
from workers.domain.vm import EDGES, Desired, Incarnation, State, VmRecord, move
from workers.ports import Change, Outcome, Snapshot, Stored, VmStore
from workers.services.ledger import Ledger
from workers.specs import VmSpec

ACTOR = "manager"
_TRIES = 5


class Want(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Wish:
    """`at_ms` is server time, None where it is not known. `anew`: what is there now was deleted before it was told."""

    vm_id: str
    number: int
    want: Want
    why: str
    at_ms: int | None = None
    spec: VmSpec | None = None
    process: Incarnation | None = None
    socket: str | None = None
    anew: bool = False


class Taken(StrEnum):
    DONE = "done"
    AGAIN = "again"  # it was taken before
    NEEDLESS = "needless"  # there is nothing to stop or to delete
    OUTRANKED = "outranked"  # somebody declared something later
    UNDECLARED = "undeclared"  # no record, and the wish does not say what the VM is
    REFUSED = "refused"  # host or driver of a VM cannot change
    LATER = "later"  # an attempt is in flight, or its process still lives: try again
    UNREADABLE = "unreadable"  # another version's record: try again


@dataclass(frozen=True, slots=True)
class _Step:
    """A write, and what the wish has come to with it; None: the next step is due at once."""

    change: Change
    then: Taken | None = Taken.DONE


class Wishes:
    """`lives` says whether an incarnation is seen to live here; `declared_ms` when somebody else last declared a VM."""

    def __init__(
        self,
        store: VmStore,
        ledger: Ledger,
        *,
        host: str,
        lives: Callable[[Incarnation], bool],
        declared_ms: Callable[[str], int],
    ) -> None:
        self._store, self._ledger, self._host = store, ledger, host
        self._lives, self._declared_ms = lives, declared_ms

    def take(self, wish: Wish) -> Taken:
        """Write it, if it still means anything. Raises StoreUnavailable."""
        for _ in range(_TRIES):
            step = self._decide(wish, self._store.read([wish.vm_id]))
            if isinstance(step, Taken):
                return step
            if self._ledger.write_one(step.change) is Outcome.DONE and step.then is not None:
                return step.then
        return Taken.LATER

    def note_error(self, vm_id: str, error: str) -> Taken:
        """Put what the manager saw into the audit, and have the VM looked at now. Raises StoreUnavailable."""
        for _ in range(_TRIES):
            stored = self._store.read([vm_id]).found.get(vm_id)
            if stored is None:
                return Taken.UNDECLARED
            told = event(EventKind.CHANGED, stored.record, actor=ACTOR, why=f"on_vm_error: {error}")
            if self._ledger.write_one(Change(vm_id, stored.rev, stored.record, (told,), check_in_ms=0)) is Outcome.DONE:
                return Taken.DONE
        return Taken.LATER

    def _decide(self, wish: Wish, snapshot: Snapshot) -> _Step | Taken:  # noqa: PLR0911 - one early return per way out
        if wish.vm_id in snapshot.unreadable:
            return Taken.UNREADABLE
        stored = snapshot.found.get(wish.vm_id)
        if stored is not None and stored.record.wish >= wish.number:
            return Taken.AGAIN
        # Asked after the read: what is declared later than that makes the write stale.
        if wish.at_ms is not None and self._declared_ms(wish.vm_id) > wish.at_ms:
            return Taken.OUTRANKED
        if stored is None:
            return self._first(wish, snapshot.now_ms)
        if stored.record.host != self._host:
            return Taken.REFUSED
        match wish.want:
            case Want.RUNNING | Want.STOPPED if wish.anew:
                return self._delete(wish, stored, then=None)
            case Want.RUNNING:
                return self._run(wish, stored, snapshot.now_ms)
            case Want.STOPPED:
                return _stop(wish, stored)
            case Want.DELETED:
                return self._delete(wish, stored, then=Taken.DONE)

    def _first(self, wish: Wish, now_ms: int) -> _Step | Taken:
        if wish.want is Want.DELETED:
            return Taken.NEEDLESS
        if wish.spec is None:
            return Taken.NEEDLESS if wish.want is Want.STOPPED else Taken.UNDECLARED
        record = self._first_record(wish, wish.spec, now_ms)
        told = event(EventKind.REGISTERED, record, actor=ACTOR, why=wish.why)
        return _Step(Change(wish.vm_id, 0, record, (told,), check_in_ms=0, spec=wish.spec))

    def _first_record(self, wish: Wish, spec: VmSpec, now_ms: int) -> VmRecord:
        record = VmRecord(
            vm_id=wish.vm_id,
            host=self._host,
            driver=spec.driver,
            since_ms=now_ms,
            process=wish.process,
            socket=wish.socket,
            priority=spec.priority,
            created_ms=now_ms,
            wish=wish.number,
        )
        if wish.want is Want.RUNNING:
            # Named at once, adopted at the first look: within the start period it may still be coming up.
            return record
        if wish.process is not None and self._lives(wish.process):
            return replace(record, desired=Desired.STOPPED, state=State.UNKNOWN)
        return replace(record, desired=Desired.STOPPED, state=State.STOPPED, process=None, socket=None)

    def _run(self, wish: Wish, stored: Stored, now_ms: int) -> _Step | Taken:
        record = stored.record
        if wish.spec is not None and wish.spec.driver != record.driver:
            return Taken.REFUSED
        is_another = self._is_another(wish, record)
        if is_another and stored.leased:
            return Taken.LATER
        after = replace(record, desired=Desired.RUNNING, wish=wish.number)
        if wish.spec is not None:
            after = replace(after, priority=wish.spec.priority)
        if is_another:
            after = _with_process(after, wish, now_ms)
        elif record.state in (State.STOPPED, State.FAILED):
            after = move(withdraw(after, now_ms), State.STARTING, now_ms=now_ms)
        return _Step(_changed(stored, after, wish))

    def _is_another(self, wish: Wish, record: VmRecord) -> bool:
        """Whether the VMM of this wish takes the place of the recorded one: a late wish names one that has ended."""
        if wish.process is None or wish.process == record.process:
            return False
        return record.process is None or self._lives(wish.process)

    def _delete(self, wish: Wish, stored: Stored, *, then: Taken | None) -> _Step | Taken:
        """Wanted stopped first, so that an attempt in flight gives up; forgotten when nothing of it runs any more."""
        record = stored.record
        own = None if wish.want is Want.DELETED else wish.process
        runs = record.process not in (None, own) and self._lives_still(record)
        if not (stored.leased or runs):
            told = event(EventKind.FORGOTTEN, record, actor=ACTOR, why=wish.why)
            return _Step(Change(wish.vm_id, stored.rev, None, (told,)), then)
        if record.desired is Desired.STOPPED:
            return Taken.LATER
        # The number stays: this is not all of it, and it is no word on what the VM is.
        half = replace(wish, spec=None)
        return _Step(_changed(stored, replace(record, desired=Desired.STOPPED), half), Taken.LATER)

    def _lives_still(self, record: VmRecord) -> bool:
        return record.process is not None and self._lives(record.process)


def _stop(wish: Wish, stored: Stored) -> _Step:
    """Whatever else it says: a VM that shall not run does not."""
    same = wish.spec is not None and wish.spec.driver == stored.record.driver
    told = wish if same else replace(wish, spec=None)
    return _Step(_changed(stored, replace(stored.record, desired=Desired.STOPPED, wish=wish.number), told))


def _changed(stored: Stored, after: VmRecord, wish: Wish) -> Change:
    told = event(EventKind.CHANGED, after, actor=ACTOR, why=wish.why, before=stored.record.state)
    return Change(after.vm_id, stored.rev, after, (told,), check_in_ms=0, spec=wish.spec)


def _with_process(record: VmRecord, wish: Wish, now_ms: int) -> VmRecord:
    """Another VMM runs it now: what was known of the one before means nothing."""
    named = replace(record, process=wish.process, socket=wish.socket, fails=0, passes=0, doubt=None)
    moved = move(withdraw(named, now_ms), _state_for_a_new_one(record.state), now_ms=now_ms)
    return replace(moved, since_ms=now_ms)


def _state_for_a_new_one(state: State) -> State:
    """The nearest state in which the first look decides all."""
    for to in (State.STARTING, State.UNKNOWN):
        if state is to or to in EDGES[state]:
            return to
    return State.ORPHANED
