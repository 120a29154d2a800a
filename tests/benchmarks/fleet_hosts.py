"""A process that stands for many hosts, fed by real messages: one loop for all of them, so that thousands cost little.

Each second it appends to its log what was done, as a line of JSON. Begun by `fleet_in_a_box.py`.
"""

import argparse
import heapq
import itertools
import json
import os
import random
import select
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from celery import Celery

from tests.benchmarks.fleet_host import SimulatedHost, Surroundings, simulated_host, surroundings
from tests.benchmarks.fleet_model import CostModel, Shape
from tests.benchmarks.fleet_queues import NEWS_EVERY_S, SWEEP_EVERY_S, Message, Reader, SideLine, message_of
from workers import queues
from workers.app import make_app
from workers.bootstrap import redis_client
from workers.domain.errors import StoreUnavailable
from workers.domain.recovery import WakeUp
from workers.messages import CeleryWakeups
from workers.services.recovery import RetryIn
from workers.settings import Settings, load
from workers.tasks.arguments import number_of, vm_ids_of
from workers.telemetry.logging import configure_logging

_TOLD_EVERY_S = 1.0
# Signals are seen after so long at most.
_LONGEST_WAIT_S = 0.25
_TIMERS_AT_ONCE_S = 0.02


class Timers:
    """What is due at some time of the monotonic clock."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[], None], float]] = []
        self._order = itertools.count()

    def at(self, due: float, action: Callable[[], None], every_s: float = 0.0) -> None:
        heapq.heappush(self._heap, (due, next(self._order), action, every_s))

    def every(self, period_s: float, action: Callable[[], None], *, first_in_s: float) -> None:
        self.at(time.monotonic() + first_in_s, action, period_s)

    def left_s(self) -> float:
        return self._heap[0][0] - time.monotonic() if self._heap else _LONGEST_WAIT_S

    def run_next(self) -> float:
        """Run the first one; returns for how long (s) it had been due."""
        due, _, action, every_s = heapq.heappop(self._heap)
        late_s = time.monotonic() - due
        if every_s:
            # What was missed is not made up for: a real heartbeat waits anew after each round, too.
            self.at(max(due + every_s, time.monotonic()), action, every_s)
        action()
        return late_s


class Hosts:
    """The hosts of this process, their queues and their clocks."""

    def __init__(self, app: Celery, around: Surroundings, log: Path) -> None:
        self._app, self._around, self._log = app, around, log.open("a", encoding="utf-8")
        self._tally = around.tally
        self._side = SideLine(_broker(around.settings))
        self._readers: dict[int, Reader] = {}
        self._hosts: dict[str, SimulatedHost] = {}
        self._timers, self._epoll = Timers(), select.epoll()
        self._chance = random.Random(os.getpid())  # noqa: S311 - chance of a model
        self._stopping = self._incident = False
        self._tell_at = 0.0

    def add(self, shape: Shape, number: int) -> None:
        host = simulated_host(shape.host(number), self._around)
        host.populate(shape.vm_ids(number))
        self._hosts[host.name] = host

    def begin(self) -> None:
        lease_s = self._around.settings.worker.host_lease.total_seconds()
        for host in self._hosts.values():
            host.begin()
            self._timers.every(lease_s / 3, host.heartbeat, first_in_s=self._chance.random() * lease_s / 3)
            self._keep_up(host.name)
        for name in self._hosts:
            reader = Reader(name, _broker(self._around.settings), _polling_s(self._around.settings))
            self._readers[reader.socket.fileno()] = reader
            self._epoll.register(reader.socket, select.EPOLLIN)
            reader.ask()
        self._tell()
        vms = sum(len(host.machine.alive) for host in self._hosts.values())
        self._deaths = self._around.model.deaths_from(self._chance, vms)
        self._next_death()

    def _keep_up(self, name: str) -> None:
        self._timers.every(
            SWEEP_EVERY_S, lambda: self._side.sweep(name), first_in_s=self._chance.random() * SWEEP_EVERY_S
        )
        self._timers.every(NEWS_EVERY_S, self._side.news, first_in_s=self._chance.random() * NEWS_EVERY_S)

    def run(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGUSR1, self._hurt)
        while not self._stopping:
            for fd, _ in self._epoll.poll(max(0.0, min(self._timers.left_s(), _LONGEST_WAIT_S))):
                reader = self._readers[fd]
                if (raw := reader.read()) is not None:
                    self._guarded(self._take, message_of(reader.host, raw))
            self._run_timers()
            if time.monotonic() >= self._tell_at:
                self._tell()
            if self._incident:
                self._incident = False
                self._guarded(self._lose_host)
            self._side.drain()

    def _guarded(self, action: Callable[..., None], *arguments: Any) -> None:
        try:
            action(*arguments)
        except StoreUnavailable:
            self._tally.errors += 1

    def _run_timers(self) -> None:
        """All that are due, but no longer than messages may be kept waiting for them."""
        ends = time.monotonic() + _TIMERS_AT_ONCE_S
        while self._timers.left_s() <= 0 and time.monotonic() < ends:
            self._guarded(self._run_timer)

    def _run_timer(self) -> None:
        self._tally.late_ms.append(round(self._timers.run_next() * 1000))

    # Messages

    def _take(self, message: Message) -> None:
        self._tally.messages += 1
        self._side.took(message)
        wait_s = message.not_before - time.time()
        if wait_s > 0:
            self._timers.at(time.monotonic() + wait_s, lambda: self._do(message))
        else:
            self._do(message)

    def _do(self, message: Message) -> None:
        runtime, args = self._hosts[message.host].runtime, message.args
        try:
            match message.task:
                case queues.CHECK_VMS:
                    runtime.check(vm_ids_of(args[0]), number_of(args[1], "deadline_ms"))
                case queues.DETECT_ORPHANS:
                    runtime.detect_orphans()
                case queues.RECONCILE:
                    runtime.reconcile()
                case queues.RECOVER_VM:
                    self._recover(message)
        finally:
            self._side.done(message)

    def _recover(self, message: Message) -> None:
        vm_id, given = message.args[0], message.kwargs
        wake = WakeUp(episode=given.get("episode"), attempt=given.get("attempt"), tries=given.get("tries", 0))
        result = self._hosts[message.host].runtime.recover(vm_id, wake)
        if isinstance(result, RetryIn):
            again = result.wake
            kwargs = {"episode": again.episode, "attempt": again.attempt, "origin": "system", "tries": again.tries}
            queue, countdown = queues.recovery(message.host), max(0, result.wait_ms) / 1000
            self._app.send_task(message.task, args=[vm_id], kwargs=kwargs, queue=queue, countdown=countdown)

    # What goes wrong

    def _next_death(self) -> None:
        wait_s = next(self._deaths, None)
        if wait_s is not None:
            self._timers.at(time.monotonic() + wait_s, self._die)

    def _die(self) -> None:
        self._next_death()
        host = self._chance.choice(list(self._hosts.values()))
        if host.machine.alive:
            host.machine.kill(self._chance.choice(list(host.machine.alive.values())).vm_id)

    def _lose_host(self) -> None:
        """All VMs of one host die within a moment."""
        machine = next(iter(self._hosts.values())).machine
        for vmm in list(machine.alive.values()):
            machine.kill(vmm.vm_id)

    def _hurt(self, _number: int, _frame: FrameType | None) -> None:
        self._incident = True

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _tell(self) -> None:
        self._tell_at = time.monotonic() + _TOLD_EVERY_S
        self._log.write(json.dumps({"at": time.monotonic()} | self._tally.told()) + "\n")
        self._log.flush()


def _broker(settings: Settings) -> str:
    return settings.broker.url.get_secret_value()


def _polling_s(settings: Settings) -> float:
    return settings.broker.polling_interval.total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--vms", type=int, required=True)
    parser.add_argument("--per-host", type=int, required=True)
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--of", type=int, required=True)
    parser.add_argument("--unanswered", type=float, required=True)
    parser.add_argument("--deaths", type=float, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    settings = load(os.environ, given.folder).settings
    configure_logging("error", "logfmt")
    app, shape = make_app(settings), Shape(given.vms, given.per_host)
    model = CostModel(given.unanswered, given.deaths)
    around = surroundings(settings, redis_client(settings), CeleryWakeups(app), model, given.folder)
    hosts = Hosts(app, around, given.folder / f"hosts-{given.index}.jsonl")
    for number in shape.part(given.index, given.of):
        hosts.add(shape, number)
    hosts.begin()
    hosts.run()


if __name__ == "__main__":
    main()
