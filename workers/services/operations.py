"""What a person may ask for, by command line, page or API. What is refused says why and what to do instead.

Whether a request is followed is decided once more on the VM's host, at the moment it acts.
"""

from dataclasses import dataclass
from enum import StrEnum

from workers.domain.audit import Event, EventKind


class Force(StrEnum):
    """What a request may override beyond what a plain one does; see docs/manual-recovery.md."""

    PLAIN = "plain"
    FORCE = "force"  # caps, breakers, storms and operator modes
    KILL_HEALTHY = "kill-healthy"  # also that the VM is well


@dataclass(frozen=True, slots=True)
class Asked:
    """`after` is the id of the last event before it; `sent` is False where an attempt runs already."""

    vm_id: str
    host: str
    request_id: str
    after: str
    sent: bool


class Operations:
    """`actor` stands in the audit, such as `cli:root` or `flower:alice`."""

    def recover(self, vm_id: str, *, reason: str | None = None, force: Force = Force.PLAIN) -> Asked:
        """Ask for the recovery of a VM. Raises Refused, UnknownVm, UnreadableRecord, StoreUnavailable."""
        raise NotImplementedError

    def reset(self, vm_id: str, *, reason: str) -> None:
        """Clear a finished episode and its count of attempts; a VM that was given up is watched, and recovered, again.

        Raises Refused, UnknownVm, UnreadableRecord, StoreUnavailable.
        """
        raise NotImplementedError

    def trip(self, scope: str, *, reason: str) -> None:
        """Open a breaker by hand: nothing of its scope is recovered until it is reset."""
        raise NotImplementedError

    def close_breaker(self, scope: str, *, reason: str) -> None:
        """Close a breaker by hand."""
        raise NotImplementedError

    def _note(self, kind: EventKind, vm_id: str, host: str, why: str) -> Event:
        raise NotImplementedError
