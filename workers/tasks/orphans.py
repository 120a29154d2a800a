"""The sweeps of one host, and the rebuilding of its records."""

from workers import queues
from workers.app import app
from workers.bootstrap import host_runtime
from workers.tasks.arguments import BadArgument, text_of, vm_id_of


@app.task(throws=(BadArgument,), name=queues.DETECT_ORPHANS, send_events=False)  # type: ignore[untyped-decorator] # Celery is untyped
def detect_orphans(host: str) -> None:
    host_runtime().detect_orphans(vm_id_of(host, "host"))


@app.task(throws=(BadArgument,), name=queues.RECONCILE, send_events=False)  # type: ignore[untyped-decorator] # Celery is untyped
def reconcile(host: str) -> None:
    host_runtime().reconcile(vm_id_of(host, "host"))


@app.task(throws=(BadArgument,), name=queues.REBUILD, send_events=True)  # type: ignore[untyped-decorator] # Celery is untyped
def rebuild(host: str, request_id: str | None = None) -> None:
    """Make records for the VMs that the host's run directories tell of and Redis does not."""
    host_runtime().rebuild(vm_id_of(host, "host"), text_of(request_id, "request_id"))
