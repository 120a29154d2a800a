"""What the stores know around one VM, and what of it keeps the VM from being looked at or recovered now. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from workers.domain.answer import (
    Finding,
)
from workers.domain.breaker import BreakerState
from workers.domain.chronicle import Told
from workers.domain.health import HealthPolicy
from workers.domain.modes import NO_MODES, Flag, Hold, InForce, Mode, Modes, Scope, Switch, scopes_of
from workers.domain.recovery import RecoveryPolicy
from workers.domain.storm import Loss
from workers.domain.vm import Force, VmRecord
from workers.domain.words import ago, at_time, clock, iso, lasting


@dataclass(frozen=True, slots=True)
class BreakerAt:
    """One that is not closed. `next_probe_ms`: server time from which it may be probed; None: a person closes it."""

    scope: str
    state: BreakerState
    next_probe_ms: int | None
    waiting: int


@dataclass(frozen=True, slots=True)
class StormAt:
    place: str
    kind: Loss
    since_ms: int
    came_back: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Queue:
    """Where a VM stands in the line of `place`; position from 1, 0 where that is not known."""

    place: str
    position: int
    length: int


@dataclass(frozen=True, slots=True)
class WorkerAt:
    """The worker of a host. `pid` None: it is silent; then `seen_ms` is when it was last there, 0 for never."""

    pid: int | None = None
    version: str = ""
    since_ms: int = 0
    seen_ms: int = 0


@dataclass(frozen=True, slots=True)
class HaltAt:
    why: str
    frozen: bool


@dataclass(frozen=True, slots=True)
class StrayAt:
    """A VMM of this id that no record names."""

    host: str
    pid: int
    age_s: float
    why: str


@dataclass(frozen=True, slots=True)
class Rules:
    """What the settings say, of whoever asks; those of the host's worker may be others."""

    health: HealthPolicy
    recovery: RecoveryPolicy
    detection_interval_ms: int
    checks: bool = True


@dataclass(frozen=True, slots=True)
class Facts:
    """What the stores know around one VM that has a record. Times are server time in ms.

    `events` are its own, oldest first; those before `told_since_ms` are not known any more.
    """

    now_ms: int
    record: VmRecord
    rules: Rules
    worker: WorkerAt = WorkerAt()
    modes: Modes = NO_MODES
    lease_owner: str | None = None
    lease_until_ms: int = 0
    checked_ms: int | None = None
    next_check_ms: int | None = None
    queue: Queue | None = None
    is_called: bool = False
    breakers: Sequence[BreakerAt] = ()
    storms: Sequence[StormAt] = ()
    halt: HaltAt | None = None
    quarantine_until_ms: int = 0
    strays: Sequence[StrayAt] = ()
    events: Sequence[Told] = ()
    told_since_ms: int = 0

    @property
    def is_forced(self) -> bool:
        return self.record.force is not Force.PLAIN


@dataclass(frozen=True, slots=True)
class Block:
    """What keeps something back: `looks`, `acts` or both. `until_ms` 0: until a person does `do`."""

    finding: Finding
    acts: bool = True
    looks: bool = False
    until_ms: int = 0
    do: str | None = None


def blocks_of(facts: Facts) -> list[Block]:
    """Return everything that keeps the VM's host from looking, or from acting, now."""
    return [*_of_host(facts), *_of_modes(facts), *_of_flags(facts), *_of_settings(facts), *_of_weather(facts)]


def _of_host(facts: Facts) -> Iterator[Block]:
    host, worker = facts.record.host, facts.worker
    if worker.pid is None:
        seen = f"last seen {ago(worker.seen_ms, facts.now_ms)}" if worker.seen_ms else "none ever did"
        finding = Finding(
            "worker",
            f"no worker serves host {host} ({seen}): its VMs are neither looked at nor recovered",
            worker_fields(worker, host),
        )
        yield Block(finding, looks=True, do=f"start `reliability worker` on host {host}")
    if facts.halt is not None:
        halt = facts.halt
        finding = Finding(
            "halted",
            f"host {host} recovers nothing now: {halt.why}",
            {"host": host, "why": halt.why, "frozen": halt.frozen},
        )
        todo = "look at `reliability state show`" if halt.frozen else f"remove that file on host {host}"
        yield Block(finding, do=todo)


def worker_fields(worker: WorkerAt, host: str) -> dict[str, Any]:
    return {
        "host": host,
        "live": worker.pid is not None,
        "pid": worker.pid,
        "version": worker.version or None,
        "last_seen": iso(worker.seen_ms),
    }


def _of_modes(facts: Facts) -> Iterator[Block]:
    record = facts.record
    for held in facts.modes.holds_on(record.vm_id, record.host, facts.now_ms):
        ends_ms = _end_of(held)
        yield Block(
            _mode(held, facts),
            acts=not facts.is_forced,
            looks=held.mode is Mode.PAUSED,
            until_ms=ends_ms,
            do=None if ends_ms else f"`reliability resume {_target(held.scope)}`",
        )


def _end_of(held: InForce) -> int:
    return held.hold.until_ms + held.hold.settle_ms if held.hold.until_ms else 0


def _target(scope: str) -> str:
    """How the commands name a scope."""
    kind, _, name = scope.partition(":")
    return {"host": f"--host {name}", "vm": name}.get(kind, "--fleet")


