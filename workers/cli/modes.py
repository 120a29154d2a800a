"""`pause`, `maintenance`, `observe`, `resume`: operator modes of VMs, hosts and the fleet."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

import click

from workers.bootstrap import milliseconds
from workers.cli.arguments import moment, reason_option, span
from workers.cli.documents import hold_document
from workers.cli.failures import REFUSED
from workers.cli.output import (
    clean,
    output_option,
    say,
    show_json,
    show_names,
)
from workers.cli.session import Session, session
from workers.cli.targets import Targets, as_arguments, held, hosts_of, spoken, target_options, until
from workers.domain.errors import Refused
from workers.domain.modes import Hold, InForce, Mode, host_scope, vm_scope
from workers.domain.words import iso

F = TypeVar("F", bound=Callable[..., Any])

_NAMES = 5  # of VMs in a hint

_ADJECTIVE: Mapping[Mode, str] = {
    Mode.PAUSED: "paused",
    Mode.MAINTENANCE: "in maintenance",
    Mode.OBSERVE_ONLY: "observe-only",
}


def _times(command: F) -> F:
    for name, metavar, callback, says in (
        ("--until", "TIME", moment, "Until this time, like 2026-11-24T18:00Z."),
        ("--for", "DURATION", span, "For so long, like 2h; then it ends by itself."),
    ):
        dest = f"{name.removeprefix('--')}_"
        command = click.option(name, dest, metavar=metavar, callback=callback, help=says)(command)
    return command


@click.command()
@target_options
@reason_option(required=True)
@_times
@output_option("table", "json", "name")
def pause(**options: Any) -> int:
    """Neither judge nor touch VMs, until it is lifted.

    For VMs that somebody works on by hand. Their health is not judged, and nothing is started or ended, whatever
    happens to them. Several people may hold one pause, each with a reason: it is over when all of them are lifted.
    """
    return _begin(Mode.PAUSED, **options)


@click.command()
@target_options
@reason_option(required=True)
@_times
@output_option("table", "json", "name")
def maintenance(**options: Any) -> int:
    """Judge VMs, and do nothing to them, for a time.

    For planned work: health is shown as it is, and nothing is started or ended. It ends by itself, so say --for or
    --until; for one detection interval after that VMs are only observed, so that what broke is not all mended at once.
    """
    if options["for_"] is None and options["until_"] is None:
        raise click.UsageError(
            "a maintenance has to end: say --for 2h, or --until 2026-11-24T18:00Z", click.get_current_context()
        )
    return _begin(Mode.MAINTENANCE, **options)


@click.command()
@target_options
@reason_option(required=True)
@_times
@output_option("table", "json", "name")
def observe(**options: Any) -> int:
    """Decide everything, write it down, and do nothing.

    What would have been done stands in `reliability events --kind would_have`; `reliability agreement` says what came
    of those VMs. The way to begin on a new host.
    """
    return _begin(Mode.OBSERVE_ONLY, **options)


@click.command()
@target_options
@click.option("--id", "hold_id", metavar="HOLD", help="This one only; its id stands in `reliability status`.")
@click.option("--all", "every", is_flag=True, help="All that hold it, whoever set them.")
@click.option("--mode", type=click.Choice([str(mode) for mode in Mode]), help="Only holds of this mode.")
@reason_option(required=False)
@output_option("table", "json", "name")
def resume(
    targets: Targets, hold_id: str | None, mode: str | None, reason: str | None, output: str, *, every: bool
) -> int:
    """Lift a pause, a maintenance or observe-only.

    Without options it lifts the only hold there is. Where several people hold something, name one by --id, or lift
    --all of them. What holds on the host or the fleet goes on.
    """
    with session() as here:
        hosts = _hosts_if_known(here, targets)
        service = here.fleet.operator_modes(actor=here.actor)
        meant = Mode(mode) if mode else None
        done, refused = _each(
            targets.scopes, lambda scope: service.lift(scope, hold_id=hold_id, mode=meant, every=every, why=reason)
        )
        now_ms, modes = here.fleet.modes.all_modes()
    _show([_Told(scope, lifted, held(scope, modes, hosts, now_ms)) for scope, lifted in done.items()], now_ms, output)
    return _refusals(refused)


def _hosts_if_known(here: Session, targets: Targets) -> dict[str, str]:
    """What is held may be lifted, also where the VM is forgotten by now; anything else has to be known."""
    _, modes = here.fleet.modes.all_modes()
    if targets.host is not None and host_scope(targets.host) in modes.scopes:
        return {}
    not_held = tuple(vm_id for vm_id in targets.vm_ids if vm_scope(vm_id) not in modes.scopes)
    hosts_of(here, Targets(not_held, targets.host))
    return {
        vm_id: stored.record.host
        for snapshot in here.snapshots(targets.vm_ids)
        for vm_id, stored in snapshot.found.items()
    }


@dataclass(frozen=True, slots=True)
class _Told:
    """What was changed on a scope, and what is in force there now."""

    scope: str
    holds: Sequence[Hold]
    now: Sequence[InForce]


def _begin(
    mode: Mode, *, targets: Targets, reason: str, for_: timedelta | None, until_: datetime | None, output: str
) -> int:
    if for_ is not None and until_ is not None:
        raise click.UsageError("only one of --for and --until goes", click.get_current_context())
    with session() as here:
        hosts = hosts_of(here, targets)
        for_ms = _how_long(here, for_, until_)
        service = here.fleet.operator_modes(actor=here.actor)
        done, refused = _each(targets.scopes, lambda scope: [service.hold(scope, mode, why=reason, for_ms=for_ms)])
        now_ms, modes = here.fleet.modes.all_modes()
    _show([_Told(scope, holds, held(scope, modes, hosts, now_ms)) for scope, holds in done.items()], now_ms, output)
    if done and output == "table":
        say(_hint(targets))
    return _refusals(refused)


def _how_long(here: Session, for_: timedelta | None, until_: datetime | None) -> int:
    """In ms, 0 without an end; the clock that counts is the server's."""
    if until_ is None:
        return milliseconds(for_) if for_ is not None else 0
    now_ms, _ = here.fleet.modes.modes([])
    for_ms = round(until_.timestamp() * 1000) - now_ms
    if for_ms <= 0:
        raise click.BadParameter(f"is over: it is {iso(now_ms)} now", param_hint="--until")
    if for_ms > milliseconds(timedelta(days=365)):
        raise click.BadParameter("must be within 365d", param_hint="--until")
    return for_ms


