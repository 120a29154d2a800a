"""What a manager told about one VM and Redis has not taken yet: entries, how they are coalesced, and their file form.

Values only. Where they are kept is in `journal`, what becomes of each in `delivery`.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from pydantic import TypeAdapter, ValidationError

from workers.domain.vm import Incarnation


class Kind(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"
    DELETED = "deleted"
    ERROR = "error"
    BUSY = "busy"  # an operation begins
    DONE = "done"  # an operation ended


WISHES = frozenset({Kind.RUNNING, Kind.STOPPED, Kind.DELETED})
_UNWANTED = frozenset({Kind.STOPPED, Kind.DELETED})


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that was told. `number` grows with every call about this VM; `hook` is the method that was called.

    `at_ms` is server time as this host knew it then, None where it has not met Redis since it booted. `anew`: the VM
    was deleted before, which Redis has not taken either. `operation` and `what` name an operation; `until_s` is its
    deadline by the clock of this host's boot `boot_id` (CLOCK_BOOTTIME).
    """

    number: int
    kind: Kind
    hook: str
    at_ms: int | None = None
    spec: str | None = None
    process: Incarnation | None = None
    executable: str | None = None
    socket: str | None = None
    anew: bool = False
    error: str | None = None
    operation: str | None = None
    what: str | None = None
    until_s: float = 0.0
    boot_id: str | None = None


Entries = tuple[Entry, ...]
_ENTRIES: TypeAdapter[Entries] = TypeAdapter(Entries)


def coalesce(waiting: Iterable[Entry], new: Entry) -> Entries:
    """Add what was told last: of wishes, of errors and of each operation only the newest is left to be taken."""
    if new.kind in WISHES:
        before = next((each for each in waiting if each.kind in WISHES), None)
        return (*(each for each in waiting if each.kind not in WISHES), _over(before, new))
    if new.kind is Kind.ERROR:
        return (*(each for each in waiting if each.kind is not Kind.ERROR), new)
    return (*(each for each in waiting if each.operation != new.operation), new)


def _over(before: Entry | None, new: Entry) -> Entry:
    """The newer wish, with what only the older one told."""
    if before is None or new.kind is Kind.DELETED:
        return new
    if before.kind is Kind.DELETED and new.spec is None:
        # Whoever wants it to run, or to be stopped, has to say once more what it is.
        return replace(before, number=new.number, at_ms=new.at_ms)
    merged = replace(new, anew=before.anew or before.kind is Kind.DELETED, spec=new.spec or before.spec)
    if new.process is not None or before.kind is Kind.DELETED:
        return merged
    return replace(merged, process=before.process, executable=before.executable, socket=before.socket)


def unwanted_by(entries: Iterable[Entry]) -> str | None:
    """Return the hook that says that this VM shall not run, None where none does."""
    return next((each.hook for each in entries if each.kind in _UNWANTED), None)


def dump(entries: Entries) -> bytes:
    """`unwanted` stands apart: it is all that the spawn path reads (host/rundir.py)."""
    plain = _ENTRIES.dump_python(entries, mode="json", exclude_defaults=True)
    return json.dumps({"unwanted": unwanted_by(entries), "entries": plain}).encode()


def load(text: bytes) -> Entries:
    """Raises ValueError where the file is damaged."""
    try:
        return _ENTRIES.validate_python(json.loads(text)["entries"])
    except (ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"not of this program: {type(error).__name__}") from error
