"""What a manager asks: answered from the records and the audit."""

from collections.abc import Iterable
from dataclasses import replace

from workers.bootstrap import Fleet
from workers.domain.audit import Event, EventKind
from workers.domain.errors import UnknownVm, UnreadableRecord
from workers.domain.vm import State
from workers.integration.hooks import AttemptSeen, VmHealth
from workers.ports import Stored
from workers.services.health import chunks
from workers.store.events import Entry

_CHUNK = 500
_EVENTS_READ = 200
RUNNING, FAILED, RECOVERED, WITHDRAWN = "running", "failed", "recovered", "withdrawn"


def health_of(stored: Stored) -> VmHealth:
    record = stored.record
    episode = record.open_episode
    return VmHealth(
        record.vm_id,
        record.host,
        record.state,
        record.desired,
        since_ms=record.since_ms,
        checked_ms=stored.checked_ms or 0,
        fails=record.fails,
        reason=episode.reason if episode else record.doubt,
        attempt=(episode.attempt or None) if episode else None,
    )


class Questions:
    """Raises StoreUnavailable; UnknownVm and UnreadableRecord where one VM is asked for."""

    def __init__(self, fleet: Fleet, *, host: str) -> None:
        self._fleet, self._host = fleet, host

    def health(self, vm_id: str) -> VmHealth:
        snapshot = self._fleet.store.read([vm_id])
        if vm_id in snapshot.unreadable:
            raise UnreadableRecord(vm_id, snapshot.unreadable[vm_id])
        if vm_id not in snapshot.found:
            raise UnknownVm(vm_id)
        return health_of(snapshot.found[vm_id])

    def all_health(self, state: State | None = None) -> list[VmHealth]:
        """Of the VMs of this host, by id; records that cannot be read are left out."""
        found: list[VmHealth] = []
        for part in chunks(self._fleet.store.ids(host=self._host, state=state), _CHUNK):
            snapshot = self._fleet.store.read(part)
            found += [health_of(snapshot.found[vm_id]) for vm_id in part if vm_id in snapshot.found]
        return found

    def orphaned(self) -> list[VmHealth]:
        """Of those that are lost: found, and not back yet."""
        lost = [*self.all_health(State.ORPHANED), *self.all_health(State.RECOVERING)]
        return sorted({each.vm_id: each for each in lost}.values(), key=lambda each: each.vm_id)

    def attempts(self, vm_id: str) -> list[AttemptSeen]:
        """Of the audit's last entries about this VM, oldest first."""
        return attempts_in(self._fleet.events.latest(vm_id=vm_id, limit=_EVENTS_READ))


def attempts_in(entries: Iterable[Entry]) -> list[AttemptSeen]:
    """Join the begin of each attempt with its end."""
    found: list[AttemptSeen] = []
    for entry in entries:
        event = entry.event
        if event.kind is EventKind.ATTEMPT_STARTED:
            found.append(AttemptSeen(event.attempt or 0, entry.at_ms, 0, event.reason, RUNNING))
        elif found and not found[-1].ended_ms and (outcome := _outcome(event)):
            error = event.why if outcome == FAILED else None
            found[-1] = replace(found[-1], ended_ms=entry.at_ms, outcome=outcome, error=error)
    return found


def _outcome(event: Event) -> str | None:
    """What this event says about the attempt that was running; None where it says nothing."""
    match event.kind, event.after:
        case EventKind.ATTEMPT_FAILED, _:
            return FAILED
        case EventKind.RECOVERED, _:
            return RECOVERED
        case EventKind.TRANSITION, State.FAILED:
            return FAILED
        case ((EventKind.TRANSITION | EventKind.ADOPTED), (State.STOPPED | State.HEALTHY)):
            return WITHDRAWN
        case EventKind.FORGOTTEN, _:
            return WITHDRAWN
        case _:
            return None
