"""One breaker as a value: what opens it, who may probe it, and which results do not count."""

from typing import Any

import pytest

from tests.support.builders import NOW_MS, a_breaker_policy
from workers.domain.breaker import (
    FLEET,
    Breaker,
    BreakerPolicy,
    BreakerState,
    Call,
    Result,
    admits,
    at,
    calls_of,
    give_back,
    record,
    renew,
    take,
)

POLICY = a_breaker_policy(window_ms=1000, min_calls=4, cooldown_ms=100, max_cooldown_ms=350, successes=2)
OK, KO = Result.SUCCESS, Result.FAILURE


def count(
    breaker: Breaker, *children: str, result: Result = KO, now_ms: int = NOW_MS, policy: BreakerPolicy = POLICY
) -> Breaker:
    """An attempt on each child in turn ends like this, admitted and counted in the breaker's present life."""
    for child in children:
        breaker = record(breaker, "vm-1", (child,), result, generation=breaker.generation, policy=policy, now_ms=now_ms)
    return breaker


def an_open_breaker(**changes: Any) -> Breaker:
    opened: dict[str, Any] = {"state": BreakerState.OPEN, "generation": 1, "opened_ms": NOW_MS, "cooldown_ms": 100}
    return Breaker(**(opened | changes))


def a_half_open_breaker(**changes: Any) -> Breaker:
    return an_open_breaker(**{"state": BreakerState.HALF_OPEN, "generation": 2} | changes)


def probed(breaker: Breaker, result: Result, *, now_ms: int = NOW_MS) -> Breaker:
    taken = take(breaker, "vm-1", now_ms + 50)
    return record(taken, "vm-1", ("a",), result, generation=taken.generation, policy=POLICY, now_ms=now_ms)


def test_it_opens_at_the_rate_of_failures_and_not_before_the_least_number_of_calls() -> None:
    three = count(Breaker(), "a", "b", "c")
    assert three.state is BreakerState.CLOSED

    four = count(three, "d")

    assert (four.state, four.opened_ms, four.cooldown_ms) == (BreakerState.OPEN, NOW_MS, 100)
    assert not admits(four, POLICY)


@pytest.mark.parametrize(
    ("failing", "state"), [(["a", "b"], BreakerState.OPEN), (["a"], BreakerState.CLOSED)], ids=["half", "fewer"]
)
def test_the_rate_is_that_of_all_children_in_the_window(failing: list[str], state: BreakerState) -> None:
    well = count(Breaker(), *[child for child in "abcd" if child not in failing], result=OK)

    assert count(well, *failing).state is state


def test_a_child_that_fails_again_and_again_counts_once() -> None:
    assert count(Breaker(), *["a"] * 50).state is BreakerState.CLOSED


def test_the_last_result_of_a_child_is_the_one_that_counts() -> None:
    policy = a_breaker_policy(window_ms=1000, min_calls=4, failure_rate=1.0)
    mended = count(count(Breaker(), "a", policy=policy), "a", result=OK, policy=policy)

    assert count(mended, "b", "c", "d", policy=policy).state is BreakerState.CLOSED
    assert count(mended, "b", "c", "d", "a", policy=policy).state is BreakerState.OPEN


@pytest.mark.parametrize(("later_ms", "state"), [(999, BreakerState.OPEN), (1000, BreakerState.CLOSED)])
def test_a_failure_counts_until_the_window_is_over(later_ms: int, state: BreakerState) -> None:
    three = count(Breaker(), "a", "b", "c")

    assert count(three, "d", now_ms=NOW_MS + later_ms).state is state


def test_a_success_never_opens_it() -> None:
    policy = a_breaker_policy(window_ms=1000, min_calls=5, failure_rate=0.5)
    four = count(Breaker(), "a", "b", "c", "d", policy=policy)

    assert count(four, "e", result=OK, policy=policy).state is BreakerState.CLOSED
    assert count(four, "e", policy=policy).state is BreakerState.OPEN


def test_one_of_many_children_does_not_open_what_stands_above_all() -> None:
    """The fleet counts images and hosts: a single bad image fails on many hosts, and stops only itself."""
    policy = a_breaker_policy(window_ms=1000, min_calls=3)
    breaker = Breaker()
    for host in ("h1", "h2", "h3", "h4"):
        breaker = record(breaker, "vm", ("bad", host), KO, generation=0, policy=policy, now_ms=NOW_MS)
    assert breaker.state is BreakerState.CLOSED

    for image in ("worse", "worst"):
        breaker = record(breaker, "vm", (image, "h1"), KO, generation=0, policy=policy, now_ms=NOW_MS)

    assert breaker.state is BreakerState.OPEN


