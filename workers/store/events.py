"""The event stream, read: the last entries, and the new ones as they come."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import redis

from workers.domain.audit import Event
from workers.store.client import translated
from workers.store.codec import load_event
from workers.store.keys import Keys

_PAGE = 1000
_Rows = list[tuple[bytes, dict[bytes, bytes]]]


@dataclass(frozen=True, slots=True)
class Entry:
    """`id` is the stream's own; its first part is server time in ms."""

    id: str
    event: Event

    @property
    def at_ms(self) -> int:
        return int(self.id.split("-")[0])


class EventLog:
    def __init__(self, client: redis.Redis, *, prefix: str) -> None:
        self._client = client
        self._key = Keys(prefix).events

    def last_id(self) -> str:
        with translated():
            rows = cast("_Rows", self._client.xrevrange(self._key, count=1))
        return rows[0][0].decode() if rows else "0-0"

    def since(self, after: str, *, vm_id: str | None = None, limit: int | None = None) -> Iterator[Entry]:
        """Yield the entries after this id, oldest first, at most `limit` matching ones."""
        left = limit
        while left is None or left > 0:
            with translated():
                rows = cast("_Rows", self._client.xrange(self._key, min=f"({after}", count=_PAGE))
            for entry in _entries(rows):
                if vm_id in (None, entry.event.vm_id) and (left is None or left > 0):
                    left = None if left is None else left - 1
                    yield entry
            if len(rows) < _PAGE:
                return
            after = rows[-1][0].decode()

    def latest(self, *, vm_id: str | None = None, limit: int) -> list[Entry]:
        """Return the last `limit` entries, oldest first."""
        found: list[Entry] = []
        before = "+"
        while len(found) < limit:
            with translated():
                rows = cast("_Rows", self._client.xrevrange(self._key, max=before, count=_PAGE))
            found += [entry for entry in _entries(rows) if vm_id in (None, entry.event.vm_id)]
            if len(rows) < _PAGE:
                break
            before = f"({rows[-1][0].decode()}"
        return found[:limit][::-1]

    def follow(self, after: str, *, block_ms: int = 1000) -> Iterator[Entry | None]:
        """Yield new entries as they come, and None each time `block_ms` passed without one."""
        while True:
            with translated():
                reply = self._client.xread({self._key: after}, block=block_ms, count=_PAGE)
            rows = _rows_of(reply)
            if not rows:
                yield None
                continue
            yield from _entries(rows)
            after = rows[-1][0].decode()


def _rows_of(reply: object) -> _Rows:
    """XREAD answers a mapping in RESP3, with one more list around the rows, and a list of pairs in RESP2."""
    if not reply:
        return []
    if isinstance(reply, dict):
        rows = next(iter(reply.values()))
        return cast("_Rows", rows[0] if rows and isinstance(rows[0], list) else rows)
    return cast("_Rows", cast("list[tuple[bytes, list[object]]]", reply)[0][1])


def _entries(rows: _Rows) -> Iterator[Entry]:
    """Entries of another version are passed over: this is a view, the stream keeps them."""
    for entry_id, fields in rows:
        try:
            yield Entry(entry_id.decode(), load_event(fields[b"e"]))
        except (ValueError, KeyError):
            continue
