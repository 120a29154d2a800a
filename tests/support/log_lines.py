"""The log as an operator has it, in a test's hands."""

import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from workers.telemetry.logging import configure_logging


@contextmanager
def logged(level: str = "info") -> Iterator[io.StringIO]:
    """Log to a stream instead of stderr, as lines of logfmt; afterwards all is as before."""
    root = logging.getLogger()
    handlers, before, stderr = root.handlers[:], root.level, sys.stderr
    sys.stderr = stream = io.StringIO()
    configure_logging(level, "logfmt")
    try:
        yield stream
    finally:
        structlog.reset_defaults()
        root.handlers[:] = handlers
        root.setLevel(before)
        sys.stderr = stderr
