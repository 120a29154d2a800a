"""One admitted attempt: its lease, and everything it may only do while it holds it."""

import time
from collections.abc import Callable

from workers.domain.audit import Event, EventKind, event
from workers.domain.errors import ReliabilityError, StoreUnavailable
from workers.domain.health import stopped
from workers.domain.recovery import ACTOR, RecoveryPolicy, fail, fail_attempt, succeed
from workers.domain.vm import Desired, Incarnation, VmRecord
from workers.ports import Change, Outcome, Stored, Telemetry, VmStore, Wakeups

# The part of a lease that is left unused, so that no step begins in its last moments.
_MARGIN = 0.2
_RECONNECT_S = 0.1


class LeaseLost(ReliabilityError):
    """Somebody else may be at work on this VM: nothing more is done, and nothing is written."""


class Withdrawn(ReliabilityError):
    """The VM is to be stopped, or was forgotten, since the attempt began."""


class Attempt:
    """`owner` is unique per attempt; the lease is counted by our monotonic clock from before each request for it."""

    def __init__(
        self,
        vm_id: str,
        owner: str,
        asked_at: float,
        *,
        store: VmStore,
        wakeups: Wakeups,
        telemetry: Telemetry,
        policy: RecoveryPolicy,
    ) -> None:
        self._vm_id, self._owner = vm_id, owner
        self._store, self._wakeups, self._telemetry = store, wakeups, telemetry
        self._policy = policy
        self._lease_s = policy.lease_ms / 1000
        self._renewed_at = asked_at

    @property
    def left_s(self) -> float:
        return self._renewed_at + self._lease_s * (1 - _MARGIN) - time.monotonic()

    def keep(self) -> None:
        """To be called before each step and while waiting. Raises LeaseLost.

        Without Redis the attempt goes on for as long as the lease it holds surely lasts.
        """
        if time.monotonic() - self._renewed_at < self._lease_s / 3:
            return
        asked_at = time.monotonic()
        try:
            ours = self._store.renew(self._vm_id, self._owner, self._policy.lease_ms)
        except StoreUnavailable:
            ours = self.left_s > 0
            asked_at = self._renewed_at
        if not ours:
            raise LeaseLost(f"vm {self._vm_id}: the lease of this attempt is gone")
        self._renewed_at = asked_at

    def still_wanted(self) -> None:
        """To be called under the VM's lock, right before exec. Raises Withdrawn, LeaseLost, StoreUnavailable."""
        self._own_record()

    def _own_record(self) -> tuple[Stored, int]:
        """Return the record as it is now, and server time in ms; only while the lease is ours and running is wanted."""
        snapshot = self._store.read([self._vm_id])
        stored = snapshot.found.get(self._vm_id)
        if stored is None:
            raise Withdrawn(f"vm {self._vm_id} was forgotten")
        if stored.lease_owner != self._owner:
            raise LeaseLost(f"vm {self._vm_id}: the lease of this attempt is gone")
        if stored.record.desired is Desired.STOPPED:
            raise Withdrawn(f"vm {self._vm_id} is to be stopped")
        return stored, snapshot.now_ms

    def commit(self, process: Incarnation, why: str) -> VmRecord:
        """Write the success; waits for Redis as long as the lease lasts. Raises Withdrawn, LeaseLost."""
        after, _ = self._finish(lambda record, now_ms: succeed(record, process, why=why, now_ms=now_ms))
        return after

    def fail(self, error: str, jitter: float) -> tuple[VmRecord, int]:
        """Write the failure, with the time of the next attempt; also returns server time in ms.

        Raises Withdrawn, LeaseLost.
        """
        return self._finish(
            lambda record, now_ms: fail_attempt(record, error, self._policy, now_ms=now_ms, jitter=jitter)
        )

    def give_up(self, why: str) -> VmRecord:
        """Write that no further attempt can help. Raises Withdrawn, LeaseLost."""
        after, _ = self._finish(lambda record, now_ms: fail(record, why, now_ms=now_ms))
        return after

    def _finish(self, decide: Callable[[VmRecord, int], tuple[VmRecord, Event]]) -> tuple[VmRecord, int]:
        while True:
            try:
                stored, now_ms = self._own_record()
                after, event_ = decide(stored.record, now_ms)
                if self._write(stored, after, (event_,)):
                    return after, now_ms
            except StoreUnavailable:
                if self.left_s <= 0:
                    raise LeaseLost(f"vm {self._vm_id}: Redis did not come back within the lease") from None
                time.sleep(_RECONNECT_S)

    def end_stopped(self, why: str, *, started_meanwhile: bool = False) -> None:
        """The VM is not wanted any more and its process is gone: say so, if there still is a record to say it in."""
        snapshot = self._store.read([self._vm_id])
        stored = snapshot.found.get(self._vm_id)
        if stored is None or stored.record.desired is not Desired.STOPPED:
            return
        after, events = stopped(stored.record, why=why, now_ms=snapshot.now_ms)
        if started_meanwhile:
            events += (
                event(EventKind.STOPPED_AGAIN, after, actor=ACTOR, why=f"what was started is stopped again: {why}"),
            )
        self._write(stored, after, events)

    def _write(self, stored: Stored, after: VmRecord, events: tuple[Event, ...]) -> bool:
        """False when somebody (not an attempt: we hold the lease) wrote in between. Gives lease and slots back."""
        change = Change(self._vm_id, stored.rev, after, events, check_in_ms=0, held_by=self._owner, release=True)
        written = self._store.write([change])
        if written.outcomes[0] is Outcome.LEASED:
            raise LeaseLost(f"vm {self._vm_id}: the lease of this attempt is gone")
        if written.outcomes[0] is not Outcome.DONE:
            return False
        self._telemetry.decided(events)
        for vm_id, host in written.next_in_line:
            self._wakeups.recover(vm_id, host)
        return True
