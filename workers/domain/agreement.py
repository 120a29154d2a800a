"""Observe-only looked back at: what would have been done, and what became of those VMs without it. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from workers.domain.audit import Event, EventKind
from workers.domain.chronicle import Told
from workers.domain.vm import LOSS_REASONS, Reason, State
from workers.domain.words import age, counted, iso

_WOULD_HAVE = "would have "
# How a VMM that the record did not know ends its event (services.recovery); the same process has other words.
_TAKEN_OVER = "taken over"
# Of these events the actor is who did it; of all others it is who noticed.
_SAID = frozenset({EventKind.CHANGED, EventKind.FORGOTTEN, EventKind.REGISTERED})
_LOST = frozenset({State.UNHEALTHY, State.ORPHANED})


class Fate(StrEnum):
    """What became of a VM that was lost while only observed."""

    CAME_BACK = "came back by itself"  # with the process that it had
    RESTARTED = "was restarted"  # by its manager, or by a person
    STOPPED = "was stopped"
    FORGOTTEN = "was forgotten"
    FAILED = "was given up"  # starting it again would not have helped
    RECOVERED = "was recovered by us"  # observe-only had ended, or a person asked
    STILL_LOST = "is still lost"


@dataclass(frozen=True, slots=True)
class Case:
    """One loss. `would_ms` 0: it was not decided that it would have been recovered. Times are server time in ms."""

    vm_id: str
    host: str
    reason: Reason
    lost_ms: int
    would_ms: int = 0
    scope: str | None = None
    trace_id: str | None = None
    fate: Fate = Fate.STILL_LOST
    fate_ms: int = 0
    by: str | None = None

    @property
    def is_wrong_kill(self) -> bool:
        """A process that served again later would have been killed; one that the kernel says is dead cannot be."""
        doubtful = self.reason is not Reason.PROCESS_DEAD
        return bool(self.would_ms) and doubtful and self.fate is Fate.CAME_BACK

    @property
    def is_agreed(self) -> bool:
        """What was decided while it was only observed; what was acted on at once is no case for this report."""
        return bool(self.would_ms) or self.fate is not Fate.RECOVERED

    @property
    def words(self) -> str:
        after = f" after {age(self.fate_ms - self.lost_ms)}" if self.fate_ms else ""
        by = f" by {self.by}" if self.by else ""
        return f"{self.fate}{by}{after}"


@dataclass(frozen=True, slots=True)
class Other:
    """What else would have been done: `stopped`, `reaped`, `adopted`, or `started` for the first time."""

    done: str
    vm_id: str
    host: str
    at_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Agreement:
    """`told_since_ms`: from when on events are known, 0 for all of the time asked about."""

    since_ms: int
    now_ms: int
    cases: Sequence[Case]
    others: Sequence[Other] = ()
    told_since_ms: int = 0

    @property
    def recovered(self) -> int:
        return sum(1 for case in self.cases if case.would_ms)

    @property
    def wrong(self) -> list[Case]:
        return [case for case in self.cases if case.is_wrong_kill]

    def words(self) -> list[str]:
        """The report in one line, then what needs more words."""
        span = age(self.now_ms - self.since_ms)
        losses = f"{len(self.cases)} {'loss' if len(self.cases) == 1 else 'losses'}"
        lines = [
            f"last {span}: {losses}, would have recovered {self.recovered}, {counted(len(self.wrong), 'wrong kill')}"
        ]
        lines += [f"{number} {fate}" for fate, number in sorted(Counter(case.fate for case in self.cases).items())]
        if undecided := len(self.cases) - self.recovered:
            lines.append(f"{undecided} not decided: back, or held by something else, before it came to that")
        done = Counter(each.done for each in self.others)
        lines += [f"would have {name} {number} more" for name, number in sorted(done.items())]
        if self.told_since_ms:
            lines.append(f"events from before {iso(self.told_since_ms)} are not kept any more")
        return lines

    def document(self) -> dict[str, Any]:
        return {
            "since": iso(self.since_ms),
            "at": iso(self.now_ms),
            "told_since": iso(self.told_since_ms),
            "losses": len(self.cases),
            "would_have_recovered": self.recovered,
            "wrong_kills": len(self.wrong),
            "fates": {fate.name.lower(): sum(case.fate is fate for case in self.cases) for fate in Fate},
            "cases": [_case(case) for case in self.cases],
            "others": [
                {
                    "would_have": each.done,
                    "vm_id": each.vm_id,
                    "host": each.host,
                    "at": iso(each.at_ms),
                    "why": each.why,
                }
                for each in self.others
            ],
        }


def _case(case: Case) -> dict[str, Any]:
    return {
        "vm_id": case.vm_id,
        "host": case.host,
        "reason": str(case.reason),
        "lost": iso(case.lost_ms),
        "decided": iso(case.would_ms),
        "scope": case.scope,
        "trace_id": case.trace_id,
        "fate": case.fate.name.lower(),
        "fate_at": iso(case.fate_ms),
        "fate_by": case.by,
        "wrong_kill": case.is_wrong_kill,
    }


@dataclass(slots=True)
class _Reading:
    """Cases in the order of their losses, those that are not over by VM, and the rest."""

    cases: list[Case] = field(default_factory=list)
    open: dict[str, int] = field(default_factory=dict)
    others: list[Other] = field(default_factory=list)

    def begin(self, case: Case) -> None:
        self.open[case.vm_id] = len(self.cases)
        self.cases.append(case)

    def change(self, vm_id: str, changes: Mapping[str, Any]) -> None:
        place = self.open[vm_id]
        self.cases[place] = replace(self.cases[place], **changes)


def agreement(
    events: Iterable[Told], *, since_ms: int, now_ms: int, host: str | None = None, told_since_ms: int = 0
) -> Agreement:
    """Read the events from `since_ms` on, in order, of one host or all."""
    read = _Reading()
    for each in events:
        if host in (None, each.event.host) and each.event.vm_id:
            _take(read, each.event, each.at_ms)
    cases = [case for case in read.cases if case.is_agreed]
    return Agreement(since_ms, now_ms, cases, read.others, told_since_ms)


def _take(read: _Reading, told: Event, at_ms: int) -> None:
    if told.kind is EventKind.WOULD_HAVE:
        _would_have(read, told, at_ms)
    elif _is_loss(told) and told.vm_id not in read.open:
        read.begin(_case_of(told, at_ms))
    elif told.vm_id in read.open and (fate := _fate(told)):
        by = told.actor if told.kind in _SAID else None
        read.change(told.vm_id, {"fate": fate, "fate_ms": at_ms, "by": by})
        del read.open[told.vm_id]


def _is_loss(told: Event) -> bool:
    return told.kind is EventKind.TRANSITION and told.after in _LOST and told.reason in LOSS_REASONS


def _case_of(told: Event, at_ms: int) -> Case:
    return Case(told.vm_id, told.host, told.reason or Reason.MANUAL, at_ms, trace_id=told.trace_id)


def _would_have(read: _Reading, told: Event, at_ms: int) -> None:
    done = told.why.removeprefix(_WOULD_HAVE).partition(" ")[0]
    if done != "recovered" or told.reason not in LOSS_REASONS:
        done = "started" if done == "recovered" else done
        read.others.append(Other(done, told.vm_id, told.host, at_ms, told.why))
        return
    if told.vm_id not in read.open:  # lost before the time that was asked about
        read.begin(_case_of(told, at_ms))
    if not read.cases[read.open[told.vm_id]].would_ms:
        read.change(told.vm_id, {"would_ms": at_ms, "scope": told.scope})


def _fate(told: Event) -> Fate | None:  # noqa: PLR0911 - one return per fate
    match told.kind:
        case EventKind.FORGOTTEN:
            return Fate.FORGOTTEN
        case EventKind.ATTEMPT_STARTED | EventKind.RECOVERED:
            return Fate.RECOVERED
        case EventKind.ADOPTED:
            return Fate.RESTARTED if _TAKEN_OVER in told.why else Fate.CAME_BACK
        case EventKind.CHANGED if told.why.endswith("stopped"):
            return Fate.STOPPED
        case EventKind.CHANGED | EventKind.REGISTERED if told.after in (State.HEALTHY, State.STARTING):
            return Fate.RESTARTED
        case EventKind.TRANSITION if told.after is State.HEALTHY:
            return Fate.CAME_BACK
        case EventKind.TRANSITION if told.after is State.STOPPED:
            return Fate.STOPPED
        case EventKind.TRANSITION if told.after is State.FAILED:
            return Fate.FAILED
        case _:
            return None
