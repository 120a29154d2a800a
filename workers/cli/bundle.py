"""`support-bundle`: one file with what a person who helps needs to know of this host and the fleet, without secrets."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import click

from workers.bootstrap import Fleet, drivers
from workers.cli.doctor import report_document
from workers.cli.documents import event_document, host_document, stray_documents, vm_document
from workers.cli.failures import Failure, one_line
from workers.cli.output import (
    SCHEMA_VERSION,
    say,
)
from workers.cli.session import checked_id
from workers.doctor.archive import MIB, Archive, NotHere, write_new
from workers.doctor.checks import run_checks
from workers.doctor.examination import Report
from workers.doctor.finding import Level
from workers.doctor.host_parts import (
    UNITS,
    journal,
    kept,
    log_tail,
    logs_of,
    machine_document,
    package_versions,
    run_document,
)
from workers.doctor.place import Place
from workers.doctor.programs import fetch
from workers.doctor.secret_values import secrets_of, secrets_of_spec
from workers.domain.audit import EventKind
from workers.domain.vm import State
from workers.domain.words import counted, iso
from workers.durations import format_duration, parse_duration
from workers.host.rundir import HostFiles
from workers.ports import Stored
from workers.settings import Loaded, effective, load
from workers.store.events import Entry

_MOST_BYTES, _MOST_OF_A_LOG = 20 * MIB, MIB
_MOST_EVENTS, _MOST_VMS = 20_000, 300
_CHUNK = 100
_WELL = frozenset({State.HEALTHY, State.STOPPED})
# Said of VMs with which nothing is wrong.
_ROUTINE = frozenset({EventKind.REGISTERED, EventKind.CHANGED, EventKind.ADOPTED, EventKind.FORGOTTEN})
_OF_SPECS = ("labels", "priority", "image", "vcpus", "memory_mib", "kernel", "initrd", "rootfs", "drives", "durability")
_PAGES = {"status.json": "/status", "metrics.txt": "/metrics", "healthz.json": "/healthz", "readyz.json": "/readyz"}


def _checked_duration(ctx: click.Context, param: click.Parameter, value: str) -> timedelta:
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}", ctx, param) from error


def _checked_ids(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(vm_id for each in value if (vm_id := checked_id(ctx, param, each)))


@click.command()
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE.tar.gz",
    help="Write it here; nothing is overwritten.  [default: a name with host and time, in this folder]",
)
@click.option(
    "--last",
    callback=_checked_duration,
    metavar="DURATION",
    default="24h",
    show_default=True,
    help="Events and journal of so much time, such as 2h.",
)
@click.option("--vm", "vm_ids", multiple=True, callback=_checked_ids, metavar="VM", help="Only of this VM; repeatable.")
@click.option("--no-logs", is_flag=True, help="Leave out consoles, VMM logs and the journal.")
def support_bundle(output: Path | None, last: timedelta, vm_ids: tuple[str, ...], *, no_logs: bool) -> None:
    """Collect what a person who helps needs, without secrets.

    One compressed archive with the settings, what `reliability doctor` finds, versions, status, hosts, events, the
    records of VMs that are not well, the ends of their logs, and what the processes of this host say of themselves.
    MANIFEST.json in it lists what is there, what is not, and why. Works without Redis, with less in it.

    Passwords of the settings and of the environment, and kernel command lines, are taken out wherever they stand. What
    guests print on their consoles is theirs: look at it before you hand it on, or leave it out with --no-logs.
    """
    made_s = time.time()
    loaded = load(os.environ, Path.cwd())
    name = f"reliability-support-{loaded.settings.host}-{datetime.fromtimestamp(made_s, UTC):%Y%m%dT%H%M%SZ}"
    path = output or Path(f"{name}.tar.gz")
    _check_place(path)
    archive = Archive(name, made_s=made_s, most_bytes=_MOST_BYTES)
    collection = Collection(loaded, archive, since_s=made_s - last.total_seconds(), vm_ids=vm_ids, logs=not no_logs)
    about = {"made_at": iso(int(made_s * 1000)), "last": format_duration(last), **collection.collect()}
    try:
        write_new(path, archive.close(about))
    except FileExistsError as error:
        raise _in_the_way(path) from error
    click.echo(str(path))
    left_out = f", {counted(len(archive.left_out), 'thing')} left out" if archive.left_out else ""
    say(
        f"{counted(len(archive.files), 'file')}, {path.stat().st_size / 1024:.0f} KiB{left_out} (see MANIFEST.json)",
        "look through it before you hand it on",
    )


def _check_place(path: Path) -> None:
    """Before minutes of work, not after. Raises Failure."""
    if path.exists():
        raise _in_the_way(path)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise Failure(f"{path.parent} is no folder that we may write to: name another --output")


def _in_the_way(path: Path) -> Failure:
    return Failure(f"{path} exists already, and nothing is overwritten: name another --output")


class Collection:
    """Fills an archive, part by part; a part that cannot be had is left out with its reason."""

    def __init__(
        self, loaded: Loaded, archive: Archive, *, since_s: float, vm_ids: tuple[str, ...], logs: bool
    ) -> None:
        self._loaded, self._settings, self._archive = loaded, loaded.settings, archive
        self._since_s, self._asked, self._logs = since_s, vm_ids, logs
        self._files = HostFiles(self._settings.state_dir)
        self._archive.hide(secrets_of(self._settings, os.environ))
        self._why_no_redis: str | None = None
        self._stored: dict[str, Stored] = {}
        self._events: list[Entry] = []

    @cached_property
    def _fleet(self) -> Fleet:
        return Fleet(self._settings)

    def collect(self) -> dict[str, Any]:
        """Return what the manifest says about the whole."""
        self._part("settings", self._add_settings)
        self._part("doctor's findings", self._add_findings)
        self._part("versions", self._add_versions)
        self._part("machine", lambda: self._archive.add_document("machine.json", machine_document(self._settings)))
        if self._why_no_redis is None:
            self._collect_from_redis()
        else:
            self._archive.leave_out("status, hosts, modes, breakers, events, records", self._why_no_redis)
        self._part("processes of this host", self._add_pages)
        if self._logs:
            for unit in UNITS:
                self._part(f"journal of {unit}", partial(self._add_journal, unit))
            self._part("logs of VMs", self._add_logs)
        else:
            self._archive.leave_out("logs of VMs, journal", "--no-logs")
        return {
            "schema_version": SCHEMA_VERSION,
            "host": self._settings.host,
            "vms": list(self._asked) or None,
            "redis": self._why_no_redis or "answers",
            "hidden": "passwords of settings and environment, variables of drivers, kernel command lines",
        }

    def _collect_from_redis(self) -> None:
        self._part("status", self._add_status)
        self._part("events", self._read_events)
        self._part("records", self._read_records)
        # Records first: what is secret in their specs must be known before anything else about VMs is added.
        self._part("records", self._add_records)
        self._part("events", self._add_events)

    def _part(self, what: str, add: Callable[[], None]) -> None:
        if sys.stderr.isatty():
            say(f"{what} …")
        try:
            add()
        except NotHere as error:
            self._archive.leave_out(what, str(error))
        except OSError as error:
            self._archive.leave_out(what, error.strerror or one_line(error))
        except Exception as error:  # noqa: BLE001 - the rest helps all the same
            self._archive.leave_out(what, f"{type(error).__name__}: {one_line(error)}")

    # Of this host

    def _add_settings(self) -> None:
        rows = [{"key": each.key, "value": each.value_text, "source": each.source} for each in effective(self._loaded)]
        names = sorted(name for name in os.environ if name.startswith(("RELIABILITY_", "OTEL_", "FLOWER_", "CELERY_")))
        self._archive.add_document("settings.json", {"settings": rows, "environment_names": names})

    def _add_findings(self) -> None:
        report = run_checks(Place(self._loaded))
        self._why_no_redis = _why_no_redis(report)
        self._archive.add_document("doctor.json", report_document(report, self._settings.host))

    def _add_versions(self) -> None:
        of_drivers = {name: driver.version() for name, driver in drivers(self._settings).items()}
        self._archive.add_document("versions.json", {"packages": package_versions(), "drivers": of_drivers})

    def _add_pages(self) -> None:
        telemetry = self._settings.telemetry
        for process, port in (("worker", telemetry.worker_port), ("beat", telemetry.beat_port)):
            what = f"{process}: {', '.join(_PAGES.values())}"
            if telemetry.endpoints and port:
                self._part(what, partial(self._add_pages_of, process, port))
            else:
                self._archive.leave_out(what, "it serves them on no port that the settings tell")

    def _add_pages_of(self, process: str, port: int) -> None:
        address = self._settings.telemetry.address
        for name, page in _PAGES.items():
            try:
                is_ours, content = fetch(address, port, page)
            except (OSError, HTTPException) as error:
                raise NotHere(f"{address}:{port} does not answer: {error}") from error
            if not is_ours:
                raise NotHere(f"{address}:{port} is another program")
            self._archive.add_text(f"{process}/{name}", content.decode(errors="replace"))

    def _add_journal(self, unit: str) -> None:
        found = journal(unit, self._since_s, 2 * _MOST_OF_A_LOG)
        self._archive.add_text(f"journal/{unit}.log", found.text, is_cut=found.is_cut)

    def _add_logs(self) -> None:
        here = kept(self._files)
        for vm_id in self._asked:
            if vm_id not in here:
                self._archive.leave_out(f"logs of {vm_id}", "it has no run directory on this host")
        wanted = self._concerned if self._asked or self._why_no_redis is None else here
        for vm_id in [vm_id for vm_id in here if vm_id in set(wanted)][:_MOST_VMS]:
            for run in self._files.runs(vm_id):
                if run.spec:
                    self._archive.hide(secrets_of_spec(run.spec))
            for run in reversed(self._files.runs(vm_id)):
                folder = f"runs/{vm_id}/{run.generation}"
                self._archive.add_document(f"{folder}/run.json", run_document(run))
                for log in logs_of(run):
                    self._part(f"{folder}/{log.name}", partial(self._add_log, folder, log))

    def _add_log(self, folder: str, log: Path) -> None:
        found = log_tail(log, _MOST_OF_A_LOG)
        if found is not None:
            self._archive.add_text(f"{folder}/{log.name}", found.text, is_cut=found.is_cut)

    # Of the fleet

    def _add_status(self) -> None:
        fleet = self._fleet
        _, hosts = fleet.hosts.all()
        names = [host.name for host in hosts]
        vms_of = fleet.store.host_sizes(names)
        now_ms, modes = fleet.modes.all_modes()
        self._archive.add_document(
            "status.json",
            {
                "at": iso(now_ms),
                "vms": {str(state): number for state, number in fleet.store.counts().items()},
                "hosts": [host_document(host, vms_of.get(host.name, 0)) for host in hosts],
                "halted": {host: asdict(halt) for host, halt in fleet.data.halted().items()},
                "modes": {name: asdict(scope) for name, scope in modes.scopes.items()},
                "breakers": [asdict(each) for each in fleet.weather.breakers()],
                "storms": [asdict(each) for each in fleet.weather.storms(names)],
                "strays": stray_documents(fleet.hosts.strays(names)),
                "unreadable": fleet.hosts.unreadable(names),
                "counters": fleet.weather.counts(),
            },
        )

    def _read_events(self) -> None:
        """The last ones of the window; with --vm those of its VMs, and those that are about none."""
        since = self._fleet.events.since(f"{int(self._since_s * 1000)}-0")
        wanted = {"", *self._asked}
        self._events = list(
            deque((each for each in since if not self._asked or each.event.vm_id in wanted), maxlen=_MOST_EVENTS)
        )
        if len(self._events) == _MOST_EVENTS:
            self._archive.leave_out("older events", f"only the last {_MOST_EVENTS} are kept")

    def _add_events(self) -> None:
        self._archive.add_documents("events.jsonl", (event_document(each) for each in self._events))

    @cached_property
    def _concerned(self) -> list[str]:
        """The VMs asked for; else those that are not well, and those that something happened to in the window."""
        if self._asked:
            return list(self._asked)
        store = self._fleet.store
        unwell = [vm_id for state in State if state not in _WELL for vm_id in store.ids(state=state)]
        struck = [each.event.vm_id for each in reversed(self._events) if each.event.kind not in _ROUTINE]
        found = [vm_id for vm_id in dict.fromkeys((*unwell, *struck)) if vm_id]
        if len(found) > _MOST_VMS:
            self._archive.leave_out(f"records of {len(found) - _MOST_VMS} VMs", f"only {_MOST_VMS} are kept; see --vm")
        return found[:_MOST_VMS]

    def _read_records(self) -> None:
        for start in range(0, len(self._concerned), _CHUNK):
            ids = self._concerned[start : start + _CHUNK]
            snapshot = self._fleet.store.read(ids, with_specs=True)
            self._stored |= snapshot.found
            for vm_id in ids:
                if vm_id not in snapshot.found:
                    self._archive.leave_out(f"record of {vm_id}", snapshot.unreadable.get(vm_id, "there is none"))
        for stored in self._stored.values():
            self._archive.hide(secrets_of_spec(stored.spec) if stored.spec else ())

    def _add_records(self) -> None:
        self._archive.add_documents("vms.jsonl", map(_record_document, self._stored.values()))


def _why_no_redis(report: Report) -> str | None:
    wrong = (each for _, each in report.found if each.name == "redis" and each.level is not Level.OK)
    found = next(wrong, None)
    return found.says if found else None


def _record_document(stored: Stored) -> Mapping[str, Any]:
    """Of the spec only what is known to hold no secret."""
    spec = stored.spec.model_dump(mode="json") if stored.spec else {}
    known = {name: spec[name] for name in _OF_SPECS if name in spec}
    return vm_document(stored) | {"rev": stored.rev, "version": stored.version, "spec": known}
