"""From the journal of this host into Redis: each VM's entries in their order, by one process at a time."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from workers.bootstrap import Fleet
from workers.domain.audit import EventKind
from workers.domain.errors import Refused, StoreUnavailable
from workers.domain.modes import Mode, Scope, vm_scope
from workers.domain.vm import Incarnation, Vantage
from workers.host.identity import look_at
from workers.integration.entries import Entries, Entry, Kind
from workers.integration.journal import Journal
from workers.integration.server_time import ServerTime, boot_ms
from workers.messages import NoWakeups
from workers.services.ledger import Ledger
from workers.services.wishes import ACTOR, Taken, Want, Wish, Wishes
from workers.specs import SpecError, parse_spec
from workers.telemetry.story import NoTelemetry

_log = structlog.get_logger(component="integration")

_DECLARING = frozenset({EventKind.REGISTERED, EventKind.CHANGED, EventKind.FORGOTTEN})
_NOT_YET = frozenset({Taken.LATER, Taken.UNREADABLE})


@dataclass(frozen=True, slots=True)
class Delivered:
    """How many entries Redis has taken, and of how many VMs some are left."""

    taken: int = 0
    left: int = 0


class Declarations:
    """When people last declared VMs, read from the audit: only what came after the oldest wish, and each entry once."""

    def __init__(self, fleet: Fleet, after_ms: int) -> None:
        self._fleet, self._after = fleet, f"{after_ms}-0"
        self._last_ms: dict[str, int] = {}

    def last_ms(self, vm_id: str) -> int:
        """Raises StoreUnavailable."""
        for entry in self._fleet.events.since(self._after):
            self._after = entry.id
            if entry.event.kind in _DECLARING and entry.event.actor != ACTOR:
                self._last_ms[entry.event.vm_id] = entry.at_ms
        return self._last_ms.get(vm_id, 0)


class Delivery:
    """What the manager's thread and the host's worker do alike: twice, or both at once, is harmless."""

    def __init__(self, fleet: Fleet, journal: Journal, server_time: ServerTime, vantage: Vantage, *, host: str) -> None:
        self._fleet, self._journal, self._server_time = fleet, journal, server_time
        self._vantage, self._host = vantage, host

    def run(self, *, at_most: int | None = None) -> Delivered:
        """Deliver what waits, of so many VMs. Raises StoreUnavailable, OSError; what was taken by then is settled."""
        if not (vm_ids := self._journal.waiting()):
            return Delivered()
        with self._journal.turn() as is_ours:
            if not is_ours:
                return Delivered(left=len(vm_ids))
            return self._deliver(self._read(vm_ids[:at_most]), len(vm_ids))

    def _read(self, vm_ids: Sequence[str]) -> dict[str, Entries]:
        """A file that cannot be opened keeps back its own VM."""
        found: dict[str, Entries] = {}
        for vm_id in vm_ids:
            try:
                found[vm_id] = self._journal.read(vm_id)
            except OSError as error:
                _log.error("what was told about a vm cannot be opened", vm_id=vm_id, error=str(error))
        return found

    def _deliver(self, waiting: dict[str, Entries], number: int) -> Delivered:
        asked_ms = boot_ms()
        now_ms, _ = self._fleet.modes.modes(())
        self._server_time.saw(now_ms, asked_ms=asked_ms)
        told = [each.at_ms for entries in waiting.values() for each in entries if each.at_ms is not None]
        wishes = self._wishes(Declarations(self._fleet, min(told, default=now_ms)))
        taken = left = 0
        for vm_id, entries in waiting.items():
            done = self._deliver_vm(vm_id, entries, wishes)
            taken += done
            left += done < len(entries)
        return Delivered(taken, left + number - len(waiting))

    def _wishes(self, declarations: Declarations) -> Wishes:
        ledger = Ledger(self._fleet.store, NoWakeups(), NoTelemetry())
        return Wishes(self._fleet.store, ledger, host=self._host, lives=self._lives, declared_ms=declarations.last_ms)

    def _lives(self, process: Incarnation) -> bool:
        return look_at(process, self._vantage) is None

    def _deliver_vm(self, vm_id: str, entries: Entries, wishes: Wishes) -> int:
        """Returns how many were taken. What cannot be taken yet keeps back what was told after it."""
        taken: list[int] = []
        try:
            for entry in entries:
                if not self._take(vm_id, entry, wishes):
                    break
                taken.append(entry.number)
        except (StoreUnavailable, OSError):
            raise
        except Exception:  # noqa: BLE001 - what one VM's entry does wrong must not keep back the others
            _log.exception("hook cannot be delivered", vm_id=vm_id)
        finally:
            self._journal.settle(vm_id, taken)
        return len(taken)

    def _take(self, vm_id: str, entry: Entry, wishes: Wishes) -> bool:
        match entry.kind:
            case Kind.ERROR:
                taken = wishes.note_error(vm_id, entry.error or "")
            case Kind.BUSY:
                return self._begin(vm_id, entry)
            case Kind.DONE:
                return self._end(vm_id, entry)
            case _:
                taken = self._take_wish(vm_id, entry, wishes)
        if taken in (Taken.OUTRANKED, Taken.UNDECLARED, Taken.REFUSED):
            _log.warning("hook changes nothing", vm_id=vm_id, hook=entry.hook, number=entry.number, why=_WHY[taken])
        return taken not in _NOT_YET

    def _take_wish(self, vm_id: str, entry: Entry, wishes: Wishes) -> Taken:
        try:
            spec = parse_spec(entry.spec) if entry.spec else None
        except SpecError as error:
            _log.error("hook with a spec that cannot be read", vm_id=vm_id, hook=entry.hook, why=str(error))
            spec = None
        wish = Wish(
            vm_id,
            entry.number,
            Want(entry.kind),
            _words(entry),
            at_ms=entry.at_ms,
            spec=spec,
            process=entry.process,
            socket=entry.socket,
            anew=entry.anew,
        )
        return wishes.take(wish)

    def _begin(self, vm_id: str, entry: Entry) -> bool:
        """Hold the VM until the deadline, unless that is past or the hold is there already."""
        left_ms = int((entry.until_s - time.clock_gettime(time.CLOCK_BOOTTIME)) * 1000)
        if entry.boot_id != self._vantage.boot_id or left_ms <= 0 or self._holds(vm_id, entry):
            return True
        try:
            modes = self._fleet.operator_modes(actor=ACTOR)
            modes.hold(vm_scope(vm_id), Mode.PAUSED, why=_why_held(entry), for_ms=left_ms)
        except Refused as error:
            _log.warning("operation is not held", vm_id=vm_id, operation=entry.what, why=error.why)
        return True

    def _end(self, vm_id: str, entry: Entry) -> bool:
        modes = self._fleet.operator_modes(actor=ACTOR)
        for hold_id in self._holds(vm_id, entry):
            try:
                modes.lift(vm_scope(vm_id), hold_id=hold_id)
            except Refused as error:
                _log.info("operation is lifted already", vm_id=vm_id, operation=entry.what, why=error.why)
        return True

    def _holds(self, vm_id: str, entry: Entry) -> list[str]:
        """Ids of the holds that this operation has made: one, or two where the first answer got lost."""
        name = vm_scope(vm_id)
        _, modes = self._fleet.modes.modes([name])
        return [hold.id for hold in modes.scopes.get(name, Scope()).holds if hold.why.endswith(_mark(entry))]


_WHY = {
    Taken.OUTRANKED: "somebody declared this vm later",
    Taken.UNDECLARED: "there is no record: on_vm_created comes first",
    Taken.REFUSED: "host and driver of a vm cannot change: on_vm_deleted comes first",
}


def _words(entry: Entry) -> str:
    if entry.process is None:
        return entry.hook
    program = f" ({entry.executable})" if entry.executable else ""
    return f"{entry.hook}: pid {entry.process.pid}{program}"


def _why_held(entry: Entry) -> str:
    """It names its operation, so that a delivery that comes twice finds what the first one did."""
    return f"operation {entry.what}{_mark(entry)}"


def _mark(entry: Entry) -> str:
    return f" [{entry.operation}]"
