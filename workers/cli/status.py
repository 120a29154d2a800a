"""`status`: the fleet on one screen: what is well, what is being done, and what needs a person."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import click

from workers.cli.breaker import next_probe
from workers.cli.documents import (
    breaker_document,
    halt_document,
    hold_documents,
    host_document,
    registry_documents,
    storm_document,
    stray_documents,
    switch_document,
    vm_document,
)
from workers.cli.listing import in_order
from workers.cli.output import (
    clean,
    output_option,
    show_json,
    show_table,
    without_id,
)
from workers.cli.session import Session, session
from workers.cli.targets import all_holds, as_arguments, ends_in
from workers.cli.vm import episode_in_short
from workers.cli.watching import again_and_again, watch_option
from workers.domain.modes import UNREADABLE, InForce, Modes, Switch
from workers.domain.registry_diff import Notes
from workers.domain.vm import State, VmRecord
from workers.domain.words import age, ago, counted, iso
from workers.ports import Halt, Stored
from workers.store.hosts import HostSeen
from workers.store.weather import BreakerSeen, StormSeen

_ROWS = 5  # of each part, so that all of it stays on one screen
_NAMES = 8  # of hosts on one line
_MOST_READ = 1000  # VMs per state: beyond, the numbers say enough
_IN_TROUBLE = (State.RECOVERING, State.ORPHANED, State.UNHEALTHY, State.STARTING)


@dataclass(slots=True)
class _Fleet:
    """What was found; lists are cut where `truncated` says so."""

    now_ms: int
    counts: Mapping[State, int]
    hosts: list[HostSeen]
    vms_of: Mapping[str, int]
    strays: list[dict[str, Any]]
    pause: str | None
    pause_unknown: str | None
    halted: Mapping[str, Halt]
    breakers: Sequence[BreakerSeen]
    storms: Sequence[StormSeen]
    unreadable: Mapping[str, str]
    counters: Mapping[str, int]
    modes: Modes
    registries: Mapping[str, Notes]
    this_host: str
    troubled: list[Stored] = field(default_factory=list)
    failed: list[Stored] = field(default_factory=list)
    truncated: bool = False

    @property
    def running(self) -> list[Stored]:
        return [each for each in self.troubled if each.record.attempt_running]

    @property
    def waiting_number(self) -> int:
        """Of all of them, also of those that were not read."""
        return sum(self.counts.get(state, 0) for state in _IN_TROUBLE) - len(self.running)

    @property
    def waiting(self) -> list[Stored]:
        return [each for each in self.troubled if not each.record.attempt_running]

    @property
    def holds(self) -> list[InForce]:
        return all_holds(self.modes, self.now_ms)

    @property
    def switches(self) -> list[tuple[str, Switch]]:
        return [(scope, switch) for scope, found in sorted(self.modes.scopes.items()) for switch in found.switches]

    @property
    def unserved(self) -> dict[str, int]:
        """Hosts with VMs and without a worker, with the number of their VMs."""
        live = {host.name for host in self.hosts if host.worker}
        return {name: vms for name, vms in self.vms_of.items() if vms and name not in live}


@click.command()
@watch_option
@output_option("table", "json")
def status(watch: float | None, output: str) -> None:
    """Show the fleet on one screen, and what needs a person.

    VMs by state, hosts with a live worker or silent, recoveries in flight, what keeps others back (operator modes,
    parts that are switched, open circuit breakers, storm guard, halted hosts), stray VMMs, failed VMs with their
    reason, and the kill switch of this host: a file PAUSE in its state folder stops every signal and spawn there.
    """
    with session() as here:
        again_and_again(watch, lambda: _show(here, output))


def _show(here: Session, output: str) -> None:
    fleet = _look(here)
    if output == "json":
        show_json(_document(fleet, here.settings.host))
        return
    _show_numbers(fleet)
    _show_modes(fleet)
    _show_recoveries(fleet)
    _show_weather(fleet)
    _show_strays(fleet.strays)
    _show_needs(fleet)
    click.echo(f"Kill switch of this host ({here.settings.host}): {_pause_text(fleet)}")


def _look(here: Session) -> _Fleet:
    store = here.fleet.store
    counts = store.counts()
    now_ms, hosts = here.fleet.hosts.all()
    names = [host.name for host in hosts]
    pause, pause_unknown = _pause(here)
    fleet = _Fleet(
        now_ms,
        counts,
        hosts,
        {},
        stray_documents(here.fleet.hosts.strays(names)),
        pause,
        pause_unknown,
        halted=here.fleet.data.halted(),
        breakers=here.fleet.weather.breakers(),
        storms=here.fleet.weather.storms(names),
        unreadable=here.fleet.hosts.unreadable(names),
        counters=here.fleet.weather.counts(),
        modes=here.fleet.modes.all_modes()[1],
        registries=here.fleet.hosts.registries(names),
        this_host=here.settings.host,
    )
    fleet.troubled = [each for state in _IN_TROUBLE for each in _read(here, state, fleet)]
    fleet.failed = _read(here, State.FAILED, fleet)
    # A host that never had a worker is known only by its VMs, which wait there to be started.
    known = {host.name for host in hosts} | {each.record.host for each in (*fleet.troubled, *fleet.failed)}
    fleet.vms_of = store.host_sizes(sorted(known))
    return fleet


def _read(here: Session, state: State, fleet: _Fleet) -> list[Stored]:
    if not fleet.counts.get(state):
        return []
    ids = in_order(here.fleet.store.ids(state=state))
    fleet.truncated = fleet.truncated or len(ids) > _MOST_READ
    return [each for snapshot in here.snapshots(ids[:_MOST_READ]) for each in snapshot.found.values()]


def _pause(here: Session) -> tuple[str | None, str | None]:
    """The kill switch if it is on, and why we cannot tell if we cannot."""
    try:
        return here.kill_switch(), None
    except OSError as error:
        return None, f"{error.filename}: {error.strerror}"


def _document(fleet: _Fleet, host: str) -> dict[str, Any]:
    return {
        "at": iso(fleet.now_ms),
        "host": host,
        "vms": {
            "total": sum(fleet.counts.values()),
            "by_state": {str(state): fleet.counts.get(state, 0) for state in State},
        },
        "hosts": [host_document(each, fleet.vms_of.get(each.name, 0)) for each in fleet.hosts],
        "unserved_hosts": fleet.unserved,
        "recoveries": {
            "running": [vm_document(each) for each in fleet.running],
            "waiting": [vm_document(each) for each in fleet.waiting],
        },
        "modes": hold_documents(fleet.holds),
        "switches": [switch_document(scope, switch) for scope, switch in fleet.switches],
        "breakers": [breaker_document(each) for each in fleet.breakers],
        "storms": [storm_document(each) for each in fleet.storms],
        "halted": [halt_document(host, halt) for host, halt in sorted(fleet.halted.items())],
        "unreadable": dict(fleet.unreadable),
        "counters": dict(fleet.counters),
        "strays": fleet.strays,
        "registries": registry_documents(fleet.registries),
        "failed": [vm_document(each) for each in fleet.failed],
        "kill_switch": {
            "on": None if fleet.pause_unknown else fleet.pause is not None,
            "path": fleet.pause,
            "unknown": fleet.pause_unknown,
        },
        "truncated": fleet.truncated,
    }


def _show_numbers(fleet: _Fleet) -> None:
    states = ", ".join(f"{number} {state}" for state, number in fleet.counts.items())
    click.echo(f"VMs: {sum(fleet.counts.values())}" + (f" ({states})" if states else ""))
    live = sum(1 for host in fleet.hosts if host.worker)
    silent = len(fleet.hosts) - live
    click.echo(f"Hosts: {live} live" + (f", {silent} silent" if silent else ""))
    # Silent ones first: on a large fleet there is room for them only.
    in_order = sorted(fleet.hosts, key=lambda host: (host.worker is not None, host.name))
    rows = [(host.name, *_host_cells(host, fleet)) for host in in_order]
    _show_some(("HOST", "WORKER", "VMS", "SEEN", "PROCESS"), rows)


def _host_cells(host: HostSeen, fleet: _Fleet) -> tuple[object, ...]:
    vms, worker = fleet.vms_of.get(host.name, 0), host.worker
    seen = f"{age(fleet.now_ms - host.seen_ms)} ago"
    if worker is None:
        return "SILENT", vms, seen, None
    up = age(fleet.now_ms - worker.since_ms)
    return "live", vms, seen, f"pid {worker.process.pid}, up {up}, version {worker.version}"


def _show_modes(fleet: _Fleet) -> None:
    """What people hold back, where anybody does."""
    if fleet.holds:
        click.echo(f"Modes: {counted(len(fleet.holds), 'hold')}")
        rows = [
            (each.scope, each.mode, ends_in(each, fleet.now_ms), each.hold.id, each.hold.actor, each.hold.why)
            for each in fleet.holds
        ]
        _show_some(("SCOPE", "MODE", "ENDS", "ID", "WHO", "WHY"), rows)
    if fleet.switches:
        click.echo(f"Switched: {counted(len(fleet.switches), 'part')}")
        switched = [
            (each.flag, scope, "on" if each.on else "off", ago(each.since_ms, fleet.now_ms), each.actor, each.why)
            for scope, each in fleet.switches
        ]
        _show_some(("FLAG", "SCOPE", "SET", "SINCE", "WHO", "WHY"), switched)


def _show_recoveries(fleet: _Fleet) -> None:
    running, waiting = len(fleet.running), fleet.waiting_number
    click.echo(f"Recoveries: {running} in flight, {waiting} waiting" if running or waiting else "Recoveries: none")
    rows = [_recovery_row(each.record, fleet.now_ms) for each in (*fleet.running, *fleet.waiting)]
    _show_some(("VM", "HOST", "STATE", "SINCE", "EPISODE"), rows, of=running + waiting)


def _recovery_row(record: VmRecord, now_ms: int) -> tuple[object, ...]:
    since = age(now_ms - record.since_ms) if record.since_ms else None
    return record.vm_id, record.host, record.state, since, episode_in_short(record, now_ms)


def _show_weather(fleet: _Fleet) -> None:
    """What keeps recovery back, where anything does."""
    if fleet.storms:
        click.echo(f"Storm guard: active at {len(fleet.storms)}")
        storms = [
            (each.place, each.kind, f"{age(fleet.now_ms - each.since_ms)}", each.came_back, each.waiting)
            for each in fleet.storms
        ]
        _show_some(("WHERE", "LOSSES", "FOR", "CAME BACK", "WAITING"), storms)
    if fleet.breakers:
        click.echo(f"Circuit breakers: {len(fleet.breakers)} not closed")
        rows = [(each.scope, each.state, next_probe(each, fleet.now_ms), each.waiting) for each in fleet.breakers]
        _show_some(("SCOPE", "STATE", "NEXT PROBE", "WAITING"), rows)


def _show_strays(strays: Sequence[Mapping[str, Any]]) -> None:
    click.echo(f"Strays: {len(strays) or 'none'}")
    rows = [(each["vm_id"], each["host"], each["pid"], each["driver"]) for each in strays]
    _show_some(("SAYS IT IS", "HOST", "PID", "DRIVER"), rows)


def _show_needs(fleet: _Fleet) -> None:
    needs = list(_needs(fleet))
    click.echo(f"Needs a person: {len(needs) or 'nothing'}")
    for what, todo in needs[:_ROWS]:
        click.echo("\n".join(f"  {clean(line)}" for line in what))
        click.echo(f"    -> {todo}")
    _show_rest(len(needs))


def _needs(fleet: _Fleet) -> Iterable[tuple[Sequence[str], str]]:
    if fleet.pause:
        yield ["the kill switch of this host is on: nothing is recovered here"], f"rm {fleet.pause}"
    yield from _halts(fleet)
    for held in (each for each in fleet.holds if each.hold.id == UNREADABLE):
        yield [held.hold.why], f"`reliability resume {as_arguments(held.scope)} --all`"
    if fleet.unreadable:
        yield [_unreadable(fleet.unreadable)], "run a worker of the version that wrote them"
    if fleet.strays:
        named = counted(len(fleet.strays), "VMM")
        yield [f"no record names {named}, which run all the same"], "`reliability state rebuild`, or apply their specs"
    for host, notes in sorted(fleet.registries.items()):
        yield from _registry_needs(host, notes)
    if fleet.unserved:
        yield [_unserved(fleet.unserved)], "run `reliability worker` there"
    for each in fleet.failed:
        yield _failure(each.record, fleet.now_ms), f"mend it, then `reliability recover {each.record.vm_id}`"


def _halts(fleet: _Fleet) -> Iterable[tuple[Sequence[str], str]]:
    for host, halt in sorted(fleet.halted.items()):
        if halt.frozen:
            yield [f"host {host} recovers nothing: {halt.why}"], "look at `reliability state show`"
        elif host != fleet.this_host:
            yield [f"host {host} recovers nothing: {halt.why}"], "remove that file on the host"


def _registry_needs(host: str, notes: Notes) -> Iterable[tuple[Sequence[str], str]]:
    if notes.trouble:
        yield [f"host {host} does not follow the registry: {notes.trouble}"], "mend the registry"
    if notes.missing:
        named = counted(len(notes.missing), "VM")
        what = f"the registry lists {named} of host {host} no more: {_named(sorted(notes.missing))}"
        yield [what], "`reliability forget VM`, or list it again"
    if notes.problems:
        yield [f"the registry of host {host}: {each}" for each in notes.problems], "correct the registry"


def _named(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMES]) + (f" and {len(names) - _NAMES} more" if len(names) > _NAMES else "")


def _unreadable(why_of: Mapping[str, str]) -> str:
    vm_id, why = next(iter(why_of.items()))
    rest = f" and {counted(len(why_of) - 1, 'more')}" if len(why_of) > 1 else ""
    return f"records left untouched: {vm_id} ({why}){rest}"


def _unserved(vms_of: Mapping[str, int]) -> str:
    hosts = "host" if len(vms_of) == 1 else "hosts"
    return f"no worker serves {hosts} {_named(list(vms_of))}: {counted(sum(vms_of.values()), 'VM')} unwatched"


def _failure(record: VmRecord, now_ms: int) -> Sequence[str]:
    episode = record.episode
    attempts = f" after {counted(episode.attempt, 'attempt')}" if episode else ""
    why = without_id(episode.error, record.vm_id) if episode and episode.error else "for no reason that was kept"
    return f"{record.vm_id} on host {record.host} failed {age(now_ms - record.since_ms)} ago{attempts}", f"  {why}"


def _pause_text(fleet: _Fleet) -> str:
    if fleet.pause_unknown:
        return f"cannot be looked at: {fleet.pause_unknown}"
    return f"ON ({fleet.pause}): no signal and no spawn" if fleet.pause else "off"


def _show_some(headers: Sequence[str], rows: Sequence[Sequence[object]], *, of: int | None = None) -> None:
    if rows:
        show_table(headers, rows[:_ROWS], indent=2)
        _show_rest(of or len(rows))


def _show_rest(number: int) -> None:
    if number > _ROWS:
        click.echo(f"  … and {number - _ROWS} more (-o json shows more)")
