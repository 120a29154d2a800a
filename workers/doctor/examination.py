"""Runs checks side by side, each with a deadline of its own; one that hangs or breaks is a finding, not the end."""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from redis.exceptions import NoPermissionError, RedisError

from workers.doctor.finding import Finding, Level, warning
from workers.doctor.place import Place
from workers.domain.errors import StoreUnavailable

DEADLINE_S = 2.0


class Group(StrEnum):
    """In the order in which they are shown."""

    REDIS = "Redis"
    FLEET = "Fleet"
    HOST = "This host"
    MACHINE = "Machine and programs"


@dataclass(frozen=True, slots=True)
class Check:
    """`look` gets the place and yields what it finds. `late` is how bad it is when no answer comes in time."""

    name: str
    group: Group
    look: Callable[[Place], Iterable[Finding]]
    late: Level = Level.WARNING


@dataclass(frozen=True, slots=True)
class Report:
    """What was found by each group, the worst first; `skipped` names the checks that could not even be tried."""

    found: Sequence[tuple[Group, Finding]]
    skipped: Sequence[str] = ()

    def count(self, level: Level) -> int:
        return sum(finding.level is level for _, finding in self.found)

    def of(self, group: Group) -> list[Finding]:
        order = list(Level)
        mine = [finding for each, finding in self.found if each is group]
        return sorted(mine, key=lambda finding: order.index(finding.level))


@dataclass(slots=True)
class _Run:
    check: Check
    place: Place
    found: list[Finding] = field(default_factory=list)
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        # A daemon: one that hangs must not keep the program from ending.
        self.thread = threading.Thread(target=self._look, name=f"doctor {self.check.name}", daemon=True)
        self.thread.start()

    def _look(self) -> None:
        try:
            for finding in self.check.look(self.place):
                self.found.append(finding)
        except Exception as error:  # noqa: BLE001 - whatever it is, the other checks go on
            self.found.append(_broken(self.check.name, error))

    def wait(self, until: float, deadline_s: float) -> list[tuple[Group, Finding]]:
        self.thread.join(max(0.0, until - time.monotonic()))
        found = list(self.found)
        if self.thread.is_alive():
            says = f"no answer within {deadline_s:g} s"
            found.append(Finding(self.check.name, self.check.late, says, "see what it waits for, then try again"))
        return [(self.check.group, finding) for finding in found]


def examine(checks: Sequence[Check], place: Place, *, deadline_s: float = DEADLINE_S) -> list[tuple[Group, Finding]]:
    """Run all checks at once; returns after the deadline at the latest, and raises nothing."""
    until = time.monotonic() + deadline_s
    runs = [_Run(check, place) for check in checks]
    return [each for run in runs for each in run.wait(until, deadline_s)]


def _broken(name: str, error: Exception) -> Finding:
    match error:
        case OSError():
            is_closed = isinstance(error, PermissionError)
            does = "run it as the user of the worker, or as root" if is_closed else "mend that, then look again"
            where = f"{error.filename}: " if error.filename else ""
            return warning(name, f"{where}{error.strerror or error}", does)
        case NoPermissionError():
            return warning(name, f"not for this user of Redis: {_one_line(error)}", "ask as a user with more rights")
        case StoreUnavailable() | RedisError():
            return warning(name, _one_line(error), "see whether Redis answers in time, then look again")
        case _:
            says = f"the check itself failed: {type(error).__name__}: {_one_line(error)}"
            return warning(name, says, "nothing to do on this host; please report it")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
