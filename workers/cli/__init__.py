"""The command `reliability`: runs one command and turns whatever goes wrong into one line and an exit status.

Kept light: `--help` must not wait for Celery or Redis, so each command is imported when it is asked for.
"""

import os
import sys
from collections.abc import Sequence

import click

from workers.cli.failures import INTERRUPTED, PIPE_CLOSED, USAGE, Failure, explain
from workers.cli.menu import reliability

__all__ = ["main"]

_NAME = "reliability"
_COMPLETION = "_RELIABILITY_COMPLETE"  # set by the completion scripts of shells


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `reliability` with these arguments, by default those of the process; returns the exit status."""
    if not sys.platform.startswith("linux"):
        print("reliability: needs Linux (pidfds, /proc and flock), this is", sys.platform, file=sys.stderr)  # noqa: T201 - nothing else is loaded yet
        return USAGE
    for stream in (sys.stdout, sys.stderr):
        # A label in another alphabet must not end a list on a terminal that cannot show it.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        status = _run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read us has gone, such as `head`: the rest goes nowhere, also what Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    return status


def _run(arguments: Sequence[str] | None) -> int:
    if _COMPLETION in os.environ:
        return int(reliability.main(arguments, prog_name=_NAME))
    try:
        # Not click's own main: it takes a closed pipe for a failure of the command.
        with reliability.make_context(_NAME, list(sys.argv[1:] if arguments is None else arguments)) as context:
            status = reliability.invoke(context)
    except click.exceptions.Exit as asked:
        return asked.exit_code
    except (click.Abort, KeyboardInterrupt):
        if sys.stderr.isatty():
            click.echo(err=True)  # the terminal has echoed ^C, and the prompt comes next
        return INTERRUPTED
    except BrokenPipeError:
        raise
    except Exception as error:
        failure = explain(error)
        if failure is None:
            raise
        return _tell(failure)
    return status if isinstance(status, int) else 0


def _tell(failure: Failure) -> int:
    for line in failure.lines:
        click.echo(f"reliability: {line}", err=True)
    return failure.status
