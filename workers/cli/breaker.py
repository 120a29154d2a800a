"""`breaker list`, `breaker trip`, `breaker reset`: circuit breakers of images, drivers, hosts and the fleet."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import click

from workers.cli.arguments import choice_option, host_option, reason_option, scope_argument
from workers.cli.documents import breaker_document
from workers.cli.failures import Failure
from workers.cli.listing import Column, Order, show_list, sort_option, sorted_by
from workers.cli.output import (
    output_option,
    show_json,
)
from workers.cli.session import Session, session
from workers.cli.targets import check_host
from workers.cli.watching import again_and_again, watch_option
from workers.domain.breaker import FLEET, BreakerState
from workers.domain.words import age, iso
from workers.store.weather import BreakerSeen

_KINDS = ("image", "driver", "host")


@dataclass(frozen=True, slots=True)
class _Row:
    breaker: BreakerSeen
    now_ms: int


def next_probe(breaker: BreakerSeen, now_ms: int) -> str:
    """Say when it may be probed; one that was opened by hand waits for a person."""
    if breaker.next_probe_ms is None:
        return "when reset"
    wait_ms = breaker.next_probe_ms - now_ms
    return f"in {age(wait_ms)}" if wait_ms > 0 else "now"


_COLUMNS: Sequence[Column[_Row]] = (
    Column("SCOPE", lambda row: row.breaker.scope),
    Column("STATE", lambda row: row.breaker.state),
    Column("NEXT PROBE", lambda row: next_probe(row.breaker, row.now_ms), key=lambda row: row.breaker.next_probe_ms),
    Column("WAITING", lambda row: row.breaker.waiting),
)


@click.command("list")
@host_option("Only breakers of this host, and of single images on it.")
@choice_option("--state", "states", ["open", "half_open"], "Only these")
@sort_option(_COLUMNS)
@watch_option
@output_option("table", "wide", "json", "name")
def list_breakers(
    host: str | None, states: Sequence[str], sort: Order | None, watch: float | None, output: str
) -> None:
    """List circuit breakers that are not closed, and who waits for them.

    An open breaker lets nothing of its scope be recovered until its next probe; half-open ones let single attempts try.
    """
    with session() as here:
        again_and_again(watch, lambda: _show(here, host, states, sort, output))


def _show(here: Session, host: str | None, states: Sequence[str], sort: Order | None, output: str) -> None:
    now_ms, _ = here.fleet.modes.modes([])
    found = [
        breaker
        for breaker in here.fleet.weather.breakers()
        if (host is None or is_of_host(breaker.scope, host)) and (not states or breaker.state in states)
    ]
    rows = sorted_by([_Row(breaker, now_ms) for breaker in found], _COLUMNS, sort)
    if output == "json":
        show_json({"at": iso(now_ms), "breakers": [breaker_document(row.breaker) for row in rows]})
    else:
        nothing = "no breaker like that" if host or states else "all breakers are closed"
        show_list(rows, _COLUMNS, output, nothing=nothing)


def is_of_host(scope: str, host: str) -> bool:
    """Whether this breaker is about nothing but this host."""
    return scope == f"host:{host}" or (scope.startswith("image:") and scope.endswith(f"@{host}"))


@click.command()
@scope_argument
@reason_option(required=True)
@output_option("table", "json")
def trip(scope: str, reason: str, output: str) -> None:
    """Open a breaker by hand: nothing of its scope is recovered.

    SCOPE is fleet, host:HOST, driver:NAME@VERSION, image:PATH, or image:PATH@HOST for one host only.
    """
    with session() as here:
        _check(here, scope)
        here.operations.trip(scope, reason=reason)
    _tell(scope, BreakerState.OPEN, output, f"{scope} is open: nothing of it is recovered until")


def _check(here: Session, scope: str) -> None:
    kind, _, name = scope.partition(":")
    if scope == FLEET:
        return
    if kind not in _KINDS or not name or not scope.isprintable():
        raise click.BadParameter(
            f"{scope!r} must be fleet, host:HOST, driver:NAME@VERSION, image:PATH or image:PATH@HOST",
            click.get_current_context(),
            param_hint="SCOPE",
        )
    if kind == "host":
        check_host(here, name)


@click.command("reset")
@scope_argument
@reason_option(required=True)
@output_option("table", "json")
def reset(scope: str, reason: str, output: str) -> None:
    """Close a breaker by hand.

    Who waits for it is recovered again, as fast as slots allow. If its cause is still there, it opens again.
    """
    with session() as here:
        scopes = [each.scope for each in here.fleet.weather.breakers()]
        if scope not in scopes:
            close = get_close_matches(scope, scopes, n=1)
            hint = f"did you mean {close[0]}?" if close else "see `reliability breaker list`"
            raise Failure(f"no breaker {scope!r} is open or half-open; {hint}")
        here.operations.close_breaker(scope, reason=reason)
    _tell(scope, BreakerState.CLOSED, output, f"{scope} is closed: who waits for it is recovered again")


def _tell(scope: str, state: BreakerState, output: str, words: str) -> None:
    if output == "json":
        show_json({"scope": scope, "state": state})
        return
    rest = f" `reliability breaker reset {scope}`" if state is BreakerState.OPEN else ""
    click.echo(words + rest)