def _mode(held: InForce, facts: Facts) -> Finding:
    hold, now_ms = held.hold, facts.now_ms
    until = f"until it ends {at_time(hold.until_ms, now_ms)}" if hold.until_ms else "until it is lifted"
    if hold.until_ms and held.mode is not hold.mode:
        until = f"the {hold.mode} is over, and what it would do is only written down {_till(_end_of(held), now_ms)}"
    over = "; the request that is being followed goes before it" if facts.is_forced else ""
    return Finding(
        "mode",
        f"{held.words} (by {hold.actor}, {ago(hold.since_ms, now_ms)}; {until}{over})",
        hold_fields(held.mode, held.scope, hold),
    )


def hold_fields(mode: Mode, scope: str, hold: Hold) -> dict[str, Any]:
    """`mode` is what it comes to at the time in question: a maintenance that is over goes on as observe-only."""
    return {
        "mode": str(mode),
        "scope": scope,
        "hold_id": hold.id,
        "set_as": str(hold.mode),
        "actor": hold.actor,
        "why": hold.why,
        "since": iso(hold.since_ms),
        "until": iso(hold.until_ms),
        "observed_until": iso(hold.until_ms + hold.settle_ms) if hold.until_ms else None,
        "certain": True,
    }


def _till(ms: int, now_ms: int) -> str:
    return f"for {at_time(ms, now_ms).removeprefix('in ')}"


_SWITCHED = {
    Flag.HEALTH_CHECKS: "health checks are",
    Flag.ORPHAN_DETECTION: "orphan detection is",
    Flag.RECOVERY: "recovery is",
}


def _of_flags(facts: Facts) -> Iterator[Block]:
    record = facts.record
    for flag, what in _SWITCHED.items():
        found = decisive(facts.modes, flag, record)
        if found is None or found[1].on:
            continue
        scope, switch = found
        since = ago(switch.since_ms, facts.now_ms)
        finding = Finding(
            "flag",
            f"{what} switched off for {scope}: {switch.why} (by {switch.actor}, {since})",
            flag_fields(scope, switch),
        )
        is_asked = record.open_episode is not None and record.open_episode.request_id is not None
        yield Block(
            finding,
            acts=flag is Flag.RECOVERY and not is_asked,
            looks=flag is Flag.HEALTH_CHECKS,
            do=f"`reliability flag clear {flag} {_target(scope)}`",
        )


def flag_fields(scope: str, switch: Switch) -> dict[str, Any]:
    return {
        "flag": str(switch.flag),
        "on": switch.on,
        "scope": scope,
        "actor": switch.actor,
        "why": switch.why,
        "since": iso(switch.since_ms),
    }


def decisive(modes: Modes, flag: Flag, record: VmRecord) -> tuple[str, Switch] | None:
    """Return the switch that decides, and its scope: the most specific one."""
    for name in reversed(scopes_of(record.vm_id, record.host)):
        for switch in modes.scopes.get(name, Scope()).switches:
            if switch.flag is flag:
                return name, switch
    return None


def _of_settings(facts: Facts) -> Iterator[Block]:
    is_asked = facts.record.open_episode is not None and facts.record.open_episode.request_id is not None
    if not facts.rules.recovery.enabled:
        finding = _setting("recovery.enabled", "recovery is switched off by the settings")
        yield Block(
            finding, acts=not is_asked, do="see `reliability config`; a person's request is followed all the same"
        )
    if not facts.rules.checks:
        finding = _setting("health_check.enabled", "health checks are switched off by the settings")
        yield Block(finding, acts=False, looks=True, do="see `reliability config`")


def _setting(key: str, words: str) -> Finding:
    return Finding("setting", f"{words} ({key}, or enabled, is false here)", {"setting": key, "on": False})


def _of_weather(facts: Facts) -> Iterator[Block]:
    """What keeps only those back that need an attempt; it is told to all the same."""
    now_ms = facts.now_ms
    if facts.quarantine_until_ms > now_ms:
        until_ms = facts.quarantine_until_ms
        words = f"redis was started again, leases may have been lost: no recovery begins before {clock(until_ms)}"
        yield Block(Finding("quarantine", words, {"until": iso(until_ms)}), until_ms=until_ms)
    for breaker in facts.breakers:
        due_ms = breaker.next_probe_ms
        probe = f"next probe {at_time(due_ms, now_ms)}" if due_ms is not None else "opened by hand"
        state = str(breaker.state).replace("_", "-")
        finding = Finding(
            "breaker",
            f"breaker {breaker.scope} is {state}: {probe}, {breaker.waiting} waiting",
            {
                "scope": breaker.scope,
                "state": str(breaker.state),
                "next_probe": iso(due_ms),
                "waiting": breaker.waiting,
            },
        )
        do = f"`reliability breaker reset {breaker.scope}`" if due_ms is None else None
        yield Block(finding, acts=not facts.is_forced, until_ms=max(due_ms, 1) if due_ms is not None else 0, do=do)
    for storm in facts.storms:
        finding = Finding(
            "storm",
            f"storm at {storm.place} for {lasting(storm.since_ms, now_ms)}: many {storm.kind} losses at once, recovery "
            f"goes slowly; {storm.came_back} came back, {storm.waiting} waiting",
            {
                "place": storm.place,
                "loss": str(storm.kind),
                "since": iso(storm.since_ms),
                "came_back": storm.came_back,
                "waiting": storm.waiting,
            },
        )
        yield Block(finding, acts=False)
