"""`apply` and `forget`: what people declare. All of a request is written, or nothing; that is `services.registry`'s."""

import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import click

from workers.cli.arguments import vm_argument
from workers.cli.messaging import celery_app
from workers.cli.output import (
    output_option,
    say,
    show_json,
    show_names,
    show_table,
)
from workers.cli.session import Session, session
from workers.domain.words import counted
from workers.images import ImageRefused, check_images
from workers.services.registry import Applied
from workers.settings import Settings
from workers.specfiles import read_specs
from workers.specs import VmSpec

if TYPE_CHECKING:
    from workers.messages import CeleryWakeups

_WARNED_ABOUT = 5  # missing images: after these, the number says enough


class _Wakeups:
    """Celery is loaded only when there is something to send: most declarations only write records."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def _celery(self) -> "CeleryWakeups":
        from workers.messages import CeleryWakeups  # noqa: PLC0415 - see above

        return CeleryWakeups(celery_app(self._settings))

    def stop(self, vm_id: str, host: str) -> None:
        self._celery.stop(vm_id, host)

    def recover(
        self, vm_id: str, host: str, *, episode: str | None = None, attempt: int | None = None, delay_ms: int = 0
    ) -> None:
        self._celery.recover(vm_id, host, episode=episode, attempt=attempt, delay_ms=delay_ms)


@click.command()
@click.option(
    "-f",
    "--file",
    "source",
    required=True,
    metavar="FILE|DIR|-",
    help="A .yaml, .yml or .json file, a folder of such files, or - for standard input.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@output_option("table", "json", "name")
def apply(source: str, output: str, *, dry_run: bool) -> None:
    """Declare VMs: create or change all that a file describes.

    All of them or none: whatever is wrong is named with its place, and nothing is changed. A VM that names no host
    belongs to this one (setting `host`). A VM with `desired: stopped` is brought down.
    """
    with session() as here:
        specs = read_specs(source, stdin=sys.stdin, default_host=here.settings.host)
        registry = here.fleet.registry(_Wakeups(here.settings), actor=here.actor)
        result = registry.preview(specs) if dry_run else registry.apply(specs)
        _show(specs, result, output, dry_run=dry_run)
        _warn_about_images(here.settings, specs)
        _warn_about_hosts(here, specs)


def _show(specs: Sequence[VmSpec], result: Mapping[str, Applied], output: str, *, dry_run: bool) -> None:
    match output:
        case "json":
            vms = [{"id": spec.id, "host": spec.host, "result": result[spec.id]} for spec in specs]
            show_json({"dry_run": dry_run, "vms": vms})
        case "name":
            show_names([spec.id for spec in specs])
        case _:
            note = " (dry run)" if dry_run else ""
            show_table(["VM", "HOST", "RESULT"], [(spec.id, spec.host, f"{result[spec.id]}{note}") for spec in specs])


def _warn_about_images(settings: Settings, specs: Sequence[VmSpec]) -> None:
    """Only of VMs of this host; they may still be put there before the VM starts."""
    wrong: list[str] = []
    for spec in specs:
        if spec.host == settings.host:
            try:
                check_images(spec, settings.image_roots, settings.image_devices)
            except ImageRefused as error:
                wrong.append(f"warning: {spec.id}: {error}")
    say(*wrong[:_WARNED_ABOUT])
    if len(wrong) > _WARNED_ABOUT:
        say(f"warning: the same for {counted(len(wrong) - _WARNED_ABOUT, 'more VM')}")


def _warn_about_hosts(here: Session, specs: Sequence[VmSpec]) -> None:
    _, hosts = here.fleet.hosts.all()
    served = {host.name for host in hosts if host.worker}
    for host in sorted({spec.host for spec in specs if spec.host} - served):
        say(f"warning: no worker serves host {host}: its VMs wait until `reliability worker` runs there")


@click.command()
@vm_argument
@output_option("table", "json", "name")
def forget(vm_id: str, output: str) -> None:
    """Drop the record of a VM; its VMM runs on.

    From then on nobody watches it. To end a VM, apply it with `desired: stopped` first, and forget it when it is
    stopped.
    """
    with session() as here:
        stored, _ = here.stored(vm_id)
        here.fleet.registry(_Wakeups(here.settings), actor=here.actor).forget(vm_id)
    process = stored.record.process
    match output:
        case "json":
            pid = process.pid if process else None
            show_json({"vm_id": vm_id, "host": stored.record.host, "forgotten": True, "pid": pid})
        case "name":
            show_names([vm_id])
        case _:
            rest = f"; pid {process.pid} on host {stored.record.host} runs on, unwatched" if process else ""
            click.echo(f"{vm_id} forgotten{rest}")
