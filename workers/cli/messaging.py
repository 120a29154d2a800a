"""The Celery app for commands that send a message; loading it takes most of a second, so only they do."""

from typing import TYPE_CHECKING, Any

from workers.cli.failures import no_redis
from workers.settings import Settings
from workers.telemetry.logging import configure_logging

if TYPE_CHECKING:
    from celery import Celery


def celery_app(settings: Settings) -> "Celery":
    # What libraries have to say goes to stderr, without their chatter.
    configure_logging("warning", settings.log.format)
    from workers.app import app  # noqa: PLC0415 - see the top

    return app


def send(settings: Settings, task: str, vm_id: str, arguments: dict[str, Any]) -> None:
    """Send to the default queue, from where any worker hands it to the VM's host. Raises Failure."""
    _send(settings, task, vm_id, arguments, {})


def send_to_host(settings: Settings, task: str, host: str, arguments: dict[str, Any]) -> None:
    """Send to a host, which is also the task's first argument. Raises Failure."""
    from workers import queues  # noqa: PLC0415 - see the top

    _send(settings, task, host, arguments, {"queue": queues.checks(host)})


def _send(settings: Settings, task: str, first: str, arguments: dict[str, Any], options: dict[str, Any]) -> None:
    from kombu.exceptions import KombuError, OperationalError  # noqa: PLC0415 - see the top
    from redis.exceptions import RedisError  # noqa: PLC0415

    try:
        celery_app(settings).send_task(task, args=[first], kwargs=arguments, **options)
    except (OperationalError, KombuError, RedisError, OSError) as error:
        raise no_redis("broker.url", settings.broker.url, error) from error
