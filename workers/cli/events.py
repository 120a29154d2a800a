"""`events`: the audit as people and programs read it: what was, what comes, or all of it as JSON lines."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import click

from workers.bootstrap import milliseconds
from workers.cli.arguments import choice_option, host_option, moment_or_age, vm_option
from workers.cli.documents import event_document
from workers.cli.output import (
    clean,
    output_option,
    say,
    show_json_line,
    without_id,
)
from workers.cli.session import Session, session
from workers.domain.audit import Event, EventKind
from workers.domain.epoch import NO_EVENT, order
from workers.domain.words import counted, iso
from workers.settings import Settings
from workers.store.events import Entry

_LIMIT = 50
_MOST_BLOCK_MS = 1000
_LAST_OF_MS = 2**64 - 1  # the second part of an id of the stream


@dataclass(frozen=True, slots=True)
class _Filter:
    """Which events are wanted; an empty field asks for nothing."""

    vm_id: str | None = None
    host: str | None = None
    kinds: Sequence[str] = ()
    actor: str | None = None
    request_id: str | None = None
    trace_id: str | None = None

    def takes(self, told: Event) -> bool:
        return (
            self.vm_id in (None, told.vm_id)
            and self.host in (None, told.host)
            and (not self.kinds or told.kind in self.kinds)
            and (self.actor is None or told.actor == self.actor or told.actor.startswith(f"{self.actor}:"))
            and self.request_id in (None, told.request_id)
            and self.trace_id in (None, told.trace_id)
        )


@dataclass(frozen=True, slots=True)
class _Range:
    """From when, until when (ids of the stream), and how many of the last ones; None for all."""

    after: str
    last: str
    limit: int | None


@click.command()
@vm_option("Only events of this VM, also of one that is forgotten.")
@host_option("Only events of this host.")
@choice_option("--kind", "kinds", EventKind, "Only events of this kind")
@click.option("--actor", metavar="WHO", help="Only what this one decided: `cli:root`, or `cli` for everybody there.")
@click.option("--request", "request_id", metavar="ID", help="Only what came of this request.")
@click.option("--trace", "trace_id", metavar="ID", help="Only the episode with this trace.")
@click.option("--since", callback=moment_or_age, metavar="TIME", help="All from 2h ago, or since 2026-11-24T18:00Z.")
@click.option("--until", callback=moment_or_age, metavar="TIME", help="None after this time.")
@click.option("--all", "every", is_flag=True, help="From the very first one that is kept: an export, with -o jsonl.")
@click.option("-f", "--follow", is_flag=True, help="Go on with new events as they come, until interrupted.")
@click.option(
    "-n", "--limit", type=click.IntRange(min=0), help=f"How many of the last ones.  [default: {_LIMIT}; --since: all]"
)
@output_option("table", "json", "jsonl")
def events(
    output: str,
    *,
    since: datetime | timedelta | None,
    until: datetime | timedelta | None,
    limit: int | None,
    every: bool,
    follow: bool,
    **wanted: Any,
) -> None:
    """Show what was decided about VMs, and why.

    Times are UTC. With -o json, or jsonl, each line is a document of its own: who, when, why, with the id of the event,
    of the request and of the trace.
    """
    if follow and until is not None:
        raise click.UsageError("--follow has no end: leave out --until", click.get_current_context())
    if every and since is not None:
        raise click.UsageError("only one of --all and --since goes", click.get_current_context())
    told = False
    with session() as here:
        span = _range(here, since, until, limit, every=every)
        for entry in _entries(here, _Filter(**wanted), span, follow=follow):
            told = True
            if output == "table":
                click.echo(event_line(entry))
            else:
                show_json_line(event_document(entry))
    if not told and output == "table":
        say(_nothing(_Filter(**wanted)))


def _nothing(wanted: _Filter) -> str:
    if wanted == _Filter(vm_id=wanted.vm_id):
        return f"no events of {wanted.vm_id}" if wanted.vm_id else "no events"
    return "no events like that"


_When = datetime | timedelta | None


def _range(here: Session, since: _When, until: _When, limit: int | None, *, every: bool) -> _Range:
    """Ages count back from now on the server's clock, which is the one that dates events."""
    ages = any(isinstance(each, timedelta) for each in (since, until))
    now_ms = here.fleet.modes.modes([])[0] if ages else 0
    whole = every or since is not None
    after = NO_EVENT if since is None else _before(_at_ms(since, now_ms))
    last = f"{_at_ms(until, now_ms)}-{_LAST_OF_MS}" if until is not None else "+"
    return _Range(after, last, limit if limit is not None or whole else _LIMIT)


def _at_ms(when: datetime | timedelta, now_ms: int) -> int:
    ms = now_ms - milliseconds(when) if isinstance(when, timedelta) else round(when.timestamp() * 1000)
    return max(0, ms)


def _before(ms: int) -> str:
    return f"{ms - 1}-{_LAST_OF_MS}" if ms else NO_EVENT


def _entries(here: Session, wanted: _Filter, span: _Range, *, follow: bool) -> Iterator[Entry]:
    log = here.fleet.events
    # Before the past is read: what comes meanwhile is in one of the two, and not in both.
    after = log.last_id()
    shown = NO_EVENT
    for entry in _past(here, wanted, span):
        shown = entry.id
        yield entry
    if not follow:
        return
    newest = max(after, shown, key=order)
    for new in log.follow(newest, block_ms=block_ms(here.settings)):
        if new is not None and wanted.takes(new.event):
            yield new


def _past(here: Session, wanted: _Filter, span: _Range) -> Iterator[Entry]:
    log = here.fleet.events
    if span.limit is not None:
        yield from log.latest(limit=span.limit, after=span.after, last=span.last, matches=wanted.takes)
        return
    odd: list[str] = []
    for entry in log.since(span.after, last=span.last, passed_over=odd.append):
        if wanted.takes(entry.event):
            yield entry
    if odd:
        say(f"warning: {counted(len(odd), 'event')} of another version left out, the first is {odd[0]}")


def block_ms(settings: Settings) -> int:
    """How long one read may wait for news: less than the client waits for an answer."""
    return max(1, min(_MOST_BLOCK_MS, int(settings.redis.timeout.total_seconds() * 500)))


def event_line(entry: Entry) -> str:
    told = entry.event
    about = told.vm_id or told.scope or (f"host:{told.host}" if told.host else "fleet")
    beside = ", ".join(part for part in (told.reason, f"by {told.actor}") if part)
    why = without_id(told.why, told.vm_id)
    return clean(f"{iso(entry.at_ms)}  {about:<12}  {_happening(told):<24}  {why} ({beside})")


def _happening(told: Event) -> str:
    match told.kind:
        case EventKind.TRANSITION:
            return f"{told.before} -> {told.after}"
        case EventKind.ATTEMPT_FAILED:
            return f"attempt {told.attempt} failed"
        case _:
            return str(told.kind).replace("_", " ")
