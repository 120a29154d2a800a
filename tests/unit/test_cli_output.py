"""How the command line writes: text that cannot steer a terminal, times, ages, columns, events."""

import json

import pytest

from tests.support.builders import NOW_MS, a_vm, an_episode
from workers.cli.documents import event_document, vm_document
from workers.cli.events import event_line
from workers.cli.listing import in_order
from workers.cli.output import (
    clean,
    clean_lines,
    show_json,
    show_table,
)
from workers.cli.vm import episode_in_short
from workers.domain.audit import Event, EventKind
from workers.domain.vm import Episode, EpisodeEnd, State
from workers.domain.words import age, ago, iso
from workers.ports import Stored
from workers.store.events import Entry

NOW = NOW_MS


@pytest.mark.parametrize(
    ("text", "shown"),
    [("plain, ü", "plain, ü"), ("\x1b[2Jgone", "\\x1b[2Jgone"), ("a\nb\tc", "a\\nb\\tc"), ("\x9b31m", "\\x9b31m")],
)
def test_text_of_guests_cannot_steer_the_terminal(text: str, shown: str) -> None:
    assert clean(text) == shown


def test_logs_keep_their_lines_and_nothing_else_of_their_controls() -> None:
    assert clean_lines("one\r\n\ttwo\x07\x1b[31m\n") == "one\n\ttwo\\x07\\x1b[31m\n"


@pytest.mark.parametrize(
    ("ms", "shown"),
    [
        (-5, "0s"),
        (999, "0s"),
        (119_999, "119s"),
        (120_000, "2m"),
        (7_199_999, "119m"),
        (7_200_000, "2h"),
        (172_800_000, "2d"),
    ],
)
def test_ages_are_short(ms: int, shown: str) -> None:
    assert age(ms) == shown


def test_times_are_utc_with_milliseconds_and_never_is_none() -> None:
    assert iso(1_795_423_464_007) == "2026-11-23T08:44:24.007Z"
    assert (iso(0), iso(None), ago(0, NOW)) == (None, None, "never")


def test_vm_2_comes_before_vm_10() -> None:
    assert in_order(["vm-10", "vm-2", "db", "vm-2a", "7", "vm-1"]) == ["7", "db", "vm-1", "vm-2", "vm-2a", "vm-10"]


def test_columns_stand_below_each_other_and_nothing_is_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300

    show_table(["VM", "WHY"], [("vm-1", None), ("vm-1000", long)], indent=2)

    assert capsys.readouterr().out == f"  VM       WHY\n  vm-1     -\n  vm-1000  {long}\n"


def test_every_document_has_the_schema_version(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"vms": []})

    assert json.loads(capsys.readouterr().out) == {"schema_version": 1, "vms": []}


@pytest.mark.parametrize(
    ("episode", "shown"),
    [
        (None, ""),
        (an_episode(end=EpisodeEnd.RECOVERED), ""),
        (an_episode(end=EpisodeEnd.FAILED, attempt=3), "process_dead, 3 attempts failed"),
        (an_episode(attempt=1, running=True, attempt_started_ms=NOW - 4000), "process_dead, attempt 1 for 4s"),
        (an_episode(attempt=1, next_attempt_ms=NOW + 30_000), "process_dead, attempt 2 in 30s"),
        (an_episode(attempt=1, next_attempt_ms=NOW - 1), "process_dead, attempt 2 due"),
    ],
)
def test_an_episode_is_told_in_few_words(episode: Episode | None, shown: str) -> None:
    assert episode_in_short(a_vm(episode=episode), NOW) == shown


def keys(text: str) -> set[str]:
    return set(text.split())


def test_the_keys_of_a_vm_are_a_promise() -> None:
    document = vm_document(Stored(a_vm(episode=an_episode()), rev=1, checked_ms=NOW))

    assert set(document) == keys(
        "desired doubt driver episode fails generation host id last_check last_exit lease_owner passes priority "
        "process since socket state"
    )
    assert set(document["episode"]) == keys(
        "attempt attempt_started end ended error id next_attempt reason request_id running spent_ms started"
    )


def an_entry(kind: EventKind, **fields: object) -> Entry:
    plain: dict[str, object] = {"vm_id": "vm-1", "host": "h1", "actor": "recovery", "why": "vm vm-1: no \x1b kernel"}
    return Entry(f"{NOW}-0", Event(kind, **(plain | fields)))  # type: ignore[arg-type] # a builder


@pytest.mark.parametrize(
    ("entry", "happening"),
    [
        (an_entry(EventKind.TRANSITION, before=State.HEALTHY, after=State.ORPHANED), "healthy -> orphaned"),
        (an_entry(EventKind.ATTEMPT_FAILED, attempt=2), "attempt 2 failed"),
        (an_entry(EventKind.STOPPED_AGAIN), "stopped again"),
    ],
)
def test_an_event_is_one_line_without_its_vm_twice(entry: Entry, happening: str) -> None:
    line = event_line(entry)

    assert line.split("  ")[0] == iso(NOW)
    assert happening in line
    assert line.endswith("  no \\x1b kernel (by recovery)")


def test_the_keys_of_an_event_are_a_promise() -> None:
    assert set(event_document(an_entry(EventKind.STRAY))) == keys(
        "actor after at attempt before cause generation host id kind reason request_id scope trace_id vm_id why"
    )
