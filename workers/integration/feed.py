"""The event stream in pages, for callers that keep their own place in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import redis

from workers.domain.audit import Event
from workers.integration.group import NOTHING, place
from workers.store.client import translated
from workers.store.codec import load_event
from workers.store.keys import Keys

_BLOCK_MS = 500


@dataclass(frozen=True, slots=True)
class Page:
    """`events` with their ids; `has_gap`: some after the place that was named are gone."""

    events: Sequence[tuple[str, Event]]
    next: str
    has_gap: bool


class Feed(Protocol):
    """Raises StoreUnavailable."""

    def page(self, after: str | None, limit: int) -> Page:
        """Return what came after this place; None: nothing, and where the stream ends now."""
        ...

    def wait(self, after: str) -> None:
        """Wait a moment, or until something comes."""
        ...


class RedisFeed:
    """Entries of another version are passed over: the stream keeps them."""

    def __init__(self, client: redis.Redis, *, prefix: str, timeout_s: float) -> None:
        self._client, self._key = client, Keys(prefix).events
        self._block_ms = max(1, min(_BLOCK_MS, int(timeout_s * 500)))

    def page(self, after: str | None, limit: int) -> Page:
        with translated():
            asked = self._client.pipeline(transaction=True)
            asked.xinfo_stream(self._key)
            asked.xrange(self._key, min=f"({after or NOTHING}", count=limit)
            stream, rows = asked.execute(raise_on_error=False)
        return _page(after, _known(stream), _known(rows) or [])

    def wait(self, after: str) -> None:
        with translated():
            self._client.xread({self._key: after}, block=self._block_ms, count=1)


def _known(reply: Any) -> Any:
    """A stream that is not there is empty."""
    if isinstance(reply, Exception):
        if "no such key" in str(reply):
            return None
        with translated():
            raise reply
    return reply


def _page(after: str | None, stream: dict[str, Any] | None, rows: list[Any]) -> Page:
    last = stream["last-generated-id"].decode() if stream else NOTHING
    if after is None:
        return Page((), last, has_gap=False)
    if place(after) > place(last):
        # Redis lost what came after, or all of it: begin where its data begin.
        return Page((), NOTHING, has_gap=True)
    has_gap = stream is not None and _is_cut_off(after, stream)
    ends = last if has_gap else after
    return Page(_events(rows), rows[-1][0].decode() if rows else ends, has_gap=has_gap)


def _is_cut_off(after: str, stream: dict[str, Any]) -> bool:
    first = stream["first-entry"]
    begins = first[0].decode() if first else stream["last-generated-id"].decode()
    return bool(stream["entries-added"] > stream["length"]) and place(after) < place(begins)


def _events(rows: list[Any]) -> list[tuple[str, Event]]:
    found = []
    for event_id, fields in rows:
        try:
            found.append((event_id.decode(), load_event(cast("dict[bytes, bytes]", fields)[b"e"])))
        except (ValueError, KeyError):
            continue
    return found
