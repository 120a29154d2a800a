"""`reset`: a finished episode is cleared, so that the VM is watched and recovered again."""

import click

from workers.cli.arguments import reason_option, vms_argument
from workers.cli.failures import REFUSED, Failure, one_line
from workers.cli.output import output_option, say, show_json, show_names
from workers.cli.session import session
from workers.domain.errors import ReliabilityError, StoreUnavailable


@click.command()
@vms_argument(required=True)
@reason_option(required=True)
@output_option("table", "json", "name")
def reset(vm_ids: tuple[str, ...], reason: str, output: str) -> int:
    """Clear a finished episode: the VM is watched and recovered again.

    For a VM that was given up (failed) and whose cause is mended: its attempts count from 1 again. To have it tried at
    once, use `recover` instead.
    """
    done: list[str] = []
    refused: dict[str, str] = {}
    with session() as here:
        for vm_id in vm_ids:
            try:
                here.stored(vm_id)
                here.operations.reset(vm_id, reason=reason)
                done.append(vm_id)
            except StoreUnavailable:
                raise
            except (ReliabilityError, Failure) as error:
                refused[vm_id] = one_line(error)
    match output:
        case "json":
            show_json({"reset": done, "refused": refused})
        case "name":
            show_names(done)
        case _:
            for vm_id in done:
                click.echo(f"{vm_id} reset: it is watched and recovered again")
    say(*(f"reliability: {why}" for why in refused.values()))
    return REFUSED if refused else 0
