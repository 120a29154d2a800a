"""Health checks of one host's VMs, many per message."""

from workers import queues
from workers.app import app
from workers.bootstrap_host import host_runtime
from workers.tasks.arguments import BadArgument, number_of, vm_ids_of


@app.task(throws=(BadArgument,), name=queues.CHECK_VMS, send_events=False)  # type: ignore[untyped-decorator] # Celery is untyped
def check_vms(vm_ids: list[str], deadline_ms: int | None = None) -> None:
    """Check these VMs unless server time has passed `deadline_ms`."""
    ids, deadline = vm_ids_of(vm_ids), number_of(deadline_ms, "deadline_ms")
    host_runtime().check(ids, deadline)
