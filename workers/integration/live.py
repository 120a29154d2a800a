"""What `ReliabilityManager` does where it is switched on: checks what it is told, keeps it, and has it delivered."""

import json
import re
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from pydantic import BaseModel

from workers.bootstrap import Fleet, drivers
from workers.domain.vm import Force
from workers.host.identity import read_vantage
from workers.integration.changes import Change
from workers.integration.courier import Courier
from workers.integration.entries import Entry, Kind
from workers.integration.hooks import Operation
from workers.integration.journal import Make
from workers.integration.questions import Questions
from workers.integration.replay import delivery_of, journal_of
from workers.integration.requests import sender
from workers.integration.server_time import ServerTime
from workers.integration.subscriptions import Gap, Subscriptions
from workers.integration.vmms import Process, Vmm, Vmms
from workers.services.wishes import ACTOR
from workers.settings import Settings
from workers.specs import VmSpec, check_vm_id, dump_spec, spec_from

_log = structlog.get_logger(component="integration")

_TEXT_MAX, _KIND_MAX = 200, 64
_NAME_LENGTH = 8
_NAME = re.compile(rf"[0-9a-f]{{{_NAME_LENGTH}}}")
_LONGEST = timedelta(days=1)
_STOPPING = "stopping"  # the operation that on_vm_stopping begins and on_vm_stopped ends


class Live:
    def __init__(self, settings: Settings, *, group: str | None, consumer: str) -> None:
        _log_like_the_manager()
        self._settings, self._consumer = settings, consumer
        self._group, self._is_of_fleet = group or settings.host, group is not None
        self._fleet = Fleet(settings)
        self._journal = journal_of(settings)
        self._vantage = read_vantage(settings.state_dir)
        self._server_time = ServerTime(self._journal.folder / ".server-time.json", self._vantage.boot_id)
        self._vmms = Vmms(drivers(settings), self._vantage)
        delivery = delivery_of(settings, self._fleet, self._journal, self._vantage)
        self._courier = Courier(delivery.run)
        self.questions = Questions(self._fleet, host=settings.host)
        self._callbacks: list[tuple[str, Callable[[Change], None]]] = []
        self._on_gap: list[Callable[[Gap], None]] = []
        self._subscriptions: Subscriptions | None = None
        self._is_started = False

    def start(self) -> None:
        self._is_started = True
        self._courier.start()
        if self._callbacks:
            self._listen()

    def stop(self, timeout: timedelta) -> None:
        self._is_started = False
        self._courier.stop(timeout.total_seconds())
        if self._subscriptions is not None:
            self._subscriptions.stop(timeout.total_seconds())
            self._subscriptions = None

    def subscribe(self, kind: str, callback: Callable[[Change], None]) -> None:
        callback = callback if self._is_of_fleet else _for_host(self._settings.host, callback)
        self._callbacks.append((kind, callback))
        if self._subscriptions is not None:
            self._subscriptions.add(kind, callback)
        elif self._is_started:
            self._listen()

    def on_gap(self, callback: Callable[[Gap], None]) -> None:
        self._on_gap.append(callback)
        if self._subscriptions is not None:
            self._subscriptions.on_gap(callback)

    def _listen(self) -> None:
        self._subscriptions = Subscriptions(self._settings, self._group, self._consumer)
        for kind, callback in self._callbacks:
            self._subscriptions.add(kind, callback)
        for told in self._on_gap:
            self._subscriptions.on_gap(told)
        self._subscriptions.start()

    @property
    def undelivered(self) -> int:
        return len(self._journal.waiting())

    def trigger_recovery(self, vm_id: str, reason: str | None, force: Force) -> str:
        operations = self._fleet.operations(sender(self._settings), actor=ACTOR)
        return operations.recover(_vm_id(vm_id), reason=reason, force=force).request_id

    # Hooks

    def created(
        self, vm_id: str, process: Process | None, config: VmSpec | Mapping[str, Any], socket: str | None
    ) -> int:
        spec = self._spec(_vm_id(vm_id), config)
        vmm = self._vmm(vm_id, process, spec, socket)
        return self._keep(vm_id, self._runs("on_vm_created", spec, vmm))

    def started(
        self, vm_id: str, process: Process | None, config: VmSpec | Mapping[str, Any] | None, socket: str | None
    ) -> int:
        spec = self._spec(_vm_id(vm_id), config) if config is not None else None
        vmm = self._vmm(vm_id, process, spec, socket)
        return self._keep(vm_id, self._runs("on_vm_started", spec, vmm), self._done(_STOPPING, "on_vm_started"))

    def stopping(self, vm_id: str, hook: str, deadline: timedelta) -> int:
        busy = self._busy(_STOPPING, hook, "stop", _checked_deadline(deadline))
        return self._keep(_vm_id(vm_id), busy, self._entry(Kind.STOPPED, hook))

    def stopped(self, vm_id: str) -> int:
        hook = "on_vm_stopped"
        return self._keep(_vm_id(vm_id), self._entry(Kind.STOPPED, hook), self._done(_STOPPING, hook))

    def deleted(self, vm_id: str) -> int:
        hook = "on_vm_deleted"
        return self._keep(_vm_id(vm_id), self._entry(Kind.DELETED, hook), self._done(_STOPPING, hook))

    def failed(self, vm_id: str, error: str | BaseException) -> int:
        return self._keep(_vm_id(vm_id), self._entry(Kind.ERROR, "on_vm_error", error=_one_line(error)))

    def begin(self, vm_id: str, kind: str, deadline: timedelta) -> Operation:
        name = uuid.uuid4().hex[:_NAME_LENGTH]
        busy = self._busy(name, "operation", _checked_kind(kind), _checked_deadline(deadline))
        return Operation(name, self._keep(_vm_id(vm_id), busy))

    def end(self, vm_id: str, operation: str) -> int:
        if not _NAME.fullmatch(str(operation)):
            raise ValueError(f"field operation: must be what begin_operation gave, got {operation!r}")
        return self._keep(_vm_id(vm_id), self._done(operation, "operation"))

    def _keep(self, vm_id: str, *makers: Make) -> int:
        number = self._journal.add(vm_id, *makers)
        self._courier.nudge()
        return number

    def _entry(self, kind: Kind, hook: str, **told: Any) -> Make:
        return partial(Entry, kind=kind, hook=hook, at_ms=self._server_time.now_ms(), **told)

    def _runs(self, hook: str, spec: VmSpec | None, vmm: Vmm | None) -> Make:
        told = {"process": vmm.process, "executable": vmm.executable, "socket": vmm.socket} if vmm else {}
        return self._entry(Kind.RUNNING, hook, spec=dump_spec(spec) if spec else None, **told)

    def _busy(self, own: str, hook: str, kind: str, deadline_s: float) -> Make:
        until_s = time.clock_gettime(time.CLOCK_BOOTTIME) + deadline_s
        boot_id = self._vantage.boot_id
        return self._entry(Kind.BUSY, hook, operation=own, what=kind, until_s=until_s, boot_id=boot_id)

    def _done(self, own: str, hook: str) -> Make:
        return self._entry(Kind.DONE, hook, operation=own)

    def _vmm(self, vm_id: str, process: Process | None, spec: VmSpec | None, socket: str | None) -> Vmm | None:
        if process is None:
            return None
        try:
            return self._vmms.named(vm_id, process, driver=spec.driver if spec else None, socket=socket)
        except OSError as error:
            # Whoever looks for the VM on this host finds it, and takes it over.
            _log.error("process of a vm cannot be looked at", vm_id=vm_id, error=str(error))
            return None

    def _spec(self, vm_id: str, config: VmSpec | Mapping[str, Any]) -> VmSpec:
        """Return it as this host's. Raises SpecError, ValueError."""
        plain: dict[str, Any] = json.loads(dump_spec(config)) if isinstance(config, BaseModel) else dict(config)
        own = {"id": vm_id, "host": self._settings.host}
        spec = spec_from(own | {name: value for name, value in plain.items() if value is not None})
        if spec.id != vm_id:
            raise ValueError(f"field config: id is {spec.id!r}, the hook is about {vm_id!r}")
        if spec.host != self._settings.host:
            raise ValueError(f"field config: host is {spec.host!r}: call the hook on that host, this is another one")
        return spec.model_copy(update={"desired": "running"})


