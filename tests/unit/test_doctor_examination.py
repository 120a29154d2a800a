"""Checks run side by side: one that hangs or breaks is a finding, and the others go on."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.doctor.examination import Check, Group, Report, examine
from workers.doctor.finding import Finding, Level, fine, problem, warning
from workers.doctor.place import Place
from workers.domain.errors import StoreUnavailable
from workers.settings import load


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(load({"RELIABILITY_HOST": "host-a", "RELIABILITY_STATE_DIR": str(tmp_path)}, tmp_path))


def fine_one(_place: Place) -> Iterator[Finding]:
    yield fine("good", "all is well")


def breaks_late(_place: Place) -> Iterator[Finding]:
    yield fine("half", "this much was seen")
    raise ZeroDivisionError("by\nnothing")


def test_a_check_that_breaks_keeps_what_it_has_seen_and_harms_no_other(place: Place) -> None:
    found = examine([Check("bad", Group.HOST, breaks_late), Check("good", Group.HOST, fine_one)], place)

    assert [finding.name for _, finding in found] == ["half", "bad", "good"]
    assert found[1][1].says == "the check itself failed: ZeroDivisionError: by nothing"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "/x"), "/x: Permission denied"),
        (OSError(5, "Input/output error", "/x"), "/x: Input/output error"),
        (StoreUnavailable("Redis: away"), "Redis: away"),
    ],
)
def test_what_cannot_be_looked_at_says_why(place: Place, error: Exception, says: str) -> None:
    def raises(_place: Place) -> list[Finding]:
        raise error

    ((_, finding),) = examine([Check("c", Group.HOST, raises)], place)

    assert (finding.level, finding.says) == (Level.WARNING, says)
    assert finding.does


def test_a_check_that_hangs_is_left_after_its_deadline(place: Place) -> None:
    never = threading.Event()

    def hangs(_place: Place) -> Iterator[Finding]:
        never.wait()
        yield fine("never", "")

    found = examine(
        [Check("slow", Group.REDIS, hangs, late=Level.PROBLEM), Check("good", Group.HOST, fine_one)],
        place,
        deadline_s=0.05,
    )
    never.set()

    assert [(finding.name, finding.level) for _, finding in found] == [("slow", Level.PROBLEM), ("good", Level.OK)]
    assert found[0][1].says == "no answer within 0.05 s"


def test_a_report_shows_the_worst_of_each_group_first() -> None:
    mixed = [(Group.HOST, fine("a", "")), (Group.HOST, problem("b", "", "x")), (Group.HOST, warning("c", "", "x"))]
    report = Report([*mixed, (Group.REDIS, fine("d", ""))])

    assert [finding.name for finding in report.of(Group.HOST)] == ["b", "c", "a"]
    assert [report.count(level) for level in (Level.PROBLEM, Level.WARNING, Level.OK)] == [1, 1, 2]
