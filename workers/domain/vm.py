"""The VM record, its states and every legal edge between them."""

from dataclasses import dataclass, replace
from enum import StrEnum

from workers.domain.errors import IllegalTransition


class State(StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    UNHEALTHY = "unhealthy"
    ORPHANED = "orphaned"
    RECOVERING = "recovering"
    FAILED = "failed"
    STOPPED = "stopped"
    UNKNOWN = "unknown"


class Desired(StrEnum):
    RUNNING = "running"
    STOPPED = "stopped"


class Reason(StrEnum):
    """Why a VM needs an attempt. The first four make an orphan; the others start one for the first time or by hand."""

    PROCESS_DEAD = "process_dead"
    SOCKET_UNREACHABLE = "socket_unreachable"
    HEALTH_CHECK_FAILED = "health_check_failed"
    PROCESS_MISMATCH = "process_mismatch"
    NOT_STARTED = "not_started"
    MANUAL = "manual"


# Why a VM is lost; the other reasons are no loss.
LOSS_REASONS = (
    Reason.PROCESS_DEAD,
    Reason.SOCKET_UNREACHABLE,
    Reason.HEALTH_CHECK_FAILED,
    Reason.PROCESS_MISMATCH,
)


class EpisodeEnd(StrEnum):
    RECOVERED = "recovered"
    FAILED = "failed"
    WITHDRAWN = "withdrawn"


class Force(StrEnum):
    """What a person's request overrides beyond what a plain one does (docs/manual-recovery.md)."""

    PLAIN = "plain"
    FORCE = "force"  # caps, breakers, storms and operator modes
    KILL_HEALTHY = "kill-healthy"  # also that the VM is well


# Every legal edge. `failed` and `stopped` are left by a person, by the manager, or by a VM that is seen healthy again.
EDGES: dict[State, frozenset[State]] = {
    State.STARTING: frozenset(
        {
            State.HEALTHY,
            State.DEGRADED,
            State.UNHEALTHY,
            State.ORPHANED,
            State.RECOVERING,
            State.FAILED,
            State.STOPPED,
            State.UNKNOWN,
        }
    ),
    State.HEALTHY: frozenset({State.DEGRADED, State.UNHEALTHY, State.ORPHANED, State.STOPPED, State.UNKNOWN}),
    State.DEGRADED: frozenset({State.HEALTHY, State.UNHEALTHY, State.ORPHANED, State.STOPPED, State.UNKNOWN}),
    State.UNHEALTHY: frozenset(
        {State.HEALTHY, State.ORPHANED, State.RECOVERING, State.FAILED, State.STOPPED, State.UNKNOWN}
    ),
    State.ORPHANED: frozenset({State.HEALTHY, State.RECOVERING, State.FAILED, State.STOPPED, State.STARTING}),
    State.RECOVERING: frozenset({State.HEALTHY, State.ORPHANED, State.FAILED, State.STOPPED}),
    State.FAILED: frozenset({State.HEALTHY, State.ORPHANED, State.STARTING, State.STOPPED}),
    State.STOPPED: frozenset({State.STARTING}),
    State.UNKNOWN: frozenset(
        {State.HEALTHY, State.DEGRADED, State.UNHEALTHY, State.ORPHANED, State.STARTING, State.STOPPED}
    ),
}


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One life of a VMM process. `start_ticks` is field 22 of /proc/PID/stat; `pid_ns` the inode of its namespace."""

    pid: int
    start_ticks: int
    boot_id: str
    machine_id: str
    pid_ns: int


@dataclass(frozen=True, slots=True)
class Vantage:
    """From where a process table is looked at."""

    boot_id: str
    machine_id: str
    pid_ns: int

    def shares_place(self, seen: Incarnation) -> bool:
        """Whether pids of `seen` mean the same here, apart from a reboot in between."""
        return (self.machine_id, self.pid_ns) == (seen.machine_id, seen.pid_ns)


@dataclass(frozen=True, slots=True)
class Episode:
    """All attempts for one loss. Times are Redis server time in ms."""

    id: str
    reason: Reason
    started_ms: int
    attempt: int = 0
    running: bool = False
    attempt_started_ms: int = 0
    next_attempt_ms: int = 0
    spent_ms: int = 0
    error: str | None = None
    request_id: str | None = None
    # Of the request above; only a person's request has any.
    force: Force = Force.PLAIN
    end: EpisodeEnd | None = None
    ended_ms: int = 0

    @property
    def is_open(self) -> bool:
        return self.end is None


@dataclass(frozen=True, slots=True)
class VmRecord:
    """What should be, and what was last known. Only `workers.domain` makes new versions of it."""

    vm_id: str
    host: str
    driver: str
    desired: Desired = Desired.RUNNING
    state: State = State.STARTING
    since_ms: int = 0
    generation: int = 0
    process: Incarnation | None = None
    # Where the API socket of `process` listens when that is not the run directory of its generation (adopted VMMs).
    socket: str | None = None
    fails: int = 0
    passes: int = 0
    doubt: Reason | None = None
    episode: Episode | None = None
    priority: int = 5
    # How the last incarnation ended, where that is known: `exit 0`, `signal 9`.
    last_exit: str | None = None
    # Since version 2. When the record was made: what was forgotten later than that must not rise again.
    created_ms: int = 0
    # Since version 2. The last request of a person that was taken up: each is, once.
    last_request: str | None = None
    # Since version 2. Restarts in a row that were no failure (the guest rebooted), each within the stable period.
    restarts: int = 0
    # Since version 2. What an operator mode kept from being done to it, once that was told (domain.recovery.hold_back).
    held: str | None = None
    # Since version 2. The number of the last wish of its manager that was taken (services.wishes): each is, once.
    wish: int = 0

    @property
    def open_episode(self) -> Episode | None:
        return self.episode if self.episode is not None and self.episode.is_open else None

    @property
    def attempt_running(self) -> bool:
        return self.open_episode is not None and self.open_episode.running

    @property
    def force(self) -> Force:
        """What the request that is being followed overrides."""
        return self.open_episode.force if self.open_episode is not None else Force.PLAIN


def move(record: VmRecord, to: State, *, now_ms: int) -> VmRecord:
    """Return the record in state `to`; the same state is no move. Raises IllegalTransition."""
    if record.state is to:
        return record
    if to not in EDGES[record.state]:
        raise IllegalTransition(record.vm_id, record.state, to)
    return replace(record, state=to, since_ms=now_ms)
