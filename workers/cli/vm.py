"""`vm list` and `vm show`: records, as people and programs want to see them. Nothing is changed."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from workers.cli.arguments import choice_option, host_option, vm_argument
from workers.cli.documents import hold_documents, vm_document
from workers.cli.listing import Column, Order, in_order, show_list, sort_option, sorted_by
from workers.cli.output import (
    output_option,
    say,
    show_facts,
    show_json,
    show_names,
    without_id,
)
from workers.cli.session import Session, session
from workers.cli.targets import until
from workers.cli.watching import again_and_again, watch_option
from workers.domain.modes import InForce, Mode, scopes_of
from workers.domain.vm import Episode, EpisodeEnd, Reason, State, VmRecord
from workers.domain.words import age, ago, counted, iso
from workers.ports import Stored
from workers.specs import VmSpec, dump_spec

_NO_MODE = "none"


@dataclass(frozen=True, slots=True)
class _Row:
    """A VM as a list has it; without `stored`, its record cannot be read and its state is unknown."""

    vm_id: str
    now_ms: int
    stored: Stored | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    held: InForce | None = None

    @property
    def record(self) -> VmRecord | None:
        return self.stored.record if self.stored else None


def _of_record(read: Callable[[VmRecord], object]) -> Callable[[_Row], object]:
    return lambda row: read(row.record) if row.record else None


def _state(row: _Row) -> State:
    return row.record.state if row.record else State.UNKNOWN


def _since(row: _Row) -> str | None:
    return age(row.now_ms - row.record.since_ms) if row.record and row.record.since_ms else None


def _episode(row: _Row) -> str | None:
    return episode_in_short(row.record, row.now_ms) if row.record else None


_COLUMNS: Sequence[Column[_Row]] = (
    Column("VM", lambda row: row.vm_id),
    Column("HOST", _of_record(lambda record: record.host)),
    Column("DRIVER", _of_record(lambda record: record.driver), wide=True),
    Column("STATE", _state),
    Column("SINCE", _since, key=_of_record(lambda record: record.since_ms or None)),
    Column(
        "CHECKED",
        lambda row: ago(row.stored.checked_ms, row.now_ms) if row.stored else None,
        key=lambda row: row.stored.checked_ms if row.stored else None,
    ),
    Column("MODE", lambda row: row.held.mode if row.held else None),
    Column("DESIRED", _of_record(lambda record: record.desired), wide=True),
    Column("PID", _of_record(lambda record: record.process.pid if record.process else None), wide=True),
    Column("GENERATION", _of_record(lambda record: record.generation or None), wide=True),
    Column("PRIORITY", _of_record(lambda record: record.priority), wide=True),
    Column("EPISODE", _episode),
    Column("LABELS", lambda row: ",".join(f"{key}={value}" for key, value in sorted(row.labels.items())), wide=True),
)


@dataclass(frozen=True, slots=True)
class _Filter:
    """What a list is to hold; an empty field asks for nothing."""

    states: Sequence[str] = ()
    host: str | None = None
    labels: Sequence[tuple[str, str]] = ()
    reasons: Sequence[str] = ()
    modes: Sequence[str] = ()

    @property
    def reads_records(self) -> bool:
        return bool(self.labels or self.reasons or self.modes)

    def takes(self, row: _Row) -> bool:
        return (
            all(row.labels.get(key) == value for key, value in self.labels)
            and (not self.reasons or (row.record is not None and _reason_of(row.record) in self.reasons))
            and (not self.modes or (row.held.mode if row.held else _NO_MODE) in self.modes)
        )


def _reason_of(record: VmRecord) -> Reason | None:
    """Why it is not well: of its open or failed episode, else what speaks against it."""
    episode = record.episode
    if episode is not None and (episode.is_open or episode.end is EpisodeEnd.FAILED):
        return episode.reason
    return record.doubt


@click.command("list")
@choice_option("--state", "states", State, "Only VMs in this state")
@host_option("Only VMs of this host.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only VMs with this label; may be repeated.")
@choice_option("--reason", "reasons", Reason, "Only VMs that are not well for this reason")
@choice_option("--mode", "modes", [*Mode, _NO_MODE], "Only VMs in this mode")
@sort_option(_COLUMNS)
@watch_option
@output_option("table", "wide", "json", "name")
def list_vms(sort: Order | None, watch: float | None, output: str, **wanted: Any) -> None:
    """List VMs, all of them or by state, host and labels."""
    only = _Filter(**wanted | {"labels": [_label(text) for text in wanted["labels"]]})
    with session() as here:
        again_and_again(watch, lambda: _list(here, only, sort, output))


def _list(here: Session, wanted: _Filter, sort: Order | None, output: str) -> None:
    ids = _ids(here, wanted)
    if output == "name" and not wanted.reads_records and sort is None:
        show_names(ids)
        return
    now_ms, operator_modes = here.fleet.modes.all_modes()
    rows: list[_Row] = []
    unreadable: dict[str, str] = {}
    with_labels = bool(wanted.labels) or output in ("wide", "json")
    for snapshot in here.snapshots(ids):
        unreadable |= snapshot.unreadable
        specs = here.fleet.store.specs(list(snapshot.found)) if with_labels else {}
        for vm_id, stored in snapshot.found.items():
            held = operator_modes.in_force(stored.record, now_ms)
            rows.append(_Row(vm_id, now_ms, stored, _labels_of(specs, vm_id), held))
    if wanted.states and State.UNKNOWN not in wanted.states:
        unreadable = {}
    say(*(f"warning: {vm_id}: record cannot be read: {why}" for vm_id, why in unreadable.items()))
    rows += [] if wanted.reads_records else [_Row(vm_id, now_ms) for vm_id in unreadable]
    found = sorted_by((row for row in rows if wanted.takes(row)), _COLUMNS, sort)
    if output == "json":
        show_json({"at": iso(now_ms), "vms": [_listed(row) for row in found if row.stored], "unreadable": unreadable})
    else:
        show_list(found, _COLUMNS, output, nothing="no VMs")


def _ids(here: Session, wanted: _Filter) -> list[str]:
    store, states = here.fleet.store, [State(state) for state in dict.fromkeys(wanted.states)]
    if not states:
        return in_order(store.ids(host=wanted.host))
    return in_order({vm_id for state in states for vm_id in store.ids(host=wanted.host, state=state)})


def _listed(row: _Row) -> dict[str, Any]:
    assert row.stored is not None  # noqa: S101 - the others are told apart
    held = [row.held] if row.held else []
    mode = hold_documents(held)[0] if held else None
    return vm_document(row.stored) | {"labels": row.labels, "mode": mode}


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.BadParameter(f"{text!r} must be like team=web", param_hint="--label")
    return key, value


def _labels_of(specs: Mapping[str, VmSpec], vm_id: str) -> Mapping[str, str]:
    spec = specs.get(vm_id)
    return spec.labels if spec else {}


def episode_in_short(record: VmRecord, now_ms: int) -> str:
    """Say where the open episode, or the one a person has to look at, stands."""
    episode = record.episode
    if episode is None or episode.end in (EpisodeEnd.RECOVERED, EpisodeEnd.WITHDRAWN):
        return ""
    if episode.end is EpisodeEnd.FAILED:
        return f"{episode.reason}, {counted(episode.attempt, 'attempt')} failed"
    if episode.running:
        return f"{episode.reason}, attempt {episode.attempt} for {age(now_ms - episode.attempt_started_ms)}"
    wait_ms = episode.next_attempt_ms - now_ms
    when = f"in {age(wait_ms)}" if wait_ms > 0 else "due"
    return f"{episode.reason}, attempt {episode.attempt + 1} {when}"


@click.command()
@vm_argument
@output_option("table", "json")
def show(vm_id: str, output: str) -> None:
    """Show all that is known about a VM.

    Its record, lease and recovery episode, its last check, its process and run folder, and its spec.
    """
    with session() as here:
        stored, now_ms = here.stored(vm_id)
        spec: dict[str, Any] = json.loads(dump_spec(here.fleet.store.spec(vm_id)))
        place = _Place(here, stored.record)
        holds = _holds(here, stored.record)
    if output == "json":
        folder, modes = place.folder and str(place.folder), hold_documents(holds)
        more = {"spec": spec, "run_folder": folder, "process_alive": place.process_alive, "modes": modes}
        show_json({"at": iso(now_ms), "vm": vm_document(stored) | more})
        return
    record = stored.record
    click.echo(f"{vm_id} is {record.state} {_for(record.since_ms, now_ms)}on host {record.host} ({record.driver})")
    show_facts([*_facts(stored, place, now_ms), *_mode_facts(holds, now_ms)], indent=2)
    click.echo("  spec")
    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, default_flow_style=False)
    click.echo("\n".join(f"    {line}" for line in text.splitlines()))


def _holds(here: Session, record: VmRecord) -> list[InForce]:
    now_ms, modes = here.fleet.modes.modes(scopes_of(record.vm_id, record.host))
    return modes.holds_on(record.vm_id, record.host, now_ms)


def _mode_facts(holds: Sequence[InForce], now_ms: int) -> Iterable[tuple[str, object]]:
    for each in holds:
        yield "mode", f"{each.words} ({each.hold.actor}), {until(each, now_ms)}"


def _for(since_ms: int, now_ms: int) -> str:
    return f"for {age(now_ms - since_ms)} " if since_ms else ""


class _Place:
    """What only the VM's own host can tell; elsewhere all of it is None."""

    def __init__(self, here: Session, record: VmRecord) -> None:
        self.is_here = record.host == here.settings.host
        self.host = record.host
        self.folder: Path | None = None
        self.process_alive: bool | None = None
        self.process_text = "alive or not is known on its host only"
        if self.is_here:
            self._look(here, record)

    def _look(self, here: Session, record: VmRecord) -> None:
        try:
            folder = here.files.run(record.vm_id, record.generation).path
            self.folder = folder if folder.is_dir() else None
            evidence = here.evidence_against(record.process) if record.process else None
        except OSError as error:
            self.process_text = f"cannot be looked at: {error.strerror}"
            return
        if record.process is not None:
            self.process_alive = evidence is None
            self.process_text = str(evidence or "alive")


