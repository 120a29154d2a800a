"""Recovery of one VM: guard, fresh look, admission, fence the old, start the new, verify, commit (DESIGN section 4)."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from workers.crashpoints import Point, reach
from workers.domain.audit import Deferral, Event, EventKind, event
from workers.domain.breaker import Call, calls_of
from workers.domain.errors import (
    GuardBusy,
    Held,
    Paused,
    ReliabilityError,
    StaleGeneration,
    StartFailed,
    StopFailed,
    StoreUnavailable,
    Unkillable,
    Unwanted,
)
from workers.domain.evidence import Evidence, Observation, Verdict
from workers.domain.exits import ExitAction
from workers.domain.health import weigh
from workers.domain.modes import Flag, InForce, Mode
from workers.domain.recovery import (
    RECOVER,
    STOP,
    Abandoned,
    Act,
    Exhausted,
    NotYet,
    RecoveryPolicy,
    Requested,
    Stale,
    WakeUp,
    admit,
    attempt_result,
    fail,
    fail_attempt,
    gate,
    held_by,
    hold_back,
    never_again,
    request,
    succeed,
)
from workers.domain.vm import Desired, Force, Incarnation, State, VmRecord
from workers.ports import (
    Change,
    Clock,
    Ignorance,
    Kept,
    Lease,
    Outcome,
    Prober,
    Renew,
    Running,
    Snapshot,
    Stored,
    Take,
    Telemetry,
    VmHost,
    VmStore,
    Work,
)
from workers.services.attempt import Attempt, LeaseLost, WantedAgain, Withdrawn
from workers.services.ledger import Ledger
from workers.services.steps import Steps
from workers.specs import VmSpec, image_of

# A record that changes under our eyes is read again this often before the message is given up to the next sweep.
_TRIES = 5
_BUSY_MS, _LONGEST_BUSY_MS = 20, 1000
_POSTPONED_MS = 5000
# A message that comes sooner than this before its time waits for the rest; any other is a double of one to come.
_EARLY_MS = 1000
# So often a message comes again that could not be followed yet. Then it is left to the sweeps: each of them sends a new
# one, and old ones that never end would grow without bound.
_COMES_AGAIN = 12
_WOULD_LOSE_DATA = (
    "its disks are ephemeral: starting it again would lose their data; set allow_data_loss, then `reliability recover`"
)
_LOST_ATTEMPT = "the worker of this attempt went away"
_FROZEN = "the data in redis are not those this host knows; see `reliability state`"
_CHANGING = "its record keeps changing"
_WHY_NO_STOP = {
    Outcome.FROZEN: (_FROZEN, Ignorance.FROZEN),
    Outcome.HELD: ("an operator mode was set just now", Ignorance.HELD),
}
_SEEN_BY_ATTEMPT = ("an attempt is in flight, which will see the stop", Ignorance.IN_FLIGHT)
_IGNORED = "ignored_messages"


@dataclass(frozen=True, slots=True)
class Ignored:
    """Nothing was changed, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class ForHost:
    """The VM lives on another host, whose worker has to act."""

    host: str


@dataclass(frozen=True, slots=True)
class RetryIn:
    """What is next is written down already; the message only has to come again after `wait_ms`."""

    wait_ms: int
    wake: WakeUp
    why: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """No slot was free, or a breaker is open; the VM stands in line and is woken by who frees one."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The VM is in `state`: healthy, failed or stopped."""

    state: State
    why: str


Result = Ignored | ForHost | RetryIn | Waiting | Finished


