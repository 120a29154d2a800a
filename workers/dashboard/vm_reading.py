"""Reads one VM for its page: record, modes, events, picture. Every method blocks and raises StoreUnavailable."""

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from workers.bootstrap import Fleet
from workers.cli.documents import event_document, vm_document
from workers.dashboard.progress import progress
from workers.dashboard.reading import to_json
from workers.dashboard.timeline import timeline
from workers.domain.modes import InForce, Modes, scopes_of
from workers.ports import Stored
from workers.store.events import Entry, EventLog

_KEPT = 200  # events of a VM: its page shows no more
_SHOWN = 100
_MOST_VMS = 200


class VmHistory:
    """The last events of the VMs that somebody looks at: after the first time, only what is new is read."""

    def __init__(self, events: EventLog) -> None:
        self._events = events
        self._lock = threading.Lock()
        self._known: OrderedDict[str, tuple[str, deque[Entry]]] = OrderedDict()

    def of(self, vm_id: str) -> Sequence[Entry]:
        """Oldest first."""
        with self._lock:
            known = self._known.pop(vm_id, None)
        last_id = self._events.last_id()
        if known is None:
            entries = deque(self._events.latest(vm_id=vm_id, limit=_KEPT), _KEPT)
        else:
            cursor, entries = known
            entries = deque((*entries, *self._events.since(cursor, vm_id=vm_id)), _KEPT)
        # `latest` may have seen more than `last_id` says: what comes twice is told once.
        entries = deque({entry.id: entry for entry in entries}.values(), _KEPT)
        with self._lock:
            self._known[vm_id] = (last_id, entries)
            while len(self._known) > _MOST_VMS:
                self._known.popitem(last=False)
        return tuple(entries)


@dataclass(frozen=True, slots=True)
class VmView:
    """`stored` is None for a VM that is not registered; `unreadable` says why a record could not be read."""

    now_ms: int
    stored: Stored | None
    entries: Sequence[Entry]
    modes: Modes
    unreadable: str | None = None

    @property
    def is_known(self) -> bool:
        return self.stored is not None or self.unreadable is not None


class VmReader:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._history = VmHistory(fleet.events)

    def read(self, vm_id: str) -> VmView:
        snapshot = self._fleet.store.read([vm_id])
        stored = snapshot.found.get(vm_id)
        unreadable = snapshot.unreadable.get(vm_id)
        if stored is None and unreadable is None:
            return VmView(snapshot.now_ms, None, (), Modes())
        _, modes = self._fleet.modes.modes(scopes_of(vm_id, stored.record.host if stored else ""))
        return VmView(snapshot.now_ms, stored, self._history.of(vm_id), modes, unreadable)


def vm_answer(vm_id: str, view: VmView, *, after: str = "", request_id: str = "") -> tuple[bytes, str]:
    """Return the JSON for its page and the ETag, which changes with what is known of the VM, not with time."""
    stored = view.stored
    record = stored.record if stored else None
    document: dict[str, Any] = {
        "vm": vm_document(stored) if stored else None,
        "unreadable": view.unreadable,
        "waits_for": stored.waits_for if stored else None,
        "held": [_hold(each) for each in _in_force(vm_id, view)],
        "events": [event_document(entry) for entry in view.entries[-_SHOWN:]][::-1],
        "followed": progress(view.entries, record, after=after, request_id=request_id) if after else None,
    }
    tag = hashlib.sha256(to_json(document)).hexdigest()[:24]
    timed = {"now_ms": view.now_ms, "timeline": timeline(view.entries, record, view.now_ms)}
    return to_json(document | timed), f'"{tag}"'


def _in_force(vm_id: str, view: VmView) -> Sequence[InForce]:
    host = view.stored.record.host if view.stored else ""
    return view.modes.holds_on(vm_id, host, view.now_ms)


def _hold(each: InForce) -> dict[str, Any]:
    hold = each.hold
    return {
        "id": hold.id,
        "mode": each.mode,
        "scope": each.scope,
        "actor": hold.actor,
        "why": hold.why,
        "words": each.words,
        "since_ms": hold.since_ms,
        "until_ms": hold.until_ms,
    }
