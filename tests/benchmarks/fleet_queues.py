"""The queues of simulated hosts: the commands that kombu's Redis transport sends for each worker, without kombu.

One connection per host waits in BRPOP as a worker's does, all of them in one epoll. What a worker writes down about a
message that it holds, its sweeps and its keep-alive go over one further connection, whose answers are only looked at
for errors. The commands, and how often each comes, are those that MONITOR shows of a real worker.
"""

import hashlib
import json
import select
import socket
import time
from base64 import b64decode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.connection import parse_url
from redis.lock import Lock

from workers import queues

SWEEP_EVERY_S = 10.0  # unacked_restore_interval
NEWS_EVERY_S = 30.0  # the heartbeat event of Celery
_MUTEX_MS = 30_000
_RELEASE = Lock.LUA_RELEASE_SCRIPT
_RELEASE_SHA = hashlib.sha1(_RELEASE.encode(), usedforsecurity=False).hexdigest()
# As long as the one of a real worker.
_NEWS = json.dumps({"body": "x" * 230, "headers": {"hostname": "x" * 12}, "properties": "x" * 340})
_RECEIVE = 1 << 18


class BrokerError(RuntimeError):
    """The server refused a command, or is gone."""


@dataclass(frozen=True, slots=True)
class Message:
    """One task as it came; `not_before` is wall clock time in s, 0 for at once."""

    host: str
    task: str
    args: Sequence[Any]
    kwargs: dict[str, Any]
    tag: str
    raw: bytes
    not_before: float = 0.0


def packed(*words: str | bytes | float) -> bytes:
    """A command as the server reads it."""
    parts = [word if isinstance(word, bytes) else str(word).encode() for word in words]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


def connected(url: str) -> socket.socket:
    """Open a connection to the database that the URL names."""
    place = parse_url(url)  # type: ignore[no-untyped-call] # redis-py
    found = socket.create_connection((place["host"], place["port"]))
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    password, database = place.get("password", ""), place.get("db", 0)
    for command in (packed("AUTH", password), packed("SELECT", database)):
        found.sendall(command)
        if not found.recv(100).startswith(b"+OK"):
            raise BrokerError("the server does not let us in")
    found.setblocking(False)  # noqa: FBT003 - its only argument
    return found


class Reader:
    """The one connection on which a host waits for messages."""

    def __init__(self, host: str, url: str, polling_s: float) -> None:
        self.host = host
        self.socket = connected(url)
        names = [queue.name for queue in queues.served_by(host)]
        self._ask = packed("BRPOP", *names, polling_s)
        self._came = b""

    def ask(self) -> None:
        self.socket.sendall(self._ask)

    def read(self) -> bytes | None:
        """Return the next message and ask for another one; None when none came in time, or it is not complete yet."""
        part = self.socket.recv(_RECEIVE)
        if not part:
            raise BrokerError(f"the server closed the connection of {self.host}")
        self._came += part
        found, is_complete = popped(self._came)
        if not is_complete:
            return None
        self._came = b""
        self.ask()
        return found


def popped(reply: bytes) -> tuple[bytes | None, bool]:
    """What BRPOP answered, and whether that is all of it. Raises BrokerError."""
    if reply.startswith(b"-"):
        raise BrokerError(reply.decode(errors="replace").strip())
    if reply.startswith(b"*-1\r\n"):
        return None, True
    parts = reply.split(b"\r\n", 4)
    if len(parts) < 5:
        return None, False
    length = int(parts[3][1:])
    return parts[4][:length], len(parts[4]) >= length + 2


def message_of(host: str, raw: bytes) -> Message:
    outer = json.loads(raw)
    args, kwargs, _ = json.loads(b64decode(outer["body"]))
    headers = outer["headers"]
    return Message(host, headers["task"], args, kwargs, outer["properties"]["delivery_tag"], raw, _eta(headers))


def _eta(headers: dict[str, Any]) -> float:
    return datetime.fromisoformat(headers["eta"]).timestamp() if headers.get("eta") else 0.0


class SideLine:
    """What all these hosts tell the broker beside asking for messages."""

    def __init__(self, url: str) -> None:
        self.socket = connected(url)
        self._to_send = bytearray()
        self._say(packed("SCRIPT", "LOAD", _RELEASE))

    def took(self, message: Message) -> None:
        host, tag = message.host, message.tag
        self._say(
            packed("MULTI"),
            packed("ZADD", f"unacked_index:{host}", time.time(), tag),
            packed("HSET", f"unacked:{host}", tag, b"[" + message.raw + b', "", "checks"]'),
            packed("EXEC"),
        )

    def done(self, message: Message) -> None:
        host, tag = message.host, message.tag
        self._say(
            packed("MULTI"),
            packed("ZREM", f"unacked_index:{host}", tag),
            packed("HDEL", f"unacked:{host}", tag),
            packed("EXEC"),
        )

    def sweep(self, host: str) -> None:
        """Look for messages that were never acknowledged; one more connection shows that it lives."""
        mutex = f"unacked_mutex:{host}"
        self._say(
            packed("SET", mutex, "token", "NX", "PX", _MUTEX_MS),
            packed("ZRANGE", f"unacked_index:{host}", time.time() - 400, 0, "BYSCORE", "REV", "WITHSCORES"),
            packed("EVALSHA", _RELEASE_SHA, 1, mutex, "token"),
            packed("PING"),
        )

    def news(self) -> None:
        self._say(packed("PING"), packed("PUBLISH", "/1.celeryev/worker.heartbeat", _NEWS))

    def _say(self, *commands: bytes) -> None:
        self._to_send += b"".join(commands)
        self.flush()

    def flush(self) -> None:
        while self._to_send:
            try:
                sent = self.socket.send(self._to_send)
            except BlockingIOError:
                self.drain()
                select.select([self.socket], [self.socket], [])
                continue
            del self._to_send[:sent]

    def drain(self) -> None:
        """Read the answers away. Raises BrokerError where one is a refusal."""
        for part in self._parts():
            if part.startswith(b"-") or b"\r\n-" in part:
                raise BrokerError(part[:200].decode(errors="replace"))

    def _parts(self) -> Iterator[bytes]:
        while True:
            try:
                part = self.socket.recv(_RECEIVE)
            except BlockingIOError:
                return
            if not part:
                raise BrokerError("the server closed the side line")
            yield part
