"""Random schedules: one thing after the other happens to a small fleet, and what must never happen is looked for.

A schedule is a list of steps, each a pause and a happening, so that one that fails can be said, shrunk and repeated.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

from workers.simulator.happenings import happen
from workers.simulator.invariants import Invariants
from workers.simulator.machine import Machine
from workers.simulator.scenario import settings_of
from workers.simulator.story import Story
from workers.simulator.world import World

HOSTS = ("host-a", "host-b")
VMS = ("vm-1", "vm-2", "vm-3", "vm-4", "vm-5")
SETTINGS = {
    "health_check.interval": "10s",
    "health_check.timeout": "1s",
    "health_check.failing_interval": "1s",
    "health_check.start_period": "5s",
    "recovery.retry_interval": "5s",
    "recovery.max_retry_interval": "20s",
    "recovery.detection_interval": "20s",
    "recovery.stable_period": "40s",
    "recovery.per_host": 2,
    "recovery.per_fleet": 3,
    "recovery.lease": "9s",
    "recovery.stop_grace": "1s",
    "recovery.start_timeout": "5s",
    "recovery.call_timeout": "4s",
    "breaker.min_calls": 2,
    "breaker.cooldown": "5s",
    "breaker.max_cooldown": "20s",
    "storm.at_least": 2,
    "storm.window": "20s",
    "worker.host_lease": "12s",
    "reconcile_interval": "60s",
    "beat.max_interval": "5s",
    "strays.min_age": "10s",
}
PAUSES_S = (0.0, 0.002, 0.05, 0.3, 1.0, 1.0, 4.0, 15.0)
_SETTLE_S, _SETTLE_ROUNDS = 60.0, 12

# What may happen, with how often it does compared with the others.
_OF_VMS = {
    "kill {vm}": 12,
    "kill {vm} 'exit 0'": 1,
    "hang {vm}": 6,
    "wake {vm}": 2,
    "lose-socket {vm}": 2,
    "answer-as {vm} vm-99": 2,
    "ignore-sigterm {vm}": 1,
    "stick {vm}": 1,
    "unstick {vm}": 1,
    "refuse-starts {vm} 2": 4,
    "refuse-starts {vm} 1 'exit 152'": 1,
    "start-slowly {vm} 4": 1,
    "start-slowly {vm} 0.2": 1,
    "come-up-hung {vm}": 1,
    "come-up-hung {vm} no": 1,
    "stop {vm}": 3,
    "start {vm}": 3,
    "forget {vm}": 1,
    "recover {vm}": 3,
    "recover {vm} force": 1,
    "recover {vm} kill-healthy": 1,
    "hold vm:{vm} paused": 1,
    "hold vm:{vm} observe-only": 1,
    "hold vm:{vm} maintenance 15": 1,
    "lift vm:{vm}": 3,
}
_OF_HOSTS = {
    "kill-worker {host}": 3,
    "kill-worker-after {host} 1": 2,
    "kill-worker-after {host} 4": 3,
    "kill-worker-after {host} 9": 3,
    "kill-worker-after {host} 16": 2,
    "end-worker {host}": 2,
    "start-worker {host}": 8,
    "stop-worker {host}": 2,
    "cont-worker {host}": 4,
    "reboot {host}": 1,
    "cut {host}": 1,
    "join {host}": 4,
    "pause {host}": 1,
    "unpause {host}": 4,
    "doubt {host} 'no descriptors'": 1,
    "doubt {host}": 3,
    "hold host:{host} maintenance 20": 1,
    "hold host:{host} paused": 1,
    "lift host:{host}": 3,
    "switch recovery off host:{host}": 1,
    "switch recovery on host:{host}": 2,
}
_OF_THE_FLEET = {
    "redis-away": 2,
    "redis-back": 6,
    "redis-restarts": 2,
    "redis-loses-data": 1,
    "redis-saves": 2,
    "redis-rolls-back": 1,
    "server-clock 3": 1,
    "server-clock -3": 1,
    "lose-messages 0.5": 2,
    "lose-messages 0": 3,
    "double-messages 0.5": 2,
    "double-messages 0": 2,
    "flush-broker": 3,
    "kill-beat": 2,
    "start-beat": 4,
    "confirm": 6,
    "rebuild": 3,
    "hold fleet observe-only 15": 1,
    "lift fleet": 2,
}


def _choices() -> tuple[str, ...]:
    of_vms = [(text.format(vm=vm), often) for (text, often), vm in product(_OF_VMS.items(), VMS)]
    applied = [(f"apply {vm} {HOSTS[number % 2]} priority={number}", 1) for number, vm in enumerate(VMS)]
    of_hosts = [(text.format(host=host), 2 * often) for (text, often), host in product(_OF_HOSTS.items(), HOSTS)]
    of_all = [(text, 3 * often) for text, often in _OF_THE_FLEET.items()]
    return tuple(text for text, often in [*of_vms, *applied, *of_hosts, *of_all] for _ in range(often))


CHOICES = _choices()


@dataclass(frozen=True, slots=True)
class Step:
    """First time passes, then something happens."""

    pause_s: float
    text: str

    def __str__(self) -> str:
        return f"+{self.pause_s:g}s {self.text}"


def draw(dice: random.Random, length: int) -> list[Step]:
    return [Step(dice.choice(PAUSES_S), dice.choice(CHOICES)) for _ in range(length)]


@dataclass
class Run:
    """A schedule being played. `change` may alter the world before it starts: tests break things on purpose."""

    seed: int
    change: Callable[[World], None] = lambda _world: None

    def __post_init__(self) -> None:
        self.world = World(settings_of(SETTINGS), HOSTS, self.seed, preemption=0.1, stall=0.05, beats_wanted=2)
        self.invariants = Invariants(self.world)
        self.invariants.attach()
        self.change(self.world)
        self.story = Story(self.world)

    def play(self, steps: Sequence[Step]) -> None:
        """Play all steps, then let things settle. Raises Violation."""
        try:
            self._play(steps)
        finally:
            self.story.listen()
            self.world.close()

    def _play(self, steps: Sequence[Step]) -> None:
        world = self.world
        self.story.begin()
        world.start()
        world.apply(*[world.spec(vm, HOSTS[n % 2], priority=n) for n, vm in enumerate(VMS)])
        world.clockwork.run_for(30)
        for step in steps:
            world.clockwork.run_for(step.pause_s)
            self.story.listen()
            self.story.happens(step.text)
            happen(world, step.text)
            self.invariants.check()
        self._settle()

    def _settle(self) -> None:
        """All faults end, operators do their part, and time passes: then everything has to be in order."""
        world = self.world
        world.server.contents.modes.clear()
        world.server.away, world.broker.loss, world.broker.doubling = False, 0.0, 0.0
        for machine in world.machines.values():
            _mend(machine)
        if not world.beats:
            world.start_beat()
        world.clockwork.run_for(30)
        self.invariants.check()
        if world.server.contents.halted:
            world.confirm()
        world.rebuild()
        for _ in range(_SETTLE_ROUNDS):
            world.clockwork.run_for(_SETTLE_S)
            self.invariants.check()
            if not list(self.invariants.unsettled()):
                return
        self.invariants.check_settled()


def _mend(machine: Machine) -> None:
    machine.is_cut_off, machine.trouble, machine.sim.paused = False, None, False
    machine.sim.faults.clear()
    for vmm in machine.sim.alive.values():
        vmm.unkillable = False
    for worker in list(machine.workers):
        worker.calls_to_live = None
        worker.cont()
    machine.start_worker()
