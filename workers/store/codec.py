"""Records and events as JSON, and back; damage is named by field and never guessed at.

A record is of schema version 1 or 2; version 2 added fields with defaults. A worker reads both and writes the one it is
told to (setting `redis.record_version`), so that workers of this release and of the one before run side by side, and a
fleet can go back: whoever writes version 1 leaves out what version 1 does not know.
"""

import json

from pydantic import TypeAdapter, ValidationError

from workers.domain.audit import Event
from workers.domain.vm import VmRecord

NEWEST_VERSION = 2
READABLE_VERSIONS = (1, 2)
_ADDED_IN_2 = frozenset({"created_ms", "last_request", "restarts", "held", "wish"})

_RECORD: TypeAdapter[VmRecord] = TypeAdapter(VmRecord)
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def dump_record(record: VmRecord, version: int = NEWEST_VERSION) -> str:
    unknown = set(_ADDED_IN_2) if version == 1 else None
    return _RECORD.dump_json(record, exclude_defaults=True, exclude=unknown).decode()


def load_record(text: bytes | str) -> VmRecord:
    """Raises ValueError naming the field."""
    try:
        return _RECORD.validate_json(text)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def version_of(text: bytes | None) -> int:
    """Return the schema version of a stored record. Raises ValueError where this program cannot read it."""
    for version in READABLE_VERSIONS:
        if text == str(version).encode():
            return version
    shown = text.decode(errors="replace") if text else "none"
    known = " and ".join(map(str, READABLE_VERSIONS))
    raise ValueError(f"field v: schema version {shown}, this program reads {known}")


def dump_event(event: Event) -> str:
    return _EVENT.dump_json(event, exclude_defaults=True).decode()


def load_event(text: bytes | str) -> Event:
    """Raises ValueError naming the field."""
    try:
        return _EVENT.validate_json(text)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def first_error(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in detail["loc"]) or "value"
    return f"field {field}: {detail['msg']}"
