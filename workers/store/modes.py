"""The ModeStore port on Redis: one field per scope, so that a read asks for just the scopes of its VMs."""

from collections.abc import Collection, Mapping
from typing import cast

import redis
from pydantic import TypeAdapter, ValidationError

from workers.domain.audit import Event
from workers.domain.modes import UNREADABLE, Hold, Mode, Modes, Scope
from workers.store.client import script, translated
from workers.store.codec import dump_event
from workers.store.keys import Keys

_SCOPE: TypeAdapter[Scope] = TypeAdapter(Scope)


class RedisModes:
    def __init__(self, client: redis.Redis, *, prefix: str, events_kept: int) -> None:
        self._client, self._keys, self._events_kept = client, Keys(prefix), events_kept
        self._put = script(client, "put_scope")

    def modes(self, scopes: Collection[str]) -> tuple[int, Modes]:
        names = list(scopes)
        with translated():
            now_ms = self._now_ms()
            texts = cast("list[bytes | None]", self._client.hmget(self._keys.modes, names)) if names else []
        return now_ms, modes_of({name: text for name, text in zip(names, texts, strict=True) if text})

    def all_modes(self) -> tuple[int, Modes]:
        with translated():
            now_ms = self._now_ms()
            rows = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.modes))
        return now_ms, modes_of({name.decode(): text for name, text in rows.items()})

    def _now_ms(self) -> int:
        seconds, micros = self._client.time()
        return seconds * 1000 + micros // 1000

    def put_scope(self, name: str, before: Scope, after: Scope, told: Event) -> bool:
        read = "?" if before.is_unreadable else dump_scope(before)
        args = [self._keys.prefix, name, read, dump_scope(after), dump_event(told), self._events_kept]
        with translated():
            return bool(self._put(args=args))


def dump_scope(scope: Scope) -> str:
    """An empty scope is no field."""
    return "" if scope == Scope() else _SCOPE.dump_json(scope, exclude_defaults=True).decode()


def modes_of(texts: Mapping[str, bytes]) -> Modes:
    return Modes({name: _scope_of(name, text) for name, text in texts.items()})


def _scope_of(name: str, text: bytes) -> Scope:
    """What cannot be read holds everything: nobody knows what it meant, and whoever set it meant something."""
    try:
        return _SCOPE.validate_json(text)
    except ValidationError as error:
        why = f"what is set on {name} cannot be read ({error.error_count()} errors): lift it and set it again"
        return Scope((Hold(UNREADABLE, Mode.PAUSED, "store", why, 0),))
