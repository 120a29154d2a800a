"""A recovery that somebody asked for, followed to its end through the events that came after it."""

import re
from collections.abc import Sequence
from typing import Any

from workers.domain.audit import EventKind
from workers.domain.vm import State, VmRecord
from workers.store.events import Entry

_ENDS = frozenset({State.HEALTHY, State.FAILED, State.STOPPED})
_ID = re.compile(r"\d{1,16}-\d{1,16}")
FORGOTTEN = "forgotten"


def event_id(text: str) -> str:
    """Return the id of an event if it is one. Raises ValueError."""
    if not _ID.fullmatch(text):
        raise ValueError("field after: must be the id of an event, such as 1700000000000-0")
    return text


def order(entry_id: str) -> tuple[int, int]:
    """Ids of events are numbers: as text, they would be out of order."""
    ms, _, number = entry_id.partition("-")
    return int(ms), int(number)


def progress(entries: Sequence[Entry], record: VmRecord | None, *, after: str, request_id: str) -> dict[str, Any]:
    """Say which entries came after it, and where it ended; `end` is None while it goes on.

    The record rules where the events do not say: a VM that was found healthy, or an episode that is over.
    """
    since = [entry for entry in entries if order(entry.id) > order(after)]
    return {"after": after, "count": len(since), "end": _end(since, record, request_id)}


def _end(since: Sequence[Entry], record: VmRecord | None, request_id: str) -> str | None:
    for entry in since:
        if entry.event.kind is EventKind.FORGOTTEN:
            return FORGOTTEN
        if entry.event.after in _ENDS:
            return str(entry.event.after)
    if record is None:
        return FORGOTTEN
    episode = record.episode
    ours = episode is not None and not episode.is_open and episode.request_id == request_id
    return str(record.state) if ours and record.state in _ENDS else None
