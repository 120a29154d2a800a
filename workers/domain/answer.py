"""The form of an answer about one VM: findings in plain words and as fields, and what happens next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from workers.domain.words import iso


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
