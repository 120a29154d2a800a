"""How a host, or the fleet, stands right now: numbers for metrics and status pages, in one round trip each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis

from workers.domain.vm import State
from workers.ports import Limits
from workers.store.client import SERVER_TIME, script, translated
from workers.store.codec import compact
from workers.store.keys import Keys
from workers.store.wire import limits_text

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
# Records opened for one survey: each costs Redis some 10 µs. Beyond, reasons and ages are those of a part of the VMs.
_MOST_OPENED = 500


@dataclass(frozen=True, slots=True)
class InFlight:
    vm_id: str
    attempt: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class HostSurvey:
    """`orphans` counts by reason. Ages in ms; 0 where there is none."""

    now_ms: int
    states: Mapping[str, int]
    orphans: Mapping[str, int]
    oldest_orphan_ms: int
    waiting: int
    longest_wait_ms: int
    in_flight: Sequence[InFlight]
    slots_used: int
    slots_limit: int
    storm: bool
    destroyed: int

    @property
    def should_run(self) -> int:
        return sum(self.states.values()) - self.states[State.STOPPED]


@dataclass(frozen=True, slots=True)
class HostAge:
    host: str
    heartbeat_ms: int
    vms: int


@dataclass(frozen=True, slots=True)
class FleetSurvey:
    """`breakers` counts those that are not closed by (kind of scope, state); `halted` hosts by why.

    `held` counts the fleet and hosts on which people hold a mode, by (`fleet` or `host`, mode).
    """

    now_ms: int
    states: Mapping[str, int]
    breakers: Mapping[tuple[str, str], int]
    halted: Mapping[str, int]
    hosts: Sequence[HostAge]
    slots_used: int
    slots_limit: int
    storm: bool
    refused_writes: int
    held: Mapping[tuple[str, str], int]


class Surveys:
    """Raises StoreUnavailable."""

    def __init__(self, client: redis.Redis, *, prefix: str, limits: Limits, time: str = SERVER_TIME) -> None:
        self._common = [Keys(prefix).prefix, limits_text(limits), "", compact(list(State))]
        self._host, self._fleet = (script(client, f"survey_{of}", time=time) for of in ("host", "fleet"))

    def host(self, host: str) -> HostSurvey:
        now_ms, seen = self._run(self._host, host, _HOUR_MS, _MOST_OPENED)
        return HostSurvey(
            now_ms,
            _states(seen),
            seen["reasons"] or {},
            int(seen["oldest_ms"]),
            int(seen["waiting"]),
            int(seen["waited_ms"]),
            [InFlight(each["vm_id"], int(each["attempt"]), each.get("reason")) for each in seen["in_flight"] or ()],
            int(seen["slots_used"]),
            int(seen["slots_limit"]),
            bool(seen["storm"]),
            int(seen["destroyed"]),
        )

    def fleet(self) -> FleetSurvey:
        """Hosts without VMs are left out when they were not seen for a day."""
        now_ms, seen = self._run(self._fleet, _DAY_MS)
        return FleetSurvey(
            now_ms,
            _states(seen),
            _pairs(seen["breakers"]),
            {kind: int(number) for kind, number in seen["halted"].items()},
            [HostAge(host, int(age_ms), int(vms)) for host, age_ms, vms in seen["hosts"] or ()],
            int(seen["slots_used"]),
            int(seen["slots_limit"]),
            bool(seen["storm"]),
            int(seen["refused_writes"]),
            _pairs(seen["held"]),
        )

    def _run(self, survey: Any, *arguments: Any) -> tuple[int, dict[str, Any]]:
        with translated():
            now_ms, text = survey(args=[*self._common, *arguments])
        return int(now_ms), json.loads(text)


def _pairs(counted: Any) -> dict[tuple[str, str], int]:
    """Counts by two words; the server's JSON has an empty list for none."""
    split = {name: name.partition(" ") for name in dict(counted or {})}
    return {(first, second): int(counted[name]) for name, (first, _, second) in split.items()}


def _states(seen: Mapping[str, Any]) -> dict[str, int]:
    return {str(state): int(seen["states"].get(state, 0)) for state in State}
