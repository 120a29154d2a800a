"""`vm list` and `vm show`: records, as people and programs want to see them. Nothing is changed."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

from workers.cli.documents import vm_document
from workers.cli.output import (
    age,
    ago,
    counted,
    iso,
    output_option,
    say,
    show_facts,
    show_json,
    show_names,
    show_table,
    without_id,
)
from workers.cli.session import Session, checked_id, session
from workers.domain.vm import Episode, EpisodeEnd, State, VmRecord
from workers.ports import Stored
from workers.specs import VmSpec, dump_spec

_DIGITS = re.compile(r"([0-9]+)")


@click.command("list")
@click.option("--state", type=click.Choice([str(state) for state in State]), help="Only VMs in this state.")
@click.option("--host", callback=checked_id, metavar="HOST", help="Only VMs of this host.")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="Only VMs with this label; may be repeated.")
@output_option("table", "wide", "json", "name")
def list_vms(state: str | None, host: str | None, labels: Sequence[str], output: str) -> None:
    """List VMs, all of them or by state, host and labels."""
    wanted = [_label(text) for text in labels]
    with session() as here:
        ids = in_order(here.fleet.store.ids(host=host, state=State(state) if state else None))
        if output == "name" and not wanted:
            show_names(ids)
            return
        found: list[tuple[Stored, Mapping[str, str]]] = []
        unreadable: dict[str, str] = {}
        now_ms = 0
        for snapshot in here.snapshots(ids):
            now_ms = now_ms or snapshot.now_ms
            unreadable |= snapshot.unreadable
            needed = list(snapshot.found) if wanted or output in ("wide", "json") else []
            specs = here.fleet.store.specs(needed)
            found += [(stored, _labels_of(specs, vm_id)) for vm_id, stored in snapshot.found.items()]
    if state not in (None, State.UNKNOWN):
        unreadable = {}
    matching = [(stored, has) for stored, has in found if all(has.get(key) == value for key, value in wanted)]
    say(*(f"warning: {vm_id}: record cannot be read: {why}" for vm_id, why in unreadable.items()))
    _show_list(matching, unreadable, now_ms, output)


def _label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals):
        raise click.BadParameter(f"{text!r} must be like team=web", param_hint="--label")
    return key, value


def _labels_of(specs: Mapping[str, VmSpec], vm_id: str) -> Mapping[str, str]:
    spec = specs.get(vm_id)
    return spec.labels if spec else {}


def in_order(ids: Iterable[str]) -> list[str]:
    """vm-2 comes before vm-10."""
    return sorted(ids, key=lambda vm_id: [int(part) if part.isdigit() else part for part in _DIGITS.split(vm_id)])


def _show_list(
    found: Sequence[tuple[Stored, Mapping[str, str]]], unreadable: Mapping[str, str], now_ms: int, output: str
) -> None:
    match output:
        case "json":
            vms = [vm_document(stored) | {"labels": has} for stored, has in found]
            show_json({"at": iso(now_ms), "vms": vms, "unreadable": unreadable})
        case "name":
            show_names([stored.record.vm_id for stored, _ in found])
        case "wide":
            headers = [*_HEADERS, "DESIRED", "PID", "GENERATION", "PRIORITY", "LABELS"]
            rows = [(*_row(stored, now_ms), *_more(stored, has)) for stored, has in found]
            show_table(headers, [*rows, *_unreadable_rows(unreadable, len(headers))])
        case _ if found or unreadable:
            rows = [_row(stored, now_ms) for stored, _ in found]
            show_table(_HEADERS, [*rows, *_unreadable_rows(unreadable, len(_HEADERS))])
        case _:
            say("no VMs")


def _unreadable_rows(unreadable: Iterable[str], width: int) -> list[tuple[object, ...]]:
    """A record that cannot be read is left untouched, and its VM unknown."""
    return [(vm_id, None, None, str(State.UNKNOWN), *[None] * (width - 4)) for vm_id in unreadable]


_HEADERS = ("VM", "HOST", "DRIVER", "STATE", "SINCE", "CHECKED", "EPISODE")


def _row(stored: Stored, now_ms: int) -> tuple[object, ...]:
    record = stored.record
    since = age(now_ms - record.since_ms) if record.since_ms else None
    checked = ago(stored.checked_ms, now_ms)
    return record.vm_id, record.host, record.driver, record.state, since, checked, episode_in_short(record, now_ms)


def _more(stored: Stored, labels: Mapping[str, str]) -> tuple[object, ...]:
    record = stored.record
    pid = record.process.pid if record.process else None
    shown = ",".join(f"{key}={value}" for key, value in sorted(labels.items()))
    return record.desired, pid, record.generation or None, record.priority, shown


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
@click.argument("vm_id", metavar="VM", callback=checked_id)
@output_option("table", "json")
def show(vm_id: str, output: str) -> None:
    """Show all that is known about a VM.

    Its record, lease and recovery episode, its last check, its process and run folder, and its spec.
    """
    with session() as here:
        stored, now_ms = here.stored(vm_id)
        spec: dict[str, Any] = json.loads(dump_spec(here.fleet.store.spec(vm_id)))
        place = _Place(here, stored.record)
    if output == "json":
        more = {"spec": spec, "run_folder": place.folder and str(place.folder), "process_alive": place.process_alive}
        show_json({"at": iso(now_ms), "vm": vm_document(stored) | more})
        return
    record = stored.record
    click.echo(f"{vm_id} is {record.state} {_for(record.since_ms, now_ms)}on host {record.host} ({record.driver})")
    show_facts(_facts(stored, place, now_ms), indent=2)
    click.echo("  spec")
    text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True, default_flow_style=False)
    click.echo("\n".join(f"    {line}" for line in text.splitlines()))


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
