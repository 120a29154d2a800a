"""What the services need from the outside, as small Protocols named by the need; store, vmm and host implement them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from workers.domain.audit import Event
from workers.domain.evidence import Observation
from workers.domain.vm import Incarnation, State, VmRecord
from workers.specs import VmSpec


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it stands in the store. `rev` grows with each write and guards the next one."""

    record: VmRecord
    rev: int
    lease_owner: str | None = None
    checked_ms: int | None = None

    @property
    def leased(self) -> bool:
        return self.lease_owner is not None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one read saw at server time `now_us`. Ids that have no record are in neither mapping."""

    now_us: int
    found: Mapping[str, Stored]
    unreadable: Mapping[str, str] = field(default_factory=dict)

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000


@dataclass(frozen=True, slots=True)
class Take:
    """Take the VM's lease and one slot of its host and one of the fleet, or none of them. Without caps: no slots."""

    owner: str
    ttl_ms: int
    per_host: int | None = None
    per_fleet: int | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One VM's new record, written only if nobody wrote since `rev` was read (0: there must be none).

    `held_by` demands that this owner holds the lease at server time; `release` gives lease and slots back with the
    write. `check_in_ms`: next check after that long, -1 for no more checks, None to leave the schedule alone.
    """

    vm_id: str
    rev: int
    after: VmRecord | None
    events: tuple[Event, ...] = ()
    check_in_ms: int | None = None
    spec: VmSpec | None = None
    take: Take | None = None
    held_by: str | None = None
    release: bool = False


class Outcome(StrEnum):
    DONE = "done"
    STALE = "stale"
    LEASED = "leased"
    NO_SLOT = "no_slot"  # and stands in line from now on
    WAITING = "waiting"  # stood in line already
    SCHEMA = "schema"
    NOT_TRIED = "not_tried"


@dataclass(frozen=True, slots=True)
class Written:
    """One outcome per change, and who is next in line for the slots that were given back: (vm id, host)."""

    outcomes: Sequence[Outcome]
    next_in_line: Sequence[tuple[str, str]] = ()


class VmStore(Protocol):
    """The records. Every method raises StoreUnavailable when the store did not answer in time."""

    def read(self, vm_ids: Collection[str]) -> Snapshot: ...

    def write(self, changes: Sequence[Change], *, seen: Collection[str] = (), all_or_nothing: bool = False) -> Written:
        """Apply each change atomically, in order; `seen` ids only get their time of last check renewed.

        With `all_or_nothing`, one refused change leaves all others NOT_TRIED. Who finds no slot stands in line.
        """
        ...

    def spec(self, vm_id: str) -> VmSpec:
        """Return the spec. Raises UnknownVm, UnreadableRecord."""
        ...

    def unscheduled(self, vm_ids: Sequence[str]) -> list[str]:
        """Return those that no beat would ever check again."""
        ...

    def ids(self, *, host: str | None = None, state: State | None = None) -> list[str]: ...

    def renew(self, vm_id: str, owner: str, ttl_ms: int) -> bool:
        """Prolong lease and slots. False: the lease is not ours any more."""
        ...

    def note(self, events: Sequence[Event]) -> None:
        """Append events that belong to no change of a record."""
        ...


@dataclass(frozen=True, slots=True)
class DueChecks:
    """What one claim handed to this beat: (host, VM ids) per message, and the sweeps that are due as (kind, host)."""

    now_ms: int
    checks: Sequence[tuple[str, Sequence[str]]]
    sweeps: Sequence[tuple[str, str]]
    next_in_ms: int | None


class Schedule(Protocol):
    def claim(self, limit: int) -> DueChecks: ...


class Wakeups(Protocol):
    """Messages to recovery; they may get lost, so nothing depends on one."""

    def recover(
        self, vm_id: str, host: str, *, episode: str | None = None, attempt: int | None = None, delay_ms: int = 0
    ) -> None: ...

    def stop(self, vm_id: str, host: str) -> None: ...


class Telemetry(Protocol):
    """Where decisions become log lines and numbers. Never raises, never waits."""

    def decided(self, events: Sequence[Event]) -> None:
        """These events were written to the audit."""
        ...

    def looked(self, record: VmRecord, seen: Observation) -> None:
        """One VM was checked."""
        ...

    def ignored(self, vm_id: str, why: str) -> None:
        """A message changed nothing: late, doubled, or for another host."""
        ...


@dataclass(frozen=True, slots=True)
class Running:
    """A VMM process found on this host that says it is `vm_id`. `guarded`: it holds the VM's lock file."""

    vm_id: str
    driver: str
    process: Incarnation
    socket: str | None
    guarded: bool
    generation: int | None = None


class Prober(Protocol):
    def probe(self, records: Sequence[VmRecord]) -> Iterable[dict[str, Observation]]:
        """Look at each VM once, all together; groups of observations as they are complete.

        A VM that somebody else is looking at right now is left out.
        """
        ...

    def look_at_process(self, record: VmRecord) -> Observation | None:
        """What the process table alone says against this VM; None when it says nothing. Cheap, does not wait."""
        ...


Renew = Callable[[], None]


class VmHost(Protocol):
    """The processes of this host. Every method may raise Paused where it would signal or spawn."""

    def check_kill_switch(self) -> None:
        """Raises Paused while an operator has stopped every signal and spawn on this host."""
        ...

    def running(self, vm_id: str) -> Running | None:
        """Return the live VMM of this VM, by its lock first, else by what stands in /proc."""
        ...

    def inventory(self) -> list[Running]: ...

    def fence(self, vm_id: str, process: Incarnation, *, before_signal: Renew) -> str:
        """SIGTERM, grace, SIGKILL, through a pidfd whose identity was checked; returns how it ended.

        Gone already is fine. `before_signal` is called before each signal. Raises StopFailed, also where the process
        is no VMM of this VM, whatever the record says.
        """
        ...

    def start(self, spec: VmSpec, generation: int, *, before_exec: Renew, while_waiting: Renew) -> Incarnation:
        """Start and verify a new VMM under the VM's lock. Raises GuardBusy, StaleGeneration, StartFailed."""
        ...
