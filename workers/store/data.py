"""The life of the data in Redis: its epoch, and the hosts that have halted recovery, with their reason."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import cast

import redis
from pydantic import TypeAdapter, ValidationError

from workers.domain.audit import Event
from workers.domain.epoch import NO_EVENT, Found, Known
from workers.ports import Halt
from workers.store.client import SERVER_TIME, script, translated
from workers.store.codec import compact, dump_event
from workers.store.keys import Keys

_HALT: TypeAdapter[Halt] = TypeAdapter(Halt)


class RedisData:
    """The Data port on Redis. Raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, *, prefix: str, lease_ms: int, time: str = SERVER_TIME) -> None:
        self._client, self._lease_ms = client, lease_ms
        self._keys = Keys(prefix)
        self._epoch = script(client, "epoch", time=time)

    def look(self, known: Known | None) -> Found:
        return self._run("look", known)

    def begin(self, known: Known | None) -> Found:
        return self._run("begin", known)

    def confirm(self, told: Event) -> Found:
        return self._run("confirm", None, told)

    def _run(self, what: str, known: Known | None, told: Event | None = None) -> Found:
        epoch, last = (known.epoch, known.last_event) if known else ("", NO_EVENT)
        new = uuid.uuid4().hex
        args = [self._keys.prefix, what, epoch, last, new, dump_event(told) if told else "", self._lease_ms]
        with translated():
            found, last_event, remembers, follows = self._epoch(args=args)
        return Found(found.decode() or None, last_event.decode(), bool(remembers), bool(follows))

    def halt(self, host: str, halt: Halt | None) -> None:
        with translated():
            if halt is None:
                self._client.hdel(self._keys.halted, host)
            else:
                self._client.hset(self._keys.halted, host, compact(asdict(halt)))

    def halted(self) -> Mapping[str, Halt]:
        """Every host that recovers nothing now, and why."""
        with translated():
            rows = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.halted))
        return {host.decode(): _halt_of(text) for host, text in rows.items()}


def _halt_of(text: bytes) -> Halt:
    try:
        return _HALT.validate_json(text)
    except ValidationError:
        return Halt("of another version: " + text[:80].decode(errors="replace"))
