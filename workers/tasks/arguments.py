"""Checks what a message brings. A wrong argument fails the task with a clear text; it is never retried."""

from collections.abc import Sequence

import structlog

from workers.specs import check_vm_id
from workers.telemetry.story import DECISIONS

_MOST_IDS = 5000


# Each refusal is a decision, and has its line.
_log = structlog.get_logger(DECISIONS, component="tasks")


class BadArgument(ValueError):
    """One text as its only argument: Celery rebuilds exceptions from what they were made of."""


def _refused(name: str, why: str) -> BadArgument:
    _log.warning("task refused", argument=name, why=why)
    return BadArgument(f"argument {name}: {why}")


def vm_id_of(value: object, name: str = "vm_id") -> str:
    try:
        return check_vm_id(value)
    except ValueError as error:
        raise _refused(name, str(error)) from error


def vm_ids_of(value: object) -> Sequence[str]:
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_IDS:
        raise _refused("vm_ids", f"must be a list of 1 to {_MOST_IDS} ids")
    return [vm_id_of(item, "vm_ids") for item in value]


def host_of(value: object, own: str) -> str:
    """A host's own work: its message went astray if it names another."""
    host = vm_id_of(value, "host")
    if host != own:
        raise _refused("host", f"must be {own}, which this worker serves, got {host}; send it to {host}'s own queue")
    return host


def number_of(value: object, name: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise _refused(name, f"must be a whole number, got {type(value).__name__}")


def count_of(value: object, name: str, most: int = 1000) -> int:
    number = number_of(value, name) or 0
    if 0 <= number <= most:
        return number
    raise _refused(name, f"must be from 0 to {most}, got {number}")


def text_of(value: object, name: str, most: int = 200) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= most and value.isprintable()):
        return value
    raise _refused(name, f"must be printable text of at most {most} characters")
