"""docs/roll-out.md: every command in it can be typed."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from workers.cli.menu import LazyGroup, reliability

TEXT = (Path(__file__).parents[2] / "docs" / "roll-out.md").read_text()
# What stands for names of the reader's.
NAMES = {"HOST": "host-17", "VM": "vm-123", "TEXT": "because"}


def commands() -> Iterator[str]:
    for block in re.findall(r"^```bash\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE):
        yield from (line for line in block.splitlines() if line.startswith("reliability "))
    yield from re.findall(r"`(reliability [^`]+ [^`]+)`", TEXT)


def parsed(line: str) -> click.Context:
    """Read a line as the command would, and do nothing."""
    name, *words = (NAMES.get(word, word) for word in shlex.split(line, comments=True))
    command: click.Command = reliability
    while isinstance(command, LazyGroup):
        found, member, words = command.resolve_command(click.Context(command, info_name=name), words)
        assert member is not None, f"{found}: no such command yet"
        name, command = str(found), member
    return command.make_context(name, words)


@pytest.mark.parametrize("line", sorted({*commands()}))
def test_a_command_of_the_roll_out_can_be_typed(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "DIR").mkdir()
    monkeypatch.chdir(tmp_path)

    given = parsed(shown(line)).params

    if "fleet" in given:
        meant = [bool(given["vm_ids"]), given["host"] is not None, given["fleet"]]
        assert sum(meant) == 1, "says what it is about, and once"


def shown(line: str) -> str:
    """In tables and sentences a command is short: what has to be said besides stands in a block."""
    needs_reason = re.match(r"reliability (observe|pause|maintenance|flag set)\b", line)
    return f"{line.partition('#')[0]} --reason TEXT" if needs_reason and "--reason" not in line else line


def test_each_step_says_what_to_look_at_and_how_to_go_back() -> None:
    steps = re.split(r"^## \d\. ", TEXT, flags=re.MULTILINE)[1:]

    assert len(steps) == 5
    for step in steps:
        assert "**Look at**" in step
        assert "**Back**" in step
        assert "```bash" in step
