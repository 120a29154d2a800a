"""Checks of the fleet, by what Redis knows of it: who works, who does not, what is switched off or held back."""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import cast

from workers.doctor.finding import Finding, fine, listed, problem, warning
from workers.doctor.place import Place
from workers.domain.modes import FLEET, Flag, Modes, Scope
from workers.domain.vm import State
from workers.durations import format_duration
from workers.ports import Halt, Snapshot, Stored
from workers.settings import Settings
from workers.store.hosts import HostSeen

DISTRIBUTION = "metald-reliability"
_MOST_READ = 1000  # VMs: enough to see what is wrong with many
_INTERVALS = 3  # a check that is late by so many is no hiccup
_CHECKED = frozenset({State.HEALTHY, State.DEGRADED, State.UNHEALTHY})
_SECOND_MS = 1000


def records(place: Place) -> Iterator[Finding]:
    ids = place.fleet.store.ids()
    yield from judge_records(_read(place, ids), len(ids), place.settings.redis.record_version)


def _read(place: Place, ids: Sequence[str]) -> Snapshot:
    return place.fleet.store.read(ids[:_MOST_READ])


def judge_records(snapshot: Snapshot, total: int, ours: int) -> Iterator[Finding]:
    if snapshot.unreadable:
        first, why = next(iter(snapshot.unreadable.items()))
        says = f"left untouched, since they cannot be read: {listed(list(snapshot.unreadable))} ({first}: {why})"
        yield problem("records", says, "run a worker of the version that wrote them")
    versions = Counter(stored.version for stored in snapshot.found.values())
    newer = sum(number for each, number in versions.items() if each > ours)
    if newer:
        says = f"{newer} records are of a later version than the {ours} that redis.record_version wants"
        yield warning("records", says, "wait for reconcile_interval, or set redis.record_version the same everywhere")
    elif not snapshot.unreadable:
        kinds = ", ".join(f"{number} of version {each}" for each, number in sorted(versions.items()))
        looked = f"{total} in all, of {_MOST_READ} looked at: " if total > _MOST_READ else ""
        yield fine("records", f"{looked}{kinds or 'none yet'}")


def workers(place: Place) -> Iterator[Finding]:
    _, hosts = place.fleet.hosts.all()
    # A host that never had a worker is known only by the VMs that wait there.
    ids = place.fleet.store.ids()
    named = {stored.record.host for stored in _read(place, ids).found.values()}
    vms_of = place.fleet.store.host_sizes(sorted(named | {host.name for host in hosts}))
    yield from judge_workers(hosts, vms_of, place.settings.host)


def judge_workers(hosts: Sequence[HostSeen], vms_of: Mapping[str, int], here: str) -> Iterator[Finding]:
    live = {host.name for host in hosts if host.worker}
    unserved = sorted(name for name, vms in vms_of.items() if vms and name not in live)
    if unserved:
        vms = sum(vms_of[name] for name in unserved)
        yield problem("workers", f"no worker serves {listed(unserved)}: VMs unwatched: {vms}", "`reliability worker`")
    if here not in live and here not in unserved:
        yield warning("workers", f"no worker serves this host ({here})", "run `reliability worker` here")
    if here in live and not unserved:
        yield fine("workers", f"hosts with a live one: {len(live)}, this host ({here}) among them")


def versions(place: Place) -> Iterator[Finding]:
    _, hosts = place.fleet.hosts.all()
    yield judge_versions({host.name: host.worker.version for host in hosts if host.worker}, version(DISTRIBUTION))


def judge_versions(version_of: Mapping[str, str], ours: str) -> Finding:
    others = sorted(f"{host} ({theirs})" for host, theirs in version_of.items() if theirs != ours)
    if others:
        says = f"this is {ours}, and other versions run on {listed(others)}"
        return warning("versions", says, "finish the upgrade there, or here")
    return fine("versions", f"{ours}" + (", as every live worker" if version_of else ""))


def beat(place: Place) -> Iterator[Finding]:
    with_scores = cast("list[tuple[bytes, float]]", place.redis.zrange(place.keys.due, 0, 0, withscores=True))
    seconds, micros = place.redis.time()
    late_ms = seconds * _SECOND_MS + micros // 1000 - int(with_scores[0][1]) if with_scores else None
    yield judge_beat(late_ms, place.settings.telemetry.stalled_after.total_seconds())


def judge_beat(late_ms: int | None, patience_s: float) -> Finding:
    """`late_ms` tells since when the most overdue check waits to be handed out; None: nothing is to be done, ever."""
    if late_ms is None:
        return fine("beat", "nothing is scheduled yet")
    if late_ms > patience_s * _SECOND_MS:
        says = f"no beat hands out checks: the oldest has been due for {late_ms // _SECOND_MS} s"
        return problem("beat", says, "run `reliability beat`, on any machine, and look at its log")
    return fine("beat", "checks are handed out in time")


def checks(place: Place) -> Iterator[Finding]:
    snapshot = _read(place, place.fleet.store.ids())
    _, hosts = place.fleet.hosts.all()
    _, modes = place.fleet.modes.all_modes()
    served = {host.name for host in hosts if host.worker}
    interval_ms = int(place.settings.health_check.interval.total_seconds() * _SECOND_MS)
    if place.settings.enabled and place.settings.health_check.enabled:
        yield judge_checks(snapshot, modes, served, interval_ms)


