"""`ReliabilityManager`: all that a VM manager has to know of this project.

Every call does nothing, and touches nothing, where the settings say `enabled = false`. What a call does otherwise is in
`live`, which is loaded only then.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.domain.errors import Refused, UnknownVm
from workers.domain.vm import Force
from workers.integration.hooks import AttemptSeen, Operation, VmHealth

if TYPE_CHECKING:
    from workers.integration.changes import Change
    from workers.integration.live import Live
    from workers.integration.subscriptions import Gap
    from workers.integration.vmms import Process
    from workers.settings import Settings
    from workers.specs import VmSpec

_STOPPING = timedelta(minutes=2)


class ReliabilityManager:
    """Hooks, questions and callbacks for the manager of one host's VMs; safe to be used by many threads.

    A hook keeps what it is told on this host's disk and returns its number: it waits for no network, and raises
    ValueError or TypeError for arguments that cannot be right, and nothing else. What it told reaches Redis from a
    thread of its own (`start`), or by the worker of this host. Questions wait for Redis and raise StoreUnavailable.

    Without `settings` they are read like everywhere: from the environment and the settings file. Callbacks are told
    each change of this host's VMs at least once, over all restarts. With a `group` they are told those of the whole
    fleet, which all that name this group share among them; then `consumer` (the host, where none is given) tells them
    apart.
    """

    def __init__(
        self, settings: "Settings | None" = None, *, group: str | None = None, consumer: str | None = None
    ) -> None:
        settings = settings or _settings()
        # Loaded here and not at the first hook, which has no time for that.
        self._live = _live(settings, group, consumer or settings.host) if settings.enabled else None

    def start(self) -> None:
        """Begin to deliver what hooks told, and to call the callbacks. A process that forks starts after that."""
        if self._live:
            self._live.start()

    def stop(self, timeout: timedelta = timedelta(seconds=5)) -> None:
        """Deliver what is left while there is time, and end. The rest is brought to Redis by this host's worker."""
        if self._live:
            self._live.stop(timeout)

    # Hooks

    def on_vm_created(
        self,
        vm_id: str,
        process: "Process | None",
        config: "VmSpec | Mapping[str, Any]",
        *,
        socket: str | None = None,
    ) -> int:
        """The VM runs as this VMM: from now on it is watched, and brought back when it is lost.

        `process` is a pid, a Popen, a VmmProcess or an Incarnation; None has it started by us. `config` is a spec as
        `reliability apply` takes it. `socket` is the VMM's API socket where its command line does not tell.
        """
        return self._live.created(vm_id, process, config, socket) if self._live else 0

    def on_vm_started(
        self,
        vm_id: str,
        process: "Process | None" = None,
        config: "VmSpec | Mapping[str, Any] | None" = None,
        *,
        socket: str | None = None,
    ) -> int:
        """A VM that was stopped runs again, or runs in another process, or as another `config`.

        Without a process the VMM is looked for on this host, and started where there is none.
        """
        return self._live.started(vm_id, process, config, socket) if self._live else 0

    def on_vm_stopping(self, vm_id: str, *, deadline: timedelta = _STOPPING) -> int:
        """The manager begins to stop it: it is not brought back from now on, and left alone until the deadline."""
        return self._live.stopping(vm_id, "on_vm_stopping", deadline) if self._live else 0

    def on_vm_stopped(self, vm_id: str) -> int:
        """It is to stay down; a VMM of it that still runs is brought down by us."""
        return self._live.stopped(vm_id) if self._live else 0

    def on_vm_deleting(self, vm_id: str, *, deadline: timedelta = _STOPPING) -> int:
        """As `on_vm_stopping`; the record stays until `on_vm_deleted`."""
        return self._live.stopping(vm_id, "on_vm_deleting", deadline) if self._live else 0

    def on_vm_deleted(self, vm_id: str) -> int:
        """It is gone for good: its record is dropped, once nothing of it runs."""
        return self._live.deleted(vm_id) if self._live else 0

    def on_vm_error(self, vm_id: str, error: str | BaseException) -> int:
        """The manager saw something wrong: it is written into the audit, and the VM is looked at now."""
        return self._live.failed(vm_id, error) if self._live else 0

    @contextmanager
    def operation(self, vm_id: str, kind: str, deadline: timedelta) -> Iterator[int]:
        """While this is open, and until the deadline at most, the VM is busy: neither judged nor acted on."""
        begun = self.begin_operation(vm_id, kind, deadline)
        try:
            yield begun.number
        finally:
            self.end_operation(vm_id, begun.name)

    def begin_operation(self, vm_id: str, kind: str, deadline: timedelta) -> Operation:
        """Do the same for a caller that ends it by name, perhaps after a restart."""
        return self._live.begin(vm_id, kind, deadline) if self._live else Operation("", 0)

    def end_operation(self, vm_id: str, operation: str) -> int:
        """Twice is harmless. Raises ValueError for a name that `begin_operation` never gives."""
        return self._live.end(vm_id, operation) if self._live else 0

    # Questions

    def get_vm_health(self, vm_id: str) -> VmHealth:
        """Raises UnknownVm, UnreadableRecord, StoreUnavailable."""
        if self._live is None:
            raise UnknownVm(vm_id)
        return self._live.questions.health(vm_id)

    def get_all_vm_health(self) -> Sequence[VmHealth]:
        """Of all VMs of this host. Raises StoreUnavailable."""
        return self._live.questions.all_health() if self._live else []

    def get_orphaned_vms(self) -> Sequence[VmHealth]:
        """Of those of this host that are lost and not back yet. Raises StoreUnavailable."""
        return self._live.questions.orphaned() if self._live else []

    def get_recovery_attempts(self, vm_id: str) -> Sequence[AttemptSeen]:
        """Return the attempts that the audit still tells of, oldest first. Raises StoreUnavailable."""
        return self._live.questions.attempts(vm_id) if self._live else []

    def trigger_recovery(self, vm_id: str, *, reason: str | None = None, force: Force = Force.PLAIN) -> str:
        """Ask for a recovery; returns the request's id.

        Raises Refused, UnknownVm, UnreadableRecord, StoreUnavailable.
        """
        if self._live is None:
            raise Refused("reliability is switched off: set enabled", "disabled")
        return self._live.trigger_recovery(vm_id, reason, force)

    @property
    def undelivered(self) -> int:
        """Of how many VMs something is still kept on this host."""
        return self._live.undelivered if self._live else 0

    # Callbacks: called in a thread of their own, at least once for each change; see `subscriptions`.

    def on_unhealthy(self, callback: "Callable[[Change], None]") -> None:
        """Call it when a VM fails its health checks."""
        if self._live:
            self._live.subscribe("unhealthy", callback)

    def on_orphaned(self, callback: "Callable[[Change], None]") -> None:
        """Call it when a VM has lost its process or its socket."""
        if self._live:
            self._live.subscribe("orphaned", callback)

    def on_recovered(self, callback: "Callable[[Change], None]") -> None:
        """Call it when a VM that was lost serves again."""
        if self._live:
            self._live.subscribe("recovered", callback)

    def on_failed(self, callback: "Callable[[Change], None]") -> None:
        """Call it when a VM is given up: a person is asked."""
        if self._live:
            self._live.subscribe("failed", callback)

    def on_gap(self, callback: "Callable[[Gap], None]") -> None:
        """Call it when changes may have been missed (Redis lost its data, or kept too few): look at all VMs once."""
        if self._live:
            self._live.on_gap(callback)


def _live(settings: "Settings", group: str | None, consumer: str) -> "Live":
    from workers.integration.live import Live  # noqa: PLC0415 - nothing is loaded where this is switched off

    return Live(settings, group=group, consumer=consumer)


def _settings() -> "Settings":
    from workers.settings import load  # noqa: PLC0415 - whoever has settings need not read them

    return load(os.environ, Path.cwd()).settings
