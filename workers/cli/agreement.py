"""`agreement`: after observe-only, what would have been done, and what came of it. Nothing is changed."""

from collections.abc import Sequence
from datetime import timedelta

import click

from workers.bootstrap import milliseconds
from workers.cli.arguments import duration, host_option
from workers.cli.output import (
    clean,
    output_option,
    show_json,
    show_table,
)
from workers.cli.session import session
from workers.cli.targets import check_host
from workers.domain.agreement import Agreement, Case
from workers.domain.agreement import agreement as compare
from workers.domain.words import ago


@click.command()
@click.option(
    "--last", callback=duration, default="24h", show_default=True, metavar="DURATION", help="How far to look back."
)
@host_option("Only VMs of this host.")
@output_option("table", "json")
def agreement(last: timedelta, host: str | None, output: str) -> None:
    """Show what observe-only would have done, and what came of it.

    Each loss of that time, whether it would have been recovered, and what became of the VM without it. A wrong kill is
    a VM that was held to be sick, would have been ended and started anew, and served again with the process it had.
    """
    with session() as here:
        if host is not None:
            check_host(here, host)
        now_ms, _ = here.fleet.modes.modes([])
        since_ms = max(0, now_ms - milliseconds(last))
        events = here.fleet.events.since(f"{since_ms}-0")
        told_since_ms = here.fleet.closeup.kept_since(since_ms)
        found = compare(events, since_ms=since_ms, now_ms=now_ms, host=host, told_since_ms=told_since_ms)
    if output == "json":
        show_json(found.document())
    else:
        _show(found)


def _show(found: Agreement) -> None:
    headline, *more = found.words()
    click.echo(headline)
    click.echo("".join(f"  {clean(line)}\n" for line in more), nl=False)
    if found.cases:
        show_table(_HEADERS, [_row(case, found.now_ms) for case in _in_order(found.cases)], indent=2)


_HEADERS = ("VM", "HOST", "LOST", "REASON", "DECIDED", "WRONG KILL", "WHAT BECAME OF IT")


def _in_order(cases: Sequence[Case]) -> Sequence[Case]:
    """What needs to be looked at first."""
    return sorted(cases, key=lambda case: (not case.is_wrong_kill, case.lost_ms))


def _row(case: Case, now_ms: int) -> tuple[object, ...]:
    decided = "recover" if case.would_ms else "nothing"
    wrong = "YES" if case.is_wrong_kill else "no"
    return case.vm_id, case.host, ago(case.lost_ms, now_ms), case.reason, decided, wrong, case.words
