"""A guard around kombu's Redis transports, registered under their ordinary URL schemes, and prompt reconnection.

kombu 5.7 ends the whole worker with an AttributeError when Redis goes away while a message is held
unacknowledged: the second close of the channel wants to restore it through a transport that is already
detached. Here that is a lost connection, which Celery knows how to survive. What is put on which
queue, and every Celery setting, is decided elsewhere.
"""

from typing import Any

from celery.app.amqp import AMQP
from kombu import transport as registry
from kombu.connection import Connection
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError


class GuardedChannel(kombu_redis.Channel):
    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:  # noqa: FBT001, FBT002 - kombu's signature
        if self.connection is None or self.connection.client is None:
            raise RedisConnectionError("the broker transport is already closed")
        parameters: dict[str, Any] = super()._connparams(asynchronous=asynchronous)  # type: ignore[no-untyped-call] # kombu
        return parameters


class GuardedTransport(kombu_redis.Transport):
    Channel = GuardedChannel


class GuardedSentinelChannel(GuardedChannel, kombu_redis.SentinelChannel):
    pass


class GuardedSentinelTransport(kombu_redis.SentinelTransport):
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
        super().ensure_connection(errback, max_retries, **(waits | options))  # type: ignore[no-untyped-call] # kombu
        return self


class PromptAmqp(AMQP):  # type: ignore[misc] # Celery is untyped
    Connection = PromptConnection