def _each(scopes: Sequence[str], change: Callable[[str], list[Hold]]) -> tuple[dict[str, list[Hold]], list[str]]:
    """Change scope by scope: one that is refused keeps none of the others back."""
    done: dict[str, list[Hold]] = {}
    refused: list[str] = []
    for scope in scopes:
        try:
            done[scope] = change(scope)
        except Refused as error:
            refused.append(error.why)
    return done, refused


def _refusals(refused: Sequence[str]) -> int:
    say(*(f"reliability: {why}" for why in refused))
    return REFUSED if refused else 0


def _show(told: Sequence[_Told], now_ms: int, output: str) -> None:
    match output:
        case "json":
            show_json({"at": iso(now_ms), "targets": [_document(each) for each in told]})
        case "name":
            show_names([hold.id for each in told for hold in each.holds])
        case _:
            for each in told:
                click.echo("\n".join(clean(line) for line in _lines(each, now_ms)))


def _document(told: _Told) -> dict[str, Any]:
    changed = [hold_document(told.scope, hold.mode, hold) for hold in told.holds]
    return {
        "scope": told.scope,
        "changed": changed,
        "in_force": [hold_document(each.scope, each.mode, each.hold) for each in told.now],
    }


def _lines(told: _Told, now_ms: int) -> list[str]:
    """The strongest decides; the others would hold on without it."""
    if not told.now:
        return [f"{spoken(told.scope)}: nothing holds it any more"]
    first, *others = told.now
    return [
        f"{spoken(told.scope)} is {_words(first, told.scope, now_ms)}",
        *(f"  also {_words(each, told.scope, now_ms)}" for each in others),
    ]


def _words(each: InForce, scope: str, now_ms: int) -> str:
    return f"{_ADJECTIVE[each.mode]} {until(each, now_ms)}: {_who(each, scope)}"


def _who(each: InForce, scope: str) -> str:
    hold = each.hold
    where = f"set on {spoken(each.scope)}" if each.scope != scope else f"id {hold.id}"
    return f"{hold.why} ({hold.actor}, {where})"


def _hint(targets: Targets) -> str:
    """Say how it ends, where the line stays short enough to be read."""
    named = " ".join(as_arguments(scope) for scope in targets.scopes[:_NAMES])
    return f"lift it: reliability resume {named}{' …' if len(targets.scopes) > _NAMES else ''}"