def judge_checks(snapshot: Snapshot, modes: Modes, served: Collection[str], interval_ms: int) -> Finding:
    """Only of hosts with a worker, and of VMs that nobody paused or switched checks off for."""
    now_ms = snapshot.now_ms
    limit_ms = _INTERVALS * interval_ms

    def is_late(stored: Stored) -> bool:
        record = stored.record
        is_on = modes.is_on(Flag.HEALTH_CHECKS, vm_id=record.vm_id, host=record.host)
        is_checked = is_on and modes.judges(record, now_ms) and record.state in _CHECKED and record.host in served
        return is_checked and now_ms - max(stored.checked_ms or 0, record.since_ms) > limit_ms

    late = sorted(vm_id for vm_id, stored in snapshot.found.items() if is_late(stored))
    if late:
        says = f"not checked for more than {limit_ms / _SECOND_MS:g} s: {listed(late)}"
        return problem("checks", says, "see whether a beat runs, and what the log of their worker says")
    return fine("checks", "no VM with a worker has been without one for long")


def halted(place: Place) -> Iterator[Finding]:
    yield from judge_halted(place.fleet.data.halted())


def judge_halted(halts: Mapping[str, Halt]) -> Iterator[Finding]:
    for host, halt in sorted(halts.items()):
        does = "look at `reliability state show`" if halt.frozen else "remove that file there"
        yield problem("halted hosts", f"{host} recovers nothing: {halt.why}", does)
    if not halts:
        yield fine("halted hosts", "none")


def modes(place: Place) -> Iterator[Finding]:
    now_ms, found = place.fleet.modes.all_modes()
    yield from judge_modes(found, now_ms)


def judge_modes(found: Modes, now_ms: int) -> Iterator[Finding]:
    held = [finding for name, scope in sorted(found.scopes.items()) for finding in _of_scope(name, scope, now_ms)]
    yield from held
    if not held:
        yield fine("modes", "nothing is paused, in maintenance or switched off at run time")


def _of_scope(name: str, scope: Scope, now_ms: int) -> Iterator[Finding]:
    for hold in scope.holds:
        mode = hold.mode_at(now_ms)
        if mode is not None:
            says = f"{name}: {mode}, by {hold.actor}: {hold.why}"
            yield warning("modes", says, f"`reliability resume {_target(name)}` lifts it")
    for switch in scope.switches:
        if not switch.on:
            says = f"{name}: {switch.flag} is off, by {switch.actor}: {switch.why}"
            yield warning("modes", says, f"`reliability flag clear {switch.flag} {_target(name)}` takes it back")


def _target(scope: str) -> str:
    """How the command line names a scope."""
    kind, _, name = scope.partition(":")
    return "--fleet" if scope == FLEET else f"--host {name}" if kind == "host" else name


def held_back(place: Place) -> Iterator[Finding]:
    _, hosts = place.fleet.hosts.all()
    scopes = [f"{each.scope} ({each.state})" for each in place.fleet.weather.breakers()]
    storms = [f"{each.place} ({each.kind})" for each in place.fleet.weather.storms([host.name for host in hosts])]
    if scopes:
        does = "mend what fails there; `reliability status` says what waits"
        yield warning("breakers", f"not closed: {listed(scopes)}", does)
    if storms:
        does = "let it go on slowly; `reliability status` shows how it goes"
        yield warning("storm", f"many VMs were lost at once: {listed(storms)}", does)
    if not scopes and not storms:
        yield fine("breakers", "all closed, and no storm")


def strays(place: Place) -> Iterator[Finding]:
    _, hosts = place.fleet.hosts.all()
    yield judge_strays(place.fleet.hosts.strays([host.name for host in hosts]))


def judge_strays(found: Mapping[str, Sequence[Mapping[str, object]]]) -> Finding:
    names = [f"{stray['vm_id']} on {host}" for host, each in sorted(found.items()) for stray in each]
    if names:
        does = "`reliability state rebuild` makes records for them, or apply their specs"
        return warning("strays", f"VMMs that no record names: {listed(names)}", does)
    return fine("strays", "none")


def failed(place: Place) -> Iterator[Finding]:
    ids = place.fleet.store.ids(state=State.FAILED)
    if ids:
        does = "`reliability status` says why; mend it, then `reliability recover VM`"
        yield warning("failed vms", f"given up after their last attempt: {listed(ids)}", does)
    else:
        yield fine("failed vms", "none")


def switched_off(place: Place) -> Iterator[Finding]:
    """By the settings, which no switch at run time overrules."""
    yield judge_switches(place.settings)


def judge_switches(settings: Settings) -> Finding:
    parts = {
        "enabled": settings.enabled,
        "health_check.enabled": settings.health_check.enabled,
        "recovery.enabled": settings.recovery.enabled,
        "breaker.enabled": settings.breaker.enabled,
    }
    off = [key for key, is_on in parts.items() if not is_on]
    if off:
        return warning("switches", f"off by settings: {listed(off)}", f"set {off[0]} to true when it is wanted again")
    check = format_duration(settings.health_check.interval)
    return fine("switches", f"all parts are on; a health check every {check}")
