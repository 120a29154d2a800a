"""Stores for contract tests: in memory, and on real servers whose scripts take their time from a key of the test's.

With server time in the test's hands, minutes pass at once and the same on each of them.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import redis

from tests.support.builders import a_process
from tests.support.fakes import FakeClock
from tests.support.servers import empty
from workers.domain.audit import Event
from workers.embedded import EmbeddedServer
from workers.ports import Data, Limits, Memory, ModeStore, VmStore
from workers.simulator.memory_server import MemoryData, MemoryModes, MemoryServer
from workers.simulator.memory_store import MemoryVmStore
from workers.store.client import connect
from workers.store.data import RedisData
from workers.store.events import EventLog
from workers.store.hosts import HostRegistry, HostWorker
from workers.store.modes import RedisModes
from workers.store.vm_store import RedisVmStore

PREFIX = "rel"
_TIME_KEY = "test:time"
# Seconds and microseconds, as TIME gives them.
_TEST_TIME = (
    f"(function() local us = tonumber(redis.call('GET', '{_TIME_KEY}')); "
    "return {math.floor(us / 1000000), us % 1000000} end)()"
)
_FOREVER_MS = 10**9
LEASE_MS = 30_000


@dataclass
class Subject:
    """One store under test. `serve` gives a host a live worker; `restart` is another life of the server, data kept."""

    name: str
    make: Callable[[Limits, Memory | None], VmStore]
    data: Data
    modes: ModeStore
    clock: FakeClock
    pass_time: Callable[[int], None]
    serve: Callable[[str], None]
    restart: Callable[[], None]
    events: Callable[[], list[Event]]


def memory_subject() -> Subject:
    clock = FakeClock()
    server = MemoryServer(lambda: clock.now_us)
    data = MemoryData(server, (f"epoch-{n}" for n in itertools.count()), lease_ms=LEASE_MS)
    return Subject(
        "memory",
        lambda limits, memory: MemoryVmStore(server, limits, memory),
        data,
        MemoryModes(server),
        clock,
        clock.advance,
        lambda host: server.serve(host, _FOREVER_MS),
        server.restart,
        lambda: [event for _, event in server.contents.events],
    )


@contextmanager
def redis_subject(server: EmbeddedServer) -> Iterator[Subject]:
    empty(server)
    client = connect(server.url(0), timeout_s=5, connect_timeout_s=5)
    clock = FakeClock()

    def pass_time(ms: int) -> None:
        clock.advance(ms)
        client.set(_TIME_KEY, clock.now_us)

    def serve(host: str) -> None:
        HostRegistry(client, prefix=PREFIX).hold(HostWorker("me", host, a_process(), 0, "1"), ttl_ms=_FOREVER_MS)

    def restart() -> None:
        # What another life of the server looks like to the scripts: an unknown run id.
        client.hset(f"{PREFIX}:server", "run", "0000")

    pass_time(0)
    try:
        yield Subject(
            server.directory.name,
            lambda limits, memory: RedisVmStore(client, prefix=PREFIX, limits=limits, memory=memory, time=_TEST_TIME),
            RedisData(client, prefix=PREFIX, lease_ms=LEASE_MS, time=_TEST_TIME),
            RedisModes(client, prefix=PREFIX, events_kept=10_000),
            clock,
            pass_time,
            serve,
            restart,
            lambda: [entry.event for entry in EventLog(client, prefix=PREFIX).latest(limit=10_000)],
        )
    finally:
        client.close()


def keys_of(server: EmbeddedServer) -> set[str]:
    client = redis.Redis.from_url(server.url(0))
    try:
        return {key.decode() for key in cast("list[bytes]", client.keys(f"{PREFIX}:*"))}
    finally:
        client.close()
