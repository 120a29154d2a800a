"""The storm guard, as values: when many VMs are lost at once, recovery starts slowly and speeds up with success.

Losses that the kernel vouches for (`certain`) only wait until one slot-full has come back. Losses that we believe to
see (`uncertain`: sockets, APIs) begin with one recovery at a time, doubled by each success and halved by each failure.
The same machine runs inside Redis (`store/scripts/storm.lua`); the contract suite of the store keeps both alike.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from workers.domain.breaker import Result


class Loss(StrEnum):
    CERTAIN = "certain"
    UNCERTAIN = "uncertain"


@dataclass(frozen=True, slots=True)
class StormPolicy:
    """More than this share of the VMs of a host, or of the fleet, lost within the window; never fewer than at_least."""

    window_ms: int
    at_least: int
    host_share: float
    fleet_share: float


@dataclass(frozen=True, slots=True)
class Storm:
    """`limit`: recoveries at once, in an uncertain one; `came_back`: recoveries that succeeded since it began."""

    kind: Loss
    since_ms: int
    limit: int = 1
    came_back: int = 0


def kind_of(certain: int, uncertain: int, *, vms: int, share: float, policy: StormPolicy) -> Loss | None:
    """Say what so many losses within the window are, out of so many VMs; None: nothing unusual."""
    if _are_many(uncertain, vms, share, policy):
        return Loss.UNCERTAIN
    return Loss.CERTAIN if _are_many(certain + uncertain, vms, share, policy) else None


def _are_many(losses: int, vms: int, share: float, policy: StormPolicy) -> bool:
    return losses >= policy.at_least and losses > share * vms


def begin(storm: Storm | None, kind: Loss, now_ms: int) -> Storm:
    """A storm begins, or an ongoing one turns out to be uncertain; otherwise it goes on as it was."""
    if storm is None:
        return Storm(kind, now_ms)
    if storm.kind is Loss.CERTAIN and kind is Loss.UNCERTAIN:
        return replace(storm, kind=kind, limit=1)
    return storm


def cap(storm: Storm | None, most: int) -> int:
    """Return how many recoveries may run at once where `most` may run in good weather."""
    if storm is None:
        return most
    if storm.kind is Loss.UNCERTAIN:
        return min(most, storm.limit)
    # The first slot-full are canaries: with what has come back they never exceed one slot-full, until all are back.
    return most - storm.came_back if storm.came_back < most else most


def after_result(storm: Storm, result: Result, most: int) -> Storm:
    if result is Result.FAILURE:
        return replace(storm, limit=max(1, storm.limit // 2))
    return replace(storm, limit=min(most, storm.limit * 2), came_back=storm.came_back + 1)


def is_over(losses: int, waiting: int, *, vms: int, share: float, policy: StormPolicy) -> bool:
    """It ends lower than it began: at half the losses, and when nobody waits any more."""
    return waiting == 0 and losses * 2 <= max(policy.at_least, share * vms)
