"""The event stream: the last entries, all of them, the new ones as they come; and what is too old is dropped."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import cast

import redis

from workers.domain.audit import Event
from workers.domain.epoch import NO_EVENT, order
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
    """Raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, *, prefix: str) -> None:
        self._client = client
        self._key = Keys(prefix).events

    def last_id(self) -> str:
        with translated():
            rows = cast("_Rows", self._client.xrevrange(self._key, count=1))
        return rows[0][0].decode() if rows else NO_EVENT

    def since(
        self,
        after: str,
        *,
        vm_id: str | None = None,
        limit: int | None = None,
        last: str = "+",
        passed_over: Callable[[str], None] = lambda _: None,
    ) -> Iterator[Entry]:
        """Yield the entries after this id up to `last`, oldest first, at most `limit` matching ones.

        `passed_over` hears the ids of entries of another version.
        """
        found = self._pages(after, last, passed_over)
        matching = (entry for entry in found if vm_id in (None, entry.event.vm_id))
        return islice(matching, limit)

    def _pages(self, after: str, last: str, passed_over: Callable[[str], None]) -> Iterator[Entry]:
        """One page at a time, so that any length takes the same memory."""
        while True:
            with translated():
                rows = cast("_Rows", self._client.xrange(self._key, min=f"({after}", max=last, count=_PAGE))
            yield from _entries(rows, passed_over)
            if len(rows) < _PAGE:
                return
            after = rows[-1][0].decode()

    def latest(
        self,
        *,
        vm_id: str | None = None,
        limit: int,
        after: str = NO_EVENT,
        last: str = "+",
        matches: Callable[[Event], bool] = lambda _: True,
    ) -> list[Entry]:
        """Return the last `limit` matching entries after the id `after` and up to `last`, oldest first."""
        found: list[Entry] = []
        before = last
        while len(found) < limit:
            with translated():
                rows = cast("_Rows", self._client.xrevrange(self._key, max=before, min=f"({after}", count=_PAGE))
            entries = _entries(rows)
            found += [each for each in entries if vm_id in (None, each.event.vm_id) and matches(each.event)]
            if len(rows) < _PAGE:
                break
            before = f"({rows[-1][0].decode()}"
        return found[:limit][::-1]

    def trim(self, older_than_ms: int) -> int:
        """Drop the entries that are older than this, but never the newest one; returns how many.

        Without any entry, nothing would tell the hosts that the last event they saw was trimmed and not lost.
        """
        with translated():
            seconds, micros = self._client.time()
            newest = cast("_Rows", self._client.xrevrange(self._key, count=1))
            if not newest:
                return 0
            oldest_ms = seconds * 1000 + micros // 1000 - older_than_ms
            keep_from = min(f"{max(0, oldest_ms)}-0", newest[0][0].decode(), key=order)
            dropped, by_this = 0, 1
            while by_this:
                # Whole nodes of the stream, a few thousand entries in each call: others wait for Redis, too.
                by_this = self._client.xtrim(self._key, minid=keep_from, approximate=True)
                dropped += by_this
            return dropped + self._client.xtrim(self._key, minid=keep_from, approximate=False)

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


def _entries(rows: _Rows, passed_over: Callable[[str], None] = lambda _: None) -> Iterator[Entry]:
    """Entries of another version are passed over: this is a view, the stream keeps them."""
    for entry_id, fields in rows:
        try:
            yield Entry(entry_id.decode(), load_event(fields[b"e"]))
        except (ValueError, KeyError):
            passed_over(entry_id.decode())
