"""Reads the fleet for all pages of one process: everything once, then only what the audit says has changed.

What changed without an event, or was missed, is found by the way: each reading looks at a part of all records again.
Every method blocks and raises StoreUnavailable; one thread at a time uses a reader.
"""

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from workers.bootstrap import Fleet
from workers.dashboard.figures import DAY_MS, Figures
from workers.dashboard.overview import Gathered, overview
from workers.dashboard.progress import order
from workers.dashboard.rows import Row, row_of
from workers.domain.modes import NO_MODES, Modes
from workers.services.health import chunks
from workers.store.events import Entry

_CHUNK = 500  # records read in one round trip
_AGAIN = 500  # records looked at again with each reading: 10,000 VMs are gone through in 20
_MOST_EVENTS = 5000  # told in one reading: a burst is spread over several


@dataclass(frozen=True, slots=True)
class View:
    """The fleet as one reading left it. `body` is the JSON of the overview, the same as long as nothing changed."""

    now_ms: int
    revision: str
    rows: Mapping[str, Row] = field(default_factory=dict)
    modes: Modes = NO_MODES
    body: bytes = b"{}"
    error: str | None = None

    def without_store(self, why: str) -> "View":
        """The same, shown on while Redis is away, and saying so."""
        document = json.loads(self.body) | {"error": why, "revision": f"{self.revision}-away"}
        return replace(self, body=to_json(document), revision=f"{self.revision}-away", error=why)


class FleetReader:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._life = uuid.uuid4().hex[:8]  # of this process: its revisions mean nothing to the next one
        self._number = 0
        self._rows: dict[str, Row] | None = None
        self._again: list[str] = []
        self._cursor = self._first_cursor = "0-0"  # until where the readings, and the counting back, go
        self._said, self._modes = "", NO_MODES
        self._figures: Figures | None = None
        self._counted: Figures | None = None
        self._uncounted: list[Entry] = []

    @property
    def needs_counting(self) -> bool:
        return self._figures is None and self._counted is None

    def read(self) -> View:
        seen = self._gather()
        before = self._rows
        rows = self._all() if before is None else self._changed(before)
        self._rows = rows
        self._count_on()
        figures = self._figures.document(seen.now_ms) if self._figures else None
        document = overview(seen, rows.values()) | {"figures": figures}
        said = json.dumps(document, sort_keys=True)
        if (said, seen.modes) != (self._said, self._modes) or rows != before:
            self._number, self._said, self._modes = self._number + 1, said, seen.modes
        revision = f"{self._life}-{self._number}"
        body = to_json(document | {"revision": revision, "now_ms": seen.now_ms, "error": None})
        return View(seen.now_ms, revision, rows, seen.modes, body)

    def count_back(self) -> None:
        """Count what the audit tells of the last day; may take seconds, and runs beside the readings."""
        events, until = self._fleet.events, order(self._first_cursor)
        figures = Figures(next((entry.at_ms for entry in events.since("0-0", limit=1)), until[0]))
        for entry in events.since(f"{max(0, until[0] - DAY_MS)}-0"):
            if order(entry.id) > until:
                break
            figures.tell(entry)
        self._counted = figures

    def count_from_now(self) -> None:
        """Leave out the day before: it cannot be counted."""
        self._counted = Figures(order(self._first_cursor)[0])

    def _count_on(self) -> None:
        if self._counted is not None and self._figures is None:
            self._figures = self._counted
        if self._figures is not None:
            for entry in self._uncounted:
                self._figures.tell(entry)
            self._uncounted.clear()

    def _gather(self) -> Gathered:
        fleet = self._fleet
        now_ms, hosts = fleet.hosts.all()
        names = [host.name for host in hosts]
        _, modes = fleet.modes.all_modes()
        return Gathered(
            now_ms,
            hosts,
            fleet.data.halted(),
            fleet.weather.breakers(),
            fleet.weather.storms(names),
            modes,
            sum(len(found) for found in fleet.hosts.strays(names).values()),
            fleet.hosts.unreadable(names),
        )

    def _all(self) -> dict[str, Row]:
        self._cursor = self._first_cursor = self._fleet.events.last_id()
        return self._read(self._fleet.store.ids())

    def _changed(self, before: Mapping[str, Row]) -> dict[str, Row]:
        entries = list(self._fleet.events.since(self._cursor, limit=_MOST_EVENTS))
        if entries:
            self._cursor = entries[-1].id
            self._uncounted += entries
        wanted = dict.fromkeys(entry.event.vm_id for entry in entries if entry.event.vm_id)
        if not self._again:
            self._again = self._fleet.store.ids()
            wanted |= dict.fromkeys(before.keys() ^ set(self._again))
        wanted |= dict.fromkeys(self._again[:_AGAIN])
        self._again = self._again[_AGAIN:]
        return {vm_id: row for vm_id, row in before.items() if vm_id not in wanted} | self._read(wanted)

    def _read(self, vm_ids: Iterable[str]) -> dict[str, Row]:
        return {
            vm_id: row_of(stored)
            for part in chunks(list(vm_ids), _CHUNK)
            for vm_id, stored in self._fleet.store.read(part).found.items()
        }


def to_json(value: Any) -> bytes:
    """Return JSON in which nothing looks like markup, whoever may take it for a page."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026").encode()
