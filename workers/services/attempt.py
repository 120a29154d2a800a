"""One admitted attempt: its lease, and everything it may only do while it holds it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from workers.crashpoints import Point, reach
from workers.domain.audit import Deferral, Event, EventKind, event
from workers.domain.errors import Held, ReliabilityError, StoreUnavailable
from workers.domain.recovery import ACTOR, RecoveryPolicy, attempt_result, fail, fail_attempt, held_by, stopped, succeed
from workers.domain.vm import Desired, Incarnation, VmRecord
from workers.ports import Change, Clock, Lease, Outcome, Snapshot, Stored, VmStore
from workers.services.ledger import Ledger

T = TypeVar("T")

# The part of a lease that is left unused, so that no step begins in its last moments.
_MARGIN = 0.2
_RECONNECT_S = 0.1


class LeaseLost(ReliabilityError):
    """Somebody else may be at work on this VM: nothing more is done, and nothing is written."""


class Withdrawn(ReliabilityError):
    """The VM is to be stopped, or was forgotten, since the attempt began."""


class WantedAgain(ReliabilityError):
    """The VM is to run, since its stop began."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """A record, server time in ms when it was read, and our clock right after: what is added up is never ahead."""

    stored: Stored
    now_ms: int
    at: float


class Attempt:
    """The lease is counted by our clock from before each request for it."""

    def __init__(
        self,
        vm_id: str,
        lease: Lease,
        asked_at: float,
        *,
        store: VmStore,
        ledger: Ledger,
        policy: RecoveryPolicy,
        clock: Clock,
    ) -> None:
        self._vm_id, self._lease = vm_id, lease
        self._store, self._ledger = store, ledger
        self._policy, self._clock = policy, clock
        self._lease_s = policy.lease_ms / 1000
        self._renewed_at = asked_at
        self._seen: _Seen | None = None

    @property
    def left_s(self) -> float:
        return self._renewed_at + self._lease_s * (1 - _MARGIN) - self._clock.monotonic()

    def keep(self) -> None:
        """To be called before each step and while waiting. Raises LeaseLost.

        Without Redis the attempt goes on for as long as the lease it holds surely lasts.
        """
        if self._clock.monotonic() - self._renewed_at < self._lease_s / 3:
            return
        asked_at = self._clock.monotonic()
        try:
            ours = self._store.renew(self._vm_id, self._lease, self._policy.lease_ms)
        except StoreUnavailable:
            ours = self.left_s > 0
            asked_at = self._renewed_at
        if not ours:
            raise self._lost()
        self._renewed_at = asked_at
        self._must_last()

    def _must_last(self) -> None:
        """Whatever an answer said: it may have taken longer to reach us than it was good for. Raises LeaseLost."""
        if self.left_s <= 0:
            raise self._lost()

    def still_wanted(self) -> None:
        """To be called before each signal, and under the VM's lock right before exec.

        Waits for Redis, but no longer than the lease lasts: without it nothing is ended and nothing is started. Raises
        Withdrawn, Held, LeaseLost.
        """
        self.keep()
        self._as_long_as_held(self._may_act)
        self._must_last()

    def still_unwanted(self) -> None:
        """To be called before each signal of a stop. Raises WantedAgain, Held, LeaseLost, StoreUnavailable."""
        snapshot, stored = self._own_record()
        if stored is not None and stored.record.desired is Desired.RUNNING:
            raise WantedAgain(f"vm {self._vm_id} is to run again")
        self._must_not_be_held(snapshot, stored)
        self._must_last()

    def _may_act(self) -> None:
        """Raises Withdrawn, Held, LeaseLost."""
        snapshot, stored = self._wanted()
        self._seen = _Seen(stored, snapshot.now_ms, self._clock.monotonic())
        self._must_not_be_held(snapshot, stored)

    def _must_not_be_held(self, snapshot: Snapshot, stored: Stored | None) -> None:
        """By a mode that was set meanwhile. Raises Held."""
        if stored is not None and (held := held_by(stored.record, snapshot.modes, snapshot.now_ms)) is not None:
            raise Held(self._vm_id, held.words)

    def _own_record(self) -> tuple[Snapshot, Stored | None]:
        """Return what was read, and of it the record (None: forgotten); only while the lease is ours."""
        snapshot = self._store.read([self._vm_id])
        stored = snapshot.found.get(self._vm_id)
        if stored is None:
            # A record that nobody has forgotten was lost with the data: that is no wish that anything should end.
            if self._vm_id not in self._store.forgotten([self._vm_id]):
                raise self._lost()
        elif stored.lease_owner != self._lease.owner or stored.record.generation != self._lease.token:
            raise self._lost()
        return snapshot, stored

    def _wanted(self) -> tuple[Snapshot, Stored]:
        """Return the record as `_own_record` does, if it is to run."""
        snapshot, stored = self._own_record()
        if stored is None:
            raise Withdrawn(f"vm {self._vm_id} was forgotten")
        if stored.record.desired is Desired.STOPPED:
            raise Withdrawn(f"vm {self._vm_id} is to be stopped")
        return snapshot, stored

    def _read_wanted(self) -> tuple[Stored, int]:
        snapshot, stored = self._wanted()
        return stored, snapshot.now_ms

    def _last_seen(self) -> tuple[Stored, int] | None:
        """The record as it was when it was wanted last, and server time by our clock since."""
        if self._seen is None:
            return None
        since_s = self._clock.monotonic() - self._seen.at
        return self._seen.stored, self._seen.now_ms + int(since_s * 1000)

    def _lost(self) -> LeaseLost:
        return LeaseLost(f"vm {self._vm_id}: the lease of this attempt is gone")

    def _as_long_as_held(self, step: Callable[[], T]) -> T:
        while True:
            try:
                return step()
            except StoreUnavailable:
                if self.left_s <= 0:
                    raise LeaseLost(f"vm {self._vm_id}: Redis did not come back within the lease") from None
                self._clock.sleep(_RECONNECT_S)

    def commit(self, process: Incarnation, why: str) -> VmRecord:
        """Write the success; waits for Redis as long as the lease lasts. Raises Withdrawn, LeaseLost."""
        after, _ = self._finish(
            lambda record, now_ms: succeed(record, process, why=why, now_ms=now_ms), on=self._last_seen()
        )
        return after

    def fail(self, error: str, jitter: float, *, counts: bool = True) -> tuple[VmRecord, int]:
        """Write the failure, with the time of the next attempt; also returns server time in ms.

        Without `counts` it says nothing about the VM: it uses up no attempt, and the breakers do not hear of it. Raises
        Withdrawn, LeaseLost.
        """
        return self._finish(
            lambda record, now_ms: fail_attempt(
                record, error, self._policy, now_ms=now_ms, jitter=jitter, counts=counts
            ),
            counts=counts,
        )

    def give_up(self, why: str) -> VmRecord:
        """Write that no further attempt can help. Raises Withdrawn, LeaseLost."""
        after, _ = self._finish(lambda record, now_ms: fail(record, why, now_ms=now_ms))
        return after

    def _finish(
        self,
        decide: Callable[[VmRecord, int], tuple[VmRecord, Event]],
        *,
        counts: bool = True,
        on: tuple[Stored, int] | None = None,
    ) -> tuple[VmRecord, int]:
        """`on` is what to begin with in place of a read: a record that was written since is refused, and read then."""

        def decide_and_write() -> tuple[VmRecord, int] | None:
            nonlocal on
            (stored, now_ms), on = on or self._read_wanted(), None
            after, event_ = decide(stored.record, now_ms)
            return (after, now_ms) if self._write(stored, after, (event_,), counts=counts) else None

        while True:
            if (finished := self._as_long_as_held(decide_and_write)) is not None:
                return finished

    def end_stopped(self, why: str, *, started_meanwhile: bool = False) -> int | None:
        """The VM is not wanted any more and its process is gone: say so, if there still is a record to say it in.

        Returns server time in ms where it was said.
        """
        snapshot = self._store.read([self._vm_id])
        stored = snapshot.found.get(self._vm_id)
        if stored is None or stored.record.desired is not Desired.STOPPED:
            return None
        after, told = stopped(stored.record, why=why, now_ms=snapshot.now_ms)
        again = event(EventKind.STOPPED_AGAIN, after, actor=ACTOR, why=f"what was started is stopped again: {why}")
        events = (told, again) if started_meanwhile else (told,)
        return snapshot.now_ms if self._write(stored, after, events) else None

    def let_go(self, why: str) -> None:
        """Nothing was achieved: give the lease back, so that the next one who tries need not wait for its end."""
        stored = self._store.read([self._vm_id]).found.get(self._vm_id)
        if stored is not None:
            told = event(EventKind.DEFERRED, stored.record, actor=ACTOR, why=why, cause=Deferral.HANDED_BACK)
            self._write(stored, stored.record, (told,))

    def _write(self, stored: Stored, after: VmRecord, events: tuple[Event, ...], *, counts: bool = True) -> bool:
        """False when somebody (not an attempt: we hold the lease) wrote in between. Gives lease and slots back."""
        change = Change(
            self._vm_id,
            stored.rev,
            after,
            events,
            check_in_ms=0,
            held_by=self._lease,
            release=True,
            result=attempt_result(stored.record, after) if counts else None,
        )
        reach(Point.BEFORE_END)
        outcome = self._ledger.write_one(change)
        reach(Point.AFTER_END)
        if outcome is Outcome.LEASED:
            raise self._lost()
        return outcome is Outcome.DONE
