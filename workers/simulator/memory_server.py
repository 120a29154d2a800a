"""A server in memory: what it holds, its lives, and the Data port on it. Time comes from outside.

The data can be saved and put back, so that a rollback can be played.
"""

import copy
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, fields

from workers.domain.audit import Event
from workers.domain.breaker import Breaker, Call
from workers.domain.epoch import NO_EVENT, Found, Known
from workers.domain.errors import StoreUnavailable
from workers.domain.modes import Modes, Scope
from workers.domain.storm import Loss, Storm
from workers.domain.vm import VmRecord
from workers.ports import Halt
from workers.specs import VmSpec


@dataclass
class Row:
    """One VM, as P:vm:<id> and what refers to it."""

    record: VmRecord
    rev: int = 0
    spec: VmSpec | None = None
    owner: str | None = None
    token: int = 0
    lease_end_ms: int = 0
    checked_ms: int | None = None
    due_ms: int | None = None
    line: str | None = None
    called_until_ms: int = 0
    # What its attempt counts for, and under which generation of each breaker; None: no attempt that counts.
    admissions: tuple[tuple[Call, int], ...] | None = None


@dataclass
class Contents:
    """Everything that a rollback takes back."""

    rows: dict[str, Row] = field(default_factory=dict)
    slots: dict[str, dict[str, int]] = field(default_factory=dict)
    lines: dict[str, dict[str, int]] = field(default_factory=dict)
    breakers: dict[str, Breaker] = field(default_factory=dict)
    offered: dict[str, int] = field(default_factory=dict)
    storms: dict[str, Storm] = field(default_factory=dict)
    losses: dict[tuple[Loss, str], dict[str, int]] = field(default_factory=dict)
    forgotten: dict[str, int] = field(default_factory=dict)
    events: list[tuple[str, Event]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    halted: dict[str, Halt] = field(default_factory=dict)
    host_leases: dict[str, int] = field(default_factory=dict)
    host_owners: dict[str, str] = field(default_factory=dict)
    sweeps: dict[tuple[str, str], int] = field(default_factory=dict)
    modes: dict[str, Scope] = field(default_factory=dict)
    epoch: str | None = None
    epochs: set[str] = field(default_factory=set)
    server_run: int | None = None
    quarantine_until_ms: int = 0

    def copy(self) -> "Contents":
        """All values are frozen; only what holds them is copied."""
        copied = copy.copy(self)
        for one in fields(self):
            value = getattr(self, one.name)
            if isinstance(value, dict):
                setattr(copied, one.name, {key: copy.copy(each) for key, each in value.items()})
            elif isinstance(value, list | set):
                setattr(copied, one.name, copy.copy(value))
        return copied


class MemoryServer:
    """What all clients share. `away` makes every call fail like a server that does not answer."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us
        self.contents = Contents()
        self.run = 1
        self.away = False
        self._last_event = (0, 0)

    @property
    def now_us(self) -> int:
        return self._now_us()

    @property
    def now_ms(self) -> int:
        return self._now_us() // 1000

    def save(self) -> Contents:
        return self.contents.copy()

    def restart(self, contents: Contents | None = None) -> None:
        """Another life of the server: with its data, or with these."""
        self.run += 1
        if contents is not None:
            self.contents = contents

    def lose_data(self) -> None:
        """Another life of the server, and nothing of the one before."""
        self.restart(Contents())

    def append(self, event: Event) -> str:
        ms, number = self._last_event
        self._last_event = (self.now_ms, 0) if self.now_ms > ms else (ms, number + 1)
        event_id = f"{self._last_event[0]}-{self._last_event[1]}"
        self.contents.events.append((event_id, event))
        return event_id

    def serve(self, host: str, ttl_ms: int) -> None:
        """A worker of this host holds its name."""
        self.contents.host_leases[host] = self.now_ms + ttl_ms


class MemoryData:
    """The Data port of the same server."""

    def __init__(self, server: MemoryServer, new_ids: Iterator[str], *, lease_ms: int) -> None:
        self._server, self._new_ids, self._lease_ms = server, new_ids, lease_ms

    @property
    def _data(self) -> Contents:
        if self._server.away:
            raise StoreUnavailable("the server is away")
        return self._server.contents

    def look(self, known: Known | None) -> Found:
        data = self._data
        last = data.events[-1][0] if data.events else NO_EVENT
        follows = known is not None and data.epoch is not None and known.epoch in data.epochs
        return Found(data.epoch, last, remembers(data, known.last_event if known else NO_EVENT), follows)

    def begin(self, known: Known | None) -> Found:
        if self._data.epoch is None:
            self._data.epoch = next(self._new_ids)
        return self.look(known)

    def confirm(self, told: Event) -> Found:
        data = self._data
        data.epochs |= {halt.epoch for halt in data.halted.values() if halt.epoch}
        if data.epoch is not None:
            data.epochs.add(data.epoch)
        data.epoch = next(self._new_ids)
        data.quarantine_until_ms = self._server.now_ms + self._lease_ms
        self._server.append(told)
        return self.look(None)

    def halt(self, host: str, halt: Halt | None) -> None:
        if halt is None:
            self._data.halted.pop(host, None)
        else:
            self._data.halted[host] = halt


class MemoryModes:
    """The ModeStore port of the same server."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server

    @property
    def _scopes(self) -> dict[str, Scope]:
        if self._server.away:
            raise StoreUnavailable("the server is away")
        return self._server.contents.modes

    def modes(self, scopes: Collection[str]) -> tuple[int, Modes]:
        return self._server.now_ms, Modes({name: self._scopes[name] for name in scopes if name in self._scopes})

    def all_modes(self) -> tuple[int, Modes]:
        return self._server.now_ms, Modes(dict(self._scopes))

    def put_scope(self, name: str, before: Scope, after: Scope, told: Event) -> bool:
        if self._scopes.get(name, Scope()) != before:
            return False
        self._scopes.pop(name, None)
        if after != Scope():
            self._scopes[name] = after
        self._server.append(told)
        return True


def remembers(data: Contents, event_id: str) -> bool:
    """Nothing is ever trimmed here: what is not there was lost."""
    return event_id == NO_EVENT or any(found == event_id for found, _ in reversed(data.events))
