"""One VM from near by, read for people: what the keys around its record say, and its part of the event stream."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import redis

from workers.domain.audit import EventKind
from workers.store.client import translated
from workers.store.codec import load_event
from workers.store.events import Entry
from workers.store.keys import Keys

_PAGE = 1000
_MOST_READ = 200_000  # entries, newest first: about a second of reading
# Events that are about no VM, and about many.
_OF_MANY = tuple(f'"kind":"{kind}"'.encode() for kind in (EventKind.MODE,))

_Rows = list[tuple[bytes, dict[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class Around:
    """Server time in ms, 0 for none. `position` counts from 1; 0: it stands in no line."""

    next_check_ms: int
    lease_until_ms: int
    quarantine_until_ms: int
    position: int
    in_line: int


@dataclass(frozen=True, slots=True)
class Past:
    """Entries, oldest first; those before `complete_since_ms` are trimmed, or were not read. 0: none is missing."""

    entries: Sequence[Entry]
    complete_since_ms: int


class CloseUp:
    """Raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, *, prefix: str) -> None:
        self._client, self._keys = client, Keys(prefix)

    def around(self, vm_id: str, waits_for: str | None) -> Around:
        keys = self._keys
        line = keys.line(waits_for or "none")
        with translated():
            pipe = self._client.pipeline(transaction=False)
            pipe.zscore(keys.due, vm_id)
            pipe.hget(keys.vm(vm_id), "lu")
            pipe.hget(keys.server, "until")
            pipe.zrank(line, vm_id)
            pipe.zcard(line)
            due, lease, quarantine, rank, length = pipe.execute()
        return Around(int(due or 0), int(lease or 0), int(quarantine or 0), 0 if rank is None else rank + 1, length)

    def host_of(self, vm_id: str) -> str | None:
        """Return the host of a record, also of one that cannot be read."""
        with translated():
            host = cast("bytes | None", self._client.hget(self._keys.vm(vm_id), "host"))
        return host.decode(errors="replace") if host else None

    def past(self, vm_id: str, *, since_ms: int = 0, until_ms: int | None = None, modes: bool = False) -> Past:
        """Return what is kept about this VM between these times; with `modes` also what was set on any scope."""
        marks = (f'"vm_id":"{vm_id}"'.encode(), *(_OF_MANY if modes else ()))
        found: list[Entry] = []
        read, oldest = 0, b""
        for entry_id, text in self._backwards(since_ms, until_ms):
            read, oldest = read + 1, entry_id
            if any(mark in text for mark in marks) and (entry := _entry(entry_id, text)):
                found.append(entry)
            if read >= _MOST_READ:
                return Past(found[::-1], _ms(oldest))
        return Past(found[::-1], self.kept_since(since_ms))

    def _backwards(self, since_ms: int, until_ms: int | None) -> Iterator[tuple[bytes, bytes]]:
        until: Any = "+" if until_ms is None else until_ms
        while True:
            with translated():
                rows = cast("_Rows", self._client.xrevrange(self._keys.events, until, since_ms, count=_PAGE))
            for entry_id, fields in rows:
                yield entry_id, fields.get(b"e", b"")
            if len(rows) < _PAGE:
                return
            until = f"({rows[-1][0].decode()}"

    def kept_since(self, since_ms: int) -> int:
        """Return the time of the first entry where older ones, from this time on, were trimmed away; else 0."""
        with translated():
            first = cast("_Rows", self._client.xrange(self._keys.events, count=1))
            if not first or _ms(first[0][0]) <= since_ms:
                return 0
            stream = self._client.xinfo_stream(self._keys.events)
        return _ms(first[0][0]) if stream["entries-added"] > stream["length"] else 0


def _entry(entry_id: bytes, text: bytes) -> Entry | None:
    """Entries of another version are passed over: this is a view, the stream keeps them."""
    try:
        return Entry(entry_id.decode(), load_event(text))
    except ValueError:
        return None


def _ms(entry_id: bytes) -> int:
    return int(entry_id.split(b"-")[0])
