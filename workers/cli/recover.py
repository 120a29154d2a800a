"""`recover`: a person's request for the recovery of VMs; whether it is followed is decided on the VM's host."""

from collections.abc import Sequence
from datetime import timedelta

import click

from workers.cli.arguments import duration, host_option, reason_option, vms_argument
from workers.cli.documents import asked_document
from workers.cli.events import event_line
from workers.cli.failures import REFUSED, Failure
from workers.cli.following import Following
from workers.cli.mass_recovery import MassRecovery
from workers.cli.output import output_option, say, show_json
from workers.cli.session import Session, session
from workers.domain.vm import Force, State
from workers.durations import format_duration
from workers.services.operations import Asked


@click.command()
@vms_argument(required=False)
@host_option("All VMs of this host that need it; shown first, and asked about.")
@click.option("--force", "forced", is_flag=True, help="Also against caps, breakers, storms and operator modes.")
@click.option("--kill-healthy", is_flag=True, help="Also where the VM is well: its VMM is ended and started again.")
@click.option("--wait", is_flag=True, help="Watch until the VM is healthy (status 0) or not (status 1).")
@click.option(
    "--timeout",
    metavar="DURATION",
    callback=duration,
    default="15m",
    show_default=True,
    help="How long --wait is patient.",
)
@reason_option(required=False)
@click.option("--yes", is_flag=True, help="With --host: do not ask.")
@output_option("table", "json")
def recover(
    vm_ids: Sequence[str],
    host: str | None,
    timeout: timedelta,
    reason: str | None,
    output: str,
    *,
    forced: bool,
    kill_healthy: bool,
    wait: bool,
    yes: bool,
) -> int:
    """Ask for the recovery of a VM.

    Works on a VM that is down, also on one that was given up (failed), and does not wait for the next attempt's turn. A
    VM that serves is left alone. Each request acts once, however often its message comes.

    Several VMs, or those of a whole host, go one by one; docs/manual-recovery.md says what --force may override.
    """
    _check_usage(vm_ids, host, reason, kill_healthy=kill_healthy)
    force = Force.KILL_HEALTHY if kill_healthy else Force.FORCE if forced else Force.PLAIN
    patience = timeout if wait else None
    with session() as here:
        if host is None and len(vm_ids) == 1:
            here.stored(vm_ids[0])  # knows better what else could have been meant
            asked = here.operations.recover(vm_ids[0], reason=reason, force=force)
            return _one(here, asked, force, patience, output)
        many = MassRecovery(here, reason, force, output)
        return many.of_host(host, patience, yes=yes) if host else many.of_vms(vm_ids, patience)


def _check_usage(vm_ids: Sequence[str], host: str | None, reason: str | None, *, kill_healthy: bool) -> None:
    context = click.get_current_context()
    if bool(vm_ids) == (host is not None):
        raise click.UsageError("say which: VM ids, or --host HOST", context)
    if host is not None and reason is None:
        raise click.UsageError("a whole host needs a --reason", context)
    if host is not None and kill_healthy:
        raise click.UsageError("--kill-healthy is for single VMs: name them", context)


def _one(here: Session, asked: Asked, force: Force, patience: timedelta | None, output: str) -> int:
    if patience is None:
        _tell(asked, output)
        return 0
    state = _watch(here, asked, force, patience, output)
    if output == "json":
        show_json(asked_document(asked) | {"state": state, "recovered": state is State.HEALTHY})
    else:
        click.echo(f"{asked.vm_id} is {state or 'forgotten'}")
    return 0 if state is State.HEALTHY else REFUSED


def _watch(here: Session, asked: Asked, force: Force, patience: timedelta, output: str) -> State | None:
    """Raises Failure when patience ends first."""
    tell = say if output == "json" else click.echo
    tell(_words(asked))
    following = Following(here, [asked], force, on_event=lambda entry: tell(event_line(entry)), on_silence=tell)
    ended = following.run(patience)
    if asked.vm_id not in ended:
        waited = format_duration(patience)
        raise Failure(f"{asked.vm_id} is not healthy after {waited}; see `reliability why {asked.vm_id}`")
    return ended[asked.vm_id]


def _words(asked: Asked) -> str:
    if not asked.sent:
        return f"{asked.vm_id} is being recovered already; nothing was sent"
    return f"recovery of {asked.vm_id} requested from host {asked.host} (request {asked.request_id})"


def _tell(asked: Asked, output: str) -> None:
    if output == "json":
        show_json(asked_document(asked))
    else:
        click.echo(_words(asked))
        say(f"see `reliability events --vm {asked.vm_id} --follow`, or use --wait")
