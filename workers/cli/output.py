"""How results are written: JSON documents for programs, aligned text for people, coloured on a terminal only.

What a document holds is in `documents`.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click

SCHEMA_VERSION = 1
_NOTHING = "-"
_GAP = "  "
_STYLES: Mapping[str, str] = {  # SGR parameters
    "healthy": "32",
    "live": "32",
    "degraded": "33",
    "starting": "36",
    "recovering": "36",
    "unhealthy": "31",
    "orphaned": "31",
    "failed": "1;31",
    "SILENT": "1;31",
    "unknown": "35",
    "stopped": "2",
}

F = TypeVar("F", bound=Callable[..., Any])


def output_option(*formats: str) -> Callable[[F], F]:
    """Give a command `-o`; the first format is what people get."""
    return click.option(
        "-o", "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="Form of the output."
    )


def show_json(document: Mapping[str, object]) -> None:
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, indent=2))


def show_json_line(document: Mapping[str, object]) -> None:
    click.echo(json.dumps({"schema_version": SCHEMA_VERSION, **document}, separators=(",", ":")))


def show_names(names: Sequence[str]) -> None:
    if names:
        click.echo("\n".join(names))


def say(*lines: str) -> None:
    """Beside the result, such as a hint: never into the way of whoever reads the result."""
    for line in lines:
        click.echo(clean(line), err=True)


def show_table(headers: Sequence[str], rows: Sequence[Sequence[object]], *, indent: int = 0) -> None:
    """Show cells as they are, None and "" as a dash; nothing is cut, whatever the width of the terminal."""
    cells = [[_cell(value) for value in row] for row in rows]
    first, *rest = _aligned([list(headers), *cells])
    lines = [_coloured(first, lambda _: "1"), *(_coloured(row, lambda cell: _STYLES.get(cell, "")) for row in rest)]
    click.echo("\n".join(" " * indent + line for line in lines))


def show_facts(facts: Iterable[tuple[str, object]], *, indent: int = 0) -> None:
    for name, text in _aligned([(name, _cell(value)) for name, value in facts]):
        click.echo(f"{' ' * indent}{name}{_GAP}{text}")


def _aligned(rows: Sequence[Sequence[str]]) -> list[list[str]]:
    """Fill up all columns but the last to the width of their longest cell."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)][:-1]
    return [[*map(str.ljust, row, widths), row[-1]] for row in rows]


def _coloured(row: Sequence[str], style_of: Callable[[str], str]) -> str:
    """Colour is for terminals whose owner did not ask to be spared (no-color.org)."""
    if not on_terminal() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return _GAP.join(row)
    styles = [style_of(cell.rstrip()) for cell in row]
    return _GAP.join(f"\x1b[{style}m{cell}\x1b[0m" if style else cell for cell, style in zip(row, styles, strict=True))


def on_terminal() -> bool:
    return sys.stdout.isatty()


def _cell(value: object) -> str:
    return clean(str(value)) if value not in (None, "") else _NOTHING


def clean(text: str) -> str:
    """Keep what guests and VMMs wrote from steering the terminal."""
    return text if text.isprintable() else "".join(map(_visible, text))


def clean_lines(text: str) -> str:
    """Do the same to a whole log, whose lines and tabs stay."""
    return "".join(letter if letter in "\n\t" else _visible(letter) for letter in text.replace("\r\n", "\n"))


def _visible(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()


def without_id(text: str, vm_id: str) -> str:
    """Errors begin with the VM they are about, which stands beside them already."""
    return text.removeprefix(f"vm {vm_id}: ")
