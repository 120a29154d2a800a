"""`--watch`: what a command shows, again and again: in place on a terminal, block after block into a pipe."""

import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import Any, TypeVar

import click

from workers.cli.failures import one_line
from workers.cli.output import on_terminal
from workers.domain.errors import StoreUnavailable

_EVERY_S = 2.0
_MOST_S = 86_400.0
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"  # long lines end at the edge, or each would move the next ones down
_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_CLEAR, _HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[2J\x1b[H", "\x1b[H", "\x1b[K", "\x1b[J"

F = TypeVar("F", bound=Callable[..., Any])


def watch_option(command: F) -> F:
    return click.option(
        "-w",
        "--watch",
        is_flag=False,
        flag_value=_EVERY_S,
        type=click.FloatRange(min=0.1, max=_MOST_S),
        metavar="[SECONDS]",
        help=f"Show it again and again, every so many seconds, until Ctrl-C.  [without a number: {_EVERY_S:.0f}]",
    )(command)


def again_and_again(every_s: float | None, show: Callable[[], None]) -> None:
    """Show once, or with `every_s` until Ctrl-C; once begun, a Redis that is away for a while ends nothing."""
    if every_s is None:
        show()
    elif on_terminal():
        _in_place(every_s, show)
    else:
        _block_by_block(every_s, show)


def _block_by_block(every_s: float, show: Callable[[], None]) -> None:
    show()
    while True:
        sys.stdout.flush()
        time.sleep(every_s)
        click.echo()
        try:
            show()
        except StoreUnavailable as error:
            click.echo(_away(error), err=True)


def _in_place(every_s: float, show: Callable[[], None]) -> None:
    text = _captured(show)
    sys.stdout.write(_NO_WRAP + _HIDE_CURSOR + _CLEAR)
    try:
        while True:
            draw(text)
            time.sleep(every_s)
            try:
                text = _captured(show)
            except StoreUnavailable as error:
                text = _away(error)
    finally:
        sys.stdout.write(_WRAP + _SHOW_CURSOR)
        sys.stdout.flush()


def _away(error: StoreUnavailable) -> str:
    return f"{one_line(error)}; trying again"


class _Screenful(StringIO):
    """Takes what would go to the terminal, with its colours."""

    def isatty(self) -> bool:
        return True


def _captured(show: Callable[[], None]) -> str:
    text = _Screenful()
    with redirect_stdout(text), redirect_stderr(text):
        show()
    return text.getvalue()


def draw(text: str) -> None:
    """Write over what stands there, line by line: a screen that is cleared first flickers."""
    sys.stdout.write(_HOME + screenful(text, shutil.get_terminal_size().lines) + _REST_OF_SCREEN)
    sys.stdout.flush()


def screenful(text: str, height: int) -> str:
    """Return the lines that have room, and how many have none."""
    lines = text.splitlines()
    if len(lines) > height - 1:
        kept = max(1, height - 2)
        lines = [*lines[:kept], f"… and {len(lines) - kept} more lines"]
    return "".join(f"{line}{_REST_OF_LINE}\n" for line in lines)
