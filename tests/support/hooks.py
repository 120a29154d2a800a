"""The hooks API in a test's hands: a manager that only remembers, a stream in memory, and callers on the socket."""

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx

from tests.support.builders import HOST, NOW_MS
from tests.support.processes import wait_until
from workers.domain.answer import Answer, Known, Next, Who
from workers.domain.audit import Event, EventKind
from workers.domain.vm import Desired, Force, Reason, State
from workers.integration.feed import Page
from workers.integration.hooks import AttemptSeen, Operation, VmHealth, VmmProcess
from workers.integration.http_api import HooksApi
from workers.integration.http_server import HooksServer

REQUEST_ID = "5d41402abc4b2a76"


def healthy(vm_id: str) -> VmHealth:
    return VmHealth(vm_id, HOST, State.HEALTHY, Desired.RUNNING, NOW_MS - 1000, NOW_MS, 0)


def orphaned(vm_id: str) -> VmHealth:
    return VmHealth(vm_id, HOST, State.ORPHANED, Desired.RUNNING, NOW_MS, NOW_MS, 3, Reason.PROCESS_DEAD, 1)


@dataclass
class FakeHooks:
    """`calls` are what it was told; `raises` is what the next calls of a method raise."""

    calls: list[tuple[Any, ...]] = field(default_factory=list)
    raises: dict[str, Exception] = field(default_factory=dict)

    def _told(self, name: str, *told: Any) -> int:
        if name in self.raises:
            raise self.raises[name]
        self.calls.append((name, *told))
        return len(self.calls)

    def on_vm_created(
        self, vm_id: str, process: VmmProcess | None, config: Mapping[str, Any], *, socket: str | None = None
    ) -> int:
        return self._told("created", vm_id, process, dict(config), socket)

    def on_vm_started(self, vm_id: str, process: VmmProcess | None = None, *, socket: str | None = None) -> int:
        return self._told("started", vm_id, process, socket)

    def on_vm_stopping(self, vm_id: str) -> int:
        return self._told("stopping", vm_id)

    def on_vm_stopped(self, vm_id: str) -> int:
        return self._told("stopped", vm_id)

    def on_vm_deleting(self, vm_id: str) -> int:
        return self._told("deleting", vm_id)

    def on_vm_deleted(self, vm_id: str) -> int:
        return self._told("deleted", vm_id)

    def on_vm_error(self, vm_id: str, error: str) -> int:
        return self._told("error", vm_id, error)

    def operation(self, vm_id: str, kind: str, deadline: timedelta) -> AbstractContextManager[int]:
        return nullcontext(self._told("operation", vm_id, kind, deadline))

    def begin_operation(self, vm_id: str, kind: str, deadline: timedelta) -> Operation:
        return Operation(f"{kind}-0badcafe", self._told("begin_operation", vm_id, kind, deadline))

    def end_operation(self, vm_id: str, operation: str) -> int:
        return self._told("end_operation", vm_id, operation)

    def get_vm_health(self, vm_id: str) -> VmHealth:
        self._told("health", vm_id)
        return healthy(vm_id)

    def get_all_vm_health(self) -> Sequence[VmHealth]:
        self._told("vms")
        return [healthy("vm-1"), orphaned("vm-2")]

    def get_orphaned_vms(self) -> Sequence[VmHealth]:
        self._told("orphans")
        return [orphaned("vm-2")]

    def get_recovery_attempts(self, vm_id: str) -> Sequence[AttemptSeen]:
        self._told("attempts", vm_id)
        failed = AttemptSeen(1, NOW_MS, NOW_MS + 5, Reason.PROCESS_DEAD, "failed", "no kernel")
        return [failed, AttemptSeen(2, NOW_MS + 9, 0, None, "running")]

    def trigger_recovery(self, vm_id: str, *, reason: str | None = None, force: Force = Force.PLAIN) -> str:
        self._told("recover", vm_id, reason, force)
        return REQUEST_ID


class FakeFeed:
    """A stream in memory whose places are 1-0, 2-0, …; what was `cut_off` is gone."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Event]] = []
        self.cut_off = 0
        self.raises: Exception | None = None
        self._news = threading.Condition()
        self.waiting = 0

    def happen(self, vm_id: str, after: State = State.ORPHANED, *, before: State = State.HEALTHY) -> str:
        told = Event(EventKind.TRANSITION, vm_id, HOST, "test", "because", before=before, after=after)
        with self._news:
            place = f"{len(self.events) + 1}-0"
            self.events.append((place, told))
            self._news.notify_all()
        return place

    def page(self, after: str | None, limit: int) -> Page:
        if self.raises:
            raise self.raises
        if after is None:
            return Page((), f"{len(self.events)}-0", has_gap=False)
        first = int(after.partition("-")[0])
        found = self.events[max(first, self.cut_off) :][:limit]
        return Page(found, found[-1][0] if found else after, has_gap=first < self.cut_off)

    def wait(self, after: str) -> None:
        del after
        with self._news:
            self.waiting += 1
            self._news.wait(0.05)
            self.waiting -= 1


def explained(vm_id: str, at_ms: int | None) -> Answer:
    coming = Next("nothing", Who.NOBODY, "nothing")
    return Answer(vm_id, Known.RECORD, NOW_MS, f"{vm_id} is healthy", "healthy", (), coming, at_ms)


def caller(path: Path) -> httpx.Client:
    # A context without the machine's certificates, whose loading takes long, and which a Unix socket has no use for.
    transport = httpx.HTTPTransport(uds=str(path), verify=ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    return httpx.Client(transport=transport, base_url="http://hooks", timeout=10)


@dataclass
class Site:
    hooks: FakeHooks
    feed: FakeFeed
    server: HooksServer
    http: httpx.Client

    @property
    def path(self) -> Path:
        return self.server.path

    def connected(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(10)
        client.connect(str(self.path))
        return client

    def raw(self, sent: bytes) -> bytes:
        """Send these bytes, and return all that comes until it closes."""
        with self.connected() as client:
            with suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(sent)
            return received(client)


@contextmanager
def serving(folder: Path, **options: Any) -> Iterator[Site]:
    hooks, feed = FakeHooks(), FakeFeed()
    api = HooksApi(hooks, feed, explained, version="1.2.3")
    server = HooksServer(folder / "hooks.sock", api.answer, again_s=0.02, **options)
    server.start()
    try:
        wait_until(lambda: server.listens, what="the API to listen")
        with caller(server.path) as http:
            yield Site(hooks, feed, server, http)
    finally:
        server.stop()


def error_of(reply: httpx.Response) -> tuple[int, str, str | None]:
    """Return status, code and field of an error, which has a message of one line."""
    told = reply.json()["error"]
    assert set(told) == {"code", "field", "message"}
    assert told["message"].isprintable()
    return reply.status_code, told["code"], told["field"]


def received(client: socket.socket) -> bytes:
    """Return all that comes until it closes."""
    found = b""
    with suppress(ConnectionResetError):
        while part := client.recv(65536):
            found += part
    return found