class Recovery:
    """`new_owner` gives an id no other attempt ever has; `jitter` a number in [0, 1)."""

    def __init__(
        self,
        store: VmStore,
        host: VmHost,
        prober: Prober,
        ledger: Ledger,
        telemetry: Telemetry,
        *,
        host_name: str,
        policy: RecoveryPolicy,
        clock: Clock,
        watch: Callable[[str, Incarnation], None],
        new_owner: Callable[[], str],
        jitter: Callable[[], float],
    ) -> None:
        self._store, self._host, self._prober = store, host, prober
        self._ledger, self._telemetry = ledger, telemetry
        self._host_name, self._policy, self._clock = host_name, policy, clock
        self._watch, self._new_owner, self._jitter = watch, new_owner, jitter

    def recover(self, vm_id: str, wake: WakeUp) -> Result:
        """Do what this wake-up asks for, if it still means anything. Raises StoreUnavailable."""
        for _ in range(_TRIES):
            snapshot = self._store.read([vm_id], with_specs=True)
            if vm_id not in snapshot.found:
                if vm_id in snapshot.unreadable:
                    return self._ignore(vm_id, snapshot.unreadable[vm_id], Ignorance.UNREADABLE)
                return self._ignore(vm_id, "no such vm", Ignorance.UNKNOWN_VM)
            reach(Point.RECORD_READ)
            stored = snapshot.found[vm_id]
            if stored.record.host != self._host_name:
                return ForHost(stored.record.host)
            try:
                result = self._pass_gate(stored, snapshot, wake)
            except Paused as error:
                # No message waits for the end of a pause: the sweeps find the VM when it is over.
                self._ledger.note(_deferred(stored.record, wake, str(error), Deferral.PAUSED))
                result = self._ignore(vm_id, str(error), Ignorance.PAUSED)
            if result is not None:
                if stored.is_called and _needs_no_slot(result):
                    self._ledger.pass_on(vm_id)
                return result
        return self._ignore(vm_id, _CHANGING, Ignorance.CONTENDED)

    def _pass_gate(self, stored: Stored, snapshot: Snapshot, wake: WakeUp) -> Result | None:
        """None: the record changed, read it again."""
        record, now_ms = stored.record, snapshot.now_ms
        is_on = snapshot.modes.has_on(Flag.RECOVERY, record)
        match gate(record, wake, self._policy, leased=stored.leased, now_ms=now_ms, switched_on=is_on):
            case Stale(why):
                return self._ignore(record.vm_id, why, Ignorance.STALE)
            case NotYet(wait_ms):
                if wait_ms > _EARLY_MS:
                    why = f"too early by {wait_ms} ms: another message comes in time"
                    return self._ignore(record.vm_id, why, Ignorance.EARLY)
                return self._come_again(record.vm_id, wait_ms, wake, "backoff")
            case Exhausted(why):
                error = record.episode.error if record.episode else None
                after, event_ = fail(record, why, now_ms=now_ms, error=error)
                return Finished(after.state, why) if self._write(stored, after, event_) else None
            case Requested():
                reach(Point.BEFORE_REQUEST)
                self._write(stored, *request(record, wake, self._policy, now_ms=now_ms))
                reach(Point.AFTER_REQUEST)
                return None
            case Abandoned() | Act():
                return self._look_and_act(stored, snapshot, wake)

    def _ignore(self, vm_id: str, why: str, cause: Ignorance) -> Ignored:
        self._telemetry.ignored(vm_id, why, cause)
        with suppress(StoreUnavailable):
            self._store.count(_IGNORED)
        return Ignored(why)

    def _write(self, stored: Stored, after: VmRecord, *events: Event, look_again: bool = True) -> bool:
        result = attempt_result(stored.record, after)
        change = Change(after.vm_id, stored.rev, after, events, check_in_ms=0 if look_again else None, result=result)
        return self._ledger.write_one(change) is Outcome.DONE

    def _look_and_act(self, stored: Stored, snapshot: Snapshot, wake: WakeUp) -> Result | None:  # noqa: PLR0911 - one early return per way out
        """A fresh look before anything is done: what lives and serves is kept, what we cannot judge is left alone."""
        record = stored.record
        self._host.check_kill_switch()
        held = held_by(record, snapshot.modes, snapshot.now_ms)
        if held is not None and held.mode is Mode.PAUSED:
            return self._hold_back(stored, held, RECOVER)
        kept = self._host.kept(record.vm_id)
        # Records of version 1 do not say when they were made.
        if record.created_ms and kept.forgotten_ms > record.created_ms:
            return self._let_rest(stored, snapshot)
        try:
            running = self._host.running(record.vm_id)
        except GuardBusy as error:
            return self._postpone(record, wake, str(error))
        found = running.process if running else record.process
        seen = self._look(replace(record, process=found, socket=running.socket if running else record.socket))
        reach(Point.LOOKED)
        if seen is None:
            # Never in step with the checks, which would be under way each time.
            wait_ms = int(min(_LONGEST_BUSY_MS, _BUSY_MS << wake.tries) * (1 + self._jitter()))
            return self._come_again(record.vm_id, wait_ms, wake, "a check of this vm is under way")
        if found is not None and _serves(record, found, seen) and not _may_kill_healthy(record):
            return self._keep(stored, running, found, snapshot)
        if doubt := _why_not_to_act(record, seen, running):
            return self._postpone(record, wake, doubt)
        if held is not None:
            return self._hold_back(stored, held, RECOVER)
        if record.attempt_running:
            return self._write_off(stored, snapshot, wake)
        return self._act(stored, running, kept, snapshot, wake)

    def _hold_back(self, stored: Stored, by: InForce, what: str) -> Result | None:
        """No message waits for the end of a mode: the sweeps find the VM when it is over. None: read it again."""
        told = hold_back(stored.record, by, what)
        if told is not None and not self._write(stored, *told, look_again=False):
            return None
        return self._ignore(stored.record.vm_id, by.words, Ignorance.HELD)

    def _look(self, record: VmRecord) -> Observation | None:
        """None while somebody else is asking its API; whose process has ended has none to be asked."""
        if (against := self._prober.look_at_process(record)) is not None:
            return against
        for group in self._prober.probe([record]):
            return group[record.vm_id]
        return None

    def _postpone(self, record: VmRecord, wake: WakeUp, why: str) -> Result:
        """Nothing is decided and no attempt is spent; the sweeps look again too."""
        if wake.tries == 0:
            self._ledger.note(_deferred(record, wake, why, Deferral.DOUBT))
        wait_ms = min(self._policy.retry_interval_ms, _POSTPONED_MS)
        return self._come_again(record.vm_id, wait_ms, wake, why)

    def _come_again(self, vm_id: str, wait_ms: int, wake: WakeUp, why: str) -> Result:
        if wake.tries >= _COMES_AGAIN:
            return self._ignore(vm_id, f"{why}; left to the next sweep", Ignorance.LEFT_TO_SWEEPS)
        return RetryIn(wait_ms, replace(wake, tries=wake.tries + 1), why)

    def _keep(self, stored: Stored, running: Running | None, process: Incarnation, snapshot: Snapshot) -> Result | None:
        """The VM serves: healthy again, or a VMM the record did not know is taken over."""
        known = process == stored.record.process
        why = "healthy again at a fresh look" if known else f"pid {process.pid} runs and serves this vm: taken over"
        socket = stored.record.socket if known or running is None else running.socket
        after, event_ = succeed(stored.record, process, why=why, now_ms=snapshot.now_ms, socket=socket)
        if not self._write(stored, after, event_):
            return None
        self._watch(after.vm_id, process)
        return Finished(after.state, why)

    def _let_rest(self, stored: Stored, snapshot: Snapshot) -> Result | None:
        """This host knows that the VM was forgotten after this record was made: the data were rolled back."""
        why = "it was forgotten on this host later than this record was made; forget it again, or apply it anew"
        after, event_ = fail(stored.record, why, now_ms=snapshot.now_ms)
        return Finished(after.state, why) if self._write(stored, after, event_) else None

    def _write_off(self, stored: Stored, snapshot: Snapshot, wake: WakeUp) -> Result | None:
        """The worker of the running attempt went away, and what it left behind does not serve."""
        now_ms = snapshot.now_ms
        after, event_ = fail_attempt(stored.record, _LOST_ATTEMPT, self._policy, now_ms=now_ms, jitter=self._jitter())
        return _what_is_next(after, wake, _LOST_ATTEMPT, now_ms) if self._write(stored, after, event_) else None

    def _act(
        self, stored: Stored, running: Running | None, kept: Kept, snapshot: Snapshot, wake: WakeUp
    ) -> Result | None:
        record, spec = stored.record, stored.spec or self._store.spec(stored.record.vm_id)
        if self._would_lose_data(record, spec):
            after, told = fail(record, _WOULD_LOSE_DATA, now_ms=snapshot.now_ms)
            return Finished(after.state, _WOULD_LOSE_DATA) if self._write(stored, after, told) else None
        owner, asked_at = self._new_owner(), self._clock.monotonic()
        after, started = admit(record, wake, self._policy, now_us=snapshot.now_us, seen_generation=kept.generation)
        take = Take(owner, self._policy.lease_ms, self._calls(record, spec), forced=record.force is not Force.PLAIN)
        reach(Point.BEFORE_ADMISSION)
        match self._ledger.write_one(Change(after.vm_id, stored.rev, after, (started,), take=take)):
            case Outcome.DONE:
                reach(Point.AFTER_ADMISSION)
                return self._carry_out(self._attempt(after, owner, asked_at), after, spec, running, wake)
            case Outcome.WAITING:
                return Waiting()
            case Outcome.LEASED:
                return self._ignore(after.vm_id, "an attempt is in flight", Ignorance.IN_FLIGHT)
            case Outcome.FROZEN:
                return self._ignore(after.vm_id, _FROZEN, Ignorance.FROZEN)
            case _:
                return None

    def _calls(self, record: VmRecord, spec: VmSpec) -> tuple[Call, ...]:
        if not self._policy.breakers:
            return ()
        driver = self._host.driver_version(record.driver)
        return calls_of(record.vm_id, host=record.host, image=image_of(spec), driver=driver)

    def _attempt(self, record: VmRecord, owner: str, asked_at: float) -> Attempt:
        return Attempt(
            record.vm_id,
            Lease(owner, record.generation),
            asked_at,
            store=self._store,
            ledger=self._ledger,
            policy=self._policy,
            clock=self._clock,
        )

    def _carry_out(
        self, attempt: Attempt, record: VmRecord, spec: VmSpec, running: Running | None, wake: WakeUp
    ) -> Result:
        with self._telemetry.span(Work.ATTEMPT, record):
            return self._fence_and_start(attempt, record, spec, running, wake)

    def _fence_and_start(
        self, attempt: Attempt, record: VmRecord, spec: VmSpec, running: Running | None, wake: WakeUp
    ) -> Result:
        vm_id = record.vm_id
        new: Incarnation | None = None
        try:
            with Steps(self._telemetry, record) as steps:
                steps.begin(Work.FENCE)
                self._fence(record, running, before_signal=attempt.still_wanted)
                reach(Point.FENCED)
                attempt.keep()
                new = self._start(attempt, record, spec, steps)
                steps.begin(Work.COMMIT)
                after = attempt.commit(new, f"pid {new.pid} serves, generation {record.generation}")
        except (StartFailed, StopFailed, GuardBusy, StaleGeneration, Paused, Held, Unwanted) as error:
            return self._failed(attempt, record, error, wake)
        except Withdrawn as error:
            return self._withdraw(attempt, vm_id, new, str(error))
        except (LeaseLost, StoreUnavailable) as error:
            # Whatever runs holds its lock, and is found and taken over by the next look.
            return self._ignore(vm_id, str(error), _cause_of(error))
        self._watch(vm_id, new)
        return Finished(after.state, "recovered")

    def _start(self, attempt: Attempt, record: VmRecord, spec: VmSpec, steps: Steps) -> Incarnation:
        def before_exec() -> None:
            attempt.still_wanted()
            steps.begin(Work.VERIFY)

        steps.begin(Work.START)
        return self._host.start(spec, record.generation, before_exec=before_exec, while_waiting=attempt.keep)

    def _fence(self, record: VmRecord, running: Running | None, *, before_signal: Renew) -> None:
        """The recorded process, and one that runs and that the record does not know."""
        targets = {process for process in (record.process, running.process if running else None) if process}
        for process in targets:
            self._host.fence(record.vm_id, process, before_signal=before_signal)

    def _would_lose_data(self, record: VmRecord, spec: VmSpec) -> bool:
        """The same persistent disks may always be started again; ephemeral ones start empty, which is a loss."""
        first_start = record.state is State.STARTING and record.process is None
        return spec.durability.disks == "ephemeral" and not first_start and not self._policy.allow_data_loss

    def _failed(self, attempt: Attempt, record: VmRecord, error: ReliabilityError, wake: WakeUp) -> Result:
        why = str(error)
        try:
            if hopeless := self._why_hopeless(record, error):
                return Finished(attempt.give_up(hopeless).state, hopeless)
            after, now_ms = attempt.fail(why, self._jitter(), counts=not isinstance(error, Paused | Held | Unwanted))
        except Withdrawn as withdrawn:
            return self._withdraw(attempt, record.vm_id, None, str(withdrawn))
        except LeaseLost as lost:
            return self._ignore(record.vm_id, str(lost), Ignorance.LEASE_LOST)
        return _what_is_next(after, wake, why, now_ms)

    def _why_hopeless(self, record: VmRecord, error: ReliabilityError) -> str | None:
        """What no further attempt can change."""
        if isinstance(error, Unkillable):
            return str(error)
        if isinstance(error, StartFailed) and (
            self._policy.crash.action_for(record.driver, error.cause) is ExitAction.NEVER
        ):
            return f"{error}; {never_again(error.cause)}"
        return None

    def _withdraw(self, attempt: Attempt, vm_id: str, new: Incarnation | None, why: str) -> Result:
        """A stop came meanwhile and wins: what was started, or could not be fenced before, is stopped again."""
        try:
            running = self._host.running(vm_id)
            if running is not None and running.guarded:
                self._host.fence(vm_id, running.process, before_signal=attempt.still_unwanted)
            self._end_stopped(attempt, vm_id, why, started_meanwhile=new is not None)
        except (StopFailed, Paused, Held, GuardBusy, WantedAgain) as error:
            return self._not_stopped(attempt, vm_id, str(error))
        except (LeaseLost, StoreUnavailable) as error:
            return self._ignore(vm_id, str(error), _cause_of(error))
        return Finished(State.STOPPED, why)

    def _end_stopped(self, attempt: Attempt, vm_id: str, why: str, *, started_meanwhile: bool = False) -> None:
        at_ms = attempt.end_stopped(why, started_meanwhile=started_meanwhile)
        if at_ms is not None:
            self._host.note_stopped(vm_id, at_ms)

    def stop(self, vm_id: str) -> Result:
        """Bring a VM down whose desired state is `stopped`. Raises StoreUnavailable."""
        snapshot = self._store.read([vm_id])
        stored = snapshot.found.get(vm_id)
        if stored is None or stored.record.desired is not Desired.STOPPED or stored.record.state is State.STOPPED:
            return self._ignore(vm_id, "nothing to stop", Ignorance.STALE)
        record = stored.record
        if record.host != self._host_name:
            return ForHost(record.host)
        if (held := snapshot.modes.in_force(record, snapshot.now_ms)) is not None:
            return self._hold_back(stored, held, STOP) or self._ignore(vm_id, _CHANGING, Ignorance.CONTENDED)
        owner, asked_at = self._new_owner(), self._clock.monotonic()
        # Stopping costs no slot: caps are for what starts VMs.
        reach(Point.BEFORE_STOP)
        outcome = self._ledger.write_one(Change(vm_id, stored.rev, record, take=Take(owner, self._policy.lease_ms)))
        reach(Point.AFTER_STOP)
        if outcome is not Outcome.DONE:
            return self._ignore(vm_id, *_WHY_NO_STOP.get(outcome, _SEEN_BY_ATTEMPT))
        return self._bring_down(self._attempt(record, owner, asked_at), record)

    def _bring_down(self, attempt: Attempt, record: VmRecord) -> Result:
        try:
            running = self._host.running(record.vm_id)
            guarded = running if running and running.guarded else None
            self._fence(record, guarded, before_signal=attempt.still_unwanted)
            self._end_stopped(attempt, record.vm_id, "stopped as desired")
        except (StopFailed, Paused, Held, GuardBusy, WantedAgain) as error:
            return self._not_stopped(attempt, record.vm_id, str(error))
        except (LeaseLost, StoreUnavailable) as error:
            return self._ignore(record.vm_id, str(error), _cause_of(error))
        return Finished(State.STOPPED, "stopped as desired")

    def _not_stopped(self, attempt: Attempt, vm_id: str, why: str) -> Ignored:
        """The sweeps try again."""
        with suppress(LeaseLost, StoreUnavailable):
            attempt.let_go(why)
        return self._ignore(vm_id, why, Ignorance.NOT_STOPPED)


