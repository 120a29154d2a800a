"""Whether a process lives: what should go on is seen to, and what should end does."""

import threading

import pytest

from tests.support.fakes import FakeClock
from workers.telemetry.vitals import Stall, Vitals


class Life:
    """Vitals with a clock that is told to move, and a patience of 10 s."""

    def __init__(self) -> None:
        self.clock = FakeClock(0)
        self.vitals = Vitals(patience_s=10, monotonic=self.clock.monotonic)

    def passes(self, seconds: float) -> None:
        self.clock.sleep(seconds)

    @property
    def stalled(self) -> list[str]:
        return [stall.what for stall in self.vitals.stalls()]


@pytest.fixture
def life() -> Life:
    return Life()


def test_a_process_of_which_nothing_is_known_does_not_stand_still(life: Life) -> None:
    life.passes(1000)
    assert life.stalled == []
    assert life.vitals.ages_s() == {}
    assert life.vitals.troubles == {}


def test_what_goes_on_does_not_stand_still(life: Life) -> None:
    for _ in range(10):
        life.vitals.pulse("main loop")
        life.passes(10)
        assert life.stalled == []


def test_what_goes_on_no_more_stands_still_after_its_own_interval_and_our_patience(life: Life) -> None:
    life.vitals.pulse("main loop")
    life.vitals.pulse("heartbeat", 30)

    life.passes(10.5)
    assert life.vitals.stalls() == [Stall("main loop", 10.5, 10)]
    life.passes(29)
    assert life.stalled == ["main loop"]
    life.passes(1)
    assert life.stalled == ["main loop", "heartbeat"]


def test_the_next_pulse_is_judged_by_what_it_says_itself(life: Life) -> None:
    life.vitals.pulse("heartbeat", 100)
    life.vitals.pulse("heartbeat", 1)
    life.passes(11.5)
    assert life.stalled == ["heartbeat"]


def test_a_new_pulse_ends_a_stall(life: Life) -> None:
    life.vitals.pulse("main loop")
    life.passes(60)
    assert life.stalled == ["main loop"]
    life.vitals.pulse("main loop")
    assert life.stalled == []


def test_what_ended_on_purpose_is_not_waited_for(life: Life) -> None:
    life.vitals.pulse("main loop")
    life.vitals.over("main loop")
    life.vitals.over("main loop")
    life.passes(60)
    assert life.stalled == []
    assert life.vitals.ages_s() == {}


def test_what_began_must_end_in_its_time(life: Life) -> None:
    life.vitals.begin("id-1", "task recover", within_s=60)
    life.vitals.begin("id-2", "consumer")

    life.passes(10.5)
    assert life.vitals.stalls() == [Stall("consumer", 10.5, 10)]
    life.passes(50)
    assert life.stalled == ["task recover", "consumer"]
    life.vitals.end("id-2")
    assert life.stalled == ["task recover"]
    life.vitals.end("id-1")
    assert life.stalled == []


def test_the_end_of_what_never_began_is_no_news(life: Life) -> None:
    life.vitals.end("id-1")
    assert life.stalled == []


def test_each_of_many_alike_is_judged_by_itself(life: Life) -> None:
    life.vitals.begin("id-1", "task recover")
    life.passes(8)
    life.vitals.begin("id-2", "task recover")
    life.passes(4)
    assert life.vitals.stalls() == [Stall("task recover", 12, 10)]
    life.passes(8)
    assert life.stalled == ["task recover", "task recover"]


def test_what_begins_anew_under_its_token_is_counted_from_then(life: Life) -> None:
    life.vitals.begin("consumer", "consumer")
    life.passes(8)
    life.vitals.begin("consumer", "consumer")
    life.passes(8)
    assert life.stalled == []


def test_ages_are_those_of_the_last_pulse_and_of_the_oldest_that_is_open(life: Life) -> None:
    life.vitals.pulse("main loop")
    life.vitals.begin("id-1", "task recover")
    life.passes(5)
    life.vitals.begin("id-2", "task recover")
    life.vitals.pulse("main loop")
    life.passes(1)
    assert life.vitals.ages_s() == {"main loop": 1, "task recover": 6}


def test_patience_that_is_set_later_holds_for_later_pulses(life: Life) -> None:
    life.vitals.patience_s = 1
    life.vitals.pulse("main loop")
    life.passes(2)
    assert life.stalled == ["main loop"]


def test_trouble_is_nobodys_death(life: Life) -> None:
    life.vitals.trouble("redis", "refused")
    life.vitals.trouble("redis", "timed out")
    life.vitals.trouble("broker", "refused")
    assert life.vitals.troubles == {"redis": "timed out", "broker": "refused"}
    assert life.stalled == []

    life.vitals.well("redis")
    life.vitals.well("redis")
    assert life.vitals.troubles == {"broker": "refused"}


def test_troubles_that_were_handed_out_do_not_change(life: Life) -> None:
    before = life.vitals.troubles
    life.vitals.trouble("redis", "refused")
    assert before == {}


def test_what_waits_for_something_in_trouble_is_not_waited_for(life: Life) -> None:
    life.vitals.begin("consumer", "consumer", needs="redis")
    life.vitals.trouble("redis", "it does not answer")
    life.passes(1000)

    assert life.stalled == []

    life.vitals.well("redis")
    life.passes(10)

    assert life.stalled == []

    life.passes(1)

    assert life.stalled == ["consumer"]


def test_a_stall_says_for_how_long_and_what_it_may() -> None:
    assert str(Stall("main loop", 33.4, 30)) == "main loop has stood still for 33 s, the limit is 30 s"


def test_it_may_be_told_and_asked_from_any_thread() -> None:
    vitals = Vitals()
    failed: list[Exception] = []

    def tell(name: int) -> None:
        try:
            for number in range(500):
                vitals.pulse(f"loop {number % 7}")
                vitals.begin((name, number), f"task {number % 5}")
                vitals.trouble("redis", str(number))
                vitals.end((name, number))
                vitals.over(f"loop {number % 7}")
                vitals.well("redis")
        except Exception as error:  # noqa: BLE001 - whatever it is, the test tells of it
            failed.append(error)

    threads = [threading.Thread(target=tell, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        vitals.ages_s()
        assert vitals.stalls() == []
        assert vitals.troubles.keys() <= {"redis"}
    for thread in threads:
        thread.join()
    assert failed == []
    assert vitals.stalls() == []
