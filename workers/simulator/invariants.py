"""What must never happen (DESIGN section 3), watched from outside the services while a simulated fleet runs.

Leases are followed by what the store granted, not by what it says later: also when its data are lost or rolled back,
no two attempts may believe in the same VM.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from workers.domain.audit import EventKind
from workers.domain.breaker import BreakerState
from workers.domain.modes import Modes
from workers.domain.recovery import needs_attempt
from workers.domain.vm import Desired, Force, State, VmRecord
from workers.ports import Change, Lease, Outcome, Snapshot, Written
from workers.simulator.host import SimVmm
from workers.simulator.machine import HostStore, Machine
from workers.simulator.worker import SimWorker

if TYPE_CHECKING:
    from workers.simulator.world import World


class Violation(AssertionError):
    """Something happened that must never happen."""


@dataclass
class _Grant:
    """A lease as it was given out."""

    worker: SimWorker
    owner: str
    generation: int
    ends_us: int
    takes_slot: bool
    may_kill_healthy: bool = False


@dataclass
class Invariants:
    """Attached to a world before it starts; `check` raises what was seen since the last check."""

    world: "World"
    seen: list[str] = field(default_factory=list)
    grants: dict[str, _Grant] = field(default_factory=dict)
    serving_since: dict[tuple[str, int], int] = field(default_factory=dict)
    # Processes that were signalled, with the attempt that did: SIGKILL follows SIGTERM, also if it answers meanwhile.
    condemned: dict[tuple[str, int], str] = field(default_factory=dict)
    # The server's clock may be set back between a look at it and what follows from that.
    newest_ms: int = 0

    def attach(self) -> None:
        self.world.make_store = lambda machine, worker: WatchedStore(machine, worker, self)
        for machine in self.world.machines.values():
            machine.sim.before_exec = partial(self._executes, machine)
            machine.sim.before_signal = partial(self._signals, machine)

    def check(self) -> None:
        self._look_at_processes()
        if self.seen:
            raise Violation("; ".join(self.seen))

    def _complain(self, number: int, text: str) -> None:
        at_s = (self.world.clockwork.now_us - 1_800_000_000_000_000) / 1_000_000
        self.seen.append(f"invariant {number} at {at_s:.3f} s: {text}")

    def _now(self) -> int:
        """Server time, which decides whether a lease holds."""
        return self.world.server.now_us

    # 1: one live process per VM on a host

    def _look_at_processes(self) -> None:
        for machine in self.world.machines.values():
            owners: dict[str, int] = {}
            for vmm in machine.sim.alive.values():
                owners[vmm.vm_id] = owners.get(vmm.vm_id, 0) + 1
                if vmm.serves:
                    self.serving_since.setdefault((machine.name, vmm.process.pid), self.world.clockwork.now_us)
                else:
                    self.serving_since.pop((machine.name, vmm.process.pid), None)
            for vm_id, number in owners.items():
                if number > 1:
                    self._complain(1, f"{number} processes of {vm_id} on {machine.name}")

    # 3 and 4: what is started and what is signalled

    def _executes(self, machine: Machine, vm_id: str, generation: int) -> None:
        record = self._record(vm_id)
        if (unwanted := self._unwanted_since(vm_id)) is not None and unwanted < self._read_ms(vm_id):
            self._complain(3, f"{vm_id} is started, which nobody wants to run")
        if machine.sim.paused:
            self._complain(3, f"{vm_id} is started on {machine.name}, which is paused")
        if machine.sim.kept(vm_id).forgotten_ms > (record.created_ms if record else 0):
            self._complain(3, f"{vm_id} rises again, which {machine.name} knows as forgotten")
        if any(begun == vm_id and number >= generation for begun, number in machine.sim.started):
            self._complain(4, f"{vm_id} is started with generation {generation} after a higher one")
        self._must_not_be_held(machine, vm_id, "started")
        self._must_hold(machine, vm_id, "starts", generation)

    def _must_not_be_held(self, machine: Machine, vm_id: str, what: str) -> None:
        """Neither by a mode that was set before the record was read last; a forced request goes before modes."""
        modes = Modes(self.world.server.contents.modes)
        record = self._record(vm_id)
        if record is not None and record.force is not Force.PLAIN:
            return
        task = self.world.clockwork.current
        read_us = task.read_us.get(vm_id, 0) if task is not None else 0
        for held in modes.holds_on(vm_id, machine.name, self.world.server.now_ms):
            if self.world.held_us.get(held.hold.id, read_us) < read_us:
                self._complain(3, f"{vm_id} is {what} although {held.words}")

    def _unwanted_since(self, vm_id: str) -> int | None:
        """Server time from which it was to be stopped, or forgotten; None while it is to run, or the data are lost."""
        record = self._record(vm_id)
        if record is None:
            return self.world.server.contents.forgotten.get(vm_id)
        if record.desired is Desired.RUNNING:
            return None
        return self._changed_ms(vm_id)

    def _changed_ms(self, vm_id: str) -> int:
        """Server time at which somebody last said what is to become of the VM."""
        kinds = (EventKind.CHANGED, EventKind.REGISTERED)
        events = reversed(self.world.server.contents.events)
        changes = (event_id for event_id, event in events if event.vm_id == vm_id and event.kind in kinds)
        return int(next(changes, "0-0").partition("-")[0])

    def _signals(self, machine: Machine, vmm: SimVmm) -> None:
        if machine.sim.paused:
            self._complain(3, f"{vmm.vm_id} is signalled on {machine.name}, which is paused")
        record = self._record(vmm.vm_id)
        if record is None and self.world.settings.strays.policy == "reap":
            return
        self._must_not_be_held(machine, vmm.vm_id, "signalled")
        self._must_hold(machine, vmm.vm_id, "signals")
        worker, grant, key = self._worker(), self.grants.get(vmm.vm_id), (machine.name, vmm.process.pid)
        attempt = grant.owner if grant else ""
        if self.condemned.get(key) == attempt:
            return
        self.condemned[key] = attempt
        if grant is not None and grant.may_kill_healthy:
            return
        looked = worker.looked.get(vmm.vm_id, 0) if worker else 0
        since = self.serving_since.get((machine.name, vmm.process.pid))
        read_ms = self._read_ms(vmm.vm_id)
        wanted = record is not None and record.desired is Desired.RUNNING and self._changed_ms(vmm.vm_id) < read_ms
        if wanted and vmm.serves and since is not None and since <= looked:
            self._complain(9, f"{vmm.vm_id} serves, and is signalled")

    def _must_hold(self, machine: Machine, vm_id: str, does: str, generation: int | None = None) -> None:
        worker, grant = self._worker(), self.grants.get(vm_id)
        if worker is None or worker.machine is not machine:
            self._complain(4, f"nobody of {machine.name} {does} {vm_id}")
        elif grant is None or grant.worker is not worker or grant.ends_us <= self._now():
            self._complain(4, f"{worker.owner} {does} {vm_id} without its lease")
        elif generation is not None and grant.generation != generation:
            self._complain(4, f"{worker.owner} {does} {vm_id} with a generation that is not its lease's")

    def _worker(self) -> SimWorker | None:
        task = self.world.clockwork.current
        return task.owner if task is not None and isinstance(task.owner, SimWorker) else None

    def _read_ms(self, vm_id: str) -> int:
        """When who acts now has last read this record; what another task of the worker has read, it does not know."""
        task = self.world.clockwork.current
        return task.read_ms.get(vm_id, 0) if task is not None else 0

    def _record(self, vm_id: str) -> VmRecord | None:
        row = self.world.server.contents.rows.get(vm_id)
        return row.record if row else None

    # 4, 5, 7 and 10: what is written

    def granted(self, worker: SimWorker, change: Change, before: VmRecord | None) -> None:
        take, after = change.take, change.after
        if take is None or after is None:
            return
        now, other = self._now(), self.grants.get(change.vm_id)
        if other is not None and other.ends_us > now and other.owner != take.owner:
            self._complain(4, f"{change.vm_id} is leased twice, by {other.owner} and {take.owner}")
        ends_us = now + take.ttl_ms * 1000
        takes_slot = take.calls is not None and not take.forced
        may_kill = before is not None and before.force is Force.KILL_HEALTHY
        self.grants[change.vm_id] = _Grant(worker, take.owner, after.generation, ends_us, takes_slot, may_kill)
        if take.calls is not None:
            self._admitted(change, before)
        if takes_slot:
            self._count_slots(after.host)

    def _admitted(self, change: Change, before: VmRecord | None) -> None:
        episode = change.after.open_episode if change.after else None
        if episode is None or before is None:
            self._complain(5, f"{change.vm_id} gets an attempt without an episode")
            return
        if episode.attempt > self.world.settings.recovery.max_retries:
            self._complain(5, f"{change.vm_id} gets attempt {episode.attempt}")
        was = before.open_episode
        if was is not None and was.next_attempt_ms > self.newest_ms:
            self._complain(5, f"{change.vm_id} gets attempt {episode.attempt} before its backoff is over")
        if before.desired is Desired.STOPPED or before.state in (State.HEALTHY, State.STOPPED, State.FAILED):
            self._complain(3, f"{change.vm_id} gets an attempt while {before.state}, {before.desired}")
        for call in (change.take.calls or ()) if change.take and not change.take.forced else ():
            breaker = self.world.server.contents.breakers.get(call.scope)
            if breaker is not None and breaker.state is BreakerState.OPEN:
                self._complain(4, f"{change.vm_id} gets an attempt although breaker {call.scope} is open")

    def _count_slots(self, host: str) -> None:
        recovery, now = self.world.settings.recovery, self._now()
        running = [g.worker.machine.name for g in self.grants.values() if g.takes_slot and g.ends_us > now]
        if len(running) > recovery.per_fleet:
            self._complain(5, f"{len(running)} recoveries in the fleet at once")
        if running.count(host) > recovery.per_host:
            self._complain(5, f"{running.count(host)} recoveries on {host} at once")

    def written(self, change: Change, before: VmRecord | None) -> None:
        after, held, grant = change.after, change.held_by, self.grants.get(change.vm_id)
        if held is not None and (grant is None or (grant.owner, grant.generation) != (held.owner, held.token)):
            self._complain(7, f"{held.owner} writes {change.vm_id} with a lease that it does not hold")
        if after is None or before is None:
            return
        if after.state is not before.state and not any(
            event.before is before.state and event.after is after.state for event in change.events
        ):
            told = [event.kind for event in change.events]
            steps = {event.after for event in change.events}
            if after.state not in steps and EventKind.REGISTERED not in told:
                self._complain(10, f"{change.vm_id} became {after.state} from {before.state} without an event")
        if after.generation < before.generation:
            self._complain(4, f"the generation of {change.vm_id} went back")

    def released(self, vm_id: str) -> None:
        self.grants.pop(vm_id, None)

    def renewed(self, vm_id: str, lease: Lease, ttl_ms: int) -> None:
        grant = self.grants.get(vm_id)
        if grant is None or grant.owner != lease.owner or grant.ends_us <= self._now():
            self._complain(4, f"{lease.owner} renews a lease of {vm_id} that it does not hold")
            return
        grant.ends_us = self._now() + ttl_ms * 1000

    # 6: nothing is lost for good

    def check_settled(self) -> None:
        """After a time without faults: every VM is where it should be. Raises Violation."""
        self.check()
        for text in self.unsettled():
            self._complain(6, text)
        if self.seen:
            raise Violation("; ".join(self.seen))

    def unsettled(self) -> Iterator[str]:
        """Say of each VM that is not where it should be what is wrong."""
        for vm_id, row in sorted(self.world.server.contents.rows.items()):
            record = row.record
            live = self.world.machines[record.host].sim.of(vm_id)
            if record.desired is Desired.STOPPED:
                # After a rollback the record may know nothing of what runs: that is told, and left to a person.
                strays = [stray.running.vm_id for found in self.world.strays.values() for stray in found]
                reported = self.world.backup is not None and vm_id in strays
                if record.state is not State.STOPPED or (live is not None and live.guarded and not reported):
                    yield f"{vm_id} is to be stopped, is {record.state}, and {'lives' if live else 'does not live'}"
            elif needs_attempt(record) or record.state in (State.DEGRADED, State.UNKNOWN):
                yield f"{vm_id} is left {record.state}: {record.episode}, waits for {row.line}"
            elif record.state is State.HEALTHY and (live is None or not live.serves or live.process != record.process):
                yield f"{vm_id} is called healthy, and {'does not serve' if live else 'does not live'}"


class WatchedStore(HostStore):
    """A worker's store, whose writes are looked at as they go by."""

    def __init__(self, machine: Machine, worker: SimWorker, watch: Invariants) -> None:
        super().__init__(machine)
        self._worker, self._watch = worker, watch

    def read(self, vm_ids: Collection[str], *, with_specs: bool = False) -> Snapshot:
        snapshot = super().read(vm_ids, with_specs=with_specs)
        if (task := self._watch.world.clockwork.current) is not None:
            task.read_ms.update(dict.fromkeys(vm_ids, snapshot.now_ms))
            task.read_us.update(dict.fromkeys(vm_ids, self._watch.world.clockwork.now_us))
        self._watch.newest_ms = max(self._watch.newest_ms, snapshot.now_ms)
        return snapshot

    def write(
        self,
        changes: Sequence[Change],
        *,
        seen: Collection[str] = (),
        enlist: Collection[str] = (),
        all_or_nothing: bool = False,
    ) -> Written:
        rows = self.server.contents.rows
        before = {change.vm_id: rows[change.vm_id].record for change in changes if change.vm_id in rows}
        written = super().write(changes, seen=seen, enlist=enlist, all_or_nothing=all_or_nothing)
        for change, outcome in zip(changes, written.outcomes, strict=True):
            if outcome is Outcome.DONE:
                self._watch.written(change, before.get(change.vm_id))
                if change.release:
                    self._watch.released(change.vm_id)
                self._watch.granted(self._worker, change, before.get(change.vm_id))
        return written

    def renew(self, vm_id: str, lease: Lease, ttl_ms: int) -> bool:
        ours = super().renew(vm_id, lease, ttl_ms)
        if ours:
            self._watch.renewed(vm_id, lease, ttl_ms)
        return ours
