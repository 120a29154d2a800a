"""Named points before and after everything that reaches the outside, at which the tests kill a worker.

Nothing happens at them in production. A worker that was started with RELIABILITY_CRASH_FILE in its environment sends
itself SIGKILL, or the signal named there too (`before_exec SIGSTOP`), at the point whose name that file holds, and
removes the file first, so that its successor lives.
"""

import os
import signal
import threading
from enum import StrEnum
from pathlib import Path

CRASH_FILE_ENV = "RELIABILITY_CRASH_FILE"


class Point(StrEnum):
    # A check, or a death that the kernel told of
    RECORDS_READ = "records_read"
    BEFORE_VERDICTS = "before_verdicts"
    AFTER_VERDICTS = "after_verdicts"
    BEFORE_CALL = "before_call"
    AFTER_CALL = "after_call"
    # An attempt, in its order
    RECORD_READ = "record_read"
    BEFORE_REQUEST = "before_request"
    AFTER_REQUEST = "after_request"
    LOOKED = "looked"
    BEFORE_ADMISSION = "before_admission"
    AFTER_ADMISSION = "after_admission"
    BEFORE_SIGTERM = "before_sigterm"
    AFTER_SIGTERM = "after_sigterm"
    BEFORE_SIGKILL = "before_sigkill"
    AFTER_SIGKILL = "after_sigkill"
    FENCED = "fenced"
    LOCKED = "locked"
    BEFORE_INTENT = "before_intent"
    AFTER_INTENT = "after_intent"
    BEFORE_EXEC = "before_exec"
    AFTER_EXEC = "after_exec"
    AFTER_IDENTITY = "after_identity"
    CONFIGURED = "configured"
    VERIFIED = "verified"
    # Its end, in whichever way
    BEFORE_END = "before_end"
    AFTER_END = "after_end"
    BEFORE_RETRY = "before_retry"
    AFTER_RETRY = "after_retry"
    # A stop
    BEFORE_STOP = "before_stop"
    AFTER_STOP = "after_stop"


_FILE = os.environ.get(CRASH_FILE_ENV)


def reach(point: Point) -> None:
    if _FILE is not None and (number := _asked(Path(_FILE), point)):
        # To this very thread: a signal to the process may let it go on for a moment.
        signal.pthread_kill(threading.get_ident(), number)


def _asked(file: Path, point: Point) -> signal.Signals | None:
    try:
        name, _, signal_name = file.read_text(encoding="ascii").strip().partition(" ")
        if name != point:
            return None
        file.unlink()
    except FileNotFoundError:
        return None
    return signal.Signals[signal_name or "SIGKILL"]
