"""The sweeps of one host."""

from workers import queues
from workers.app import app
from workers.bootstrap import host_runtime
from workers.tasks.arguments import BadArgument, vm_id_of


@app.task(throws=(BadArgument,), name=queues.DETECT_ORPHANS, send_events=False)  # type: ignore[untyped-decorator] # Celery is untyped
def detect_orphans(host: str) -> None:
    host_runtime().detect_orphans(vm_id_of(host, "host"))


@app.task(throws=(BadArgument,), name=queues.RECONCILE, send_events=False)  # type: ignore[untyped-decorator] # Celery is untyped
def reconcile(host: str) -> None:
    host_runtime().reconcile(vm_id_of(host, "host"))
