"""Loaded into a worker beside the project's own tasks: a remote command that makes its main loop stand still."""

import time
from pathlib import Path
from typing import Any

from celery.worker.control import control_command

_LONGEST_S = 60.0
_POLL_S = 0.02


@control_command(args=[("until", str)], signature="until")  # type: ignore[untyped-decorator] # Celery is untyped
def wedge(state: Any, until: str) -> None:
    """Do nothing, and let nothing be done, until this file is there."""
    del state
    deadline = time.monotonic() + _LONGEST_S
    while not Path(until).exists() and time.monotonic() < deadline:
        time.sleep(_POLL_S)
