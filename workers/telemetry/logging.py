"""One log pipeline for our own records and for those of Celery, kombu and the rest."""

import logging
import sys
from typing import Any

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

_FIRST = ["timestamp", "level", "event", "component", "vm_id", "host"]
# Chatter that says nothing an operator acts on.
_QUIET = {
    "kombu": logging.WARNING,
    "amqp": logging.WARNING,
    "celery.app.trace": logging.WARNING,
    "celery.worker.strategy": logging.WARNING,
}


def configure_logging(level: str, form: str) -> None:
    """Log to stderr. `form`: logfmt, json, console, or auto (console on a terminal, logfmt elsewhere)."""
    chosen = ("console" if sys.stderr.isatty() else "logfmt") if form == "auto" else form
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _one_line,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, _foreign_component],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(chosen)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_number(level))
    for name, least in _QUIET.items():
        logging.getLogger(name).setLevel(max(least, _number(level)))


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _renderer(form: str) -> Processor:
    if form == "json":
        return structlog.processors.JSONRenderer()
    if form == "console":
        return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return structlog.processors.LogfmtRenderer(key_order=_FIRST, drop_missing=True, bool_as_flag=False)


def _foreign_component(_logger: WrappedLogger, _method: str, record: EventDict) -> EventDict:
    """Say which library speaks."""
    origin: Any = record.get("_record")
    if origin is not None:
        record.setdefault("component", str(origin.name).split(".", maxsplit=1)[0])
    return record


def _one_line(_logger: WrappedLogger, _method: str, record: EventDict) -> EventDict:
    """A record is one line: what others put on several is joined."""
    for name in ("event", "exception"):
        text = record.get(name)
        if isinstance(text, str) and "\n" in text:
            record[name] = " | ".join(line.strip() for line in text.splitlines() if line.strip())
    return record
