"""A guard around kombu's Redis transports, registered under their ordinary URL schemes, and prompt reconnection.

kombu 5.7 ends the whole worker with an AttributeError when Redis goes away while a message is held unacknowledged: the
second close of the channel wants to restore it through a transport that is already detached. Here that is a lost
connection, which Celery knows how to survive. Celery in turn ends the worker when a message is none, or its body is no
task: such are dropped with a log line, for one that comes again would end every worker in turn. What is put on which
queue, and every Celery setting, is decided elsewhere.
"""

from queue import Empty
from typing import Any

import structlog
from celery import Task
from celery.app.amqp import AMQP
from celery.exceptions import InvalidTaskError
from celery.worker.strategy import default as default_strategy
from kombu import transport as registry
from kombu.connection import Connection
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError

from workers.telemetry.vitals import BROKER, CONSUMER, MAIN_LOOP, REDIS, VITALS

_log = structlog.get_logger(component="broker")


class GuardedChannel(kombu_redis.Channel):
    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - kombu's signature
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the broker transport is already closed")
        parameters: dict[str, Any] = super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call] # kombu
        return parameters

    def _brpop_start(self, timeout: float | None = None) -> None:
        super()._brpop_start(timeout)  # type: ignore[no-untyped-call] # kombu
        waits_s = float(self.brpop_timeout if timeout is None else timeout)
        # A server that hangs keeps it waiting, which no restart would mend.
        VITALS.begin(CONSUMER, CONSUMER, waits_s + VITALS.patience_s, needs=REDIS)
        VITALS.well(BROKER)

    def _brpop_read(self, **options: Any) -> Any:
        VITALS.end(CONSUMER)
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call] # kombu
        except ValueError as error:
            # It has left its queue already. Empty is how a poll ends that brought nothing.
            _log.error("message dropped", why=f"it is not JSON: {error}")
            raise Empty from error


class _Careful:
    def _deliver(self, message: Any, queue: str) -> None:
        properties = message.get("properties") if isinstance(message, dict) else None
        if isinstance(properties, dict) and isinstance(message.get("headers"), dict):
            super()._deliver(message, queue)  # type: ignore[misc] # of kombu's transport
        else:
            _log.error("message dropped", queue=queue, why="it is no message: it lacks properties or headers")


class GuardedTransport(_Careful, kombu_redis.Transport):
    Channel = GuardedChannel


class GuardedSentinelChannel(GuardedChannel, kombu_redis.SentinelChannel):
    pass


class GuardedSentinelTransport(_Careful, kombu_redis.SentinelTransport):
    Channel = GuardedSentinelChannel


_GUARDED = {
    "redis": f"{__name__}:{GuardedTransport.__name__}",
    "rediss": f"{__name__}:{GuardedTransport.__name__}",
    "sentinel": f"{__name__}:{GuardedSentinelTransport.__name__}",
}


def install_guard() -> None:
    """Make every later connection to a Redis URL use the guarded transports; twice is harmless."""
    registry.TRANSPORT_ALIASES.update(_GUARDED)
    for alias in _GUARDED:
        # A connection made before us has cached the unguarded class.
        registry._transport_cache.pop(alias, None)  # noqa: SLF001 - kombu offers no other way


class PromptConnection(Connection):
    """Comes back soon after the broker does: stock waits grow to 30 s, and no option of Celery changes that."""

    def ensure_connection(self, errback: Any = None, max_retries: int | None = None, **options: Any) -> Connection:
        waits = {"interval_start": 0.5, "interval_step": 0.5, "interval_max": 3}

        def not_connected(error: Exception, interval: float) -> None:
            VITALS.trouble(BROKER, f"not connected: {error}")
            VITALS.end(CONSUMER)
            if errback is not None:
                # This is what it does now, and next after the pause and one more try.
                VITALS.pulse(MAIN_LOOP, interval + (self.connect_timeout or 0), needs=REDIS)
                errback(error, interval)

        super().ensure_connection(not_connected, max_retries, **(waits | options))  # type: ignore[no-untyped-call] # kombu
        return self


def careful_strategy(task: Any, *args: Any, **options: Any) -> Any:
    """Celery's own way from a message to a request; what cannot be read is a task that Celery knows how to refuse."""
    handle = default_strategy(task, *args, **options)

    def handle_with_care(message: Any, *rest: Any, **named: Any) -> Any:
        try:
            return handle(message, *rest, **named)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise InvalidTaskError(f"{task.name}: its message cannot be read: {error}") from error

    return handle_with_care


class CarefulTask(Task):  # type: ignore[misc] # Celery is untyped
    Strategy = f"{__name__}:{careful_strategy.__name__}"


class PromptAmqp(AMQP):  # type: ignore[misc] # Celery is untyped
    Connection = PromptConnection
