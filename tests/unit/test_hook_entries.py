"""What is left to deliver of several things that were told about one VM, and its form in a file."""

import json

import pytest

from tests.support.builders import a_process
from workers.integration.entries import Entries, Entry, Kind, coalesce, dump, load, unwanted_by


def told(*entries: Entry) -> Entries:
    waiting: Entries = ()
    for entry in entries:
        waiting = coalesce(waiting, entry)
    return waiting


CREATED = Entry(1, Kind.RUNNING, "on_vm_created", spec="{}", process=a_process(), executable="/bin/vmm", socket="/s")
STOPPED = Entry(2, Kind.STOPPED, "on_vm_stopped")
STARTED = Entry(3, Kind.RUNNING, "on_vm_started")
DELETED = Entry(4, Kind.DELETED, "on_vm_deleted")
AGAIN = Entry(5, Kind.RUNNING, "on_vm_created", spec='{"new": 1}')


def test_of_wishes_only_the_newest_is_left_with_what_the_older_one_told() -> None:
    (left,) = told(CREATED, STOPPED, STARTED)
    assert (left.number, left.kind, left.hook) == (3, Kind.RUNNING, "on_vm_started")
    assert (left.spec, left.process, left.socket) == ("{}", a_process(), "/s")


def test_a_newer_process_comes_with_its_own_socket_and_program() -> None:
    (left,) = told(CREATED, Entry(2, Kind.RUNNING, "on_vm_started", process=a_process(7), socket="/t"))
    assert (left.process, left.socket, left.executable) == (a_process(7), "/t", None)


def test_of_a_vm_that_came_and_went_only_its_end_is_left() -> None:
    assert told(CREATED, STOPPED, DELETED) == (DELETED,)


def test_a_vm_that_takes_the_place_of_a_deleted_one_says_so_and_has_nothing_of_it() -> None:
    (left,) = told(CREATED, DELETED, AGAIN)
    assert left.anew
    assert (left.spec, left.process) == (AGAIN.spec, None)
    (still,) = told(CREATED, DELETED, AGAIN, Entry(6, Kind.STOPPED, "on_vm_stopped"))
    assert (still.kind, still.anew, still.spec) == (Kind.STOPPED, True, AGAIN.spec)


@pytest.mark.parametrize("late", [STOPPED, STARTED])
def test_a_deleted_vm_stays_deleted_until_it_is_told_what_it_is(late: Entry) -> None:
    (left,) = told(CREATED, DELETED, late)
    assert (left.kind, left.number) == (Kind.DELETED, late.number)


def test_errors_and_operations_keep_their_place_among_wishes() -> None:
    busy = Entry(6, Kind.BUSY, "operation", operation="a", what="snapshot")
    done = Entry(8, Kind.DONE, "operation", operation="a", what="snapshot")
    other = Entry(7, Kind.BUSY, "operation", operation="b", what="resize")
    older, newer = Entry(9, Kind.ERROR, "on_vm_error", error="a"), Entry(10, Kind.ERROR, "on_vm_error", error="b")
    assert told(CREATED, busy, other, done, older, newer) == (CREATED, other, done, newer)


@pytest.mark.parametrize(("last", "hook"), [(CREATED, None), (STOPPED, "on_vm_stopped"), (DELETED, "on_vm_deleted")])
def test_the_file_says_apart_which_hook_does_not_want_the_vm_to_run(last: Entry, hook: str | None) -> None:
    text = dump((last,))
    assert json.loads(text)["unwanted"] == hook == unwanted_by((last,))
    assert load(text) == (last,)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"{}", b'{"entries": 1}', b'{"entries": [{"number": "x"}]}', b"\xff"]
)
def test_a_damaged_file_is_told_from_one_that_is_empty(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        load(text)
