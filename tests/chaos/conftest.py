"""The chaos suite: real processes, real faults. Runs with RELIABILITY_TESTS=all; its table stands at the end."""

from dataclasses import astuple, fields
from pathlib import Path

import pytest

pytest.register_assert_rewrite("tests.support.chaos")

from tests.support.chaos import TALLIES, Tally  # noqa: E402 - only then its assertions say what they found

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.full)
            item.add_marker(pytest.mark.timeout(180))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not TALLIES:
        return
    terminalreporter.section("faults")
    names = [field.name for field in fields(Tally)]
    rows = [names, *([str(value) for value in astuple(tally)] for tally in sorted(TALLIES, key=lambda one: one.fault))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        terminalreporter.write_line("  ".join(cells))
