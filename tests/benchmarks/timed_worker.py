"""The worker of a host as it is, that writes down when it passes each named point of its way (`workers.crashpoints`).

Run in place of `reliability worker`. Appends lines `monotonic seconds, name, detail` to the file in BENCH_TIMES: each
is one write of some 3 µs, at points that healthy VMs hardly ever bring it to. CLOCK_MONOTONIC is the same for all
processes of a machine, so these times may be compared with those of who kills the VMs.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from workers import crashpoints

TIMES_ENV = "BENCH_TIMES"
KNOWN, RECEIVED, BEGAN, ENDED, CHECKED = "known", "received", "task_began", "task_ended", "checked"


class Notes:
    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, name: str, detail: object = "", at: float | None = None) -> None:
        os.write(self._fd, f"{at or time.monotonic():.6f} {name} {detail}\n".encode())


def observe(notes: Notes) -> None:
    """Before anything else is imported that takes `reach` by name; the rest is put around what exists."""
    crashpoints.reach = notes.write  # type: ignore[assignment] # it takes more, too
    from workers.runtime import Deaths  # noqa: PLC0415 - see above
    from workers.services.health import CheckReport, HealthChecks  # noqa: PLC0415 - see above

    deliver, check = Deaths.deliver, HealthChecks.check

    def timed_deliver(self: Deaths, deaths: Sequence[Any]) -> Sequence[Any]:
        for death in deaths:
            notes.write(KNOWN, death.vm_id, death.at)
        return deliver(self, deaths)

    def timed_check(self: HealthChecks, *args: Any, **named: Any) -> CheckReport:
        report = check(self, *args, **named)
        notes.write(CHECKED, report.checked)
        return report

    Deaths.deliver = timed_deliver  # type: ignore[method-assign]
    HealthChecks.check = timed_check  # type: ignore[method-assign]
    _observe_tasks(notes)


def _observe_tasks(notes: Notes) -> None:
    from celery.signals import task_postrun, task_prerun, task_received  # noqa: PLC0415 - see `observe`

    from workers import queues  # noqa: PLC0415 - see `observe`

    def noting(name: str, task_name: Callable[[dict[str, Any]], str]) -> Callable[..., None]:
        def note(**told: Any) -> None:
            if task_name(told) == queues.RECOVER_VM:
                notes.write(name)

        return note

    task_received.connect(noting(RECEIVED, lambda told: str(told["request"].name)), weak=False)
    task_prerun.connect(noting(BEGAN, lambda told: str(told["task"].name)), weak=False)
    task_postrun.connect(noting(ENDED, lambda told: str(told["task"].name)), weak=False)


if __name__ == "__main__":
    observe(Notes(os.environ[TIMES_ENV]))
    from workers.processes import run_worker

    sys.exit(run_worker())
