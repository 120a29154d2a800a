"""One log pipeline for our own records and for those of Celery, kombu and the rest.

A record is gathered in the thread that makes it (context, trace, time, traceback), then under the handler's lock held
against its like (`repeats`), freed of secrets (`redaction`) and written as one line. None of this ever raises into
the code that logs.
"""

import logging
import os
import re
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, TextIO

import structlog
from celery.signals import task_postrun, task_prerun
from opentelemetry import trace
from structlog.types import EventDict, Processor, WrappedLogger

from workers.telemetry.redaction import Redaction
from workers.telemetry.repeats import Repeats
from workers.telemetry.story import DECISIONS

# The reason before the event: `grep "vm recovery.*failed"` must not find a recovery for reason=health_check_failed.
_FIRST = ["timestamp", "level", "reason", "event", "component", "vm_id"]
# Chatter that says nothing an operator acts on.
_QUIET = {
    "kombu": logging.WARNING,
    "amqp": logging.WARNING,
    "celery.app.trace": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,
    "tornado.access": logging.WARNING,
}
_OWN = "made_by_structlog"
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def configure_logging(
    level: str,
    form: str,
    *,
    secrets: Collection[str] = (),
    static: Mapping[str, object] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Log to stderr. `form`: logfmt, json, console, or auto (console on a terminal, logfmt elsewhere).

    `secrets` appear in no record; `static` fields stand in every record that has none of the name; `clock` times the
    windows in which repetitions are left out.
    """
    chosen = ("console" if _on_terminal() else "logfmt") if form == "auto" else form
    number = _number(level)
    gathering = _gathering(dict(static or {}))
    structlog.configure(
        processors=[*gathering, _hand_over],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(number),
        cache_logger_on_first_use=True,
    )
    rendering: list[Processor] = [
        Redaction(secrets),
        _for_people if chosen == "console" else _one_line,
        _renderer(chosen),
    ]
    _install(LineHandler(gathering, rendering, Repeats(clock, exempt=DECISIONS)), number)


def bind_tasks() -> None:
    """Give all records made while a Celery task runs its `task_id`; calling it again changes nothing."""
    task_prerun.connect(_bind_task, weak=False, dispatch_uid=f"{__name__}.bind")
    task_postrun.connect(_unbind_task, weak=False, dispatch_uid=f"{__name__}.unbind")


def _bind_task(task_id: str, **_: object) -> None:
    structlog.contextvars.bind_contextvars(task_id=task_id)


def _unbind_task(**_: object) -> None:
    structlog.contextvars.unbind_contextvars("task_id")


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes each record on a line of its own, to stderr as it is now; what cannot be written is given up."""

    def __init__(self, gathering: Sequence[Processor], rendering: Sequence[Processor], repeats: Repeats) -> None:
        super().__init__(sys.stderr)
        self._gathering = gathering
        self._rendering = rendering
        self._repeats = repeats

    def emit(self, record: logging.LogRecord) -> None:
        """Write what is due. Called with the handler's lock held; raises nothing."""
        with suppress(Exception):  # stderr is closed or broken, and there is nowhere left to say it
            for event in self._due(record):
                self._write(event)

    def close(self) -> None:
        """Write what is still owed: at exit, `logging` closes all handlers."""
        self.acquire()
        try:
            with suppress(Exception):
                for event in self._repeats.rest():
                    self._write(event)
        finally:
            self.release()
        super().close()

    def _due(self, record: logging.LogRecord) -> list[EventDict]:
        try:
            return self._repeats.passing(record.name, record.levelno, self._gathered(record))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is the record's fault and not the caller's
            return [_excuse(record.msg, error)]

    def _gathered(self, record: logging.LogRecord) -> EventDict:
        if hasattr(record, _OWN) and isinstance(record.msg, dict):
            return record.msg
        event = _foreign(record)
        for processor in self._gathering:
            event = processor(None, record.levelname.lower(), event)  # type: ignore[assignment] # none renders
        return event

    def _write(self, event: EventDict) -> None:
        self.stream.write(self._line(event) + self.terminator)
        self.flush()

    def _line(self, event: EventDict) -> str:
        try:
            return _through(self._rendering, event)
        except Exception as error:  # noqa: BLE001 - see _due
            return _through(self._rendering, _excuse(event, error))


def _through(processors: Sequence[Processor], event: EventDict) -> str:
    passed: Any = dict(event)  # renderers take out what they have written
    for processor in processors:
        passed = processor(None, "", passed)
    return str(passed)


def _excuse(message: object, error: Exception) -> EventDict:
    about = message.get("event") if isinstance(message, dict) else message
    return {
        "timestamp": _iso(time.time()),
        "level": "error",
        "event": "log record could not be written",
        "component": "logging",
        "about": about if isinstance(about, str) else type(about).__name__,
        "error": f"{type(error).__name__}: {error}",
    }


def _gathering(static: Mapping[str, object]) -> list[Processor]:
    def with_static(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        for name, value in static.items():
            event.setdefault(name, value)
        return event

    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.MaybeTimeStamper(fmt="iso", utc=True),
        with_static,
        _with_trace,
        structlog.processors.format_exc_info,
    ]


def _with_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Name the span at hand, unless the record belongs to another trace."""
    if "trace_id" not in event:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            event["trace_id"] = trace.format_trace_id(span.trace_id)
            event["span_id"] = trace.format_span_id(span.span_id)
    return event


def _hand_over(_logger: WrappedLogger, _method: str, event: EventDict) -> tuple[tuple[EventDict], dict[str, Any]]:
    return (event,), {"extra": {_OWN: True}}


def _foreign(record: logging.LogRecord) -> EventDict:
    """Take the record of a library; its component is the library."""
    event: EventDict = {
        "timestamp": _iso(record.created),
        "event": record.getMessage(),
        "component": record.name.partition(".")[0],
    }
    if record.exc_info:
        event["exc_info"] = record.exc_info
    return event


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _one_line(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """A record is one line: what others put on several is joined, and what moves a terminal's cursor is spelt out."""
    return {name: _joined(value) if isinstance(value, str) else value for name, value in event.items()}


def _for_people(logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
    """Leave a traceback its lines, which the console puts below the record."""
    traceback = event.pop("exception", "")
    event = _one_line(logger, method, event)
    return {**event, "exception": "\n".join(map(_joined, traceback.splitlines()))} if traceback else event


def _joined(text: str) -> str:
    if text.isprintable():
        return text
    joined = " | ".join(line.strip() for line in text.splitlines() if line.strip())
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", joined)


def _renderer(form: str) -> Processor:
    if form == "json":
        render = structlog.processors.JSONRenderer()
        return lambda logger, method, record: render(logger, method, _in_order(record))
    if form == "console":
        # A traceback arrives here as text; the default formatter would warn of that.
        plain = structlog.dev.plain_traceback
        return structlog.dev.ConsoleRenderer(colors=_wants_colors(), exception_formatter=plain)
    return structlog.processors.LogfmtRenderer(key_order=_FIRST, drop_missing=True, bool_as_flag=False)


def _in_order(record: EventDict) -> EventDict:
    return {name: record[name] for name in _FIRST if name in record} | dict(record)


def _wants_colors() -> bool:
    return _on_terminal() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _on_terminal() -> bool:
    with suppress(AttributeError, ValueError):  # stderr is None or closed
        return sys.stderr.isatty()
    return False


def _install(handler: logging.Handler, number: int) -> None:
    root = logging.getLogger()
    replaced = root.handlers[:]
    root.handlers[:] = [handler]
    root.setLevel(number)
    for each in replaced:
        if isinstance(each, LineHandler):
            each.close()
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, number))


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]
