"""What a check found: how bad it is, what is the case, and what to do about it."""

from dataclasses import dataclass
from enum import StrEnum

_NAMED = 5  # of a list in one line


class Level(StrEnum):
    """From bad to good."""

    PROBLEM = "problem"  # something does not work, or will not when it is needed
    WARNING = "warning"  # somebody should know; it may be meant so
    OK = "ok"


@dataclass(frozen=True, slots=True)
class Finding:
    """`says` and `does` are one line each; whatever is not ok says what to do."""

    name: str
    level: Level
    says: str
    does: str = ""


def fine(name: str, says: str) -> Finding:
    return Finding(name, Level.OK, says)


def warning(name: str, says: str, does: str) -> Finding:
    return Finding(name, Level.WARNING, says, does)


def problem(name: str, says: str, does: str) -> Finding:
    return Finding(name, Level.PROBLEM, says, does)


def listed(names: list[str]) -> str:
    """Write a list on one line, its end left out where it is long."""
    rest = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {rest} more" if rest > 0 else "")
