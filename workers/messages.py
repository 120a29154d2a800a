"""The Wakeups port on Celery. What cannot be sent is left to the sweeps, which find its cause in the record."""

from collections.abc import Callable
from typing import Any

import structlog
from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from workers import queues

_log = structlog.get_logger(component="messages")


class CeleryWakeups:
    """`unsent` is told of each message that the broker did not take."""

    def __init__(self, app: Celery, *, unsent: Callable[[], None] = lambda: None) -> None:
        self._app, self._unsent = app, unsent

    def recover(
        self, vm_id: str, host: str, *, episode: str | None = None, attempt: int | None = None, delay_ms: int = 0
    ) -> None:
        arguments = {"episode": episode, "attempt": attempt, "origin": "system"}
        self._send(queues.RECOVER_VM, vm_id, host, arguments, countdown=delay_ms / 1000 or None)

    def stop(self, vm_id: str, host: str) -> None:
        self._send(queues.STOP_VM, vm_id, host, {})

    def _send(
        self, task: str, vm_id: str, host: str, arguments: dict[str, Any], countdown: float | None = None
    ) -> None:
        try:
            self._app.send_task(task, args=[vm_id], kwargs=arguments, queue=queues.recovery(host), countdown=countdown)
        except (OperationalError, KombuError, RedisError, OSError) as error:
            self._unsent()
            _log.warning("message not sent, the next sweep finds the vm", vm_id=vm_id, task=task, error=str(error))


class NoWakeups:
    """Where recovery is switched off, or nothing may be sent."""

    def recover(
        self, vm_id: str, host: str, *, episode: str | None = None, attempt: int | None = None, delay_ms: int = 0
    ) -> None:
        pass

    def stop(self, vm_id: str, host: str) -> None:
        pass
