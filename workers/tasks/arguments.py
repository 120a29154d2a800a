"""Checks what a message brings. A wrong argument fails the task with a clear text; it is never retried."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TypeVar

import structlog

from workers.specs import check_vm_id
from workers.telemetry.story import DECISIONS

_MOST_IDS = 5000
_LARGEST = 2**63 - 1

E = TypeVar("E", bound=StrEnum)


# Each refusal is a decision, and has its line.
_log = structlog.get_logger(DECISIONS, component="tasks")


class BadArgument(ValueError):
    """One text as its only argument: Celery rebuilds exceptions from what they were made of."""


def refused(name: str, why: str) -> BadArgument:
    """Say it once, and give what is to be raised."""
    _log.warning("task refused", argument=name, why=why)
    return BadArgument(f"argument {name}: {why}")


def vm_id_of(value: object, name: str = "vm_id") -> str:
    try:
        return check_vm_id(value)
    except ValueError as error:
        raise refused(name, str(error)) from error


def vm_ids_of(value: object) -> Sequence[str]:
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_IDS:
        raise refused("vm_ids", f"must be a list of 1 to {_MOST_IDS} ids")
    return [vm_id_of(item, "vm_ids") for item in value]


def host_of(value: object, own: str) -> str:
    """A host's own work: its message went astray if it names another."""
    host = vm_id_of(value, "host")
    if host != own:
        raise refused("host", f"must be {own}, which this worker serves, got {host}; send it to {host}'s own queue")
    return host


def number_of(value: object, name: str) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) <= _LARGEST):
        return value
    raise refused(name, f"must be a whole number of at most 63 bits, got {type(value).__name__}")


def count_of(value: object, name: str, most: int = 1000) -> int:
    number = number_of(value, name) or 0
    if 0 <= number <= most:
        return number
    raise refused(name, f"must be from 0 to {most}, got {number}")


def choice_of(value: object, name: str, choices: type[E]) -> E:
    if isinstance(value, str) and value in set(choices):
        return choices(value)
    raise refused(name, f"must be one of {', '.join(choices)}")


def text_of(value: object, name: str, most: int = 200) -> str | None:
    if value is None or (isinstance(value, str) and len(value) <= most and value.isprintable()):
        return value
    raise refused(name, f"must be printable text of at most {most} characters")
