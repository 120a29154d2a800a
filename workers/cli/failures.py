"""Exit statuses, and what each kind of error is called on one line; any other error is a bug and keeps its trace.

Imports of error classes wait until there is an error: whoever raised it has loaded them already.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from workers.domain.errors import StoreUnavailable

REFUSED = 1
USAGE = 2
NO_REDIS = 3
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
PIPE_CLOSED = 141  # 128 + SIGPIPE

STATUSES = """\
Exit status: 0 done; 1 refused, not found, or the VM did not become healthy; 2 wrong usage, settings or VM
specs; 3 Redis does not answer; 70 another worker took over this host; 130 interrupted.
"""


class Failure(Exception):
    """Ends the command; each line stands for itself."""

    def __init__(self, *lines: str, status: int = REFUSED) -> None:
        super().__init__("\n".join(lines))
        self.lines: Sequence[str] = lines
        self.status = status


def no_redis(setting: str, url: object, error: "StoreUnavailable | Exception") -> Failure:
    """`url` shows itself without its password."""
    from redis.exceptions import AuthenticationError, ResponseError  # noqa: PLC0415 - see the top

    cause = error.__cause__ or error
    does = "refuses us" if isinstance(cause, AuthenticationError | ResponseError) else "does not answer"
    why = one_line(cause).rstrip(".")
    return Failure(f"Redis at {url} {does}: {why}; check {setting}", status=NO_REDIS)


def explain(error: Exception) -> Failure | None:
    """Return None for what nobody planned."""
    if isinstance(error, Failure):
        return error
    if isinstance(error, click.ClickException):
        return Failure(_with_hint(error), status=error.exit_code)
    return _known(error)


def _known(error: Exception) -> Failure | None:
    from workers.domain.errors import ReliabilityError  # noqa: PLC0415 - see the top
    from workers.services.registry import ApplyRefused  # noqa: PLC0415
    from workers.settings import SettingsError  # noqa: PLC0415
    from workers.specfiles import SpecFileError  # noqa: PLC0415

    match error:
        case SettingsError() | SpecFileError():
            return Failure(*error.lines, status=USAGE)
        case ApplyRefused():
            return Failure(*error.problems, "nothing was changed")
        case ReliabilityError():
            return Failure(one_line(error))
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return Failure(f"{where}{error.strerror or one_line(error)}")
        case _:
            return None


def _with_hint(error: click.ClickException) -> str:
    text = one_line(error.format_message()).rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{text} (see `{context.command_path} --help`)" if context else text


def one_line(text: object) -> str:
    return " ".join(str(text).split())
