"""What a VM manager may tell and ask: the port between the HTTP API and `ReliabilityManager`.

A hook keeps what it was told, returns its number in this host's journal, and waits for nobody. What is asked is
answered from the records.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

from workers.domain.vm import Desired, Force, Reason, State


@dataclass(frozen=True, slots=True)
class VmmProcess:
    """The VMM as the manager started it; what is None is read from /proc at once, by the pid."""

    pid: int
    start_ticks: int | None = None
    boot_id: str | None = None
    executable: str | None = None


@dataclass(frozen=True, slots=True)
class VmHealth:
    """Times are server time in ms; 0 is never. `reason` is why it is lost, or in doubt."""

    vm_id: str
    host: str
    state: State
    desired: Desired
    since_ms: int
    checked_ms: int
    fails: int
    reason: Reason | None = None
    attempt: int | None = None

    @property
    def is_healthy(self) -> bool:
        return self.state is State.HEALTHY


@dataclass(frozen=True, slots=True)
class AttemptSeen:
    """One attempt of a recovery. `error` is why it failed; `ended_ms` 0: it runs."""

    number: int
    started_ms: int
    ended_ms: int
    reason: Reason | None
    outcome: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """`name` is what ends it; `number` that of its begin in the journal."""

    name: str
    number: int


class Hooks(Protocol):
    """Hooks raise ValueError for what they cannot take, and nothing for Redis: what they were told is kept.

    Questions raise UnknownVm, UnreadableRecord and StoreUnavailable; `trigger_recovery` also Refused.
    """

    def on_vm_created(
        self, vm_id: str, process: VmmProcess | None, config: Mapping[str, Any], *, socket: str | None = None
    ) -> int: ...

    def on_vm_started(self, vm_id: str, process: VmmProcess | None = None, *, socket: str | None = None) -> int: ...

    def on_vm_stopping(self, vm_id: str) -> int: ...

    def on_vm_stopped(self, vm_id: str) -> int: ...

    def on_vm_deleting(self, vm_id: str) -> int: ...

    def on_vm_deleted(self, vm_id: str) -> int: ...

    def on_vm_error(self, vm_id: str, error: str) -> int: ...

    def operation(self, vm_id: str, kind: str, deadline: timedelta) -> AbstractContextManager[int]:
        """While it is open, and until the deadline at most, the VM is busy and not judged."""
        ...

    def begin_operation(self, vm_id: str, kind: str, deadline: timedelta) -> Operation:
        """Do the same for a caller that ends it by name, perhaps after this process was restarted."""
        ...

    def end_operation(self, vm_id: str, operation: str) -> int:
        """Raises ValueError for a name that `begin_operation` never gives; one that ended is ended once more."""
        ...

    def get_vm_health(self, vm_id: str) -> VmHealth: ...

    def get_all_vm_health(self) -> Sequence[VmHealth]: ...

    def get_orphaned_vms(self) -> Sequence[VmHealth]: ...

    def get_recovery_attempts(self, vm_id: str) -> Sequence[AttemptSeen]: ...

    def trigger_recovery(self, vm_id: str, *, reason: str | None = None, force: Force = Force.PLAIN) -> str:
        """Ask for a recovery; returns the request's id."""
        ...
