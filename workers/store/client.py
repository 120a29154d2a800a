"""One Redis connection pool with deadlines, and the one place where Redis errors become ours."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Any, cast

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from workers.domain.errors import StoreUnavailable

Script = Callable[..., Any]
# Told of each call of Redis: how many seconds it took, and whether it failed.
Observe = Callable[[float, bool], None]


def unobserved(_seconds: float, _failed: bool) -> None:  # noqa: FBT001 - told by position
    """Where nobody keeps figures."""


class _Observed(redis.Redis):
    observe: Observe

    def execute_command(self, *args: Any, **options: Any) -> Any:
        began = time.monotonic()
        try:
            result = super().execute_command(*args, **options)  # type: ignore[no-untyped-call] # redis-py
        except NoScriptError:
            raise  # the first call of a script: it is loaded and called again
        except (RedisError, OSError):
            self.observe(time.monotonic() - began, True)  # noqa: FBT003 - of two arguments
            raise
        self.observe(time.monotonic() - began, False)  # noqa: FBT003 - the same
        return result


def connect(
    url: str,
    *,
    timeout_s: float,
    connect_timeout_s: float,
    name: str = "reliability",
    observe: Observe = unobserved,
) -> redis.Redis:
    """Return a client whose every call ends within the timeout; nothing is retried behind the caller's back but once.

    The one retry replaces a pooled connection that the server closed while it was idle; every write of ours may
    safely be sent twice, because its revision or its owner guards it.
    """
    client = cast(
        "_Observed",
        _Observed.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=connect_timeout_s,
            socket_keepalive=True,
            client_name=name,
            retry=Retry(NoBackoff(), 1),
        ),
    )
    client.observe = observe
    return client


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
