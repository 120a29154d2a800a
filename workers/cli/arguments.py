"""Arguments and options that several commands share, checked and completed in one way."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import click

from workers.cli.session import checked_id
from workers.durations import parse_duration

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

REASON_MAX = 200  # characters, as of every text in a message
_YEAR = timedelta(days=365)

F = TypeVar("F", bound=Callable[..., Any])


def _checked_ids(ctx: click.Context, param: click.Parameter, values: Iterable[str]) -> tuple[str, ...]:
    """Each once, in the order in which they were named."""
    return tuple(dict.fromkeys(str(checked_id(ctx, param, value)) for value in values))


def _checked_reason(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    if value is not None and not (value.strip() and len(value) <= REASON_MAX and value.isprintable()):
        raise click.BadParameter(f"must be one line of 1 to {REASON_MAX} characters", ctx, param)
    return value


def duration(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Read a duration, as a callback of click."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f"{value!r} {error}", ctx, param) from error


def span(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """Read how long something is to hold: longer than nothing, and at most a year."""
    read = duration(ctx, param, value)
    if read is not None and not timedelta(0) < read <= _YEAR:
        raise click.BadParameter(f"{value!r} must be more than nothing and at most 365d", ctx, param)
    return read


def moment(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | None:
    """Read a time that says its time zone: hosts, and people, are not all in the same one."""
    if value is None:
        return None
    try:
        read = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter(f"{value!r} must be a time like 2026-11-24T18:00Z", ctx, param) from None
    if read.tzinfo is None:
        raise click.BadParameter(f"{value!r} must say its time zone: write {value}Z for UTC", ctx, param)
    return read.astimezone(UTC)


def moment_or_age(ctx: click.Context, param: click.Parameter, value: str | None) -> datetime | timedelta | None:
    """Read a time, or how long ago it was."""
    if value is None:
        return None
    try:
        return parse_duration(value)
    except ValueError:
        pass
    try:
        return moment(ctx, param, value)
    except click.BadParameter as error:
        if "time zone" in error.message:
            raise
        raise click.BadParameter(
            f"{value!r} must be how long ago, like 2h, or a time like 2026-11-24T18:00Z", ctx, param
        ) from error


def _names(kind: str, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
    from workers.cli.completion import names  # noqa: PLC0415 - only when a shell asks

    del param
    taken = {name for value in ctx.params.values() if isinstance(value, tuple) for name in value}
    return names(kind, incomplete, taken)


def vm_argument(command: F) -> F:
    """Give a command one VM, as `vm_id`."""
    return click.argument("vm_id", metavar="VM", callback=checked_id, shell_complete=partial(_names, "vm"))(command)


def vms_argument(*, required: bool) -> Callable[[F], F]:
    """Give a command any number of VMs, as `vm_ids`."""
    return click.argument(
        "vm_ids",
        metavar="VM..." if required else "[VM]...",
        nargs=-1,
        required=required,
        callback=_checked_ids,
        shell_complete=partial(_names, "vm"),
    )


def vm_option(says: str) -> Callable[[F], F]:
    return click.option(
        "--vm", "vm_id", metavar="VM", callback=checked_id, help=says, shell_complete=partial(_names, "vm")
    )


def host_argument(command: F) -> F:
    """Give a command one host, as `host`."""
    return click.argument("host", metavar="HOST", callback=checked_id, shell_complete=partial(_names, "host"))(command)


def host_option(says: str) -> Callable[[F], F]:
    return click.option(
        "--host", metavar="HOST", callback=checked_id, help=says, shell_complete=partial(_names, "host")
    )


def scope_argument(command: F) -> F:
    """Give a command the scope of a breaker, as `scope`."""
    return click.argument("scope", metavar="SCOPE", shell_complete=partial(_names, "breaker"))(command)


def choice_option(name: str, dest: str, values: Iterable[object], says: str) -> Callable[[F], F]:
    """Give a command a filter that may be repeated; its values stand in the help, where lines may be broken."""
    words = [str(value) for value in values]
    return click.option(
        name,
        dest,
        multiple=True,
        type=click.Choice(words),
        metavar=name.removeprefix("--").upper(),
        help=f"{says}; may be repeated. One of {', '.join(words)}.",
    )


def reason_option(*, required: bool) -> Callable[[F], F]:
    """Give a command `--reason`. It is never asked for: a prompt would stop scripts."""
    return click.option("--reason", metavar="TEXT", required=required, callback=_checked_reason, help=_WHY)


_WHY = "Why, for the audit and for whoever comes next."
