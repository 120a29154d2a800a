"""The Schedule port on Redis: what is due, handed to exactly one of any number of beats."""

from collections.abc import Mapping
from typing import Any

import redis

from workers.ports import DueChecks
from workers.store.client import script, translated
from workers.store.keys import Keys

DETECT_ORPHANS = "detect_orphans"
RECONCILE = "reconcile"


class RedisSchedule:
    """`sweeps` maps a kind of sweep to its interval in ms."""

    def __init__(
        self, client: redis.Redis, *, prefix: str, interval_ms: int, per_message: int, sweeps: Mapping[str, int]
    ) -> None:
        self._keys = Keys(prefix)
        self._claim = script(client, "claim")
        self._args: list[Any] = [interval_ms, per_message]
        for kind, every_ms in sweeps.items():
            self._args += [kind, every_ms]

    def claim(self, limit: int) -> DueChecks:
        """Take at most `limit` due members. Raises StoreUnavailable."""
        with translated():
            reply = self._claim(keys=[self._keys.due], args=[self._keys.prefix, limit, *self._args])
        checks: list[tuple[str, list[str]]] = []
        sweeps: list[tuple[str, str]] = []
        for head, *members in ([part.decode() for part in batch] for batch in reply[3:]):
            if head.startswith("@"):
                sweeps.append((head[1:], members[0]))
            else:
                checks.append((head, members))
        return DueChecks(int(reply[0]), checks, sweeps, None if reply[1] < 0 else int(reply[1]), int(reply[2]))
