"""What a person may ask for, by command line, page or API. What is refused says why and what to do instead.

Whether a request is followed is decided once more on the VM's host, at the moment it acts.
"""

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from workers import queues
from workers.domain.audit import Event, EventKind
from workers.domain.breaker import FLEET, BreakerState
from workers.domain.errors import Refused, UnknownVm, UnreadableRecord
from workers.domain.recovery import MAYBE_WELL, RecoveryPolicy, Stale, WakeUp, gate, reset
from workers.domain.vm import Desired, Force, State, VmRecord
from workers.ports import Change, Halt, Outcome, Snapshot, Stored, VmStore, Written
from workers.services.ledger import Ledger

__all__ = ["Asked", "Force", "Operations"]

Send = Callable[[str, str, Mapping[str, Any]], None]  # task, VM id, arguments

REASON_MAX = 200  # characters, as of every text in a message
_TRIES = 5
_BREAKERS = ("host:", "image:", "driver:")
_HINTS = {
    State.HEALTHY: "there is nothing to recover",
    State.STOPPED: "apply it with `desired: running` to start it",
}


@dataclass(frozen=True, slots=True)
class Asked:
    """`after` is the id of the last event before it; `sent` is False where an attempt runs already."""

    vm_id: str
    host: str
    request_id: str
    after: str
    sent: bool


