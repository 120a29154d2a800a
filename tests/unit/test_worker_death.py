"""What if the worker dies right here? Every step of a recovery, before and after each thing it does to the outside.

The worker is cut off at one such point; what it wrote and started stays. Then the next worker's sweeps and messages go
on, and the VM must end as if nothing had happened: one process, the newest generation, attempts counted once.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.support import fakes
from tests.support.builders import a_lost_vm, a_vm
from workers.domain.audit import EventKind
from workers.domain.recovery import WakeUp
from workers.domain.vm import Desired, State
from workers.services.host_services import HostServices
from workers.services.recovery import RetryIn
from workers.simulator.host import Faults

SWEEP_MS = 60_000
ROUNDS = 12


class Died(BaseException):
    """SIGKILL: nothing in the product may catch it."""


class Fuse:
    def __init__(self, at: int | None) -> None:
        self.at, self.steps = at, 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            raise Died


class Mortal:
    """Passes everything on; the fuse may burn through before and after each call."""

    def __init__(self, inner: object, fuse: Fuse) -> None:
        self._inner, self._fuse = inner, fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._fuse.step()
            result = found(*args, **kwargs)
            self._fuse.step()
            return result

        return call


class World(fakes.World):
    """One host that outlives its workers."""

    def worker(self, fuse: Fuse) -> HostServices:
        return self.join(Mortal(self.store, fuse), Mortal(self.host, fuse))

    def live_on(self) -> None:
        """What the next worker does: sweeps, the messages they send, and their retries."""
        services = self.worker(Fuse(None))
        for _ in range(ROUNDS):
            self.clock.advance(SWEEP_MS)
            services.tending.tend()
            services.orphans.sweep()
            wakes, self.wakeups.recovers = self.wakeups.recovers, []
            for wake in wakes:
                result = services.recovery.recover(wake.vm_id, WakeUp(wake.episode, wake.attempt))
                if isinstance(result, RetryIn):
                    self.clock.advance(result.wait_ms)
                    services.recovery.recover(wake.vm_id, result.wake)
            stops, self.wakeups.stops = self.wakeups.stops, []
            for vm_id in stops:
                services.recovery.stop(vm_id)


def a_dead_vm(world: World) -> None:
    world.put(a_lost_vm())


def a_hung_vm(world: World) -> None:
    world.put(a_lost_vm(state=State.UNHEALTHY, process=world.host.boot("vm-1", hung=True).process))


def a_vm_that_refuses_once(world: World) -> None:
    world.host.faults["vm-1"] = Faults(refuse_starts=1)
    world.put(a_lost_vm())


def a_new_vm(world: World) -> None:
    world.put(a_vm(state=State.STARTING, process=None, generation=0))


RUNNING = [a_dead_vm, a_hung_vm, a_vm_that_refuses_once, a_new_vm]


def die_at(world: World, at: int | None) -> int:
    """Let a worker recover vm-1 and die at this step; returns how many steps it took."""
    fuse = Fuse(at)
    recovery = world.worker(fuse).recovery
    with suppress(Died):
        recovery.recover("vm-1", WakeUp())
    return fuse.steps


@pytest.mark.parametrize("begin", RUNNING)
def test_a_vm_is_back_once_wherever_its_worker_dies(begin: Callable[[World], None]) -> None:
    whole = World()
    begin(whole)
    steps = die_at(whole, None)
    assert steps > 10, "a recovery has many steps to die at"

    for at in range(1, steps + 1):
        world = World()
        begin(world)
        die_at(world, at)
        world.live_on()

        where = f"{begin.__name__}, dead at step {at} of {steps}"
        assert world.host.doubled == [], where
        assert world.state() is State.HEALTHY, where
        assert [vmm.process for vmm in world.host.alive.values()] == [world.record().process], where
        generations = [generation for _, generation in world.host.started]
        assert generations == sorted(set(generations)), where
        attempts = [e.attempt for e in world.events if e.kind is EventKind.ATTEMPT_STARTED]
        assert attempts == list(range(1, len(attempts) + 1)), where
        assert len(attempts) <= 3, where


def test_a_stop_is_carried_out_wherever_its_worker_dies() -> None:
    def begin(world: World) -> None:
        vmm = world.host.boot("vm-1")
        world.put(a_vm(process=vmm.process, desired=Desired.STOPPED))

    def stop(world: World, at: int | None) -> int:
        fuse = Fuse(at)
        recovery = world.worker(fuse).recovery
        with suppress(Died):
            recovery.stop("vm-1")
        return fuse.steps

    whole = World()
    begin(whole)
    for at in range(1, stop(whole, None) + 1):
        world = World()
        begin(world)
        stop(world, at)
        world.live_on()
        assert world.state() is State.STOPPED, at
        assert world.host.alive == {}, at


def test_a_stop_during_a_recovery_wins_wherever_that_worker_dies() -> None:
    def begin(world: World) -> None:
        a_hung_vm(world)

        def meanwhile(_vm_id: str) -> None:
            row = world.rows["vm-1"]
            row.record, row.rev = replace(row.record, desired=Desired.STOPPED), row.rev + 1

        world.host.during_fence = meanwhile

    whole = World()
    begin(whole)
    for at in range(1, die_at(whole, None) + 1):
        world = World()
        begin(world)
        die_at(world, at)
        world.live_on()
        if world.record().desired is Desired.STOPPED:
            assert world.state() is State.STOPPED, at
            assert world.host.alive == {}, at
        assert world.host.doubled == [], at
