"""`state`: whether the hosts trust the data in Redis, and what an operator says when they do not."""

import time
import uuid
from collections.abc import Collection, Iterator

import click

from workers import queues
from workers.cli.events import block_ms
from workers.cli.failures import Failure
from workers.cli.messaging import send_to_host
from workers.cli.output import (
    output_option,
    say,
    show_json,
    show_table,
)
from workers.cli.session import Session, session
from workers.domain.audit import Event, EventKind
from workers.domain.words import counted
from workers.store.events import Entry

_REASON_MAX = 200
_PATIENCE_S = 60.0


@click.command()
@output_option("table", "json")
def show(output: str) -> None:
    """Show whether the hosts trust the data in Redis.

    The epoch of the data, and the hosts that recover nothing, with the reason. A host that finds other data in
    Redis than those it knows, older ones, or none, destroys nothing until an operator has looked and confirmed.
    """
    with session() as here:
        found, halted = here.fleet.data.look(None), here.fleet.data.halted()
    if output == "json":
        halts = [{"host": host, "why": halt.why, "frozen": halt.frozen} for host, halt in sorted(halted.items())]
        show_json({"epoch": found.epoch, "last_event": found.last_event, "halted": halts})
        return
    click.echo(f"Epoch: {found.epoch or 'none: no worker has run on these data'}")
    click.echo(f"Last event: {found.last_event}")
    click.echo(f"Halted hosts: {len(halted) or 'none'}")
    if halted:
        show_table(("HOST", "WHY"), [(host, halt.why) for host, halt in sorted(halted.items())], indent=2)
    if any(halt.frozen for halt in halted.values()):
        click.echo("Look at `reliability status` and `vm list`; if records are missing, `reliability state rebuild`.")
        click.echo("If they are right: `reliability state confirm --reason TEXT`.")


@click.command()
@click.option("--reason", metavar="TEXT", required=True, help="Why the data are right, for the audit.")
@click.option("--yes", is_flag=True, help="Do not ask.")
def confirm(reason: str, *, yes: bool) -> None:
    """Say that the data in Redis are right.

    Frozen hosts go on with them. From then on records decide again: VMs that they call lost are recovered, VMs that
    they do not know are strays.
    """
    if len(reason) > _REASON_MAX or not reason.isprintable():
        raise click.BadParameter(f"must be one line of at most {_REASON_MAX} characters", param_hint="--reason")
    with session() as here:
        frozen = {host: halt for host, halt in here.fleet.data.halted().items() if halt.frozen}
        if not frozen and here.fleet.data.look(None).epoch is not None:
            raise Failure("no host is frozen: there is nothing to confirm; see `reliability state show`")
        vms = len(here.fleet.store.ids())
        say(f"{counted(vms, 'VM')} in these data; {counted(len(frozen), 'frozen host')}")
        if not yes:
            click.confirm("Are these data right?", abort=True, err=True)
        told = Event(EventKind.CONFIRMED, "", "", here.actor, reason, scope="fleet")
        found = here.fleet.data.confirm(told)
    click.echo(f"confirmed: epoch {found.epoch}; hosts go on at their next heartbeat")


@click.command()
@click.option("--host", "hosts", multiple=True, metavar="HOST", help="Only this host; may be repeated.  [default: all]")
def rebuild(hosts: tuple[str, ...]) -> None:
    """Make records again from the hosts' run directories.

    Each host makes one for every VM that has run on it, that Redis has no record of, and that was not forgotten.
    Nothing is started or ended by that; look at the result, then confirm it.
    """
    with session() as here:
        live = {host.name for host in here.fleet.hosts.all()[1] if host.worker}
        wanted = set(hosts) or live
        if missing := sorted(wanted - live):
            raise Failure(f"no worker serves {', '.join(missing)}: start `reliability worker` there first")
        if not wanted:
            raise Failure("no host has a live worker: start `reliability worker` on each first")
        request_id, after = uuid.uuid4().hex, here.fleet.events.last_id()
        for host in sorted(wanted):
            send_to_host(here.settings, queues.REBUILD, host, {"request_id": request_id})
        say(f"asked {counted(len(wanted), 'host')}")
        for entry in _answers(here, request_id, after, wanted):
            click.echo(f"{entry.event.host}: {entry.event.why}")


def _answers(here: Session, request_id: str, after: str, hosts: Collection[str]) -> Iterator[Entry]:
    waiting, deadline = set(hosts), time.monotonic() + _PATIENCE_S
    for entry in here.fleet.events.follow(after, block_ms=block_ms(here.settings)):
        if entry is not None and entry.event.request_id == request_id and entry.event.host in waiting:
            waiting.discard(entry.event.host)
            yield entry
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise Failure(f"no answer from {', '.join(sorted(waiting))} within {_PATIENCE_S:.0f} s; it may still come")
