"""What the benchmark of beats makes of the messages it reads."""

import base64
import json

import pytest

from tests.benchmarks.check_mail import Letter, doubles, lags, longest_waits, most_missed, opened, turns
from workers.queues import CHECK_VMS, RECONCILE

INTERVAL_MS = 1000
PLACES = {"vm-1": 100, "vm-2": 900}


def a_message(task: str, *args: object) -> bytes:
    body = base64.b64encode(json.dumps([args, {}, {}]).encode()).decode()
    return json.dumps({"headers": {"task": task}, "body": body}).encode()


def test_a_message_tells_which_vms_were_claimed_and_when() -> None:
    text = a_message(CHECK_VMS, ["vm-1", "vm-2"], 5300)
    assert opened(text, 4350.5, INTERVAL_MS) == Letter(4350.5, 4300, ["vm-1", "vm-2"])


def test_a_sweep_is_no_letter() -> None:
    assert opened(a_message(RECONCILE, "host-a"), 0, INTERVAL_MS) is None


def test_a_vm_is_late_by_what_passed_since_its_place_in_the_interval() -> None:
    letters = [Letter(4130, 4120, ["vm-1", "vm-1b"]), Letter(5200, 5150, ["vm-2"])]
    assert lags(letters, PLACES, INTERVAL_MS) == [30, 30, 300]


@pytest.mark.parametrize(
    ("claims", "twice", "missed"),
    [
        ((4110, 5110, 6990), 0, 0),
        ((4110, 4800, 5110), 1, 0),
        ((4110, 6110), 0, 1),
        ((4110, 7000), 0, 1),
        ((4110, 7110), 0, 2),
        ((), 0, 0),
    ],
)
def test_intervals_with_two_claims_of_a_vm_and_with_none_are_counted(
    claims: tuple[int, ...], twice: int, missed: int
) -> None:
    numbers = turns([Letter(claim, claim, ["vm-1"]) for claim in claims], PLACES, INTERVAL_MS).values()
    assert (doubles(numbers), most_missed(numbers)) == (twice, missed)


def test_the_longest_wait_may_be_the_first_or_one_that_still_goes_on() -> None:
    letters = [Letter(1000, 990, ["vm-1", "vm-2"]), Letter(2000, 1990, ["vm-1"])]
    assert longest_waits(letters, PLACES, since_ms=500, until_ms=2100) == [1000, 1100]
    assert longest_waits(letters, PLACES, since_ms=-500, until_ms=2100) == [1500, 1500]
    assert longest_waits([], PLACES, since_ms=0, until_ms=2100) == [2100, 2100]
