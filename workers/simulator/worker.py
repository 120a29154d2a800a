"""One simulated worker process: its heartbeats, its watcher, and a task for each message that it takes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from workers.domain.errors import StoreUnavailable
from workers.domain.evidence import Observation
from workers.domain.vm import Incarnation, VmRecord
from workers.ports import Ended
from workers.services.host_services import HostPorts, HostServices, host_services
from workers.services.recovery import ForHost, Result, RetryIn
from workers.simulator.broker import Message
from workers.simulator.clockwork import Killed
from workers.simulator.host import SimVmm
from workers.simulator.ports import SimWakeups, Tapped
from workers.simulator.schedule import hold_host

if TYPE_CHECKING:
    from workers.simulator.machine import Machine

_DEATH_KNOWN_S = 0.001
_AGAIN_S = 0.5
# How long a task may be kept from going on: by the scheduler, or by a machine that swaps.
_PAUSE_S, _STALL_S = 0.05, 15.0
_UNWATCHED = frozenset({"stopped", "failed"})


class SimWorker:
    """It can be killed, stopped and continued, and ended."""

    def __init__(self, machine: "Machine", owner: str) -> None:
        self.machine, self.world, self.owner = machine, machine.world, owner
        self.is_active = self.is_gone = self.is_stopped = self.is_ending = False
        self.calls_to_live: int | None = None
        # For whoever watches: when each VM was looked at (virtual µs).
        self.looked: dict[str, int] = {}
        self._in_flight: dict[int, Message] = {}
        self._watched: dict[str, Incarnation] = {}
        self._missed: list[Callable[[], None]] = []
        self._is_behind = False
        machine.memory.known = machine.memory.saved
        self.services = self._join()

    def _join(self) -> HostServices:
        world, machine = self.world, self.machine
        store: Any = Tapped(world.make_store(machine, self), self.tap)
        host: Any = Tapped(machine.sim, self.tap)
        ports = HostPorts(
            store,
            world.make_data(machine),
            world.make_modes(machine),
            machine.memory,
            host,
            Looking(self),
            SimWakeups(world.broker),
            world.telemetry,
            world,
            watch=self._watched.__setitem__,
            trouble=lambda: machine.trouble,
            sockets=machine.sim.sockets,
            new_owner=lambda: f"{self.owner}-{next(world.numbers)}",
            jitter=world.dice.random,
            bound_logs=lambda _vm_ids: None,
            silent_hosts=world.silent_hosts,
            put_unreadable=lambda _why_of: None,
            put_strays=lambda found: world.strays.__setitem__(machine.name, found),
            may_destroy=lambda: world.spend(machine.name),
            not_saved=lambda _error: None,
        )
        return host_services(ports, world.policies(machine.name))

    def tap(self) -> None:
        """Called around each thing a task of this worker does to the outside: here others may come in between."""
        task = self.world.clockwork.current
        if task is None or task.owner is not self:
            return
        if self.calls_to_live is not None:
            self.calls_to_live -= 1
            if self.calls_to_live <= 0:
                self.kill()
        if task.is_killed:
            raise Killed
        dice = self.world.dice
        if dice.random() < self.world.preemption:
            longest_s = _STALL_S if dice.random() < self.world.stall else _PAUSE_S
            task.sleep(dice.random() * longest_s)

    # Life

    def start(self) -> None:
        self._heartbeat()

    def kill(self) -> None:
        """SIGKILL: nothing is said, nothing is given back."""
        if self.is_gone:
            return
        self.is_gone, self.is_active = True, False
        self.machine.workers.remove(self)
        self.world.broker.leave(self.machine.name, self._consume)
        for task in self.world.clockwork.of(self):
            task.kill()
        for message in self._in_flight.values():
            self.world.broker.give_back(message)
        self._in_flight.clear()

    def end(self) -> None:
        """SIGTERM: what runs is finished, and the name is given back."""
        if self.is_gone or self.is_stopped:
            return
        self.is_active, self.is_ending = False, True
        self.world.broker.leave(self.machine.name, self._consume)
        self._end_when_idle()

    def _end_when_idle(self) -> None:
        if self.is_gone:
            return
        if self.world.clockwork.of(self):
            self.world.clockwork.after(0.1, self._end_when_idle)
            return
        self.is_gone = True
        self.machine.workers.remove(self)
        data = self.world.server.contents
        if data.host_owners.get(self.machine.name) == self.owner and not self.world.server.away:
            data.host_leases[self.machine.name] = 0

    def stop(self) -> None:
        """SIGSTOP."""
        self.is_stopped = True
        for task in self.world.clockwork.of(self):
            task.stop()

    def cont(self) -> None:
        self.is_stopped, missed, self._missed = False, self._missed, []
        for task in self.world.clockwork.of(self):
            task.cont()
        for act in missed:
            self.world.clockwork.after(0, act)
        if self.is_active:
            self.world.broker.serve(self.machine.name, self._consume)

    def _do(self, work: Callable[[], None]) -> None:
        """Run this in a task of the worker, when it is able to."""
        if self.is_gone:
            return
        if self.is_stopped:
            self._missed.append(lambda: self._do(work))
            return
        self.world.clockwork.spawn(self, work)

    # Heartbeats

    def _heartbeat(self) -> None:
        """In no task of its own: it waits for nothing, and most of what happens in a quiet fleet are heartbeats."""
        if self.is_gone:
            return
        if self.is_stopped:
            self._missed.append(self._heartbeat)
            return
        world = self.world
        every_s = world.settings.worker.host_lease.total_seconds() / 3
        try:
            self.machine.check_network()
            if self._hold() is not None:
                if self.is_active:
                    self._lose_the_host()
                    return
            else:
                self.services.tending.tend()
                if not self.is_active and not self.is_ending:
                    self._serve()
                if self._is_behind:
                    self._is_behind = False
                    self._catch_up()
        except StoreUnavailable:
            self._is_behind = True
            every_s = 1.0
        world.clockwork.after(every_s, self._heartbeat)

    def _hold(self) -> str | None:
        world = self.world
        ttl_ms = round(world.settings.worker.host_lease.total_seconds() * 1000)
        holder = hold_host(world.server, self.machine.name, self.owner, ttl_ms, world.sweeps)
        if holder is not None and all(worker.owner != holder for worker in self.machine.workers):
            # Its process is dead, as anybody on this machine can see.
            world.server.contents.host_leases[self.machine.name] = 0
            return hold_host(world.server, self.machine.name, self.owner, ttl_ms, world.sweeps)
        return holder

    def _serve(self) -> None:
        self.is_active, self._is_behind = True, True
        self.world.broker.serve(self.machine.name, self._consume)

    def _lose_the_host(self) -> None:
        self.is_active = False
        self.world.broker.leave(self.machine.name, self._consume)
        self.world.clockwork.after(0.1, self._end_when_idle)

    def _catch_up(self) -> None:
        for row in list(self.world.server.contents.rows.values()):
            record = row.record
            if record.host == self.machine.name and record.process and record.state not in _UNWATCHED:
                self._watch(record.vm_id, record.process)
        self.services.orphans.sweep()

    def _watch(self, vm_id: str, process: Incarnation) -> None:
        self._watched[vm_id] = process
        if process.pid not in self.machine.sim.alive:
            self._tell_death(vm_id, process, None)

    # Messages

    def _consume(self, message: Message) -> bool:
        if not self.is_active or self.is_stopped:
            return False
        number = next(self.world.numbers)
        self._in_flight[number] = message

        def work() -> None:
            # As with Celery, a task that failed is acknowledged: the record rules.
            with suppress(StoreUnavailable):
                self._follow(message, self._run(message))
            self._in_flight.pop(number, None)

        self._do(work)
        return True

    def _run(self, message: Message) -> Result | None:  # noqa: PLR0911 - one line per task
        services, arguments = self.services, message.arguments
        if not self.is_active:
            return None
        match message.task:
            case "check":
                services.checks.check(arguments["vm_ids"], arguments["deadline_ms"])
                return None
            case "recover":
                return services.recovery.recover(arguments["vm_id"], arguments["wake"])
            case "stop":
                return services.recovery.stop(arguments["vm_id"])
            case "detect_orphans":
                services.orphans.sweep()
                return None
            case "reconcile":
                services.reconciliation.sweep()
                return None
            case "rebuild":
                services.rebuild.run()
                return None
            case other:
                raise ValueError(f"no task {other!r}")

    def _follow(self, message: Message, result: Result | None) -> None:
        match result:
            case ForHost(host):
                self.world.broker.send(Message(message.task, host, message.arguments))
            case RetryIn(wait_ms, wake, _):
                arguments = {"vm_id": message.arguments["vm_id"], "wake": wake}
                self.world.broker.send(Message("recover", self.machine.name, arguments), wait_ms / 1000)
            case _:
                pass

    # Deaths

    def hear(self, vmm: SimVmm, cause: str | None) -> None:
        """The kernel tells of the end of a process that is watched."""
        if self._watched.get(vmm.vm_id) == vmm.process:
            del self._watched[vmm.vm_id]
            self._tell_death(vmm.vm_id, vmm.process, cause)

    def _tell_death(self, vm_id: str, process: Incarnation, cause: str | None) -> None:
        self.world.clockwork.after(_DEATH_KNOWN_S, lambda: self._do(lambda: self._told(vm_id, process, cause)))

    def _told(self, vm_id: str, process: Incarnation, cause: str | None) -> None:
        try:
            self.services.checks.processes_ended({vm_id: Ended(process, cause)})
        except StoreUnavailable:
            self.world.clockwork.after(_AGAIN_S, lambda: self._do(lambda: self._told(vm_id, process, cause)))


class Looking:
    """The prober of a worker, which notes when each VM was looked at."""

    def __init__(self, worker: SimWorker) -> None:
        self._worker, self._sim = worker, worker.machine.sim

    def probe(self, records: Sequence[VmRecord]) -> Iterator[dict[str, Observation]]:
        self._worker.tap()
        for group in self._sim.probe(records):
            for vm_id in group:
                self._worker.looked[vm_id] = self._worker.world.clockwork.now_us
            yield group
        self._worker.tap()

    def look_at_process(self, record: VmRecord) -> Observation | None:
        return self._sim.look_at_process(record)
