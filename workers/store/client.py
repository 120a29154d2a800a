"""One Redis connection pool with deadlines, and the one place where Redis errors become ours."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from workers.domain.errors import StoreUnavailable

Script = Callable[..., Any]


def connect(url: str, *, timeout_s: float, connect_timeout_s: float, name: str = "reliability") -> redis.Redis:
    """Return a client whose every call ends within the timeout; nothing is retried behind the caller's back but once.

    The one retry replaces a pooled connection that the server closed while it was idle; every write of ours may
    safely be sent twice, because its revision or its owner guards it.
    """
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=connect_timeout_s,
        socket_keepalive=True,
        client_name=name,
        retry=Retry(NoBackoff(), 1),
    )


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise StoreUnavailable(f"Redis: {error}") from error


# What the scripts take for the time. Tests put a clock of their own in its place.
SERVER_TIME = "redis.call('TIME')"
_PARTS = "-- parts: "


def script(client: redis.Redis, name: str, *, time: str = SERVER_TIME) -> Script:
    """Return the Lua script of this name, bound to the client, below the shared parts that its first line names."""
    source = _source(name)
    first = source.partition("\n")[0]
    parts = first.removeprefix(_PARTS).split() if first.startswith(_PARTS) else []
    texts = [f"local server_time = {time}", *(_source(f"parts/{part}") for part in parts), source]
    return cast("Script", client.register_script("\n".join(texts)))


def _source(name: str) -> str:
    return files("workers.store").joinpath("scripts", f"{name}.lua").read_text(encoding="utf-8")
