"""The storm guard as a value: what counts as a storm, how slowly recovery starts in one, and when it is over."""

import pytest

from tests.support.builders import NOW_MS, a_storm_policy
from workers.domain.breaker import Result
from workers.domain.storm import Loss, Storm, after_result, begin, cap, is_over, kind_of

POLICY = a_storm_policy(at_least=5, host_share=0.3, fleet_share=0.1)
MOST = 8


def a_storm(kind: Loss = Loss.UNCERTAIN, *, limit: int = 1, came_back: int = 0) -> Storm:
    return Storm(kind, NOW_MS, limit, came_back)


@pytest.mark.parametrize(
    ("certain", "uncertain", "vms", "kind"),
    [
        (0, 4, 10, None),
        (0, 5, 10, Loss.UNCERTAIN),
        (0, 6, 20, None),
        (0, 7, 20, Loss.UNCERTAIN),
        (5, 0, 10, Loss.CERTAIN),
        (6, 0, 20, None),
        (4, 3, 20, Loss.CERTAIN),
        (50, 6, 20, Loss.CERTAIN),
        (50, 7, 20, Loss.UNCERTAIN),
    ],
    ids=[
        "too few at all",
        "the least number",
        "exactly the share",
        "more than the share",
        "certain ones",
        "certain ones, exactly the share",
        "both together",
        "few uncertain among many certain",
        "the uncertain alone are enough",
    ],
)
def test_losses_are_a_storm_when_they_are_many_of_many(
    certain: int, uncertain: int, vms: int, kind: Loss | None
) -> None:
    assert kind_of(certain, uncertain, vms=vms, share=POLICY.host_share, policy=POLICY) is kind


def test_in_good_weather_all_slots_are_free() -> None:
    assert cap(None, MOST) == MOST


def test_an_uncertain_storm_starts_with_one_and_doubles_with_each_success_up_to_the_cap() -> None:
    storm, caps = begin(None, Loss.UNCERTAIN, NOW_MS), []
    for _ in range(5):
        caps.append(cap(storm, MOST))
        storm = after_result(storm, Result.SUCCESS, MOST)

    assert caps == [1, 2, 4, 8, 8]


def test_each_failure_halves_what_may_run_and_one_always_may() -> None:
    storm, caps = a_storm(limit=8), []
    for _ in range(5):
        caps.append(cap(storm, MOST))
        storm = after_result(storm, Result.FAILURE, MOST)

    assert caps == [8, 4, 2, 1, 1]


def test_the_limit_never_gives_more_slots_than_there_are() -> None:
    assert cap(a_storm(limit=64), MOST) == MOST


def test_a_certain_storm_waits_for_its_canaries_whatever_fails() -> None:
    storm, caps = begin(None, Loss.CERTAIN, NOW_MS), []
    for number in range(MOST + 1):
        caps.append(cap(storm, MOST) + number)
        storm = after_result(storm, Result.SUCCESS, MOST)

    assert caps == [MOST] * MOST + [2 * MOST], "with what is back, never more than one slot-full until all are back"
    failed = after_result(a_storm(Loss.CERTAIN), Result.FAILURE, MOST)
    assert cap(failed, MOST) == MOST, "a canary that fails has not come back, and frees its slot for another"


def test_a_storm_that_goes_on_keeps_what_it_has_reached() -> None:
    storm = a_storm(limit=4, came_back=2)

    assert begin(storm, Loss.UNCERTAIN, NOW_MS + 1) == storm
    assert begin(storm, Loss.CERTAIN, NOW_MS + 1) == storm


def test_a_certain_storm_that_turns_out_uncertain_starts_slowly_anew() -> None:
    storm = after_result(after_result(a_storm(Loss.CERTAIN), Result.SUCCESS, MOST), Result.SUCCESS, MOST)
    assert storm.limit > 1

    worse = begin(storm, Loss.UNCERTAIN, NOW_MS + 1)

    assert (worse.kind, worse.since_ms, cap(worse, MOST)) == (Loss.UNCERTAIN, NOW_MS, 1)


@pytest.mark.parametrize(
    ("losses", "waiting", "vms", "over"),
    [(2, 0, 10, True), (3, 0, 10, False), (15, 0, 100, True), (16, 0, 100, False), (0, 1, 10, False)],
    ids=["half of the least", "more than that", "half the share", "more than half the share", "somebody waits"],
)
def test_it_ends_lower_than_it_began_and_when_nobody_waits(losses: int, waiting: int, vms: int, *, over: bool) -> None:
    assert is_over(losses, waiting, vms=vms, share=POLICY.host_share, policy=POLICY) is over
