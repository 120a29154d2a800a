"""`host list` and `host show`: who serves each host, how its VMs are, and what holds it. Nothing is changed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from workers.cli.arguments import choice_option, host_argument
from workers.cli.breaker import is_of_host
from workers.cli.documents import (
    breaker_document,
    halt_document,
    hold_documents,
    host_document,
    place_document,
    storm_document,
    stray_documents,
    switch_document,
)
from workers.cli.listing import Column, Order, natural, show_list, sort_option, sorted_by
from workers.cli.output import (
    output_option,
    show_facts,
    show_json,
)
from workers.cli.session import Session, session
from workers.cli.targets import check_host, held, until
from workers.cli.watching import again_and_again, watch_option
from workers.domain.modes import FLEET, InForce, Mode, Modes, Switch, host_scope
from workers.domain.vm import State
from workers.domain.words import age, ago, counted, iso
from workers.ports import Halt
from workers.store.hosts import HostSeen
from workers.store.places import PlaceSeen
from workers.store.weather import BreakerSeen, StormSeen

_LIVE, _SILENT, _NEVER = "live", "SILENT", "NEVER SEEN"
_WELL = frozenset({State.HEALTHY, State.STOPPED})
_MOST_READ = 1000  # VMs that were never started, whose hosts may never have had a worker
_NO_MODE = "none"


@dataclass(frozen=True, slots=True)
class _Row:
    """A host as the list has it; without `seen`, no worker ever served it."""

    name: str
    now_ms: int
    place: PlaceSeen
    seen: HostSeen | None
    halt: Halt | None
    held: Sequence[InForce]
    strays: Sequence[Mapping[str, Any]]
    breakers: Sequence[BreakerSeen]

    @property
    def worker(self) -> str:
        if self.seen is None:
            return _NEVER
        return _LIVE if self.seen.worker else _SILENT

    @property
    def ill(self) -> Mapping[State, int]:
        return {state: number for state, number in self.place.states.items() if state not in _WELL}

    @property
    def mode(self) -> Mode | None:
        return self.held[0].mode if self.held else None


def _breaker_word(row: _Row) -> str | None:
    own = [each for each in row.breakers if each.scope == host_scope(row.name)]
    return own[0].state if own else None


_COLUMNS: Sequence[Column[_Row]] = (
    Column("HOST", lambda row: row.name),
    Column("WORKER", lambda row: row.worker),
    Column(
        "SEEN",
        lambda row: ago(row.seen.seen_ms, row.now_ms) if row.seen else None,
        key=lambda row: row.seen.seen_ms if row.seen else None,
    ),
    Column("VMS", lambda row: row.place.vms),
    Column("NOT WELL", lambda row: _states(row.ill), key=lambda row: sum(row.ill.values())),
    Column("SLOTS", lambda row: row.place.slots_used),
    Column("WAITING", lambda row: row.place.waiting),
    Column("MODE", lambda row: row.mode),
    Column("BREAKER", _breaker_word),
    Column("STRAYS", lambda row: len(row.strays)),
    Column("HALTED", lambda row: row.halt.why if row.halt else None),
    Column("PID", lambda row: row.seen.worker.process.pid if row.seen and row.seen.worker else None, wide=True),
    Column("VERSION", lambda row: row.seen.worker.version if row.seen and row.seen.worker else None, wide=True),
    Column("BY STATE", lambda row: _states(row.place.states), key=lambda row: row.place.vms, wide=True),
)


def _states(states: Mapping[State, int]) -> str:
    return ", ".join(f"{number} {state}" for state, number in states.items())


@click.command("list")
@choice_option("--state", "states", State, "Only hosts that have VMs in this state")
@click.option("--worker", type=click.Choice(["live", "silent"]), help="Only hosts with, or without, a live worker.")
@choice_option("--mode", "modes", [*Mode, _NO_MODE], "Only hosts in this mode")
@sort_option(_COLUMNS)
@watch_option
@output_option("table", "wide", "json", "name")
def list_hosts(sort: Order | None, watch: float | None, output: str, **wanted: Any) -> None:
    """List hosts: who serves them, how their VMs are, what holds them."""
    with session() as here:
        again_and_again(watch, lambda: _list(here, sort, output, **wanted))


def _list(
    here: Session, sort: Order | None, output: str, *, states: Sequence[str], worker: str | None, modes: Sequence[str]
) -> None:
    now_ms, rows = _look(here)
    found = [
        row
        for row in rows
        if (not states or any(row.place.states.get(State(state)) for state in states))
        and (worker is None or (row.worker == _LIVE) == (worker == "live"))
        and (not modes or (row.mode or _NO_MODE) in modes)
    ]
    ordered = sorted_by(found, _COLUMNS, sort)
    if output == "json":
        show_json({"at": iso(now_ms), "hosts": [_document(row) for row in ordered]})
    else:
        show_list(ordered, _COLUMNS, output, nothing="no hosts")


def _look(here: Session) -> tuple[int, list[_Row]]:
    fleet = here.fleet
    now_ms, seen = fleet.hosts.all()
    by_name = {host.name: host for host in seen}
    names = sorted({*by_name, *_hosts_of_new_vms(here)}, key=natural)
    places, modes = fleet.places.hosts(names, now_ms), fleet.modes.all_modes()[1]
    strays, halted, breakers = fleet.hosts.strays(names), fleet.data.halted(), fleet.weather.breakers()
    rows = [
        _Row(
            name,
            now_ms,
            places[name],
            by_name.get(name),
            halted.get(name),
            held(host_scope(name), modes, {}, now_ms),
            strays.get(name, ()),
            [each for each in breakers if is_of_host(each.scope, name)],
        )
        for name in names
    ]
    return now_ms, rows


def _hosts_of_new_vms(here: Session) -> set[str]:
    """A host that never had a worker is known only by its VMs, which wait there to be started."""
    ids = here.fleet.store.ids(state=State.STARTING)[:_MOST_READ]
    return {stored.record.host for snapshot in here.snapshots(ids) for stored in snapshot.found.values()}


def _document(row: _Row) -> dict[str, Any]:
    seen = row.seen or HostSeen(row.name, 0, None)
    return host_document(seen, row.place.vms) | {
        **place_document(row.place),
        "halted": halt_document(row.name, row.halt) if row.halt else None,
        "modes": hold_documents(row.held),
        "strays": len(row.strays),
        "breakers": [breaker_document(each) for each in row.breakers],
    }


@dataclass(frozen=True, slots=True)
class _Host:
    """Everything about one host."""

    row: _Row
    waited_ms: int
    destroyed: int
    slots_limit: int
    switches: Sequence[tuple[str, Switch]]
    unreadable: Mapping[str, str]
    storms: Sequence[StormSeen]
    is_here: bool
    kill_switch: str | None = None
    kill_switch_unknown: str | None = None


@click.command()
@host_argument
@output_option("table", "json")
def show(host: str, output: str) -> None:
    """Show all that is known about a host.

    Its worker, its VMs by state, what holds it (operator modes, parts that are switched, a kill switch, frozen data),
    recovery slots in use and who waits for one, breakers and storms, and stray VMMs.
    """
    with session() as here:
        check_host(here, host)
        found = _look_closely(here, host)
    if output == "json":
        show_json({"at": iso(found.row.now_ms), "host": _whole_document(found)})
        return
    row = found.row
    click.echo(f"host {host}: {_worker_words(row)}, {counted(row.place.vms, 'VM')}")
    show_facts(_facts(found), indent=2)


def _look_closely(here: Session, host: str) -> _Host:
    fleet = here.fleet
    survey = fleet.surveys.host(host)
    modes = fleet.modes.modes([FLEET, host_scope(host)])[1]
    seen = next((each for each in fleet.hosts.all()[1] if each.name == host), None)
    row = _Row(
        host,
        survey.now_ms,
        fleet.places.hosts([host], survey.now_ms)[host],
        seen,
        fleet.data.halted().get(host),
        held(host_scope(host), modes, {}, survey.now_ms),
        fleet.hosts.strays([host]).get(host, ()),
        [each for each in fleet.weather.breakers() if is_of_host(each.scope, host)],
    )
    return _Host(
        row,
        survey.longest_wait_ms,
        survey.destroyed,
        survey.slots_limit,
        _switches(modes),
        fleet.hosts.unreadable([host]),
        [each for each in fleet.weather.storms([host]) if each.place == host_scope(host)],
        host == here.settings.host,
        *_kill_switch(here, host),
    )


def _kill_switch(here: Session, host: str) -> tuple[str | None, str | None]:
    """The kill switch if it is on, and why that cannot be seen; other hosts' is not to be seen from here."""
    if host != here.settings.host:
        return None, None
    try:
        return here.kill_switch(), None
    except OSError as error:
        return None, f"{error.filename}: {error.strerror}"


