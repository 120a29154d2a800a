"""The sweeps of one host, and the rebuilding of its records."""

from workers import queues
from workers.app import app
from workers.bootstrap_host import host_runtime
from workers.tasks.arguments import BadArgument, host_of, text_of


@app.task(throws=(BadArgument,), name=queues.DETECT_ORPHANS, send_events=False)  # type: ignore[untyped-decorator] # Celery is untyped
def detect_orphans(host: str) -> None:
    runtime = host_runtime()
    host_of(host, runtime.host)
    runtime.detect_orphans()


@app.task(throws=(BadArgument,), name=queues.RECONCILE, send_events=False)  # type: ignore[untyped-decorator] # Celery is untyped
def reconcile(host: str) -> None:
    runtime = host_runtime()
    host_of(host, runtime.host)
    runtime.reconcile()


@app.task(throws=(BadArgument,), name=queues.REBUILD, send_events=True)  # type: ignore[untyped-decorator] # Celery is untyped
def rebuild(host: str, request_id: str | None = None) -> None:
    """Make records for the VMs that the host's run directories tell of and Redis does not."""
    runtime = host_runtime()
    host_of(host, runtime.host)
    runtime.rebuild(text_of(request_id, "request_id"))
