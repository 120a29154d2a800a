"""The command line before it does anything: its menu, its help, and how it refuses."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as Gone

from workers.cli import main
from workers.cli.failures import (
    INTERRUPTED,
    NO_REDIS,
    PIPE_CLOSED,
    REFUSED,
    STATUSES,
    USAGE,
    Failure,
    explain,
    no_redis,
)
from workers.cli.menu import LazyGroup, breaker, flag, host, reliability, state, vm
from workers.domain.errors import StoreUnavailable, UnknownVm
from workers.services.registry import ApplyRefused
from workers.settings import SettingsError
from workers.specfiles import SpecFileError

DOC = Path(__file__).parents[2] / "docs" / "cli.md"
OTHER_TAKES_OVER = 70
GROUPS = (reliability, vm, host, breaker, flag, state)
ENTRIES = [(group, name) for group in GROUPS for name in group.entries]


def loaded(group: LazyGroup, name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


@pytest.mark.parametrize(("group", "name"), ENTRIES, ids=[f"{group.name} {name}" for group, name in ENTRIES])
def test_the_menu_says_what_the_command_says(group: LazyGroup, name: str) -> None:
    command = loaded(group, name)

    assert (command.name, (command.help or "").splitlines()[0]) == (name, group.entries[name].says)


@pytest.mark.parametrize(("group", "name"), ENTRIES, ids=[f"{group.name} {name}" for group, name in ENTRIES])
def test_every_option_is_explained(group: LazyGroup, name: str) -> None:
    options = [each for each in loaded(group, name).params if isinstance(each, click.Option)]

    assert [option.name for option in options if not option.help] == []


def test_help_lists_every_command_and_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-h"]) == 0

    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in reliability.entries)
    assert "3 Redis does not answer" in " ".join(text.split())


def test_every_exit_status_is_documented_and_no_other() -> None:
    rows = re.findall(r"^\| ([0-9]+) \|", DOC.read_text(encoding="utf-8"), re.MULTILINE)

    known = {0, REFUSED, USAGE, NO_REDIS, OTHER_TAKES_OVER, INTERRUPTED, PIPE_CLOSED}
    assert {int(row) for row in rows} == known
    assert all(f" {status} " in f" {STATUSES}" for status in known - {PIPE_CLOSED})


def test_the_page_shows_no_command_or_option_that_does_not_exist() -> None:
    lines = re.findall(r"(?:^|`)reliability ([^`#>\n]+)", DOC.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(lines) > 25
    for line in lines:
        words = shlex.split(line.replace("$(", "").replace(")", ""))
        command: click.Command = reliability
        while isinstance(command, LazyGroup) and words and not words[0].startswith("-") and words[0] != "COMMAND":
            command = loaded(command, words.pop(0))
        options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)} | {"--help"}
        assert {word for word in words if re.fullmatch(r"--?[a-z]+", word)} - options - {"-since"} == set(), line


@pytest.mark.parametrize(("group", "name"), ENTRIES, ids=[f"{group.name} {name}" for group, name in ENTRIES])
def test_every_command_has_help(group: LazyGroup, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [name] if group is reliability else [str(group.name), name]

    assert main([*arguments, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: reliability {' '.join(arguments)} ")


def test_help_loads_nothing_that_takes_long() -> None:
    heavy = {"celery", "redis", "pydantic", "structlog", "rich", "yaml", "opentelemetry"}
    program = f"import sys; from workers.cli import main; main(['-h']); sys.exit(list({heavy} & set(sys.modules)) or 0)"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("reliability, version ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stats"], "no command 'stats'; did you mean status? (see `reliability --help`)"),
        (["vm", "lists"], "no command 'lists'; did you mean list? (see `reliability vm --help`)"),
        (["vm", "show", "Web 1"], "'Web 1' must be 1 to 64 of the characters"),
        (["events", "--limit", "many"], "'many' is not a valid integer"),
        (["vm", "list", "--label", "web"], "'web' must be like team=web"),
        (["vm", "list", "-o", "xml"], "'xml' is not one of"),
        (["recover", "vm-1", "--timeout", "5"], "must be a duration"),
        (["recover", "vm-1", "--reason", "two\nlines"], "must be one line"),
        (["apply"], "Missing option"),
    ],
)
def test_wrong_usage_is_one_line_with_a_hint(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("reliability: ")
    assert said in output.err
    assert "--help`)" in output.err


def test_another_system_than_linux_is_told_in_one_line() -> None:
    program = "import sys; sys.platform = 'darwin'; from workers.cli import main; sys.exit(main(['status']))"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "reliability: needs Linux (pidfds, /proc and flock), this is darwin\n"


@pytest.mark.parametrize(
    ("error", "lines", "status"),
    [
        (SettingsError(["host: is wrong", "port: is, too"]), ("host: is wrong", "port: is, too"), 2),
        (SpecFileError(["a.yaml: describes no VM"]), ("a.yaml: describes no VM",), 2),
        (ApplyRefused(["vm-1: no"]), ("vm-1: no", "nothing was changed"), 1),
        (UnknownVm("vm-1"), ("no vm 'vm-1' is registered; see `reliability vm list`",), 1),
        (PermissionError(13, "Permission denied", "/x"), ("/x: Permission denied",), 1),
    ],
)
def test_known_errors_become_lines_and_a_status(error: Exception, lines: tuple[str, ...], status: int) -> None:
    failure = explain(error)

    assert failure is not None
    assert (failure.lines, failure.status) == (lines, status)


def test_a_bug_is_not_talked_away() -> None:
    assert explain(ZeroDivisionError()) is None


def test_redis_that_answers_with_a_refusal_is_not_called_silent() -> None:
    def told(cause: Exception) -> Failure:
        error = StoreUnavailable("Redis")
        error.__cause__ = cause
        return no_redis("redis.url", "redis://:***@h/0", error)

    assert told(Gone("refused.")).lines == ("Redis at redis://:***@h/0 does not answer: refused; check redis.url",)
    assert "refuses us: bad password" in told(AuthenticationError("bad password")).lines[0]
