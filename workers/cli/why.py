"""`why`: what is known of one VM, now or at an earlier time, and what happens next. Nothing is changed."""

from datetime import datetime, timedelta

import click

from workers.bootstrap import milliseconds
from workers.cli.arguments import moment_or_age, vm_argument
from workers.cli.failures import REFUSED
from workers.cli.output import clean, output_option, show_facts, show_json
from workers.cli.session import Session, session
from workers.domain.answer import Answer, Known
from workers.services.why import why as explain


@click.command()
@vm_argument
@click.option(
    "--at", metavar="TIME", callback=moment_or_age, help="What was known then: 2h ago, or at 2026-11-24T18:00Z."
)
@output_option("table", "json")
def why(vm_id: str, at: datetime | timedelta | None, output: str) -> int:
    """Say why a VM is as it is, and what happens next.

    State, evidence, thresholds, attempts with their errors, who holds its lease, and everything that keeps it from
    being recovered: modes, flags, breakers, storms, lines, its host. Also for an id that nobody knows (status 1). With
    --at, what the event stream tells about an earlier time.
    """
    with session() as here:
        answer = _answer(here, vm_id, at)
    if output == "json":
        show_json(answer.document())
    else:
        _show(answer)
    return REFUSED if answer.known is Known.NOBODY else 0


def _answer(here: Session, vm_id: str, at: datetime | timedelta | None) -> Answer:
    try:
        return explain(here.fleet, vm_id, at_ms=None if at is None else _at_ms(here, at))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--at") from error


def _at_ms(here: Session, at: datetime | timedelta) -> int:
    """Ages count back from now on the server's clock."""
    if isinstance(at, datetime):
        return round(at.timestamp() * 1000)
    now_ms, _ = here.fleet.modes.modes([])
    return max(0, now_ms - milliseconds(at))


def _show(answer: Answer) -> None:
    click.echo(clean(answer.headline))
    show_facts([(each.kind.replace("_", " "), each.words) for each in answer.findings], indent=2)
    click.echo(clean(f"next: {answer.next_step.words}"))
