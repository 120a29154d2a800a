"""What happened to one VM as bars on a line of time: its states, the attempts, and the same in words."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from workers.cli.output import (
    clean,
)
from workers.domain.audit import EventKind
from workers.domain.vm import State, VmRecord
from workers.domain.words import age
from workers.store.events import Entry

_ENDS_ATTEMPT = frozenset({State.HEALTHY, State.FAILED, State.STOPPED, State.ORPHANED})
_TOLD = 20  # spans in words: beyond, the table of events says it better


@dataclass(frozen=True, slots=True)
class Span:
    """A state, from and until when (server time in ms), and why it began."""

    state: State
    from_ms: int
    to_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """`outcome` is `running`, `failed`, `recovered`, or the state that the VM went to instead."""

    number: int
    from_ms: int
    to_ms: int
    outcome: str
    why: str


def timeline(entries: Sequence[Entry], record: VmRecord | None, now_ms: int) -> dict[str, Any]:
    """`entries` are of this VM, oldest first; without any, the record alone speaks."""
    spans = _spans(entries, record, now_ms)
    attempts = _attempts(entries, now_ms)
    begins = [span.from_ms for span in spans] + [attempt.from_ms for attempt in attempts]
    return {
        "from_ms": min(begins, default=now_ms),
        "to_ms": now_ms,
        "states": [asdict(span) for span in spans],
        "attempts": [asdict(attempt) for attempt in attempts],
        "words": list(_words(spans, attempts)),
    }


def _spans(entries: Sequence[Entry], record: VmRecord | None, now_ms: int) -> list[Span]:
    begun: list[tuple[State, int, str]] = []
    for entry in entries:
        after = entry.event.after
        if after is not None and (not begun or begun[-1][0] is not after):
            begun.append((after, entry.at_ms, entry.event.why))
    if record is not None and (not begun or begun[-1][0] is not record.state):
        begun.append((record.state, record.since_ms or now_ms, ""))
    ends = [*[at_ms for _, at_ms, _ in begun][1:], *([now_ms] if begun else [])]
    return [Span(state, at_ms, max(at_ms, end), why) for (state, at_ms, why), end in zip(begun, ends, strict=True)]


def _attempts(entries: Iterable[Entry], now_ms: int) -> list[Attempt]:
    found: list[Attempt] = []
    running: tuple[int, int] | None = None
    for entry in entries:
        event = entry.event
        if event.kind is EventKind.ATTEMPT_STARTED:
            running = (event.attempt or 0, entry.at_ms)
        elif running is not None and (event.kind is EventKind.ATTEMPT_FAILED or event.after in _ENDS_ATTEMPT):
            found.append(Attempt(*running, entry.at_ms, _outcome(entry), event.why))
            running = None
    if running is not None:
        found.append(Attempt(*running, now_ms, "running", ""))
    return found


def _outcome(entry: Entry) -> str:
    event = entry.event
    if event.kind is EventKind.RECOVERED:
        return "recovered"
    is_failure = event.kind is EventKind.ATTEMPT_FAILED or event.after in (State.FAILED, State.ORPHANED)
    return "failed" if is_failure or event.after is None else str(event.after)


def _words(spans: Sequence[Span], attempts: Sequence[Attempt]) -> Iterable[str]:
    """The picture for who does not see it, newest first."""
    for span in list(reversed(spans))[:_TOLD]:
        within = [each for each in attempts if span.from_ms <= each.from_ms < max(span.to_ms, span.from_ms + 1)]
        tried = "".join(f"; attempt {each.number}: {each.outcome}" for each in within)
        why = f": {clean(span.why)}" if span.why else ""
        yield f"{span.state} for {age(span.to_ms - span.from_ms)}{why}{tried}"
