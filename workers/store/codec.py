"""Records and events as JSON of schema version 1, and back; damage is named by field and never guessed at."""

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from workers.domain.audit import Event
from workers.domain.vm import VmRecord

_RECORD: TypeAdapter[VmRecord] = TypeAdapter(VmRecord)
_EVENT: TypeAdapter[Event] = TypeAdapter(Event)


def dump_record(record: VmRecord) -> str:
    return _RECORD.dump_json(record, exclude_defaults=True).decode()


def load_record(text: bytes | str) -> VmRecord:
    """Raises ValueError naming the field."""
    try:
        return _RECORD.validate_json(text)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def dump_event(event: Event) -> str:
    return _EVENT.dump_json(event, exclude_defaults=True).decode()


def load_event(text: bytes | str) -> Event:
    """Raises ValueError naming the field."""
    try:
        return _EVENT.validate_json(text)
    except ValidationError as error:
        raise ValueError(first_error(error)) from error


def to_plain(value: VmRecord | Event) -> dict[str, Any]:
    """Return every field, defaults included, as JSON types: for people and `-o json`."""
    if isinstance(value, VmRecord):
        return dict(_RECORD.dump_python(value, mode="json"))
    return dict(_EVENT.dump_python(value, mode="json"))


def compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def first_error(error: ValidationError) -> str:
    detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = ".".join(str(part) for part in detail["loc"]) or "value"
    return f"field {field}: {detail['msg']}"
