"""What keeps recovery back right now, read for people: breakers that are not closed, storms, lines, counters."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import redis

from workers.domain.breaker import FLEET, BreakerState
from workers.domain.storm import Loss
from workers.store.breakers import BY_HAND_MS
from workers.store.client import translated
from workers.store.keys import Keys


@dataclass(frozen=True, slots=True)
class BreakerSeen:
    """`next_probe_ms`: server time from which it may be probed; None where a person opened it, and has to close it."""

    scope: str
    state: BreakerState
    next_probe_ms: int | None
    waiting: int


@dataclass(frozen=True, slots=True)
class StormSeen:
    place: str
    kind: Loss
    since_ms: int
    came_back: int
    waiting: int


class Weather:
    def __init__(self, client: redis.Redis, *, prefix: str) -> None:
        self._client = client
        self._keys = Keys(prefix)

    def breakers(self) -> list[BreakerSeen]:
        """Those that are not closed."""
        with translated():
            scopes = sorted(scope.decode() for scope in cast("set[bytes]", self._client.smembers(self._keys.breakers)))
            pipe = self._client.pipeline(transaction=False)
            for scope in scopes:
                pipe.hmget(self._keys.breaker(scope), ["state", "opened", "cooldown"])
                pipe.zcard(self._keys.line(f"breaker:{scope}"))
            rows = iter(pipe.execute())
        return [_breaker(scope, next(rows), next(rows)) for scope in scopes]

    def storms(self, hosts: Sequence[str]) -> list[StormSeen]:
        places = [FLEET, *(f"host:{host}" for host in hosts)]
        with translated():
            pipe = self._client.pipeline(transaction=False)
            for place in places:
                pipe.hmget(self._keys.storm(place), ["kind", "since", "back"])
                pipe.zcard(self._keys.line(place))
            rows = iter(pipe.execute())
        seen = [(place, next(rows), next(rows)) for place in places]
        return [
            StormSeen(place, Loss(found[0].decode()), int(found[1]), int(found[2]), waiting)
            for place, found, waiting in seen
            if found[0] is not None
        ]

    def counts(self) -> dict[str, int]:
        with translated():
            rows = cast("dict[bytes, bytes]", self._client.hgetall(self._keys.counts))
        return {name.decode(): int(number) for name, number in sorted(rows.items())}


def _breaker(scope: str, row: Sequence[bytes | None], waiting: int) -> BreakerSeen:
    state, opened, cooldown = row
    return BreakerSeen(
        scope,
        BreakerState(state.decode()) if state else BreakerState.CLOSED,
        None if int(cooldown or 0) >= BY_HAND_MS else int(opened or 0) + int(cooldown or 0),
        waiting,
    )
