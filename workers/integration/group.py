"""One consumer of a consumer group on the event stream.

The group's list of pending entries is the truth: who has which entry, and how often it was handed out.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import redis
from redis.exceptions import ResponseError

from workers.domain.errors import ReliabilityError
from workers.store.client import translated
from workers.store.keys import Keys

NOTHING = "0-0"
_Row = tuple[str, bytes | None]


class NoGroup(ReliabilityError):
    """The group, or the whole stream, is not there."""


def place(event_id: str) -> tuple[int, int]:
    """Return what ids of a stream are compared by."""
    ms, _, number = event_id.partition("-")
    return int(ms), int(number or 0)


def before(event_id: str) -> str:
    """Return the place right before an entry."""
    ms, number = place(event_id)
    return f"{ms}-{number - 1}" if number else f"{ms - 1}-{2**64 - 1}"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the group is. `cut_off` and `read` count entries; `read` is None where Redis does not know."""

    delivered: str
    first: str | None
    last: str
    cut_off: int
    read: int | None

    @property
    def has_missed(self) -> bool:
        """Whether the stream was cut off beyond what the group has been given."""
        if self.read is not None:
            return self.cut_off > self.read
        return self.cut_off > 0 and place(self.delivered) < place(self.first or self.last)

    @property
    def before_first(self) -> str:
        """The latest place from which nothing is missing."""
        return self.last if self.first is None else before(self.first)


@dataclass(frozen=True, slots=True)
class Pending:
    id: str
    tries: int


class GroupMember:
    """Each call raises StoreUnavailable; all but `look` and `create` also NoGroup."""

    def __init__(self, client: redis.Redis, *, prefix: str, group: str, consumer: str) -> None:
        self._client, self._key = client, Keys(prefix).events
        self._group, self._consumer = group, consumer

    def look(self) -> Standing | None:
        """Return where the group stands; None where it is not there."""
        with translated():
            asked = self._client.pipeline(transaction=True)
            asked.xinfo_stream(self._key)
            asked.xinfo_groups(self._key)
            stream, groups = asked.execute(raise_on_error=False)
        for reply in (stream, groups):
            if isinstance(reply, ResponseError) and "no such key" in str(reply):
                return None
            if isinstance(reply, Exception):
                with translated():
                    raise reply
        return next((_standing(stream, each) for each in groups if each["name"].decode() == self._group), None)

    def last_id(self) -> str:
        with translated():
            rows = cast("list[Any]", self._client.xrevrange(self._key, count=1))
        return rows[0][0].decode() if rows else NOTHING

    def beginning(self) -> str:
        with translated():
            rows = cast("list[Any]", self._client.xrange(self._key, count=1))
        return before(rows[0][0].decode()) if rows else NOTHING

    def holds(self, event_id: str) -> bool:
        with translated():
            return bool(self._client.xrange(self._key, event_id, event_id))

    def create(self, after: str) -> None:
        """Begin the group behind this entry; one that is there already stays as it is."""
        with translated():
            try:
                self._client.xgroup_create(self._key, self._group, id=after, mkstream=True)
            except ResponseError as error:
                if "BUSYGROUP" not in str(error):
                    raise

    def skip_to_first(self, seen: Standing) -> None:
        with _known():
            self._client.xgroup_setid(self._key, self._group, seen.before_first, entries_read=seen.cut_off)

    def fresh(self, count: int, block_ms: int | None) -> list[_Row]:
        """Take entries that nobody of the group was given yet; wait for one at most `block_ms`."""
        with _known():
            reply = self._client.xreadgroup(
                self._group, self._consumer, {self._key: ">"}, count=count, block=block_ms or None
            )
        return [_row(each) for each in _rows_of(reply)]

    def pending(self, count: int, *, idle_ms: int | None = None) -> list[Pending]:
        """List what this consumer was given and is not done with; with `idle_ms`, what all were, so long ago."""
        consumer = self._consumer if idle_ms is None else None
        with _known():
            rows = self._client.xpending_range(
                self._key, self._group, min="-", max="+", count=count, consumername=consumer, idle=idle_ms
            )
        return [Pending(each["message_id"].decode(), each["times_delivered"]) for each in cast("list[Any]", rows)]

    def contents(self, ids: Sequence[str]) -> Mapping[str, bytes | None]:
        """Return the text of each entry that the stream still has."""
        if not ids:
            return {}
        with translated():
            asked = self._client.pipeline(transaction=False)
            for each in ids:
                asked.xrange(self._key, each, each)
            replies = asked.execute()
        return dict(_row(rows[0]) for rows in replies if rows)

    def claim(self, ids: Collection[str], *, idle_ms: int = 0, counted: bool) -> list[str]:
        """Make entries ours that were idle so long; `counted`: as one more try. Returns those that are ours now."""
        if not ids:
            return []
        with _known():
            rows = self._client.xclaim(self._key, self._group, self._consumer, idle_ms, list(ids), justid=not counted)
        return [(each[0] if isinstance(each, list | tuple) else each).decode() for each in cast("list[Any]", rows)]

    def done(self, ids: Collection[str]) -> None:
        if ids:
            with _known():
                self._client.xack(self._key, self._group, *ids)

    def close(self) -> None:
        self._client.close()


@contextmanager
def _known() -> Iterator[None]:
    with translated():
        try:
            yield
        except ResponseError as error:
            if "NOGROUP" in str(error) or "no such key" in str(error) or "requires the key to exist" in str(error):
                raise NoGroup(str(error)) from error
            raise


def _standing(stream: Mapping[str, Any], group: Mapping[str, Any]) -> Standing:
    first = stream["first-entry"]
    return Standing(
        group["last-delivered-id"].decode(),
        first[0].decode() if first else None,
        stream["last-generated-id"].decode(),
        cut_off=stream["entries-added"] - stream["length"],
        read=group["entries-read"],
    )


def _rows_of(reply: object) -> list[Any]:
    """Answers are a mapping in RESP3, with one more list around the rows, and a list of pairs in RESP2."""
    if not reply:
        return []
    if isinstance(reply, dict):
        rows = next(iter(reply.values()))
        return rows[0] if rows and isinstance(rows[0], list) else rows
    return cast("list[Any]", cast("list[Any]", reply)[0][1])


def _row(row: Any) -> _Row:
    event_id, fields = row
    return event_id.decode(), (fields or {}).get(b"e", b"")
