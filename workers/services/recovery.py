"""Recovery of one VM: guard, fresh look, admission, fence the old, start the new, verify, commit (DESIGN section 4)."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from workers.domain.audit import Event, EventKind, event
from workers.domain.errors import (
    GuardBusy,
    Paused,
    StaleGeneration,
    StartFailed,
    StopFailed,
    StoreUnavailable,
    UnknownVm,
    UnreadableRecord,
)
from workers.domain.evidence import Evidence, Observation, Verdict
from workers.domain.health import weigh
from workers.domain.recovery import (
    Abandoned,
    Act,
    Exhausted,
    NotYet,
    RecoveryPolicy,
    Stale,
    WakeUp,
    admit,
    fail,
    fail_attempt,
    gate,
    succeed,
)
from workers.domain.vm import Desired, Incarnation, Reason, State, VmRecord
from workers.ports import Change, Outcome, Prober, Running, Snapshot, Stored, Take, Telemetry, VmHost, VmStore, Wakeups
from workers.services.attempt import Attempt, LeaseLost, Withdrawn
from workers.specs import VmSpec

# A record that changes under our eyes is read again this often before the message is given up to the next sweep.
_TRIES = 5
_BUSY_MS = 20
_WOULD_LOSE_DATA = (
    "its disks are ephemeral: starting it again would lose their data; set allow_data_loss, then `reliability recover`"
)
_LOST_ATTEMPT = "the worker of this attempt went away"


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
    """No slot was free; the VM stands in line and is woken by who frees one."""


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
        wakeups: Wakeups,
        telemetry: Telemetry,
        *,
        host_name: str,
        policy: RecoveryPolicy,
        watch: Callable[[str, Incarnation], None],
        new_owner: Callable[[], str],
        jitter: Callable[[], float],
    ) -> None:
        self._store, self._host, self._prober = store, host, prober
        self._wakeups, self._telemetry = wakeups, telemetry
        self._host_name, self._policy = host_name, policy
        self._watch, self._new_owner, self._jitter = watch, new_owner, jitter

    def recover(self, vm_id: str, wake: WakeUp) -> Result:
        """Do what this wake-up asks for, if it still means anything. Raises StoreUnavailable."""
        for _ in range(_TRIES):
            snapshot = self._store.read([vm_id])
            if vm_id not in snapshot.found:
                return self._ignore(vm_id, snapshot.unreadable.get(vm_id, "no such vm"))
            stored = snapshot.found[vm_id]
            if stored.record.host != self._host_name:
                return ForHost(stored.record.host)
            try:
                result = self._pass_gate(stored, snapshot, wake)
            except Paused as error:
                # No message waits for the end of a pause: the sweeps find the VM when it is over.
                self._tell(event(EventKind.DEFERRED, stored.record, actor=wake.actor, why=str(error)))
                return self._ignore(vm_id, str(error))
            if result is not None:
                return result
        return self._ignore(vm_id, "its record keeps changing")

    def _pass_gate(self, stored: Stored, snapshot: Snapshot, wake: WakeUp) -> Result | None:
        """None: the record changed, read it again."""
        record, now_ms = stored.record, snapshot.now_ms
        match gate(record, wake, self._policy, leased=stored.leased, now_ms=now_ms):
            case Stale(why):
                return self._ignore(record.vm_id, why)
            case NotYet(wait_ms):
                return RetryIn(wait_ms, wake, "backoff")
            case Exhausted(why):
                after, event_ = fail(record, why, now_ms=now_ms)
                return Finished(after.state, why) if self._write(stored, after, event_) else None
            case Abandoned():
                after, event_ = fail_attempt(record, _LOST_ATTEMPT, self._policy, now_ms=now_ms, jitter=self._jitter())
                return self._look_and_act(stored, (after, event_), snapshot, wake)
            case Act():
                return self._look_and_act(stored, None, snapshot, wake)

    def _ignore(self, vm_id: str, why: str) -> Ignored:
        self._telemetry.ignored(vm_id, why)
        return Ignored(why)

    def _write(self, stored: Stored, after: VmRecord, *events: Event) -> bool:
        change = Change(after.vm_id, stored.rev, after, events, check_in_ms=0)
        written = self._store.write([change])
        if written.outcomes[0] is Outcome.DONE:
            self._telemetry.decided(events)
        return written.outcomes[0] is Outcome.DONE

    def _look_and_act(
        self, stored: Stored, lost_attempt: tuple[VmRecord, Event] | None, snapshot: Snapshot, wake: WakeUp
    ) -> Result | None:
        """A fresh look before anything is done: what lives and serves is kept, what we cannot judge is left alone."""
        record = stored.record
        self._host.check_kill_switch()
        try:
            running = self._host.running(record.vm_id)
        except GuardBusy as error:
            return self._postpone(record, wake, str(error))
        found = running.process if running else record.process
        seen = self._look(replace(record, process=found, socket=running.socket if running else record.socket))
        if seen is None:
            return RetryIn(_BUSY_MS, wake, "a check of this vm is under way")
        if found is not None and _serves(record, found, seen):
            return self._keep(stored, running, found, snapshot)
        if doubt := _why_not_to_act(record, seen, running):
            return self._postpone(record, wake, doubt)
        if lost_attempt is not None:
            self._write(stored, *lost_attempt)
            return None
        return self._act(stored, running, snapshot, wake)

    def _look(self, record: VmRecord) -> Observation | None:
        for group in self._prober.probe([record]):
            return group[record.vm_id]
        return None

    def _postpone(self, record: VmRecord, wake: WakeUp, why: str) -> RetryIn:
        """Nothing is decided and no attempt is spent; the sweeps look again too."""
        self._tell(event(EventKind.DEFERRED, record, actor=wake.actor, why=why))
        return RetryIn(min(self._policy.retry_interval_ms, 5000), wake, why)

    def _tell(self, event_: Event) -> None:
        self._store.note([event_])
        self._telemetry.decided([event_])

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

    def _act(self, stored: Stored, running: Running | None, snapshot: Snapshot, wake: WakeUp) -> Result | None:
        owner, asked_at = self._new_owner(), time.monotonic()
        after, started = admit(stored.record, wake, self._policy, now_us=snapshot.now_us)
        policy = self._policy
        take = Take(owner, policy.lease_ms, policy.per_host, policy.per_fleet)
        written = self._store.write([Change(after.vm_id, stored.rev, after, (started,), take=take)])
        match written.outcomes[0]:
            case Outcome.DONE:
                self._telemetry.decided([started])
                attempt = self._attempt(after.vm_id, owner, asked_at)
                return self._carry_out(attempt, after, running, wake)
            case Outcome.NO_SLOT:
                self._tell(event(EventKind.DEFERRED, stored.record, actor=wake.actor, why="no free recovery slot"))
                return Waiting()
            case Outcome.WAITING:
                return Waiting()
            case Outcome.LEASED:
                return self._ignore(after.vm_id, "an attempt is in flight")
            case _:
                return None

    def _attempt(self, vm_id: str, owner: str, asked_at: float) -> Attempt:
        return Attempt(
            vm_id,
            owner,
            asked_at,
            store=self._store,
            wakeups=self._wakeups,
            telemetry=self._telemetry,
            policy=self._policy,
        )

    def _carry_out(self, attempt: Attempt, record: VmRecord, running: Running | None, wake: WakeUp) -> Result:
        vm_id = record.vm_id
        new: Incarnation | None = None
        try:
            spec = self._store.spec(vm_id)
            if self._would_lose_data(record, spec):
                return Finished(attempt.give_up(_WOULD_LOSE_DATA).state, _WOULD_LOSE_DATA)
            self._fence(attempt, record, running)
            attempt.keep()
            new = self._host.start(
                spec, record.generation, before_exec=attempt.still_wanted, while_waiting=attempt.keep
            )
            after = attempt.commit(new, f"pid {new.pid} serves, generation {record.generation}")
        except (StartFailed, StopFailed, GuardBusy, StaleGeneration, Paused, UnreadableRecord, UnknownVm) as error:
            return self._failed(attempt, vm_id, str(error), wake)
        except Withdrawn as error:
            return self._withdraw(attempt, vm_id, new, str(error))
        except (LeaseLost, StoreUnavailable) as error:
            # Whatever runs holds its lock, and is found and taken over by the next look.
            return self._ignore(vm_id, str(error))
        self._watch(vm_id, new)
        return Finished(after.state, "recovered")

    def _fence(self, attempt: Attempt, record: VmRecord, running: Running | None) -> None:
        """The recorded process, and a guarded one that the record does not know and that does not serve."""
        targets = {process for process in (record.process, running.process if running else None) if process}
        for process in targets:
            self._host.fence(record.vm_id, process, before_signal=attempt.keep)

    def _would_lose_data(self, record: VmRecord, spec: VmSpec) -> bool:
        """The same persistent disks may always be started again; ephemeral ones start empty, which is a loss."""
        first_start = record.episode is not None and record.episode.reason is Reason.NOT_STARTED
        return spec.durability.disks == "ephemeral" and not first_start and not self._policy.allow_data_loss

    def _failed(self, attempt: Attempt, vm_id: str, error: str, wake: WakeUp) -> Result:
        try:
            after, now_ms = attempt.fail(error, self._jitter())
        except Withdrawn as withdrawn:
            return self._withdraw(attempt, vm_id, None, str(withdrawn))
        except LeaseLost as lost:
            return self._ignore(vm_id, str(lost))
        episode = after.open_episode
        if episode is None:
            return Finished(after.state, error)
        again = WakeUp(episode=episode.id, attempt=episode.attempt + 1, actor=wake.actor)
        return RetryIn(episode.next_attempt_ms - now_ms, again, error)

    def _withdraw(self, attempt: Attempt, vm_id: str, new: Incarnation | None, why: str) -> Result:
        """A stop came meanwhile and wins: what was started, or could not be fenced before, is stopped again."""
        try:
            running = self._host.running(vm_id)
            if running is not None and running.guarded:
                self._host.fence(vm_id, running.process, before_signal=attempt.keep)
            attempt.end_stopped(why, started_meanwhile=new is not None)
        except (LeaseLost, StoreUnavailable, StopFailed, Paused, GuardBusy) as error:
            return self._ignore(vm_id, str(error))
        return Finished(State.STOPPED, why)

    def stop(self, vm_id: str) -> Result:
        """Bring a VM down whose desired state is `stopped`. Raises StoreUnavailable."""
        snapshot = self._store.read([vm_id])
        stored = snapshot.found.get(vm_id)
        if stored is None or stored.record.desired is not Desired.STOPPED or stored.record.state is State.STOPPED:
            return self._ignore(vm_id, "nothing to stop")
        record = stored.record
        if record.host != self._host_name:
            return ForHost(record.host)
        owner, asked_at = self._new_owner(), time.monotonic()
        # Stopping costs no slot: caps are for what starts VMs.
        take = Take(owner, self._policy.lease_ms)
        if self._store.write([Change(vm_id, stored.rev, record, take=take)]).outcomes[0] is not Outcome.DONE:
            return self._ignore(vm_id, "an attempt is in flight, which will see the stop")
        return self._bring_down(self._attempt(vm_id, owner, asked_at), record)

    def _bring_down(self, attempt: Attempt, record: VmRecord) -> Result:
        try:
            running = self._host.running(record.vm_id)
            self._fence(attempt, record, running if running and running.guarded else None)
            attempt.end_stopped("stopped as desired")
        except (LeaseLost, StoreUnavailable, StopFailed, Paused, GuardBusy) as error:
            return self._ignore(record.vm_id, str(error))
        return Finished(State.STOPPED, "stopped as desired")


def _serves(record: VmRecord, found: Incarnation, seen: Observation) -> bool:
    """A VMM the record does not know must run the guest: a start that was cut short leaves one that only answers."""
    return seen.evidence is Evidence.ANSWERS or (seen.ruling.verdict is Verdict.PASS and found == record.process)


def _why_not_to_act(record: VmRecord, seen: Observation, running: Running | None) -> str | None:
    """What is not certainly ours, or not certainly sick, is not touched."""
    if weigh(record, seen).ruling.verdict is Verdict.INCONCLUSIVE:
        return f"{seen.evidence}: {seen.detail}"
    if running and not running.guarded and running.process != record.process:
        return f"pid {running.process.pid} says it is this vm, unguarded and unknown"
    return None
