"""What if the worker dies right here? Every step of a recovery, before and after each thing it does to the outside.

The worker is cut off at one such point; what it wrote and started stays. Then the next worker's sweeps and messages go
on, and the VM must end as if nothing had happened: one process, the newest generation, attempts counted once.
"""

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from tests.support.builders import (
    HOST,
    NOW_MS,
    a_health_policy,
    a_lost_vm,
    a_process,
    a_recovery_policy,
    a_spec,
    a_vm,
)
from tests.support.fakes import FakeClock, FakeVmHost, FakeVmStore, RecordingTelemetry, RecordingWakeups
from workers.domain.audit import EventKind
from workers.domain.recovery import WakeUp
from workers.domain.vm import Desired, State, VmRecord
from workers.ports import Change
from workers.services.health import HealthChecks
from workers.services.recovery import Recovery, RetryIn
from workers.services.sweeps import OrphanDetection

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


class World:
    """One host that outlives its workers."""

    def __init__(self) -> None:
        self.clock = FakeClock(NOW_MS * 1000)
        self.store = FakeVmStore(self.clock)
        self.host = FakeVmHost(a_process())
        self.wakeups = RecordingWakeups()
        self._owners = itertools.count()

    def put(self, record: VmRecord) -> None:
        self.store.write([Change(record.vm_id, 0, record, check_in_ms=0, spec=a_spec(record.vm_id))])

    @property
    def record(self) -> VmRecord:
        return self.store.rows["vm-1"].record

    def worker(self, fuse: Fuse) -> tuple[Recovery, OrphanDetection]:
        store: Any = Mortal(self.store, fuse)
        host: Any = Mortal(self.host, fuse)
        telemetry = RecordingTelemetry()
        recovery = Recovery(
            store,
            host,
            host,
            self.wakeups,
            telemetry,
            host_name=HOST,
            policy=a_recovery_policy(),
            watch=lambda _vm_id, _process: None,
            new_owner=lambda: f"owner-{next(self._owners)}",
            jitter=lambda: 0.0,
        )
        checks = HealthChecks(
            store,
            host,
            self.wakeups,
            telemetry,
            host=HOST,
            policy=a_health_policy(),
            watch=lambda _vm_id, _process: None,
        )
        sweep = OrphanDetection(
            store,
            host,
            checks,
            self.wakeups,
            telemetry,
            host=HOST,
            detection_interval_ms=SWEEP_MS,
            bound_logs=lambda _vm_id: None,
        )
        return recovery, sweep

    def live_on(self) -> None:
        """What the next worker does: sweeps, the messages they send, and their retries."""
        recovery, sweep = self.worker(Fuse(None))
        for _ in range(ROUNDS):
            self.clock.advance(SWEEP_MS)
            sweep.sweep()
            wakes, self.wakeups.recovers = self.wakeups.recovers, []
            for wake in wakes:
                result = recovery.recover(wake.vm_id, WakeUp(wake.episode, wake.attempt))
                if isinstance(result, RetryIn):
                    self.clock.advance(result.wait_ms)
                    recovery.recover(wake.vm_id, result.wake)
            stops, self.wakeups.stops = self.wakeups.stops, []
            for vm_id in stops:
                recovery.stop(vm_id)


def a_dead_vm(world: World) -> None:
    world.put(a_lost_vm())


def a_hung_vm(world: World) -> None:
    world.put(a_lost_vm(state=State.UNHEALTHY, process=world.host.boot("vm-1", hung=True).process))


def a_vm_that_refuses_once(world: World) -> None:
    world.host.refuse_starts = 1
    world.put(a_lost_vm())


def a_new_vm(world: World) -> None:
    world.put(a_vm(state=State.STARTING, process=None, generation=0))


RUNNING = [a_dead_vm, a_hung_vm, a_vm_that_refuses_once, a_new_vm]


def die_at(world: World, at: int | None) -> int:
    """Let a worker recover vm-1 and die at this step; returns how many steps it took."""
    fuse = Fuse(at)
    recovery, _ = world.worker(fuse)
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
        assert world.record.state is State.HEALTHY, where
        assert [vmm.process for vmm in world.host.alive.values()] == [world.record.process], where
        generations = [generation for _, generation in world.host.started]
        assert generations == sorted(set(generations)), where
        attempts = [e.attempt for e in world.store.events if e.kind is EventKind.ATTEMPT_STARTED]
        assert attempts == list(range(1, len(attempts) + 1)), where
        assert len(attempts) <= 3, where


def test_a_stop_is_carried_out_wherever_its_worker_dies() -> None:
    def begin(world: World) -> None:
        vmm = world.host.boot("vm-1")
        world.put(a_vm(process=vmm.process, desired=Desired.STOPPED))

    def stop(world: World, at: int | None) -> int:
        fuse = Fuse(at)
        recovery, _ = world.worker(fuse)
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
        assert world.record.state is State.STOPPED, at
        assert world.host.alive == {}, at


def test_a_stop_during_a_recovery_wins_wherever_that_worker_dies() -> None:
    def begin(world: World) -> None:
        a_hung_vm(world)

        def meanwhile(_vm_id: str) -> None:
            row = world.store.rows["vm-1"]
            row.record, row.rev = replace(row.record, desired=Desired.STOPPED), row.rev + 1

        world.host.during_fence = meanwhile

    whole = World()
    begin(whole)
    for at in range(1, die_at(whole, None) + 1):
        world = World()
        begin(world)
        die_at(world, at)
        world.live_on()
        if world.record.desired is Desired.STOPPED:
            assert world.record.state is State.STOPPED, at
            assert world.host.alive == {}, at
        assert world.host.doubled == [], at
