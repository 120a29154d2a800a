"""Circuit breakers for recovery, as values: who is counted where, when one opens, and who may probe it.

The same machine runs inside Redis (`store/scripts/breaker.lua`); the contract suite of the store keeps both alike.

What a scope counts are its children, each once, with its last result within the window: an image on one host counts
its VMs, an image counts hosts, a host counts images, a driver and the fleet count images and, apart from that, hosts.
A scope opens only if each of its ways of counting finds too many failing: so one bad image stops its own VMs and not
their host, and one bad host stops neither its images elsewhere nor the fleet.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

FLEET = "fleet"
# Longer names are cut and told apart by a hash: an image may be named by a path of 4,096 characters.
_NAME_MAX = 128


class BreakerState(StrEnum):
    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Result(StrEnum):
    """How an attempt ended, for the breakers. What says nothing about the VM (a stop, a pause) is no result."""

    SUCCESS = "success"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """Durations in ms. `failure_rate` is a share of children, of which there have to be `min_calls`."""

    window_ms: int
    min_calls: int
    failure_rate: float
    cooldown_ms: int
    max_cooldown_ms: int
    probes: int
    successes: int


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt as one scope sees it; `children` has one entry for each of the scope's ways of counting."""

    scope: str
    children: tuple[str, ...]


def calls_of(vm_id: str, *, host: str, image: str, driver: str) -> tuple[Call, ...]:
    """Return every scope in which an attempt on this VM counts. `driver` is name@version."""
    image = _shortened(image)
    return (
        Call(f"image:{image}@{host}", (vm_id,)),
        Call(f"image:{image}", (host,)),
        Call(f"driver:{_shortened(driver)}", (image, host)),
        Call(f"host:{host}", (image,)),
        Call(FLEET, (image, host)),
    )


def _shortened(name: str) -> str:
    if len(name) <= _NAME_MAX:
        return name
    return f"{name[: _NAME_MAX - 17]}~{hashlib.sha256(name.encode()).hexdigest()[:16]}"


@dataclass(frozen=True, slots=True)
class Breaker:
    """`generation` grows with each change of state: results of attempts that an older life admitted do not count.

    `probes` maps each holder of a probe to the end of its lease; `results`, for each way of counting, a child to the
    time of its last result and whether that was a failure.
    """

    state: BreakerState = BreakerState.CLOSED
    generation: int = 0
    opened_ms: int = 0
    cooldown_ms: int = 0
    successes: int = 0
    probes: Mapping[str, int] = field(default_factory=dict)
    results: tuple[Mapping[str, tuple[int, bool]], ...] = ()


def at(breaker: Breaker, policy: BreakerPolicy, now_ms: int) -> Breaker:
    """What time alone makes of it: a cool-down that is over, a probe whose holder went away (which is a failure)."""
    if breaker.state is BreakerState.OPEN and now_ms - breaker.opened_ms >= breaker.cooldown_ms:
        return _become(breaker, BreakerState.HALF_OPEN)
    if breaker.state is BreakerState.HALF_OPEN and any(ends <= now_ms for ends in breaker.probes.values()):
        return _open(breaker, policy, now_ms)
    return breaker


def admits(breaker: Breaker, policy: BreakerPolicy) -> bool:
    """Whether one more attempt may begin, of a breaker as it is `at` this moment."""
    match breaker.state:
        case BreakerState.CLOSED:
            return True
        case BreakerState.HALF_OPEN:
            return len(breaker.probes) < policy.probes
        case BreakerState.OPEN:
            return False


def take(breaker: Breaker, holder: str, ends_ms: int) -> Breaker:
    """Admit the attempt of `holder`; while half-open it is a probe, leased until `ends_ms`. Again prolongs it."""
    if breaker.state is not BreakerState.HALF_OPEN:
        return breaker
    return replace(breaker, probes={**breaker.probes, holder: ends_ms})


def renew(breaker: Breaker, holder: str, ends_ms: int) -> Breaker:
    return take(breaker, holder, ends_ms) if holder in breaker.probes else breaker


def give_back(breaker: Breaker, holder: str) -> Breaker:
    """The attempt ended without a result: its probe is free for another."""
    return replace(breaker, probes={name: ends for name, ends in breaker.probes.items() if name != holder})


def record(
    breaker: Breaker,
    holder: str,
    children: tuple[str, ...],
    result: Result,
    *,
    generation: int,
    policy: BreakerPolicy,
    now_ms: int,
) -> Breaker:
    """Count the result of an attempt that was admitted under `generation`; one of an older life changes nothing."""
    if generation != breaker.generation:
        return breaker
    match breaker.state:
        case BreakerState.CLOSED:
            return _counted(breaker, children, result, policy, now_ms)
        case BreakerState.HALF_OPEN if holder in breaker.probes:
            return _probed(give_back(breaker, holder), result, policy, now_ms)
        case _:
            return breaker


def _counted(
    breaker: Breaker, children: tuple[str, ...], result: Result, policy: BreakerPolicy, now_ms: int
) -> Breaker:
    before = breaker.results or tuple({} for _ in children)
    since_ms = now_ms - policy.window_ms
    results = tuple(
        {name: seen for name, seen in way.items() if seen[0] > since_ms} | {child: (now_ms, result is Result.FAILURE)}
        for way, child in zip(before, children, strict=True)
    )
    counted = replace(breaker, results=results)
    opens = result is Result.FAILURE and all(_too_many(way, policy) for way in results)
    return _open(counted, policy, now_ms) if opens else counted


def _too_many(way: Mapping[str, tuple[int, bool]], policy: BreakerPolicy) -> bool:
    failing = sum(failed for _, failed in way.values())
    return len(way) >= policy.min_calls and failing >= policy.failure_rate * len(way)


def _probed(breaker: Breaker, result: Result, policy: BreakerPolicy, now_ms: int) -> Breaker:
    if result is Result.FAILURE:
        return _open(breaker, policy, now_ms)
    probed = replace(breaker, successes=breaker.successes + 1)
    return _become(probed, BreakerState.CLOSED) if probed.successes >= policy.successes else probed


def _open(breaker: Breaker, policy: BreakerPolicy, now_ms: int) -> Breaker:
    """The first cool-down after a closed life is the shortest; each one after failed probes is twice as long."""
    longer = breaker.cooldown_ms * 2 if breaker.state is BreakerState.HALF_OPEN else policy.cooldown_ms
    cooldown_ms = min(longer, policy.max_cooldown_ms)
    return replace(_become(breaker, BreakerState.OPEN), opened_ms=now_ms, cooldown_ms=cooldown_ms)


def _become(breaker: Breaker, state: BreakerState) -> Breaker:
    return replace(breaker, state=state, generation=breaker.generation + 1, successes=0, probes={}, results=())
