"""The top of the Fleet page: numbers, hosts, and the banners that say what is not as usual. Values in, values out."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from workers.dashboard.rows import Row
from workers.domain.breaker import BreakerState
from workers.domain.modes import FLEET, NO_MODES, Modes, scopes_of
from workers.domain.vm import State
from workers.domain.words import counted
from workers.ports import Halt
from workers.store.hosts import HostSeen
from workers.store.weather import BreakerSeen, StormSeen

_MOST_HOSTS = 50
_MOST_BANNERS = 20
_MOST_NAMED = 5
_VM = "vm:"


@dataclass(frozen=True, slots=True)
class Gathered:
    """What one reading found beside the VMs themselves."""

    now_ms: int
    hosts: Sequence[HostSeen] = ()
    halted: Mapping[str, Halt] = field(default_factory=dict)
    breakers: Sequence[BreakerSeen] = ()
    storms: Sequence[StormSeen] = ()
    modes: Modes = NO_MODES
    strays: int = 0
    unreadable: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Banner:
    """`level` is `bad`, `warning` or `calm`. Times are server time in ms, 0 for none."""

    level: str
    kind: str
    words: str
    until_ms: int = 0

    @property
    def document(self) -> dict[str, Any]:
        return {"level": self.level, "kind": self.kind, "words": self.words, "until_ms": self.until_ms}


def overview(seen: Gathered, rows: Iterable[Row]) -> dict[str, Any]:
    """Nothing in it changes by the mere passing of time, so that an unchanged fleet is an unchanged answer."""
    rows = list(rows)
    states = Counter(row.state for row in rows)
    sizes = Counter(row.host for row in rows)
    troubled = Counter(row.host for row in rows if row.state not in (State.HEALTHY, State.STOPPED))
    hosts = _hosts(seen, sizes, troubled)
    banners = list(_banners(seen, sizes))
    return {
        "vms": {"total": len(rows), "by_state": {str(state): states.get(state, 0) for state in State}},
        "hosts": {
            "total": len(hosts),
            "live": sum(host["live"] for host in hosts),
            "shown": hosts[:_MOST_HOSTS],
        },
        "recoveries": {"running": sum(row.running for row in rows)},
        "strays": seen.strays,
        "banners": [banner.document for banner in banners[:_MOST_BANNERS]],
        "more_banners": max(0, len(banners) - _MOST_BANNERS),
    }


def _hosts(seen: Gathered, sizes: Mapping[str, int], troubled: Mapping[str, int]) -> list[dict[str, Any]]:
    """Those in trouble first. `seen_ms` only of hosts without a worker: of the others it would change all the time."""
    known = {host.name: host for host in seen.hosts}
    documents = [
        {
            "name": name,
            "live": name in known and known[name].worker is not None,
            "seen_ms": known[name].seen_ms if name in known and known[name].worker is None else 0,
            "vms": sizes.get(name, 0),
            "in_trouble": troubled.get(name, 0),
            "held": held_words(seen.modes, None, name, seen.now_ms),
        }
        for name in {*known, *sizes}
    ]
    return sorted(documents, key=lambda host: (host["live"] or not host["vms"], -host["in_trouble"], host["name"]))


def held_words(modes: Modes, vm_id: str | None, host: str, now_ms: int) -> str | None:
    """The strongest mode in force there, with its scope; None where nothing is held."""
    names = set(scopes_of(vm_id, host))
    if not names & modes.scopes.keys():
        return None
    held = modes.strongest_on(vm_id or "", host, now_ms)
    return f"{held.mode} ({held.scope})" if held else None


def _banners(seen: Gathered, sizes: Mapping[str, int]) -> Iterator[Banner]:
    for host, halt in sorted(seen.halted.items()):
        kind, hint = ("frozen", "see `reliability state show`") if halt.frozen else ("kill_switch", "remove it there")
        yield Banner("bad", kind, f"host {host} recovers nothing: {halt.why}; {hint}")
    yield from _silent(seen, sizes)
    yield from _weather(seen)
    yield from _modes(seen)
    if seen.unreadable:
        yield Banner(
            "warning", "unreadable", f"cannot be read and is left untouched: {counted(len(seen.unreadable), 'record')}"
        )
    if seen.strays:
        yield Banner("warning", "strays", f"{counted(seen.strays, 'VMM')} without a record: see `reliability status`")


def _silent(seen: Gathered, sizes: Mapping[str, int]) -> Iterator[Banner]:
    live = {host.name for host in seen.hosts if host.worker is not None}
    silent = sorted(host for host, vms in sizes.items() if vms and host not in live)
    if not silent:
        return
    vms = sum(sizes[name] for name in silent)
    named = ", ".join(silent[:_MOST_NAMED]) + (f" and {len(silent) - _MOST_NAMED} more" if silent[_MOST_NAMED:] else "")
    yield Banner("bad", "silent", f"no worker serves {named}: nobody looks after {counted(vms, 'VM')} there")


def _weather(seen: Gathered) -> Iterator[Banner]:
    for storm in seen.storms:
        words = f"storm on {storm.place}: {storm.kind}; {storm.came_back} came back, {storm.waiting} waiting"
        yield Banner("warning", "storm", words)
    for breaker in seen.breakers:
        # What is written down as open may be probed by now; who asks next writes that down.
        due_ms = breaker.next_probe_ms
        is_due = breaker.state is BreakerState.OPEN and due_ms is not None and due_ms <= seen.now_ms
        state = BreakerState.HALF_OPEN if is_due else breaker.state
        until_ms = due_ms or 0 if state is BreakerState.OPEN else 0
        words = f"breaker {breaker.scope} is {state.replace('_', '-')}; {counted(breaker.waiting, 'VM')} waiting"
        yield Banner("warning", "breaker", words, until_ms)


def _modes(seen: Gathered) -> Iterator[Banner]:
    scopes = seen.modes.scopes
    wide = sorted((name for name in scopes if not name.startswith(_VM)), key=lambda name: (name != FLEET, name))
    for name in wide:
        for hold in scopes[name].holds:
            if (mode := hold.mode_at(seen.now_ms)) is not None:
                yield Banner("calm", mode, f"{name}: {mode}, by {hold.actor}: {hold.why}", hold.until_ms)
        for switch in scopes[name].switches:
            state = "on" if switch.on else "off"
            yield Banner("calm", "flag", f"{name}: {switch.flag} is switched {state}, by {switch.actor}: {switch.why}")
    held = sum(
        any(hold.mode_at(seen.now_ms) for hold in scope.holds) for name, scope in scopes.items() if name.startswith(_VM)
    )
    if held:
        yield Banner("calm", "held", f"held on its own (paused, in maintenance or observe-only): {counted(held, 'VM')}")
