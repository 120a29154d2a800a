"""What the services need from the outside, as small Protocols named by the need; store, vmm and host implement them."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol

from workers.domain.audit import Event
from workers.domain.breaker import BreakerPolicy, Call, Result
from workers.domain.epoch import Found, Known
from workers.domain.evidence import Observation
from workers.domain.modes import NO_MODES, Modes, Scope
from workers.domain.storm import Loss, StormPolicy
from workers.domain.strays import StrayPolicy
from workers.domain.vm import Incarnation, State, VmRecord
from workers.specs import VmSpec


@dataclass(frozen=True, slots=True)
class Limits:
    """What keeps recovery within bounds. Durations in ms; `call_ms`: how long a slot is kept for whom it is offered."""

    per_host: int
    per_fleet: int
    lease_ms: int
    call_ms: int
    events_kept: int
    breaker: BreakerPolicy
    storm: StormPolicy


@dataclass(frozen=True, slots=True)
class Lease:
    """`owner` is unique per attempt. `token` is the generation under which it acts; later attempts have higher ones."""

    owner: str
    token: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A record as it stands in the store. `rev` grows with each write and guards the next one.

    `waits_for` is the place in whose line the VM stands (`fleet`, `host:<h>`, `breaker:<scope>`); `is_called`: a slot
    is kept for it.
    """

    record: VmRecord
    rev: int
    lease_owner: str | None = None
    checked_ms: int | None = None
    waits_for: str | None = None
    is_called: bool = False
    version: int = 0
    spec: VmSpec | None = None

    @property
    def leased(self) -> bool:
        return self.lease_owner is not None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one read saw at server time `now_us`. Ids that have no record are in neither mapping."""

    now_us: int
    found: Mapping[str, Stored]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    # Of the VMs that were found, of their hosts and of the fleet.
    modes: Modes = NO_MODES

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000


@dataclass(frozen=True, slots=True)
class Take:
    """Take the VM's lease, a slot of its host and one of the fleet, and the admission of all its breakers; or nothing.

    `calls` are the breakers and what the attempt counts for in each. None: only the lease (a stop needs no more). The
    token of the lease is the generation of the change's record. `forced`: a person's request goes before caps,
    breakers, storms and modes; never before a quarantine.
    """

    owner: str
    ttl_ms: int
    calls: tuple[Call, ...] | None = None
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """One VM's new record, written only if nobody wrote since `rev` was read (0: there must be none).

    `held_by` demands that this lease holds at server time; `release` gives lease, slots and probes back with the write,
    and `result` says how the attempt ended. `check_in_ms`: next check after that long, -1 for no more checks, None to
    leave the schedule alone. `enlist`: the VM needs an attempt now, and stands in line from here on. `loss`: it was
    lost with this write.
    """

    vm_id: str
    rev: int
    after: VmRecord | None
    events: tuple[Event, ...] = ()
    check_in_ms: int | None = None
    spec: VmSpec | None = None
    take: Take | None = None
    held_by: Lease | None = None
    release: bool = False
    result: Result | None = None
    enlist: bool = False
    loss: Loss | None = None


class Outcome(StrEnum):
    DONE = "done"
    STALE = "stale"
    LEASED = "leased"  # by somebody else; or not by the one who has to hold it
    WAITING = "waiting"  # for a slot or a breaker, in line
    FROZEN = "frozen"  # the data are not those that this host knows
    HELD = "held"  # by an operator mode
    SCHEMA = "schema"
    NOT_TRIED = "not_tried"


@dataclass(frozen=True, slots=True)
class Called:
    """A slot is kept for this VM: its host should be told. `attempt` is the one that it is for."""

    vm_id: str
    host: str
    episode: str | None = None
    attempt: int | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """One outcome per change; who was called; what the store itself decided (waiting, breakers, storms).

    `intact`: the data are those that this host knows, or it knows none.
    """

    outcomes: Sequence[Outcome] = ()
    called: Sequence[Called] = ()
    told: Sequence[Event] = ()
    intact: bool = True


@dataclass(frozen=True, slots=True)
class Confirmed:
    """What one `confirm` did at server time `now_us`; `left` are the VMs that are not as they were thought to be.

    `intact`: the data are those that this host knows, or it knows none.
    """

    now_us: int
    left: Collection[str] = ()
    intact: bool = True

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000


class VmStore(Protocol):
    """The records. Every method raises StoreUnavailable when the store did not answer in time."""

    def read(self, vm_ids: Collection[str], *, with_specs: bool = False) -> Snapshot: ...

    def write(
        self,
        changes: Sequence[Change],
        *,
        seen: Collection[str] = (),
        enlist: Collection[str] = (),
        all_or_nothing: bool = False,
    ) -> Written:
        """Apply each change atomically, in order; `seen` ids only get their time of last check renewed.

        `enlist` ids are put in line for an attempt, unless they stand there, are called, or have one. With
        `all_or_nothing`, one refused change leaves all others NOT_TRIED. Who is not admitted stands in line.
        """
        ...

    def confirm(self, host: str, known: Mapping[str, int]) -> Confirmed:
        """Renew the time of last check of those of this host's VMs whose record has the revision that is given here.

        The others are left: somebody wrote, a mode is in force or a switch set on them, or the data are not those
        that this host knows.
        """
        ...

    def pass_on(self, vm_id: str) -> Written:
        """The slot that is kept for this VM goes to the next one: it came, and needs none."""
        ...

    def tend(self, host: str) -> Written:
        """Look after what time alone brings about: slots nobody came for, cool-downs, storms that are over."""
        ...

    def spec(self, vm_id: str) -> VmSpec:
        """Return the spec. Raises UnknownVm, UnreadableRecord."""
        ...

    def unscheduled(self, vm_ids: Sequence[str]) -> list[str]:
        """Return those that no beat would ever check again."""
        ...

    def ids(self, *, host: str | None = None, state: State | None = None) -> list[str]: ...

    def forgotten(self, vm_ids: Sequence[str]) -> dict[str, int]:
        """Return those that were forgotten and are not registered since, with server time in ms."""
        ...

    def renew(self, vm_id: str, lease: Lease, ttl_ms: int) -> bool:
        """Prolong lease, slots and probes. False: the lease is not ours any more."""
        ...

    def note(self, events: Sequence[Event]) -> None:
        """Append events that belong to no change of a record."""
        ...

    def count(self, what: str) -> None:
        """Add one to a counter of the fleet."""
        ...


@dataclass(frozen=True, slots=True)
class Halt:
    """Why a host recovers nothing now. `epoch` is the one it knows, where it does not trust the data."""

    why: str
    epoch: str = ""
    frozen: bool = False


class ModeStore(Protocol):
    """Operator modes and run-time flags. Every method raises StoreUnavailable."""

    def modes(self, scopes: Collection[str]) -> tuple[int, Modes]:
        """Server time in ms, and what is set on these scopes."""
        ...

    def all_modes(self) -> tuple[int, Modes]:
        """Server time in ms, and every scope on which anything is set."""
        ...

    def put_scope(self, name: str, before: Scope, after: Scope, told: Event) -> bool:
        """Write if nobody wrote since `before` was read, together with its event. False: read again."""
        ...


class Data(Protocol):
    """The life of the data in the store. Every method raises StoreUnavailable."""

    def look(self, known: Known | None) -> Found: ...

    def begin(self, known: Known | None) -> Found:
        """Give the data an epoch if they have none, and look."""
        ...

    def confirm(self, told: Event) -> Found:
        """Begin another epoch, which follows this one and those the halted hosts know; `told` says who and why."""
        ...

    def halt(self, host: str, halt: Halt | None) -> None:
        """Say that this host recovers nothing now, so that no slot is kept for its VMs; None: it does again."""
        ...


class Memory(Protocol):
    """What this host remembers of the data."""

    @property
    def known(self) -> Known | None: ...

    def saw(self, event_id: str) -> None: ...

    def trust(self, known: Known) -> None: ...

    def save(self) -> None:
        """Keep it over a restart. Raises OSError."""
        ...


@dataclass(frozen=True, slots=True)
class DueChecks:
    """What one claim handed to this beat: (host, VM ids) per message, and the sweeps that are due as (kind, host).

    `late_ms`: for how long the first of them had been due.
    """

    now_ms: int
    checks: Sequence[tuple[str, Sequence[str]]]
    sweeps: Sequence[tuple[str, str]]
    next_in_ms: int | None
    late_ms: int = 0


class Schedule(Protocol):
    def claim(self, limit: int) -> DueChecks: ...


class Wakeups(Protocol):
    """Messages to recovery; they may get lost, so nothing depends on one."""

    def recover(
        self, vm_id: str, host: str, *, episode: str | None = None, attempt: int | None = None, delay_ms: int = 0
    ) -> None: ...

    def stop(self, vm_id: str, host: str) -> None: ...


class Clock(Protocol):
    """Time as it passes on this host, also while the host sleeps; nobody can set it."""

    def monotonic(self) -> float: ...

    def sleep(self, seconds: float) -> None: ...


class Work(StrEnum):
    """What takes time and is told as a whole: the names of spans."""

    HEALTH_CHECK = "vm_health_check"
    DEATHS = "vm_deaths"
    DETECT_ORPHANS = "detect_orphans"
    RECONCILE = "reconcile"
    ATTEMPT = "recovery_attempt"
    FENCE = "fence"
    START = "start"
    VERIFY = "verify"
    COMMIT = "commit"


class Ignorance(StrEnum):
    """Why a message changed nothing."""

    STALE = "stale"
    EARLY = "early"
    IN_FLIGHT = "in_flight"
    UNKNOWN_VM = "unknown_vm"
    UNREADABLE = "unreadable"
    CONTENDED = "contended"
    LEFT_TO_SWEEPS = "left_to_sweeps"
    PAUSED = "paused"
    HELD = "held"
    FROZEN = "frozen"
    LEASE_LOST = "lease_lost"
    STORE_AWAY = "store_away"
    NOT_STOPPED = "not_stopped"


class Telemetry(Protocol):
    """Where decisions become log lines, numbers and spans. Never raises, never waits."""

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        """These events were written to the audit, with `record` as it was written by the same change."""
        ...

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        """These VMs were looked at, whose records were read before, at server time `now_ms`."""
        ...

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        """A message, or a record, changed nothing."""
        ...

    def checks_came(self, age_ms: int) -> None:
        """A message that asks for checks arrived, so long after it was sent."""
        ...

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        """What happens inside is one piece of work, for the VM of `record` where it is for one."""
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
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class StrayFound:
    """A VMM that no record names, what was decided about it, and why."""

    running: Running
    decision: StrayPolicy
    why: str


class Ended(NamedTuple):
    """An incarnation that ended, with its cause where that is known, and how long ago the kernel told."""

    process: Incarnation
    cause: str | None = None
    age_ms: float = 0.0


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


@dataclass(frozen=True, slots=True)
class Kept:
    """What this host has kept of a VM, Redis or no Redis. Times are server time in ms, 0 for never.

    `generation` is the highest that was ever begun here; `spec` what it was begun with; `process` who it was, and
    `served` whether it was ever seen to serve: a start may have been cut short.
    """

    vm_id: str
    generation: int = 0
    driver: str = ""
    spec: VmSpec | None = None
    process: Incarnation | None = None
    served: bool = False
    stopped_ms: int = 0
    forgotten_ms: int = 0


class VmHost(Protocol):
    """The processes and run directories of this host. Whoever signals or spawns may raise Paused."""

    def check_kill_switch(self) -> None:
        """Raises Paused while an operator has stopped every signal and spawn on this host."""
        ...

    def running(self, vm_id: str) -> Running | None:
        """Return the live VMM of this VM, by its lock first, else by what stands in /proc."""
        ...

    def inventory(self) -> list[Running]: ...

    def driver_version(self, driver: str) -> str:
        """Return `name@version` of the driver's program as it is installed now."""
        ...

    def kept(self, vm_id: str) -> Kept: ...

    def all_kept(self) -> list[str]:
        """Every VM that has a run directory here."""
        ...

    def note_stopped(self, vm_id: str, at_ms: int) -> None:
        """Keep that this VM was brought down on purpose; the next start takes it back."""
        ...

    def note_forgotten(self, vm_id: str, at_ms: int) -> None:
        """Keep that this VM was forgotten: a record older than that does not bring it back."""
        ...

    def tidy(self, vm_id: str) -> bool:
        """Drop sockets and old generations of a VM that has no live VMM, under its lock. False: somebody holds it."""
        ...

    def fence(self, vm_id: str, process: Incarnation, *, before_signal: Renew) -> str:
        """SIGTERM, grace, SIGKILL, through a pidfd whose identity was checked; returns how it ended.

        Gone already is fine. `before_signal` is called before each signal. Raises StopFailed, also where the process
        is no VMM of this VM, whatever the record says, and Unkillable where it outlives SIGKILL.
        """
        ...

    def start(self, spec: VmSpec, generation: int, *, before_exec: Renew, while_waiting: Renew) -> Incarnation:
        """Start and verify a new VMM under the VM's lock. Raises GuardBusy, StaleGeneration, StartFailed."""
        ...
