"""Operator modes and run-time flags: what may be judged and done now, for the fleet, a host or a VM.

Orthogonal to the state of a VM. A hold is one person's reason for one mode; a mode is over when all its holds are.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from workers.domain.vm import VmRecord

FLEET = "fleet"
UNREADABLE = "unreadable"  # id of the hold that stands for what cannot be read
_HOST, _VM = "host:", "vm:"


class Mode(StrEnum):
    """From the weakest to the strongest."""

    OBSERVE_ONLY = "observe-only"  # everything is decided and written down as "would have", nothing is done
    MAINTENANCE = "maintenance"  # judged, nothing done; ends by itself, then one observe-only interval
    PAUSED = "paused"  # neither judged nor acted on


class Flag(StrEnum):
    """Parts that can be switched at run time, within what the settings allow."""

    HEALTH_CHECKS = "health_checks"
    ORPHAN_DETECTION = "orphan_detection"
    RECOVERY = "recovery"
    STRAY_REAPING = "stray_reaping"


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a mode is in force. Times are server time in ms; `until_ms` 0 holds until it is lifted.

    `settle_ms`: for so long after its end only observed, so that what broke meanwhile is not all mended at once.
    """

    id: str
    mode: Mode
    actor: str
    why: str
    since_ms: int
    until_ms: int = 0
    settle_ms: int = 0

    def mode_at(self, now_ms: int) -> Mode | None:
        if not self.until_ms or now_ms < self.until_ms:
            return self.mode
        return Mode.OBSERVE_ONLY if now_ms < self.until_ms + self.settle_ms else None


@dataclass(frozen=True, slots=True)
class Switch:
    """A flag as somebody set it at run time."""

    flag: Flag
    on: bool
    actor: str
    why: str
    since_ms: int


@dataclass(frozen=True, slots=True)
class Scope:
    """All holds and switches of `fleet`, `host:<h>` or `vm:<id>`."""

    holds: tuple[Hold, ...] = ()
    switches: tuple[Switch, ...] = ()

    @property
    def is_unreadable(self) -> bool:
        return any(hold.id == UNREADABLE for hold in self.holds)

    def says_something(self, now_ms: int) -> bool:
        """Whether anything is switched here, or held now."""
        return bool(self.switches) or any(hold.mode_at(now_ms) for hold in self.holds)

    def without_ended(self, now_ms: int) -> "Scope":
        return Scope(tuple(hold for hold in self.holds if hold.mode_at(now_ms)), self.switches)


@dataclass(frozen=True, slots=True)
class InForce:
    """A hold that decides now, on which scope, and as which mode."""

    mode: Mode
    scope: str
    hold: Hold

    @property
    def words(self) -> str:
        return f"{self.scope} is {'in ' if self.mode is Mode.MAINTENANCE else ''}{self.mode}: {self.hold.why}"


@dataclass(frozen=True, slots=True)
class Modes:
    """What is known of the scopes that were asked for; a scope that is not here has nothing."""

    scopes: Mapping[str, Scope] = field(default_factory=dict)

    def holds_on(self, vm_id: str, host: str, now_ms: int) -> list[InForce]:
        """Every hold in force on this VM, strongest mode first, then the wider scope."""
        found = [
            InForce(mode, name, hold)
            for name in scopes_of(vm_id, host)
            for hold in self.scopes.get(name, Scope()).holds
            if (mode := hold.mode_at(now_ms))
        ]
        return sorted(found, key=lambda each: _RANK[each.mode])

    def in_force(self, record: VmRecord, now_ms: int) -> InForce | None:
        """The strongest of them; None where nothing keeps anybody from acting."""
        return self.strongest_on(record.vm_id, record.host, now_ms)

    def strongest_on(self, vm_id: str, host: str, now_ms: int) -> InForce | None:
        """The same for what has no record."""
        return next(iter(self.holds_on(vm_id, host, now_ms)), None) if self.scopes else None

    def is_on(self, flag: Flag, *, vm_id: str | None = None, host: str) -> bool:
        """The most specific switch decides; without any, it is on."""
        if not self.scopes:
            return True
        for name in reversed(scopes_of(vm_id, host)):
            for switch in self.scopes.get(name, Scope()).switches:
                if switch.flag is flag:
                    return switch.on
        return True

    def judges(self, record: VmRecord, now_ms: int) -> bool:
        """Whether what is seen of this VM counts."""
        if not self.scopes:
            return True
        held = self.in_force(record, now_ms)
        return held is None or held.mode is not Mode.PAUSED

    def say_nothing_of(self, record: VmRecord, now_ms: int) -> bool:
        """Whether no mode is in force and nothing switched on this VM, its host and the fleet."""
        places = scopes_of(record.vm_id, record.host) if self.scopes else ()
        return not any(self.scopes.get(name, Scope()).says_something(now_ms) for name in places)

    def has_on(self, flag: Flag, record: VmRecord) -> bool:
        return self.is_on(flag, vm_id=record.vm_id, host=record.host)


NO_MODES = Modes()
_RANK = {Mode.PAUSED: 0, Mode.MAINTENANCE: 1, Mode.OBSERVE_ONLY: 2}


def host_scope(host: str) -> str:
    return _HOST + host


def vm_scope(vm_id: str) -> str:
    return _VM + vm_id


def scopes_of(vm_id: str | None, host: str) -> list[str]:
    """From the widest to the narrowest."""
    return [FLEET, host_scope(host), *([vm_scope(vm_id)] if vm_id else [])]


def scopes_of_all(places: Iterable[tuple[str, str]]) -> list[str]:
    """The scopes of these (vm id, host), each once."""
    return list(dict.fromkeys(name for vm_id, host in places for name in scopes_of(vm_id, host)))
