"""What follows from a registry's list: who is new, who is gone, and when the list is not believed."""

import pytest

from tests.support.builders import NOW_MS
from workers.domain.registry_diff import Difference, Listed, Notes, Recorded, compare

NOTHING_BEFORE = Notes()


def listed(*here: str, whole: bool = True, **elsewhere: str) -> Listed:
    return Listed(frozenset(here), elsewhere, whole)


def recorded(*here: str, others: tuple[str, ...] = (), forgotten: tuple[str, ...] = (), made_ms: int = 1) -> Recorded:
    return Recorded(dict.fromkeys(here, made_ms), {*here, *others}, forgotten, NOW_MS)


def test_equal_lists_differ_in_nothing() -> None:
    assert compare(listed("a", "b"), recorded("a", "b"), NOTHING_BEFORE) == Difference()


def test_who_is_listed_and_has_no_record_anywhere_is_new() -> None:
    found = compare(listed("a", "b", "c"), recorded("a", others=("c",)), NOTHING_BEFORE)
    assert found == Difference(new=("b",))


def test_who_is_not_listed_is_a_suspect_first_and_gone_the_second_time() -> None:
    first = compare(listed("a", "b"), recorded("a", "b", "c"), NOTHING_BEFORE)
    assert first == Difference(suspects=("c",))

    second = compare(listed("a", "b"), recorded("a", "b", "c"), Notes(suspects=first.suspects))
    assert second == Difference(gone=("c",))

    third = compare(listed("a", "b"), recorded("a", "b", "c"), Notes(missing={"c": 1}))
    assert third == Difference(gone=("c",))


def test_who_is_listed_again_is_neither() -> None:
    assert compare(listed("a", "c"), recorded("a", "c"), Notes(missing={"c": 1}, suspects=("a",))) == Difference()


def test_a_vm_that_was_recorded_after_the_registry_was_asked_is_not_missed() -> None:
    young = Recorded({"a": 1, "b": 1, "c": NOW_MS}, {"a", "b", "c"}, (), NOW_MS)
    assert compare(listed("a", "b"), young, NOTHING_BEFORE) == Difference()


def test_a_vm_that_was_forgotten_on_purpose_is_not_registered_again() -> None:
    found = compare(listed("a", "b"), recorded("a", forgotten=("b",)), NOTHING_BEFORE)
    assert found == Difference(forgotten=("b",))


def test_a_vm_that_is_listed_for_another_host_is_moved_and_not_gone() -> None:
    found = compare(listed("a", b="host-b"), recorded("a", "b"), Notes(suspects=("b",)))
    assert found == Difference(moved=("b",))


def test_where_an_entry_cannot_be_read_nobody_is_missed() -> None:
    found = compare(listed("a", "new", whole=False), recorded("a", "b", "c"), NOTHING_BEFORE)
    assert found == Difference(new=("new",))


@pytest.mark.parametrize(
    ("here", "known", "before", "doubt"),
    [
        ((), ("a",), NOTHING_BEFORE, "the registry lists no VM of this host, which has 1: nothing is done"),
        (
            (),
            ("a", "b"),
            Notes(missing={"a": 1}),
            "the registry lists no VM of this host, which has 1: nothing is done",
        ),
        (
            ("a", "new"),
            ("a", "b", "c"),
            NOTHING_BEFORE,
            "2 of 3 VMs of this host left the registry at once: nothing is done",
        ),
        (("other",), ("a", "b"), NOTHING_BEFORE, "2 of 2 VMs of this host left the registry at once: nothing is done"),
        ((), (), NOTHING_BEFORE, ""),
        ((), ("a",), Notes(missing={"a": 1}), ""),
        (("a", "b"), ("a", "b", "c", "d"), NOTHING_BEFORE, ""),
        (("a", "b"), ("a", "b", "c", "d", "e"), Notes(missing={"c": 1}), ""),
    ],
)
def test_a_list_that_lost_too_much_at_once_is_doubted_and_nothing_is_done(
    here: tuple[str, ...], known: tuple[str, ...], before: Notes, doubt: str
) -> None:
    found = compare(listed(*here), recorded(*known), before)

    assert found.doubt == doubt
    if doubt:
        assert found == Difference(doubt=doubt)
