"""`events`: the audit as people and programs read it, past and as it comes."""

from collections.abc import Iterator

import click

from workers.cli.documents import event_document
from workers.cli.output import clean, iso, output_option, say, show_json_line, without_id
from workers.cli.session import Session, checked_id, session
from workers.domain.audit import Event, EventKind
from workers.settings import Settings
from workers.store.events import Entry

_LIMIT = 50
_MOST_BLOCK_MS = 1000


@click.command()
@click.option(
    "--vm", "vm_id", callback=checked_id, metavar="VM", help="Only events of this VM, also of one that is forgotten."
)
@click.option("-f", "--follow", is_flag=True, help="Go on with new events as they come, until interrupted.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=0), default=_LIMIT, show_default=True, help="How many of the last ones."
)
@output_option("table", "json")
def events(vm_id: str | None, limit: int, output: str, *, follow: bool) -> None:
    """Show what was decided about VMs, and why.

    Times are UTC. With -o json each line is a document of its own.
    """
    told = False
    with session() as here:
        for entry in _entries(here, vm_id, limit, follow=follow):
            told = True
            if output == "json":
                show_json_line(event_document(entry))
            else:
                click.echo(event_line(entry))
    if not told and output != "json":
        say(f"no events of {vm_id}" if vm_id else "no events")


def _entries(here: Session, vm_id: str | None, limit: int, *, follow: bool) -> Iterator[Entry]:
    log = here.fleet.events
    # Before the past is read: what comes meanwhile is in one of the two, and not in both.
    after = log.last_id()
    past = log.latest(vm_id=vm_id, limit=limit) if limit else []
    yield from past
    if not follow:
        return
    after = past[-1].id if past and vm_id is None else after
    known = {entry.id for entry in past}
    for entry in log.follow(after, block_ms=block_ms(here.settings)):
        if entry is not None and vm_id in (None, entry.event.vm_id) and entry.id not in known:
            yield entry


def block_ms(settings: Settings) -> int:
    """How long one read may wait for news: less than the client waits for an answer."""
    return max(1, min(_MOST_BLOCK_MS, int(settings.redis.timeout.total_seconds() * 500)))


def event_line(entry: Entry) -> str:
    told = entry.event
    beside = ", ".join(part for part in (told.reason, f"by {told.actor}") if part)
    why = without_id(told.why, told.vm_id)
    return clean(f"{iso(entry.at_ms)}  {told.vm_id:<12}  {_happening(told):<24}  {why} ({beside})")


def _happening(told: Event) -> str:
    match told.kind:
        case EventKind.TRANSITION:
            return f"{told.before} -> {told.after}"
        case EventKind.ATTEMPT_FAILED:
            return f"attempt {told.attempt} failed"
        case _:
            return str(told.kind).replace("_", " ")
