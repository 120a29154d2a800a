"""Circuit breakers, opened and closed by hand."""

import redis

from workers.domain.breaker import BreakerState
from workers.ports import Limits, Written
from workers.store.client import script, translated
from workers.store.keys import Keys
from workers.store.wire import limits_text, written_of

# A breaker that a person has opened waits for a person.
BY_HAND_MS = 100 * 365 * 24 * 3600 * 1000


class RedisBreakers:
    def __init__(self, client: redis.Redis, *, prefix: str, limits: Limits) -> None:
        self._keys, self._limits = Keys(prefix), limits_text(limits)
        self._set = script(client, "set_breaker")

    def put(self, scope: str, state: BreakerState, *, why: str, actor: str) -> Written | None:
        """Return what followed from it, None where it was so already. Raises StoreUnavailable."""
        args = [self._keys.prefix, self._limits, "", scope, state, why, actor, BY_HAND_MS]
        with translated():
            changed, called, told = self._set(args=args)
        return written_of((), called, told, intact=True) if changed else None
