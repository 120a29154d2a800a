"""Repetitions of a warning are counted, not written; the sum of lines and counts is what happened."""

import io
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from workers.telemetry.logging import configure_logging
from workers.telemetry.repeats import Repeats


@dataclass
class Told:
    """Log lines so far, and the clock that tells the windows."""

    stream: io.StringIO = field(default_factory=io.StringIO)
    now: float = 1000.0

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    @property
    def story(self) -> list[tuple[str, int]]:
        return [(record["event"], record.get("repeated", 0)) for record in self.records]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    told = Told()
    monkeypatch.setattr("sys.stderr", told.stream)
    configure_logging("info", "json", clock=lambda: told.now)
    yield told
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


LIBRARY = logging.getLogger("library")


def fail(text: str) -> None:
    try:
        int(text)
    except ValueError:
        LIBRARY.exception("gone")


def test_a_repetition_is_written_once_a_minute_with_the_number_left_out(told: Told) -> None:
    for _ in range(5):
        LIBRARY.warning("gone: %s", "redis")
    told.now += 59
    LIBRARY.warning("gone: %s", "redis")
    told.now += 1
    LIBRARY.warning("gone: %s", "redis")

    assert told.story == [("gone: redis", 0), ("gone: redis", 5)]


def test_what_a_window_owes_comes_with_the_next_record_of_any_kind(told: Told) -> None:
    for vm in ("vm-1", "vm-1", "vm-1", "vm-2"):
        structlog.get_logger().error("failed", vm_id=vm)
    told.now += 30
    LIBRARY.info("early")
    told.now += 30
    LIBRARY.info("next")

    assert told.story == [("failed", 0), ("failed", 0), ("early", 0), ("failed", 1), ("next", 0)]
    assert [record.get("vm_id") for record in told.records] == ["vm-1", "vm-2", None, "vm-1", None]


def test_the_line_that_was_owed_counts_as_the_one_of_its_minute(told: Told) -> None:
    for _ in range(180):
        LIBRARY.warning("gone")
        LIBRARY.info("other")
        told.now += 1

    gone = [repeated for event, repeated in told.story if event == "gone"]
    assert len(gone) == 3
    logging.getLogger().handlers[0].close()
    gone = [repeated for event, repeated in told.story if event == "gone"]
    assert len(gone) + sum(gone) == 180


def test_what_is_owed_is_written_at_the_end(told: Told) -> None:
    for _ in range(4):
        LIBRARY.warning("gone")

    logging.shutdown([lambda: logging.getLogger().handlers[0]])

    assert told.story == [("gone", 0), ("gone", 2)]


def test_an_owed_line_has_the_time_and_context_of_its_own(told: Told) -> None:
    for span in ("one", "two"):
        with structlog.contextvars.bound_contextvars(span_id=span):
            LIBRARY.warning("gone")
    told.now += 60
    with structlog.contextvars.bound_contextvars(span_id="three"):
        LIBRARY.info("next")

    assert [record["span_id"] for record in told.records] == ["one", "two", "three"]
    times = [record["timestamp"] for record in told.records]
    assert times == sorted(times)


def test_only_what_is_the_same_in_all_but_its_moment_is_a_repetition(told: Told) -> None:
    log = structlog.get_logger("tests.own")
    log.warning("failed", vm_id="vm-1", trace_id="1" * 32)
    log.warning("failed", vm_id="vm-1", trace_id="2" * 32)
    log.error("failed", vm_id="vm-1")
    log.warning("failed", vm_id="vm-1", task_id="task-1")
    log.warning("failed", vm_id="vm-1", task_id="task-2")
    log.warning("failed", vm_id="vm-2")
    logging.getLogger("other").warning("failed")
    LIBRARY.warning("failed")
    fail("one")
    fail("one")
    fail("two")

    assert len(told.records) == 7


def test_what_is_no_failure_and_what_was_decided_is_always_written(told: Told) -> None:
    for _ in range(3):
        structlog.get_logger("workers.decisions").warning("vm recovery attempt failed", vm_id="vm-1")
        LIBRARY.info("said")

    assert len(told.records) == 6


def test_threads_lose_no_count(told: Told) -> None:
    def repeat() -> None:
        for _ in range(200):
            LIBRARY.warning("gone")

    threads = [threading.Thread(target=repeat) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    told.now += 60
    LIBRARY.warning("gone")

    assert told.story == [("gone", 0), ("gone", 799)]


def test_memory_is_bounded_and_nothing_is_lost_by_that() -> None:
    repeats = Repeats(lambda: 0.0, exempt="")
    written = [
        line
        for number in range(3000)
        for _ in range(2)
        for line in repeats.passing("library", logging.WARNING, {"event": number})
    ]

    assert len(written) == 3000 + 2000
    assert len(repeats.rest()) == 1000
    assert repeats.rest() == []