def _vm_id(vm_id: object) -> str:
    try:
        return check_vm_id(vm_id)
    except ValueError as error:
        raise ValueError(f"field vm_id: {error}, got {vm_id!r}") from None


def _checked_kind(kind: object) -> str:
    if isinstance(kind, str) and kind.isprintable() and 0 < len(kind) <= _KIND_MAX:
        return kind
    raise ValueError(f"field kind: must be one line of at most {_KIND_MAX} characters, got {kind!r}")


def _checked_deadline(deadline: object) -> float:
    if not isinstance(deadline, timedelta):
        raise TypeError(f"field deadline: must be a timedelta, got {type(deadline).__name__}")
    if not timedelta(0) < deadline <= _LONGEST:
        raise ValueError(f"field deadline: must be more than nothing and at most a day, got {deadline}")
    return deadline.total_seconds()


def _one_line(error: str | BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return "".join(each if each.isprintable() else "?" for each in text)[:_TEXT_MAX]


def _log_like_the_manager() -> None:
    """Into the standard library's logging, as the manager has set it up; only where structlog is not set up either."""
    if not structlog.is_configured():
        structlog.configure(
            processors=[
                structlog.stdlib.filter_by_level,
                structlog.processors.format_exc_info,
                structlog.processors.LogfmtRenderer(key_order=["event", "component", "vm_id"], drop_missing=True),
            ],
            logger_factory=structlog.stdlib.LoggerFactory(),
            wrapper_class=structlog.stdlib.BoundLogger,
        )


def _for_host(host: str, callback: Callable[[Change], None]) -> Callable[[Change], None]:
    def told(change: Change) -> None:
        if change.host == host:
            callback(change)

    return told
