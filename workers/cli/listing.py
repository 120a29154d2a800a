"""Lists in one grammar: columns, what they are sorted by, and the forms `table`, `wide`, `json` and `name`."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from workers.cli.output import say, show_names, show_table

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

R = TypeVar("R")
F = TypeVar("F", bound=Callable[..., Any])

_DIGITS = re.compile(r"([0-9]+)")


@dataclass(frozen=True, slots=True)
class Column(Generic[R]):
    """`key` is what rows are sorted by, where that is not what the cell shows. `wide`: only shown with `-o wide`."""

    header: str
    cell: Callable[[R], object]
    key: Callable[[R], Any] | None = None
    wide: bool = False

    @property
    def name(self) -> str:
        return self.header.lower().replace(" ", "-")


@dataclass(frozen=True, slots=True)
class Order:
    """By which column; `falling` turns it round."""

    column: str
    falling: bool = False


class _By(click.ParamType[Order]):
    """The name of a column, with - before it for the largest first."""

    name = "column"

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = list(columns)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Order:
        if isinstance(value, Order):
            return value
        column = str(value).lower().removeprefix("-")
        if column not in self.columns:
            close = get_close_matches(column, self.columns, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(self.columns)}"
            self.fail(f"no column {value!r}; {hint}", param, ctx)
        return Order(column, falling=str(value).startswith("-"))

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> "list[CompletionItem]":
        from click.shell_completion import CompletionItem  # noqa: PLC0415 - only when a shell asks

        del ctx, param
        return [CompletionItem(name) for name in self.columns if name.startswith(incomplete.lower())]


def sort_option(columns: Sequence[Column[Any]]) -> Callable[[F], F]:
    return click.option(
        "--sort",
        type=_By([column.name for column in columns]),
        metavar="COLUMN",
        help="Sort by this column; -COLUMN for the largest first.",
    )


def sorted_by(rows: Iterable[R], columns: Sequence[Column[R]], order: Order | None) -> list[R]:
    """Rows without a value come last, whichever way."""
    if order is None:
        return list(rows)
    column = next(each for each in columns if each.name == order.column)
    value_of = column.key or column.cell
    with_value: list[tuple[Any, R]] = []
    without: list[R] = []
    for row in rows:
        value = value_of(row)
        if value in (None, ""):
            without.append(row)
        else:
            with_value.append((natural(value) if isinstance(value, str) else value, row))
    with_value.sort(key=lambda pair: pair[0], reverse=order.falling)
    return [*(row for _, row in with_value), *without]


def natural(text: str) -> list[int | str]:
    """Say where a name comes: vm-2 before vm-10."""
    return [int(part) if part.isdecimal() else part for part in _DIGITS.split(text)]


def in_order(names: Iterable[str]) -> list[str]:
    return sorted(names, key=natural)


def show_list(rows: Sequence[R], columns: Sequence[Column[R]], output: str, *, nothing: str) -> None:
    """Show the forms for people, and `name`: what stands in the first column."""
    if output == "name":
        show_names([str(columns[0].cell(row)) for row in rows])
    elif rows:
        shown = [column for column in columns if output == "wide" or not column.wide]
        show_table([column.header for column in shown], [[column.cell(row) for column in shown] for row in rows])
    else:
        say(nothing)
