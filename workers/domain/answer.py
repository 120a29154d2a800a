"""The form of an answer about one VM: findings in plain words and as fields, and what happens next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000


class Known(StrEnum):
    """What an answer is drawn from."""

    RECORD = "record"
    UNREADABLE = "unreadable"
    NOBODY = "nobody"  # no record has this id
    PAST = "past"  # the event stream, for a time that was asked for


class Who(StrEnum):
    """Who does what comes next."""

    WORKER = "worker"
    BEAT = "beat"
    PERSON = "person"
    NOBODY = "nobody"


@dataclass(frozen=True, slots=True)
class Finding:
    """`kind` and the keys of `fields` are a promise to programs (docs/why.md); `words` are for people."""

    kind: str
    words: str
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Next:
    """`at_ms`: server time, where it is known; `do`: what a person would do, as a command where there is one."""

    what: str
    who: Who
    words: str
    at_ms: int | None = None
    do: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """`now_ms` is server time; `asked_ms` the time it tells about, where that is not now."""

    vm_id: str
    known: Known
    now_ms: int
    headline: str
    state: str | None
    findings: Sequence[Finding]
    next_step: Next
    asked_ms: int | None = None

    def words(self) -> list[str]:
        """Lines for people: the state first, what happens next last."""
        return [self.headline, *(each.words for each in self.findings), f"next: {self.next_step.words}"]

    def document(self) -> dict[str, Any]:
        """What `words` says, for programs."""
        coming = self.next_step
        return {
            "vm_id": self.vm_id,
            "known": str(self.known),
            "at": iso(self.now_ms),
            "asked_about": iso(self.asked_ms),
            "state": self.state,
            "summary": self.headline,
            "findings": [{"kind": each.kind, "words": each.words, **each.fields} for each in self.findings],
            "next": {
                "what": coming.what,
                "who": str(coming.who),
                "at": iso(coming.at_ms),
                "do": coming.do,
                "words": coming.words,
            },
        }


def iso(ms: int | None) -> str | None:
    """Write a time as ISO 8601, UTC, with ms; 0 stands for never."""
    if not ms:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def age(ms: int) -> str:
    """Write how long something has lasted, roughly."""
    for unit, length, enough in (("s", _SECOND, 2 * _MINUTE), ("m", _MINUTE, 2 * _HOUR), ("h", _HOUR, 2 * _DAY)):
        if ms < enough:
            return f"{max(0, ms) // length}{unit}"
    return f"{ms // _DAY}d"


def ago(ms: int, now_ms: int) -> str:
    return f"{lasting(ms, now_ms)} ago"


def lasting(since_ms: int, now_ms: int) -> str:
    return age(now_ms - since_ms)


def at_time(ms: int, now_ms: int) -> str:
    """Write a time to come, both ways: people compare the first, and look up the second."""
    return f"in {age(ms - now_ms)} (at {clock(ms)})" if ms > now_ms else "now"


def clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
