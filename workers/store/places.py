"""How full each host is, read for lists of many hosts: VMs by state, slots in use, and who waits for one."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import redis

from workers.domain.vm import State
from workers.store.client import translated
from workers.store.keys import Keys

_HOSTS_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class PlaceSeen:
    """`states` has no state without VMs."""

    states: Mapping[State, int]
    slots_used: int
    waiting: int

    @property
    def vms(self) -> int:
        return sum(self.states.values())


class Places:
    """Raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, *, prefix: str) -> None:
        self._client, self._keys = client, Keys(prefix)

    def hosts(self, hosts: Sequence[str], now_ms: int) -> dict[str, PlaceSeen]:
        """`now_ms` is server time: slots whose time has run out are free."""
        parts = (hosts[start : start + _HOSTS_AT_ONCE] for start in range(0, len(hosts), _HOSTS_AT_ONCE))
        return {name: place for part in parts for name, place in self._read(part, now_ms)}

    def _read(self, hosts: Sequence[str], now_ms: int) -> list[tuple[str, PlaceSeen]]:
        keys = self._keys
        with translated():
            pipe = self._client.pipeline(transaction=False)
            for host in hosts:
                for state in State:
                    pipe.sintercard(2, [keys.of_host(host), keys.in_state(state)])
                pipe.zcount(keys.slots(f"host:{host}"), f"({now_ms}", "+inf")
                pipe.zcard(keys.line(f"host:{host}"))
            rows = iter(cast("list[int]", pipe.execute()))
        return [(host, _place(rows)) for host in hosts]


def _place(rows: Iterator[int]) -> PlaceSeen:
    states = {state: number for state in State if (number := next(rows))}
    return PlaceSeen(states, next(rows), next(rows))
