"""Messages of a manager to the workers: a bare Celery producer, without our app and its settings of a worker."""

from collections.abc import Callable, Mapping
from typing import Any

from celery import Celery
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from workers import queues
from workers.domain.errors import StoreUnavailable
from workers.redis_url import verified
from workers.settings import Settings

Send = Callable[[str, str, Mapping[str, Any]], None]

_TIMEOUT_S = 3.0


def sender(settings: Settings) -> Send:
    """Return what sends a task to the default queue, from where any worker hands it to the VM's host.

    It raises StoreUnavailable where the broker does not take it.
    """

    def send(task: str, vm_id: str, arguments: Mapping[str, Any]) -> None:
        app = Celery(broker=verified(settings.broker.url.get_secret_value()), set_as_current=False)
        app.conf.update(_PRODUCER)
        try:
            app.send_task(task, args=[vm_id], kwargs=dict(arguments), queue=queues.control(), retry=False)
        except (OperationalError, KombuError, RedisError, OSError) as error:
            raise StoreUnavailable(f"broker: {error}") from error
        finally:
            app.close()

    return send


_PRODUCER = {
    "task_serializer": "json",
    "task_ignore_result": True,
    "broker_connection_timeout": _TIMEOUT_S,
    "broker_transport_options": {
        "socket_timeout": _TIMEOUT_S,
        "socket_connect_timeout": _TIMEOUT_S,
        "priority_steps": [0],
    },
}