def _cause_of(error: LeaseLost | StoreUnavailable) -> Ignorance:
    return Ignorance.LEASE_LOST if isinstance(error, LeaseLost) else Ignorance.STORE_AWAY


def _deferred(record: VmRecord, wake: WakeUp, why: str, cause: Deferral) -> Event:
    return event(EventKind.DEFERRED, record, actor=wake.actor, why=why, cause=cause)


def _needs_no_slot(result: Result) -> bool:
    """Whether the slot that was kept for this VM would stay unused for longer than a moment."""
    comes_late = isinstance(result, RetryIn) and result.wait_ms > 2 * _LONGEST_BUSY_MS
    return comes_late or isinstance(result, Ignored | ForHost)


def _what_is_next(after: VmRecord, wake: WakeUp, why: str, now_ms: int) -> Result:
    """After a failed attempt: wait for the next one, or nothing more."""
    episode = after.open_episode
    if episode is None:
        return Finished(after.state, why)
    again = WakeUp(episode=episode.id, attempt=episode.attempt + 1, actor=wake.actor)
    return RetryIn(max(0, episode.next_attempt_ms - now_ms), again, why)


def _serves(record: VmRecord, found: Incarnation, seen: Observation) -> bool:
    """A VMM the record does not know must run the guest: a start that was cut short leaves one that only answers."""
    return seen.evidence is Evidence.ANSWERS or (seen.ruling.verdict is Verdict.PASS and found == record.process)


def _may_kill_healthy(record: VmRecord) -> bool:
    """A person said so, and the attempt that this is for has not begun."""
    return record.force is Force.KILL_HEALTHY and not record.attempt_running


def _why_not_to_act(record: VmRecord, seen: Observation, running: Running | None) -> str | None:
    """What is not certainly ours, or not certainly sick, is not touched."""
    if weigh(record, seen).ruling.verdict is Verdict.INCONCLUSIVE:
        return f"{seen.evidence}: {seen.detail}"
    if running and not running.guarded and running.process != record.process:
        return f"pid {running.process.pid} says it is this vm, unguarded and unknown"
    return None
