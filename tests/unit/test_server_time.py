"""What this host knows of Redis's clock: never earlier than it is, also for the next process of this boot."""

from pathlib import Path

import pytest

from workers.integration.server_time import ServerTime, boot_ms

BOOT = "boot-1"
AHEAD_MS = 1_000_000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / ".server-time.json"


def seen(known: ServerTime, *, ahead_ms: int = AHEAD_MS, took_ms: int = 0) -> None:
    """Redis, so far ahead of our clock, told its time when it was asked; its answer took so long."""
    asked_ms = boot_ms() - took_ms
    known.saw(asked_ms + ahead_ms, asked_ms=asked_ms)


def ahead(known: ServerTime) -> int:
    before = boot_ms()
    now_ms = known.now_ms()
    assert now_ms is not None
    return now_ms - before


def about(offset_ms: int) -> object:
    return pytest.approx(offset_ms, abs=1000)


def test_it_is_unknown_until_redis_was_met_in_this_boot(path: Path) -> None:
    known, other = ServerTime(path, BOOT), ServerTime(path, BOOT)
    assert known.now_ms() is None
    seen(known)
    assert [ahead(known), ahead(other)] == [about(AHEAD_MS)] * 2
    assert ServerTime(path, "boot-2").now_ms() is None


def test_of_a_slow_answer_the_latest_possible_time_counts_until_a_quicker_one_tells_more(path: Path) -> None:
    known = ServerTime(path, BOOT)
    asked_ms = boot_ms() - 30_000
    known.saw(boot_ms() + AHEAD_MS, asked_ms=asked_ms)
    assert ahead(known) == about(AHEAD_MS + 30_000)
    seen(known)
    assert ahead(known) == about(AHEAD_MS)
    known.saw(boot_ms() + AHEAD_MS, asked_ms=asked_ms)
    assert ahead(known) == about(AHEAD_MS)


@pytest.mark.parametrize("set_by_ms", [-3_600_000, 3_600_000])
def test_a_clock_of_redis_that_was_set_is_followed(path: Path, set_by_ms: int) -> None:
    known = ServerTime(path, BOOT)
    seen(known)
    seen(known, ahead_ms=AHEAD_MS + set_by_ms)
    assert ahead(known) == about(AHEAD_MS + set_by_ms)


def test_a_damaged_file_is_no_time(path: Path) -> None:
    path.write_text("{")
    assert ServerTime(path, BOOT).now_ms() is None
