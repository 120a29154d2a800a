"""What the checks look at: the settings, this host's files, and short-tempered connections to both Redis databases."""

from collections.abc import Mapping
from datetime import timedelta
from urllib.parse import parse_qs, unquote, urlsplit

import redis

from workers.bootstrap import Fleet
from workers.host.rundir import HostFiles
from workers.settings import Loaded
from workers.store.client import connect
from workers.store.keys import Keys

_PATIENCE = timedelta(seconds=0.8)  # a connection is tried twice, and a check has two seconds


class Place:
    """Connects to nothing by itself: the first call does."""

    def __init__(self, loaded: Loaded) -> None:
        self.settings, self.sources = loaded.settings, loaded.sources
        self.files = HostFiles(self.settings.state_dir)
        self.keys = Keys(self.settings.redis.prefix)
        self.redis = self._connect(self.settings.redis.url.get_secret_value())
        self.broker = self._connect(_for_redis_py(self.settings.broker.url.get_secret_value()))
        self.fleet = Fleet(self.settings, self.redis)

    def _connect(self, url: str) -> redis.Redis:
        wait_s = min(_PATIENCE, self.settings.redis.timeout).total_seconds()
        connect_s = min(_PATIENCE, self.settings.redis.connect_timeout).total_seconds()
        return connect(url, timeout_s=wait_s, connect_timeout_s=connect_s, name="reliability-doctor")

    def source(self, key: str) -> str:
        """Say where a setting was set, as a hint."""
        source = self.sources.get(key, "default")
        return "its default" if source == "default" else source


def endpoint(client: redis.Redis) -> Mapping[str, object]:
    """Return what a client connects to: `host`, `port`, `path`, `db`, where there are such."""
    known: Mapping[str, object] = client.connection_pool.connection_kwargs
    return known


def _for_redis_py(url: str) -> str:
    """A broker's URL as kombu reads it, for redis-py: sockets have another scheme there."""
    parts = urlsplit(url)
    if parts.scheme != "redis+socket":
        return url
    number = parse_qs(parts.query).get("virtual_host", ["0"])[0]
    login = parts.netloc.rpartition("@")[0]
    return f"unix://{login}{'@' if login else ''}{unquote(parts.path)}?db={number}"
