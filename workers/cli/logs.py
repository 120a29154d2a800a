"""`vm logs`: console, VMM log and exit cause of the kept incarnations, from the run directories of this host."""

import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import click

from workers.cli.arguments import vm_argument
from workers.cli.failures import Failure
from workers.cli.output import (
    clean,
    clean_lines,
    output_option,
    say,
    show_json,
)
from workers.cli.session import Session, session
from workers.domain.errors import StoreUnavailable, UnknownVm
from workers.domain.words import counted
from workers.host.rundir import CONSOLE, VMM_LOG, Run

_LINES = 40


@dataclass(frozen=True, slots=True)
class _Logs:
    """What the VMM of one incarnation wrote."""

    run: Run
    console: str
    vmm_log: str


@click.command()
@vm_argument
@click.option("--previous", is_flag=True, help="The incarnation before the current one.")
@click.option("--console", "only", flag_value=CONSOLE, help="Only the guest's console, as it is.")
@click.option("--vmm", "only", flag_value=VMM_LOG, help="Only the VMM's own log, as it is.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=_LINES, show_default=True, help="0 for all.")
@output_option("table", "json")
def logs(vm_id: str, only: str | None, lines: int, output: str, *, previous: bool) -> None:
    """Show console, VMM log and exit cause of a VM's incarnations.

    They are read from the run directory, so this works on the VM's own host only, also without Redis. The last three
    incarnations are kept.
    """
    with session() as here:
        kept = list(reversed(_runs(here, vm_id)))
        ends = {run.generation: _fate(here, run) for run in kept}
    if output == "json":
        shown = kept[1:2] if previous else kept
        show_json(
            {"vm_id": vm_id, "host": here.settings.host, "incarnations": [_document(run, lines) for run in shown]}
        )
        return
    if previous and len(kept) == 1:
        raise Failure(f"{vm_id} has had one incarnation only: leave out --previous")
    run = kept[1 if previous else 0]
    if only:
        click.echo(_for_people(_tail(run.path / only, lines)), nl=False)
        return
    click.echo(ends[run.generation])
    _show(_read(run, lines), lines)
    for earlier in kept[kept.index(run) + 1 :]:
        click.echo(f"earlier: {ends[earlier.generation]}")


def _runs(here: Session, vm_id: str) -> list[Run]:
    """Raises Failure where there is nothing to read, saying where it would be."""
    try:
        host = here.stored(vm_id)[0].record.host
    except (StoreUnavailable, UnknownVm, Failure) as error:
        # A forgotten VM, or Redis is away: what lies here can be read all the same.
        found = here.files.runs(vm_id)
        if not found:
            raise
        say(f"note: {error}")
        return found
    if host != here.settings.host:
        raise Failure(f"{vm_id} belongs to host {host}, this is {here.settings.host}: run it there")
    found = here.files.runs(vm_id)
    if not found:
        raise Failure(f"{vm_id} has not been started here yet: there is nothing below {here.settings.state_dir}/runs")
    return found


def _read(run: Run, lines: int) -> _Logs:
    return _Logs(run, _tail(run.path / CONSOLE, lines), _tail(run.path / VMM_LOG, lines))


def _tail(path: Path, lines: int) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace", newline="\n") as log:
            return "".join(deque(log, lines or None))
    except FileNotFoundError:
        return ""


def _fate(here: Session, run: Run) -> str:
    """Name an incarnation and say how it ended, or that it has not."""
    process = run.process
    title = f"generation {run.generation}, {f'pid {process.pid}' if process else 'never started'}"
    if run.exit_cause:
        return clean(f"{title}, ended: {run.exit_cause}")
    try:
        evidence = here.evidence_against(process) if process else None
    except OSError as error:
        return f"{title}, cannot be looked at: {error.strerror}"
    return f"{title}, {evidence or 'running'}" if process else title


def _show(shown: _Logs, lines: int) -> None:
    for name, text in ((CONSOLE, shown.console), (VMM_LOG, shown.vmm_log)):
        part = f"last {counted(lines, 'line')} of " if lines else ""
        click.echo(f"\n--- {part}{shown.run.path / name}" + ("" if text else ": empty"))
        click.echo(_for_people(text), nl=bool(text) and not text.endswith("\n"))
    click.echo()


def _for_people(text: str) -> str:
    """A guest writes what it likes; only a pipe gets it as it is."""
    return clean_lines(text) if sys.stdout.isatty() else text


def _document(run: Run, lines: int) -> dict[str, object]:
    read = _read(run, lines)
    return {
        "generation": run.generation,
        "driver": run.driver,
        "pid": run.process.pid if run.process else None,
        "exit_cause": run.exit_cause,
        "folder": str(run.path),
        "console": read.console,
        "vmm_log": read.vmm_log,
    }
