"""The Celery app's way of sending: what an instrumentation leaves behind after each message is put right."""

import sys
import uuid
from typing import Any

from celery import Celery
from opentelemetry import context as context_api


class TracedCelery(Celery):  # type: ignore[misc] # Celery is untyped
    """Sends as Celery does.

    OpenTelemetry's instrumentation (0.66b2, `_trace_before_publish`) enters a span before each message, and leaves it
    only where the message went out and its task is known here. With a broker that is away the span would stay open for
    ever, and become the parent of everything that comes after.
    """

    def send_task(self, name: str, *args: Any, task_id: str | None = None, **options: Any) -> Any:
        task_id = task_id or str(uuid.uuid4())
        token = context_api.attach(context_api.get_current())
        try:
            return super().send_task(name, *args, task_id=task_id, **options)
        except BaseException as error:
            _end_publish(self.tasks.get(name), task_id, error)
            raise
        finally:
            context_api.detach(token)


def _end_publish(task: Any, task_id: str, error: BaseException) -> None:
    # Only where it is loaded has it left anything.
    instrumentation = sys.modules.get("opentelemetry.instrumentation.celery.utils")
    entered = instrumentation.retrieve_context(task, task_id, is_publish=True) if instrumentation else None
    if instrumentation is None or entered is None:
        return
    span, _, _ = entered
    span.record_exception(error)
    span.end()
    instrumentation.detach_context(task, task_id, is_publish=True)