class SentWakeups:
    """The Wakeups port over the default queue, from where any worker hands a message on to the VM's host."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def recover(
        self, vm_id: str, host: str, *, episode: str | None = None, attempt: int | None = None, delay_ms: int = 0
    ) -> None:
        del host, delay_ms
        self._send(queues.RECOVER_VM, vm_id, {"episode": episode, "attempt": attempt, "origin": "system"})

    def stop(self, vm_id: str, host: str) -> None:
        del host
        self._send(queues.STOP_VM, vm_id, {})


class Hosts(Protocol):
    def is_served(self, host: str) -> bool: ...


class Halts(Protocol):
    def halted(self) -> Mapping[str, Halt]: ...


class EventStream(Protocol):
    def last_id(self) -> str: ...


class Breakers(Protocol):
    def put(self, scope: str, state: BreakerState, *, why: str, actor: str) -> Written | None: ...


class Operations:
    """`actor` stands in the audit, such as `cli:root` or `flower:alice`; `send` publishes to the default queue."""

    def __init__(
        self,
        store: VmStore,
        ledger: Ledger,
        send: Send,
        *,
        hosts: Hosts,
        halts: Halts,
        stream: EventStream,
        breakers: Breakers,
        actor: str,
        policy: RecoveryPolicy,
    ) -> None:
        self._store, self._hosts, self._halts = store, hosts, halts
        self._stream, self._breakers, self._ledger = stream, breakers, ledger
        self._send, self._actor, self._policy = send, actor, policy

    def recover(self, vm_id: str, *, reason: str | None = None, force: Force = Force.PLAIN) -> Asked:
        """Ask for the recovery of a VM. Raises Refused, UnknownVm, UnreadableRecord, StoreUnavailable."""
        asked, _ = self.preview(vm_id, reason=reason, force=force)
        if not asked.sent:
            return asked
        how = "" if force is Force.PLAIN else f" ({force})"
        why = f"recovery requested{how}: {reason}" if reason else f"recovery requested{how}"
        told = Event(EventKind.OVERRIDE, vm_id, asked.host, self._actor, why, request_id=asked.request_id)
        self._ledger.note(told)
        arguments = {"request_id": asked.request_id, "actor": self._actor}
        # A worker of the release before does not know the word.
        self._send(queues.RECOVER_VM, vm_id, arguments if force is Force.PLAIN else arguments | {"force": str(force)})
        return asked

    def preview(self, vm_id: str, *, reason: str | None = None, force: Force = Force.PLAIN) -> tuple[Asked, Stored]:
        """Say what `recover` would ask for, and ask for nothing. Raises as that does."""
        _checked(reason)
        snapshot, stored = self._read(vm_id)
        record = stored.record
        self._refuse_without_worker(record.host)
        in_flight = stored.leased and record.desired is Desired.RUNNING
        asked = Asked(vm_id, record.host, uuid.uuid4().hex, self._stream.last_id(), sent=not in_flight)
        if asked.sent:
            self._refuse(stored, snapshot, WakeUp(request_id=asked.request_id, actor=self._actor, force=force))
        return asked, stored

    def _read(self, vm_id: str) -> tuple[Snapshot, Stored]:
        snapshot = self._store.read([vm_id])
        if vm_id in snapshot.unreadable:
            raise UnreadableRecord(vm_id, snapshot.unreadable[vm_id])
        if vm_id not in snapshot.found:
            raise UnknownVm(vm_id)
        return snapshot, snapshot.found[vm_id]

    def _refuse_without_worker(self, host: str) -> None:
        if not self._hosts.is_served(host):
            why = f"no worker serves host {host}: start `reliability worker` there first; nothing was sent"
            raise Refused(why, "no_worker")
        halt = self._halts.halted().get(host)
        if halt is not None:
            hint = "see `reliability state show`" if halt.frozen else "remove it on that host first"
            raise Refused(f"host {host} recovers nothing now: {halt.why}; {hint}; nothing was sent", "halted")

    def _refuse(self, stored: Stored, snapshot: Snapshot, request: WakeUp) -> None:
        """Refuse what the VM's host would refuse anyway."""
        record = stored.record
        ruling = gate(record, request, self._policy, leased=stored.leased, now_ms=snapshot.now_ms)
        if isinstance(ruling, Stale):
            raise Refused(_refusal(record, ruling.why), str(record.state))
        held = snapshot.modes.in_force(record, snapshot.now_ms)
        if held is not None and request.force is Force.PLAIN:
            raise Refused(f"{record.vm_id}: {held.words}; lift it with `reliability resume`, or use --force", held.mode)

    def reset(self, vm_id: str, *, reason: str) -> None:
        """Clear a finished episode and its count of attempts; a VM that was given up is tried anew.

        Raises Refused, UnknownVm, UnreadableRecord, StoreUnavailable.
        """
        _checked(reason)
        for _ in range(_TRIES):
            snapshot, stored = self._read(vm_id)
            done = reset(stored.record, actor=self._actor, why=f"reset: {reason}", now_ms=snapshot.now_ms)
            if done is None or stored.leased:
                raise Refused(_why_no_reset(stored), "nothing_to_reset")
            after, told = done
            enlist = after.open_episode is not None and after.desired is Desired.RUNNING
            change = Change(vm_id, stored.rev, after, (told,), check_in_ms=0, enlist=enlist)
            if self._ledger.write_one(change) is Outcome.DONE:
                return
        raise Refused(f"{vm_id}: its record keeps changing; try again", "contended")

    def trip(self, scope: str, *, reason: str) -> None:
        """Open a breaker by hand: nothing of its scope is recovered until it is closed. Raises Refused, ValueError."""
        self._set_breaker(scope, BreakerState.OPEN, reason)

    def close_breaker(self, scope: str, *, reason: str) -> None:
        """Close a breaker by hand. Raises Refused, ValueError."""
        self._set_breaker(scope, BreakerState.CLOSED, reason)

    def _set_breaker(self, scope: str, state: BreakerState, reason: str) -> None:
        _checked(reason)
        if scope != FLEET and not (scope.startswith(_BREAKERS) and scope.partition(":")[2] and scope.isprintable()):
            raise ValueError(f"field scope: must be fleet, host:<h>, image:<x> or driver:<x>, got {scope!r}")
        written = self._breakers.put(scope, state, why=f"by hand: {reason}", actor=self._actor)
        if written is None:
            raise Refused(f"breaker {scope} is {state} already; nothing was changed", str(state))
        self._ledger.follow(written)


def _checked(reason: str | None) -> None:
    if reason is not None and (len(reason) > REASON_MAX or not reason.isprintable() or not reason.strip()):
        raise ValueError(f"field reason: must be one line of 1 to {REASON_MAX} characters")


def _refusal(record: VmRecord, why: str) -> str:
    hint = _HINTS.get(record.state, f"see `reliability why {record.vm_id}`")
    if record.state in MAYBE_WELL and record.desired is Desired.RUNNING:
        hint += "; --kill-healthy ends and starts it all the same"
    what = f"{record.vm_id} {why.removeprefix('vm ')}" if why.startswith("vm ") else f"{record.vm_id}: {why}"
    return f"{what}: {hint}"


def _why_no_reset(stored: Stored) -> str:
    vm_id = stored.record.vm_id
    if stored.leased or stored.record.open_episode is not None:
        return f"{vm_id} is being recovered: there is an open episode; see `reliability why {vm_id}`"
    return f"{vm_id} has no finished episode: there is nothing to reset"
