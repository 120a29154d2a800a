"""`flag list`, `flag set`, `flag clear`: single parts, switched at run time within what the settings allow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from workers.cli.arguments import reason_option
from workers.cli.documents import switch_document
from workers.cli.failures import REFUSED
from workers.cli.listing import Column, Order, show_list, sort_option, sorted_by
from workers.cli.output import (
    clean,
    output_option,
    say,
    show_json,
)
from workers.cli.session import session
from workers.cli.targets import Targets, hosts_of, spoken, target_options
from workers.domain.errors import Refused
from workers.domain.modes import Flag, Modes, Switch
from workers.domain.strays import StrayPolicy
from workers.domain.words import ago, iso
from workers.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_ON, _OFF = "on", "off"


class _FlagName(click.Choice[str]):
    """health-checks is health_checks."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return str(super().convert(str(value).replace("-", "_"), param, ctx))


_NAMES = _FlagName([str(flag) for flag in Flag])


def _flag_argument(command: F) -> F:
    return click.argument("flag", metavar="FLAG", type=_NAMES)(command)


@dataclass(frozen=True, slots=True)
class _Row:
    """A flag as one place has it: the settings of this host (without a switch), or somebody at run time."""

    flag: Flag
    scope: str
    is_on: bool
    allowed: bool
    switch: Switch | None = None
    setting: str = ""
    now_ms: int = 0

    @property
    def in_force(self) -> bool:
        return self.is_on and self.allowed


def _word(on: bool) -> str:  # noqa: FBT001 - reads as a sentence where it is called
    return _ON if on else _OFF


_COLUMNS: Sequence[Column[_Row]] = (
    Column("FLAG", lambda row: row.flag),
    Column("SCOPE", lambda row: row.scope),
    Column("SET", lambda row: _word(row.is_on)),
    Column("IN FORCE", lambda row: _word(row.in_force)),
    Column(
        "SINCE",
        lambda row: ago(row.switch.since_ms, row.now_ms) if row.switch else None,
        key=lambda row: row.switch.since_ms if row.switch else None,
    ),
    Column("WHO", lambda row: row.switch.actor if row.switch else None),
    Column("WHY", lambda row: row.switch.why if row.switch else row.setting),
)


@click.command("list")
@sort_option(_COLUMNS)
@output_option("table", "wide", "json", "name")
def list_flags(sort: Order | None, output: str) -> None:
    """List the parts that can be switched at run time, and where they are.

    First what the settings of this host say, then each switch. The most specific switch decides: a VM's before its
    host's before the fleet's. What the settings switch off stays off.
    """
    with session() as here:
        allowed = _allowed(here.settings)
        now_ms, modes = here.fleet.modes.all_modes()
    if output == "json":
        show_json(_document(allowed, modes, now_ms))
        return
    rows = [row for flag in Flag for row in _rows(flag, allowed[flag], modes, now_ms)]
    show_list(sorted_by(rows, _COLUMNS, sort), _COLUMNS, output, nothing="no flags")


@dataclass(frozen=True, slots=True)
class _Allowed:
    on: bool
    setting: str


def _allowed(settings: Settings) -> Mapping[Flag, _Allowed]:
    """What the settings of this host say; `enabled` goes before all of them."""
    checks, recovery, strays = settings.health_check.enabled, settings.recovery.enabled, settings.strays.policy
    found = {
        Flag.HEALTH_CHECKS: _Allowed(checks, "health_check.enabled"),
        Flag.ORPHAN_DETECTION: _Allowed(on=True, setting="no setting switches it off"),
        Flag.RECOVERY: _Allowed(recovery, "recovery.enabled"),
        Flag.STRAY_REAPING: _Allowed(strays is StrayPolicy.REAP, f"strays.policy = {strays}"),
    }
    if settings.enabled:
        return found
    return dict.fromkeys(found, _Allowed(on=False, setting="enabled = false"))


def _rows(flag: Flag, allowed: _Allowed, modes: Modes, now_ms: int) -> list[_Row]:
    first = _Row(flag, "settings", allowed.on, allowed.on, setting=allowed.setting)
    switches = [
        _Row(flag, scope, switch.on, allowed.on, switch, now_ms=now_ms)
        for scope, switch in _switches(modes)
        if switch.flag is flag
    ]
    return [first, *switches]


def _switches(modes: Modes) -> list[tuple[str, Switch]]:
    return [(scope, switch) for scope in sorted(modes.scopes) for switch in modes.scopes[scope].switches]


def _document(allowed: Mapping[Flag, _Allowed], modes: Modes, now_ms: int) -> dict[str, Any]:
    return {
        "at": iso(now_ms),
        "settings": {str(flag): each.on for flag, each in allowed.items()},
        "switches": [
            switch_document(scope, switch) | {"in_force": switch.on and allowed[switch.flag].on}
            for scope, switch in _switches(modes)
        ],
    }


@click.command("set")
@_flag_argument
@click.argument("value", metavar="on|off", type=click.Choice([_ON, _OFF]))
@target_options
@reason_option(required=True)
@output_option("table", "json")
def set_flag(flag: str, value: str, targets: Targets, reason: str, output: str) -> int:
    """Switch a part on or off for the fleet, a host or a VM.

    FLAG is health_checks, orphan_detection, recovery or stray_reaping. It holds until it is set otherwise or taken
    back (`flag clear`), whatever is set on wider scopes.
    """
    meant = Flag(flag)
    with session() as here:
        hosts_of(here, targets)
        service = here.fleet.operator_modes(actor=here.actor)
        made = {scope: service.switch(scope, meant, on=value == _ON, why=reason) for scope in targets.scopes}
        allowed = _allowed(here.settings)[meant]
    if output == "json":
        show_json(
            {
                "switches": [
                    switch_document(scope, switch) | {"in_force": switch.on and allowed.on}
                    for scope, switch in made.items()
                ]
            }
        )
        return 0
    for scope in made:
        click.echo(f"{meant} is {value} for {spoken(scope)} until it is set otherwise")
    if value == _ON and not allowed.on:
        say(f"warning: the settings of this host keep it off ({allowed.setting}); look at those of the others")
    return 0


@click.command()
@_flag_argument
@target_options
@reason_option(required=False)
@output_option("table", "json")
def clear(flag: str, targets: Targets, reason: str | None, output: str) -> int:
    """Take a switch back.

    From then on wider scopes decide again, and in the end the settings.
    """
    meant = Flag(flag)
    refused: list[str] = []
    with session() as here:
        service = here.fleet.operator_modes(actor=here.actor)
        for scope in targets.scopes:
            try:
                service.unswitch(scope, meant, why=reason)
            except Refused as error:
                refused.append(error.why)
        modes = here.fleet.modes.all_modes()[1]
    left = [(scope, switch) for scope, switch in _switches(modes) if switch.flag is meant]
    if output == "json":
        show_json({"switches": [switch_document(scope, switch) for scope, switch in left]})
    elif len(refused) < len(targets.scopes):
        rest = ", ".join(f"{_word(switch.on)} for {spoken(scope)}" for scope, switch in left)
        click.echo(clean(f"{meant}: {f'still set: {rest}' if rest else 'the settings alone decide now'}"))
    say(*(f"reliability: {why}" for why in refused))
    return REFUSED if refused else 0
