"""Whether a host may trust what Redis holds: only the data it knows, or those that an operator says follow them."""

from typing import Any

import pytest

from workers.domain.epoch import NO_EVENT, Found, Frozen, Known, Trusted, judge_data

KNOWN = Known("epoch-1", "100-2")


def found(**changes: Any) -> Found:
    as_known: dict[str, Any] = {"epoch": "epoch-1", "last_event": "100-5", "has_last_known": True, "follows": False}
    return Found(**(as_known | changes))


def test_the_data_it_knows_are_trusted_and_their_newest_event_is_remembered() -> None:
    assert judge_data(KNOWN, found()) == Trusted(Known("epoch-1", "100-5"))


def test_a_host_without_a_memory_trusts_any_data_there_are() -> None:
    assert judge_data(None, found(epoch="any", has_last_known=False)) == Trusted(Known("any", "100-5"))


def test_an_operators_word_replaces_what_is_known_even_by_older_events() -> None:
    assert judge_data(KNOWN, found(epoch="epoch-2", last_event="5-0", has_last_known=False, follows=True)) == Trusted(
        Known("epoch-2", "5-0")
    )


@pytest.mark.parametrize(
    ("known", "data", "why"),
    [
        (KNOWN, found(epoch=None), "its data are gone"),
        (None, found(epoch=None), "its data are gone"),
        (KNOWN, found(epoch=None, follows=True), "its data are gone"),
        (KNOWN, found(epoch="epoch-2"), "other data (epoch epoch-2, this host knows epoch-1)"),
        (KNOWN, found(has_last_known=False), "rolled back: event 100-2"),
    ],
    ids=["empty", "empty, nothing known", "empty, though confirmed", "other data", "older data"],
)
def test_anything_else_freezes_the_host_and_says_why(known: Known | None, data: Found, why: str) -> None:
    verdict = judge_data(known, data)

    assert isinstance(verdict, Frozen)
    assert why in verdict.why


@pytest.mark.parametrize(
    ("event", "remembered"),
    [
        ("100-1", "100-2"),
        ("99-9", "100-2"),
        ("100-2", "100-2"),
        ("100-10", "100-10"),
        ("1000-0", "1000-0"),
        (NO_EVENT, "100-2"),
        (None, "100-2"),
    ],
)
def test_the_newest_event_is_remembered_by_number_not_by_spelling(event: str | None, remembered: str) -> None:
    assert KNOWN.seeing(event).last_event == remembered