def _switches(modes: Modes) -> list[tuple[str, Switch]]:
    return [(scope, switch) for scope, found in sorted(modes.scopes.items()) for switch in found.switches]


def _worker_words(row: _Row) -> str:
    if row.seen is None:
        return "no worker ever served it"
    if row.seen.worker is None:
        return f"SILENT, its worker was last seen {ago(row.seen.seen_ms, row.now_ms)}"
    return f"live, seen {ago(row.seen.seen_ms, row.now_ms)}"


def _facts(found: _Host) -> Iterable[tuple[str, object]]:
    row = found.row
    worker = row.seen.worker if row.seen else None
    if worker:
        up = age(row.now_ms - worker.since_ms)
        yield "worker", f"pid {worker.process.pid} on machine {worker.process.machine_id[:12]}, up {up}"
        yield "version", worker.version
    yield "VMs", _states(row.place.states) or "none"
    yield "slots", f"{row.place.slots_used} of {found.slots_limit} in use"
    waits = f", the longest for {age(found.waited_ms)}" if row.place.waiting and found.waited_ms else ""
    yield "waiting", f"{counted(row.place.waiting, 'VM')} for a slot{waits}" if row.place.waiting else "nobody"
    yield "halted", row.halt.why if row.halt else "no"
    yield "kill switch", _kill_switch_words(found)
    for each in row.held:
        yield "mode", f"{each.words} ({each.hold.actor}), {until(each, row.now_ms)}"
    for scope, switch in found.switches:
        where = f"for {scope}, {ago(switch.since_ms, row.now_ms)}"
        yield "switched", f"{switch.flag} {'on' if switch.on else 'off'} {where}: {switch.why} ({switch.actor})"
    for storm in found.storms:
        yield "storm guard", f"active for {age(row.now_ms - storm.since_ms)}: {storm.kind} losses, {storm.waiting} wait"
    for breaker in row.breakers:
        yield "breaker", f"{breaker.scope} is {breaker.state}, {counted(breaker.waiting, 'VM')} waiting"
    yield "strays", _stray_words(row.strays)
    for vm_id, why in found.unreadable.items():
        yield "unreadable", f"{vm_id}: {why}"


