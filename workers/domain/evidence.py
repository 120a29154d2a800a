"""What a probe can find, and what each finding is worth (DESIGN section 7)."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from workers.domain.vm import Reason


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105 - a verdict, no password
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Evidence(StrEnum):
    ANSWERS = "answers"
    NOT_STARTED = "not_started"
    PROCESS_ENDED = "process_ended"
    ZOMBIE = "zombie"
    PID_REUSED = "pid_reused"
    BOOTED_ANEW = "booted_anew"
    FOREIGN_PLACE = "foreign_place"
    SOCKET_MISSING = "socket_missing"
    SOCKET_REFUSED = "socket_refused"
    OTHER_LISTENER = "other_listener"
    OTHER_VM = "other_vm"
    NO_ANSWER = "no_answer"
    STILL_NO_ANSWER = "still_no_answer"
    BROKEN_ANSWER = "broken_answer"
    SERVER_ERROR = "server_error"
    GUEST_FAILED = "guest_failed"
    TOO_MANY_CONNECTIONS = "too_many_connections"
    BACKLOG_FULL = "backlog_full"
    MONITOR_FAULT = "monitor_fault"
    UNKNOWN_STATE = "unknown_state"
    DRIFT = "drift"


@dataclass(frozen=True, slots=True)
class Ruling:
    """What one piece of evidence counts for. `certain` needs no threshold; `at_most` lowers the failure threshold."""

    verdict: Verdict
    reason: Reason | None = None
    certain: bool = False
    at_most: int | None = None
    monitor_fault: bool = False

    @property
    def is_doubtful(self) -> bool:
        """A failure that only we have seen: no kernel vouches for it."""
        return self.verdict is Verdict.FAIL and not self.certain


_PASS = Ruling(Verdict.PASS)
_INCONCLUSIVE = Ruling(Verdict.INCONCLUSIVE)
_MONITOR_FAULT = Ruling(Verdict.INCONCLUSIVE, monitor_fault=True)
_DEAD = Ruling(Verdict.FAIL, Reason.PROCESS_DEAD, certain=True)
_CUT_OFF = Ruling(Verdict.FAIL, Reason.SOCKET_UNREACHABLE)
_SICK = Ruling(Verdict.FAIL, Reason.HEALTH_CHECK_FAILED)
_SOMEBODY_ELSE = Ruling(Verdict.FAIL, Reason.PROCESS_MISMATCH, at_most=2)

RULINGS: dict[Evidence, Ruling] = {
    Evidence.ANSWERS: _PASS,
    Evidence.NOT_STARTED: Ruling(Verdict.FAIL, Reason.NOT_STARTED, certain=True),
    Evidence.PROCESS_ENDED: _DEAD,
    Evidence.ZOMBIE: _DEAD,
    Evidence.PID_REUSED: _DEAD,
    Evidence.BOOTED_ANEW: _DEAD,
    Evidence.FOREIGN_PLACE: _MONITOR_FAULT,
    Evidence.SOCKET_MISSING: _CUT_OFF,
    Evidence.SOCKET_REFUSED: _CUT_OFF,
    Evidence.OTHER_LISTENER: _SOMEBODY_ELSE,
    Evidence.OTHER_VM: _SOMEBODY_ELSE,
    Evidence.NO_ANSWER: _SICK,
    Evidence.STILL_NO_ANSWER: _SICK,
    Evidence.BROKEN_ANSWER: _SICK,
    Evidence.SERVER_ERROR: _SICK,
    Evidence.GUEST_FAILED: _SICK,
    Evidence.TOO_MANY_CONNECTIONS: _INCONCLUSIVE,
    Evidence.BACKLOG_FULL: _INCONCLUSIVE,
    Evidence.MONITOR_FAULT: _MONITOR_FAULT,
    Evidence.UNKNOWN_STATE: _INCONCLUSIVE,
    Evidence.DRIFT: _PASS,
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One look at one VM: what was found, in which words, how long it took, and how its process ended if it did.

    `age_ms` says how long ago what was found came about, where that is known.
    """

    evidence: Evidence
    detail: str = ""
    took_ms: float = 0.0
    cause: str | None = None
    age_ms: float | None = None

    @property
    def ruling(self) -> Ruling:
        return RULINGS[self.evidence]


@dataclass(frozen=True, slots=True)
class Sockets:
    """How many living VMMs of a host have no socket any more, and of how many that is known."""

    gone: int
    known: int


def doubtful(looks: Mapping[str, Observation]) -> list[str]:
    """The VMs that failed in a way that may be the fault of who looked."""
    return [vm_id for vm_id, look in looks.items() if look.ruling.is_doubtful]


def doubt_the_monitor(
    looks: dict[str, Observation], trouble: str | None, sockets: Sockets, *, at_least: int, share: float
) -> dict[str, Observation]:
    """Turn what only we see into a monitor fault where it may well be our fault: before VMs are doubted, we are.

    `trouble` is what is wrong with ourselves right now: no descriptors, run directory unreadable, Redis just back.
    Beside that: a folder swept by accident, or a look from the wrong mount namespace, takes away all sockets together;
    VMMs lose theirs one by one. So `sockets` is about the whole host, of which a few VMs are looked at at a time.
    """
    if trouble is not None:
        return looks | dict.fromkeys(doubtful(looks), Observation(Evidence.MONITOR_FAULT, trouble))
    gone = [vm_id for vm_id, look in looks.items() if look.evidence is Evidence.SOCKET_MISSING]
    if not gone or sockets.gone < at_least or sockets.gone < share * sockets.known:
        return looks
    doubted = Observation(Evidence.MONITOR_FAULT, f"{sockets.gone} of {sockets.known} sockets missing at once")
    return looks | dict.fromkeys(gone, doubted)
