"""An outage of Redis as a worker lives through it: said once, then now and then; asked again ever less often."""

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs

from workers.agent import Outage

Lines = list[MutableMapping[str, Any]]


@pytest.fixture(autouse=True)
def said() -> Iterator[Lines]:
    """What is logged meanwhile, whatever another test has made of the configuration."""
    before = structlog.get_config()
    structlog.reset_defaults()
    with capture_logs() as lines:
        yield lines
    structlog.configure(**before)


def a_minute_later(outage: Outage) -> None:
    outage._said_at -= 60.1


def test_the_waits_double_up_to_four_seconds() -> None:
    outage, waits = Outage(), []
    for _ in range(7):
        outage.goes_on("refused")
        waits.append(outage.wait_s)

    assert waits == [0.25, 0.5, 1, 2, 4, 4, 4]


def test_it_is_said_once_with_the_error_however_often_redis_is_asked(said: Lines) -> None:
    outage = Outage()
    for _ in range(50):
        outage.goes_on("refused")

    assert [(line["log_level"], line["error"]) for line in said] == [("warning", "refused")]


def test_one_that_goes_on_is_said_again_each_minute(said: Lines) -> None:
    outage = Outage()
    outage.goes_on("refused")
    a_minute_later(outage)

    outage.goes_on("no route")
    outage.goes_on("no route")

    assert [line["error"] for line in said] == ["refused", "no route"]


def test_its_end_is_news_once_and_tells_how_long_it_was(said: Lines) -> None:
    outage = Outage()
    assert not outage.ends(), "there was none"
    outage.goes_on("refused")

    assert outage.ends()

    assert not outage.ends()
    assert outage.wait_s is None
    assert [line["event"] for line in said] == ["redis is away: nothing is recovered until it is back", "redis is back"]
    assert said[-1]["away_s"] >= 0


def test_the_next_one_is_said_at_once_and_begins_with_short_waits(said: Lines) -> None:
    outage = Outage()
    for _ in range(6):
        outage.goes_on("refused")
    outage.ends()

    outage.goes_on("refused")

    assert outage.wait_s == 0.25
    assert [line["log_level"] for line in said] == ["warning", "info", "warning"]