def _facts(stored: Stored, place: _Place, now_ms: int) -> Iterable[tuple[str, object]]:
    record = stored.record
    process = record.process
    yield "desired", record.desired
    yield "priority", record.priority
    yield "generation", record.generation or None
    yield "process", f"pid {process.pid}, {place.process_text}" if process else "none"
    yield "last check", f"{ago(stored.checked_ms, now_ms)}{_doubts(record)}"
    yield "lease", f"held by {stored.lease_owner}: an attempt is in flight" if stored.lease_owner else "free"
    yield from _episode_facts(record.vm_id, record.episode, now_ms)
    if record.last_exit:
        yield "last exit", record.last_exit
    if record.socket:
        yield "socket", record.socket
    yield "run folder", (place.folder or "none yet") if place.is_here else f"on host {place.host}"


def _doubts(record: VmRecord) -> str:
    return f", {counted(record.fails, 'failure')} in a row ({record.doubt})" if record.fails else ""


def _episode_facts(vm_id: str, episode: Episode | None, now_ms: int) -> Iterable[tuple[str, object]]:
    if episode is None:
        yield "episode", "none"
        return
    if episode.running:
        stands = f"attempt {episode.attempt} runs for {age(now_ms - episode.attempt_started_ms)}"
    elif episode.is_open:
        wait_ms = episode.next_attempt_ms - now_ms
        stands = f"attempt {episode.attempt + 1} {f'in {age(wait_ms)}' if wait_ms > 0 else 'is due'}"
    else:
        stands = f"{episode.end} {ago(episode.ended_ms, now_ms)} after {counted(episode.attempt, 'attempt')}"
    yield "episode", f"{episode.reason}: {stands} (began {ago(episode.started_ms, now_ms)})"
    if episode.error:
        yield "last error", without_id(episode.error, vm_id)
    if episode.request_id:
        yield "request", episode.request_id
