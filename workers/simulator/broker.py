"""Queues that lose and double messages, hold countdowns, and give back what a dead worker had not acknowledged."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from workers.simulator.clockwork import Clockwork

LATENCY_S = 0.003


@dataclass(frozen=True, slots=True)
class Message:
    """`task` and its arguments, for the worker of a host."""

    task: str
    host: str
    arguments: dict[str, Any] = field(default_factory=dict)


@dataclass
class Broker:
    """`loss` and `doubling` are probabilities; `consumers` take a message or refuse it (None: nobody is there)."""

    clockwork: Clockwork
    dice: random.Random
    visibility_s: float
    loss: float = 0.0
    doubling: float = 0.0
    away: bool = False
    consumers: dict[str, list[Callable[[Message], bool]]] = field(default_factory=dict)
    _waiting: dict[str, list[Message]] = field(default_factory=dict)
    _life: int = 0

    def send(self, message: Message, delay_s: float = 0.0) -> None:
        """Messages are hints: one that cannot be sent is lost, as everything depends on the record."""
        if self.away or self.dice.random() < self.loss:
            return
        copies = 2 if self.dice.random() < self.doubling else 1
        for copy in range(copies):
            self._later(message, delay_s + LATENCY_S * (1 + copy))

    def _later(self, message: Message, delay_s: float) -> None:
        life = self._life
        self.clockwork.after(delay_s, lambda: self._deliver(message, life))

    def _deliver(self, message: Message, life: int) -> None:
        if life != self._life:
            return  # flushed
        consumers = self.consumers.get(message.host, [])
        in_turn = self.dice.sample(consumers, len(consumers)) if len(consumers) > 1 else consumers
        if not any(consume(message) for consume in in_turn):
            self._waiting.setdefault(message.host, []).append(message)

    def serve(self, host: str, consume: Callable[[Message], bool]) -> None:
        """A worker of this host consumes from now on, also what has been waiting."""
        consumers = self.consumers.setdefault(host, [])
        if consume not in consumers:
            consumers.append(consume)
        waiting, self._waiting[host] = self._waiting.get(host, []), []
        for message in waiting:
            self._later(message, LATENCY_S)

    def leave(self, host: str, consume: Callable[[Message], bool]) -> None:
        if consume in self.consumers.get(host, []):
            self.consumers[host].remove(consume)

    def give_back(self, message: Message) -> None:
        """Its worker died with it unacknowledged."""
        self._later(message, self.visibility_s)

    def flush(self) -> None:
        """Everything that is queued or held is gone."""
        self._life += 1
        self._waiting.clear()