def _kill_switch_words(found: _Host) -> str:
    if not found.is_here:
        return "known on the host only"
    if found.kill_switch_unknown:
        return f"cannot be looked at: {found.kill_switch_unknown}"
    return f"ON ({found.kill_switch}): no signal and no spawn" if found.kill_switch else "off"


def _stray_words(strays: Sequence[Mapping[str, Any]]) -> str:
    if not strays:
        return "none"
    return "; ".join(f"{each['vm_id']} (pid {each['process']['pid']}, {each['driver']})" for each in strays)


def _whole_document(found: _Host) -> dict[str, Any]:
    row = found.row
    return _document(row) | {
        "slots_limit": found.slots_limit,
        "longest_wait_ms": found.waited_ms,
        "reaped_last_hour": found.destroyed,
        "switches": [switch_document(scope, switch) for scope, switch in found.switches],
        "storms": [storm_document(storm) for storm in found.storms],
        "strays": stray_documents({row.name: row.strays}),
        "unreadable": dict(found.unreadable),
        "kill_switch": _kill_switch_document(found) if found.is_here else None,
    }


def _kill_switch_document(found: _Host) -> dict[str, Any]:
    unknown = found.kill_switch_unknown
    on = None if unknown else found.kill_switch is not None
    return {"on": on, "path": found.kill_switch, "unknown": unknown}
