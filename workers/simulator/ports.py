"""Small fakes of the ports that need no world: memory, wake-ups, telemetry, and a tap around any other port."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from workers.domain.audit import Event
from workers.domain.epoch import Known
from workers.domain.evidence import Observation
from workers.domain.recovery import WakeUp
from workers.domain.vm import VmRecord
from workers.ports import Ignorance, Stored, Work
from workers.simulator.broker import Broker, Message


@dataclass
class SimMemory:
    """What a host remembers; `saved` outlives its worker."""

    known: Known | None = None
    saved: Known | None = None

    def saw(self, event_id: str) -> None:
        if self.known is not None:
            self.known = self.known.seeing(event_id)

    def trust(self, known: Known) -> None:
        same = self.known is not None and self.known.epoch == known.epoch
        self.known = self.known.seeing(known.last_event) if self.known and same else known

    def save(self) -> None:
        self.saved = self.known


class SimTelemetry:
    """Counts what was ignored; decisions stand in the event stream already."""

    def __init__(self) -> None:
        self.ignored_messages = 0

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        pass

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        pass

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        del vm_id, why, cause
        self.ignored_messages += 1

    def checks_came(self, age_ms: int) -> None:
        pass

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        del work, record
        return nullcontext()


@dataclass
class SimWakeups:
    """The Wakeups port on the simulated broker."""

    broker: Broker

    def recover(
        self, vm_id: str, host: str, *, episode: str | None = None, attempt: int | None = None, delay_ms: int = 0
    ) -> None:
        arguments = {"vm_id": vm_id, "wake": WakeUp(episode, attempt)}
        self.broker.send(Message("recover", host, arguments), delay_ms / 1000)

    def stop(self, vm_id: str, host: str) -> None:
        self.broker.send(Message("stop", host, {"vm_id": vm_id}))


class Tapped:
    """A port of a worker, through which whatever the world wants may happen before and after each call."""

    def __init__(self, inner: object, tap: Callable[[], None]) -> None:
        self._inner, self._tap = inner, tap

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._inner, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self._tap()
            result = found(*args, **kwargs)
            self._tap()
            return result

        return call
