"""`doctor`: what would keep this host, or the fleet, from working, and what to do about it."""

import os
import shutil
import textwrap
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import click

from workers.cli.failures import REFUSED
from workers.cli.output import (
    clean,
    on_terminal,
    output_option,
    show_json,
)
from workers.doctor.checks import run_checks
from workers.doctor.examination import Group, Report
from workers.doctor.finding import Finding, Level
from workers.doctor.place import Place
from workers.domain.words import counted
from workers.settings import load

_WORDS = {Level.PROBLEM: "PROBLEM", Level.WARNING: "warning", Level.OK: "ok"}
_STYLES: dict[Level, dict[str, Any]] = {
    Level.PROBLEM: {"fg": "red", "bold": True},
    Level.WARNING: {"fg": "yellow"},
    Level.OK: {"fg": "green"},
}
_LEVEL_WIDTH, _WIDEST = 7, 100
_INDENT = "  "
_MOST_ALIKE = 5


@click.command()
@click.option("--host-only", is_flag=True, help="Look at this host and its programs, and not at Redis and the fleet.")
@output_option("table", "json")
def doctor(output: str, *, host_only: bool) -> int:
    """Look for what would keep this host from working, and say what to do.

    Looks at Redis and the broker, the fleet, the files of this host, the machine and the programs of the drivers, all
    at once and for a few seconds at most. Changes nothing. Run it as the user of the worker, with its settings.

    Exit status: 0 no problem (warnings do not count), 1 at least one.
    """
    place = Place(load(os.environ, Path.cwd()))
    report = run_checks(place, host_only=host_only)
    if output == "json":
        show_json(report_document(report, place.settings.host))
    else:
        click.echo("\n".join(_lines(report)))
    return REFUSED if report.count(Level.PROBLEM) else 0


def report_document(report: Report, host: str) -> dict[str, Any]:
    return {
        "host": host,
        "problems": report.count(Level.PROBLEM),
        "warnings": report.count(Level.WARNING),
        "findings": [_document(group, finding) for group in Group for finding in report.of(group)],
        "not_looked_at": list(report.skipped),
    }


def _document(group: Group, finding: Finding) -> dict[str, Any]:
    return {
        "group": group,
        "name": finding.name,
        "level": finding.level,
        "says": finding.says,
        "does": finding.does or None,
    }


def _lines(report: Report) -> Iterator[str]:
    for group in Group:
        found = report.of(group)
        if found:
            yield click.style(group, bold=True) if _in_colour() else str(group)
            for _, alike in groupby(found, key=lambda finding: (finding.level, finding.name)):
                yield from _few(list(alike))
            yield ""
    if report.skipped:
        yield from _wrapped(f"Not looked at, since Redis does not answer: {', '.join(report.skipped)}.", "", "")
    yield _summary(report)


def _few(alike: list[Finding]) -> Iterator[str]:
    """Of a thousand VMs with a pause of their own each, a few say it."""
    for finding in alike[:_MOST_ALIKE]:
        yield from _finding_lines(finding)
    rest = len(alike) - _MOST_ALIKE
    if rest > 0:
        yield " " * (_LEVEL_WIDTH + 4) + f"… and {rest} more (-o json shows all)"


def _finding_lines(finding: Finding) -> Iterator[str]:
    word = _WORDS[finding.level].ljust(_LEVEL_WIDTH)
    first, *rest = _wrapped(f"{finding.name}: {finding.says}", " " * (_LEVEL_WIDTH + 4), " " * (_LEVEL_WIDTH + 6))
    shown = click.style(word, **_STYLES[finding.level]) if _in_colour() else word
    yield _INDENT + shown + first[_LEVEL_WIDTH + len(_INDENT) :]
    yield from rest
    if finding.does:
        yield from _wrapped(f"-> {finding.does}", " " * (_LEVEL_WIDTH + 4), " " * (_LEVEL_WIDTH + 7))


def _wrapped(text: str, first: str, rest: str) -> list[str]:
    """Fit lines to a terminal; a pipe gets each thing on one line, for grep."""
    text = clean(text)
    if not on_terminal():
        return [first + text]
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    return textwrap.wrap(
        text, width, initial_indent=first, subsequent_indent=rest, break_long_words=False, break_on_hyphens=False
    )


def _in_colour() -> bool:
    return on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _summary(report: Report) -> str:
    problems, warnings = report.count(Level.PROBLEM), report.count(Level.WARNING)
    good = counted(report.count(Level.OK), "thing") + " in order"
    return f"{counted(problems, 'problem')}, {counted(warnings, 'warning')}, {good}."