@pytest.mark.parametrize(("now", "state"), [(NOW_MS + 99, BreakerState.OPEN), (NOW_MS + 100, BreakerState.HALF_OPEN)])
def test_it_is_half_open_when_its_cooldown_is_over(now: int, state: BreakerState) -> None:
    assert at(an_open_breaker(), POLICY, now).state is state


def test_a_half_open_breaker_admits_as_many_probes_as_the_policy_says() -> None:
    policy = a_breaker_policy(probes=2)
    one = take(a_half_open_breaker(), "vm-1", NOW_MS + 50)
    assert admits(one, policy)
    two = take(one, "vm-2", NOW_MS + 50)

    assert not admits(two, policy)
    assert admits(give_back(two, "vm-1"), policy), "an attempt that ended without a result leaves room for another"


def test_as_many_successes_as_the_policy_says_close_it() -> None:
    one = probed(a_half_open_breaker(), OK)
    assert (one.state, one.successes) == (BreakerState.HALF_OPEN, 1)

    two = probed(one, OK)

    assert (two.state, two.successes, two.generation) == (BreakerState.CLOSED, 0, 3)


def test_each_failed_probe_doubles_the_cooldown_up_to_its_cap() -> None:
    breaker, cooldowns, now = an_open_breaker(), [], NOW_MS
    for _ in range(3):
        now += breaker.cooldown_ms
        breaker = probed(at(breaker, POLICY, now), KO, now_ms=now)
        cooldowns.append(breaker.cooldown_ms)

    assert cooldowns == [200, 350, 350]
    assert (breaker.state, breaker.opened_ms) == (BreakerState.OPEN, now)


def test_a_closed_life_makes_the_next_cooldown_the_shortest_again() -> None:
    closed = probed(probed(a_half_open_breaker(cooldown_ms=350), OK), OK)

    assert count(closed, "a", "b", "c", "d").cooldown_ms == 100


@pytest.mark.parametrize(("now", "state"), [(NOW_MS + 49, BreakerState.HALF_OPEN), (NOW_MS + 50, BreakerState.OPEN)])
def test_a_probe_whose_holder_went_away_is_a_failure(now: int, state: BreakerState) -> None:
    left_alone = at(take(a_half_open_breaker(), "vm-1", NOW_MS + 50), POLICY, now)

    assert left_alone.state is state
    assert left_alone.cooldown_ms == (200 if state is BreakerState.OPEN else 100)


def test_only_who_holds_a_probe_can_prolong_it() -> None:
    taken = take(a_half_open_breaker(), "vm-1", NOW_MS + 50)

    assert renew(taken, "vm-1", NOW_MS + 90).probes == {"vm-1": NOW_MS + 90}
    assert renew(taken, "vm-2", NOW_MS + 90) == taken


def test_a_result_that_an_older_life_admitted_does_not_count() -> None:
    taken = take(a_half_open_breaker(), "vm-1", NOW_MS + 50)
    for result in Result:
        late = record(taken, "vm-1", ("a",), result, generation=0, policy=POLICY, now_ms=NOW_MS)
        assert late == taken


def test_a_result_of_nobody_who_probes_does_not_count() -> None:
    taken = take(a_half_open_breaker(), "vm-1", NOW_MS + 50)

    assert record(taken, "vm-2", ("a",), KO, generation=2, policy=POLICY, now_ms=NOW_MS) == taken


def test_an_open_breaker_counts_nothing_and_gives_no_probes() -> None:
    breaker = an_open_breaker()

    assert count(breaker, "a", "b", "c", "d") == breaker
    assert take(breaker, "vm-1", NOW_MS + 50) == breaker


def test_every_change_of_state_begins_a_life_of_its_own() -> None:
    opened = count(Breaker(), "a", "b", "c", "d")
    half = at(opened, POLICY, NOW_MS + 100)
    closed = probed(probed(half, OK), OK)

    assert [each.generation for each in (opened, half, closed)] == [1, 2, 3]
    assert closed.results == (), "what was counted in an older life is over with it"


def test_an_attempt_counts_for_its_image_its_driver_its_host_and_the_fleet() -> None:
    calls = calls_of("vm-1", host="h1", image="x.img", driver="qemu@9")

    assert calls == (
        Call("image:x.img@h1", ("vm-1",)),
        Call("image:x.img", ("h1",)),
        Call("driver:qemu@9", ("x.img", "h1")),
        Call("host:h1", ("x.img",)),
        Call(FLEET, ("x.img", "h1")),
    )


def test_long_names_are_cut_and_still_told_apart() -> None:
    one, other = [calls_of("vm-1", host="h1", image="/x" * 500 + end, driver="d")[1].scope for end in "ab"]

    assert one != other
    assert len(one) == len(other) == len("image:") + 128
