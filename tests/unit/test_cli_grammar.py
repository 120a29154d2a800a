"""The grammar that all commands share: lists that are sorted, watched and named, and what is written on the line."""

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from io import StringIO

import click
import pytest

from tests.support.builders import NOW_MS
from workers.cli import arguments
from workers.cli.listing import Column, Order, natural, show_list, sort_option, sorted_by
from workers.cli.targets import ends_in, held, until
from workers.cli.watching import again_and_again, draw, screenful
from workers.domain.errors import StoreUnavailable
from workers.domain.modes import Hold, InForce, Mode, Modes, Scope

COLUMNS: Sequence[Column[dict[str, object]]] = (
    Column("VM", lambda row: row["vm"]),
    Column("LAST SEEN", lambda row: f"{row['seen']} ago", key=lambda row: row["seen"]),
    Column("PID", lambda row: row.get("pid"), wide=True),
)
ROWS: list[dict[str, object]] = [{"vm": "vm-10", "seen": 5, "pid": 7}, {"vm": "vm-2", "seen": 40}]


def names(rows: list[dict[str, object]]) -> list[object]:
    return [row["vm"] for row in rows]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (None, ["vm-10", "vm-2"]),
        (Order("vm"), ["vm-2", "vm-10"]),
        (Order("vm", falling=True), ["vm-10", "vm-2"]),
        (Order("last-seen"), ["vm-10", "vm-2"]),
        (Order("last-seen", falling=True), ["vm-2", "vm-10"]),
        (Order("pid"), ["vm-10", "vm-2"]),
        (Order("pid", falling=True), ["vm-10", "vm-2"]),
    ],
)
def test_lists_are_sorted_by_a_column_and_what_has_no_value_comes_last(
    order: Order | None, expected: list[object]
) -> None:
    assert names(sorted_by(ROWS, COLUMNS, order)) == expected


def test_names_are_sorted_as_people_count_and_odd_digits_do_no_harm() -> None:
    assert sorted(["vm-10", "vm-²", "vm-2"], key=natural) == ["vm-2", "vm-10", "vm-²"]


@click.command("list")
@sort_option(COLUMNS)
def sorting(sort: Order | None) -> None:
    click.echo(sort)


def test_a_wrong_column_is_told_with_those_there_are() -> None:
    with pytest.raises(click.BadParameter, match="no column 'x'; there are vm, last-seen, pid"):
        sorting.main(["--sort", "x"], standalone_mode=False)
    with pytest.raises(click.BadParameter, match=r"did you mean last-seen\?"):
        sorting.main(["--sort", "lastseen"], standalone_mode=False)


@pytest.mark.parametrize(
    ("output", "shown"),
    [
        ("table", "VM     LAST SEEN\nvm-10  5 ago\nvm-2   40 ago\n"),
        ("wide", "VM     LAST SEEN  PID\nvm-10  5 ago      7\nvm-2   40 ago     -\n"),
        ("name", "vm-10\nvm-2\n"),
    ],
)
def test_each_form_shows_its_part(output: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    show_list(ROWS, COLUMNS, output, nothing="no VMs")

    assert capsys.readouterr().out == shown


def test_an_empty_list_says_so_beside_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    show_list([], COLUMNS, "table", nothing="no VMs")

    assert capsys.readouterr() == ("", "no VMs\n")


# --- again and again


def looks(*texts: str | Exception) -> Callable[[], None]:
    """Show one after the other, then end as Ctrl-C does."""
    left = iter(texts)

    def show() -> None:
        text = next(left, None)
        if text is None:
            raise KeyboardInterrupt
        if isinstance(text, Exception):
            raise text
        click.echo(text)

    return show


def test_without_watch_it_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    again_and_again(None, looks("once"))

    assert capsys.readouterr().out == "once\n"


def test_into_a_pipe_go_plain_blocks_and_an_outage_ends_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt):
        again_and_again(0.001, looks("one", StoreUnavailable("Redis: gone"), "two"))

    assert capsys.readouterr() == ("one\n\n\ntwo\n\n", "Redis: gone; trying again\n")


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_it_is_drawn_over_and_the_terminal_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    with pytest.raises(KeyboardInterrupt):
        again_and_again(0.001, looks("one", StoreUnavailable("Redis: gone"), "two"))

    drawn = terminal.getvalue()
    assert drawn.count("\x1b[2J") == 1, "a screen that is cleared each time flickers"
    blocks = [part.split("\x1b[K")[0] for part in drawn.split("\x1b[H")[2:]]
    assert blocks == ["one", "Redis: gone; trying again", "two"]
    assert drawn.endswith("\x1b[?7h\x1b[?25h")


def test_an_outage_at_the_first_look_is_an_error() -> None:
    with pytest.raises(StoreUnavailable):
        again_and_again(0.001, looks(StoreUnavailable("Redis: gone")))


def test_what_has_no_room_on_the_screen_is_counted() -> None:
    text = "".join(f"{number}\n" for number in range(10))

    assert screenful(text, 5).replace("\x1b[K", "") == "0\n1\n2\n… and 7 more lines\n"
    assert screenful("0\n1\n", 5).replace("\x1b[K", "") == "0\n1\n"
    draw("")


# --- what is written on the line


def read(callback: Callable[..., object], text: str) -> object:
    option = click.Option(["--x"])
    return callback(click.Context(click.Command("c")), option, text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", timedelta(hours=2)),
        ("2026-11-24T18:00Z", datetime(2026, 11, 24, 18, tzinfo=UTC)),
        ("2026-11-24T19:00+01:00", datetime(2026, 11, 24, 18, tzinfo=UTC)),
    ],
)
def test_times_are_ages_or_moments_with_a_zone(text: str, expected: object) -> None:
    assert read(arguments.moment_or_age, text) == expected


@pytest.mark.parametrize(
    ("callback", "text", "said"),
    [
        (arguments.moment, "2026-11-24T18:00", "must say its time zone: write 2026-11-24T18:00Z for UTC"),
        (arguments.moment, "6 pm", "must be a time like 2026-11-24T18:00Z"),
        (arguments.moment_or_age, "yesterday", "must be how long ago, like 2h, or a time like 2026-11-24T18:00Z"),
        (arguments.moment_or_age, "2026-11-24", "must say its time zone"),
        (arguments.span, "0s", "must be more than nothing and at most 365d"),
        (arguments.span, "400d", "must be more than nothing and at most 365d"),
        (arguments.span, "2", "must be a duration: write it with a unit"),
    ],
)
def test_wrong_times_are_told_with_a_right_one(callback: Callable[..., object], text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said.replace(" ", r"\s")):
        read(callback, text)


# --- what holds where


def a_hold(mode: Mode, **fields: int) -> Hold:
    return Hold("id", mode, "cli:root", "why", NOW_MS, **fields)


def test_a_host_is_held_by_the_fleet_too_but_not_by_its_vms() -> None:
    modes = Modes(
        {
            "fleet": Scope((a_hold(Mode.OBSERVE_ONLY),)),
            "host:h1": Scope((a_hold(Mode.PAUSED),)),
            "vm:vm-1": Scope((a_hold(Mode.MAINTENANCE),)),
        }
    )

    def of(scope: str) -> list[str]:
        return [each.scope for each in held(scope, modes, {"vm-1": "h1"}, NOW_MS)]

    assert of("vm:vm-1") == ["host:h1", "vm:vm-1", "fleet"]
    assert of("host:h1") == ["host:h1", "fleet"]
    assert of("fleet") == ["fleet"]


@pytest.mark.parametrize(
    ("hold", "mode", "words", "short"),
    [
        (a_hold(Mode.PAUSED), Mode.PAUSED, "until it is lifted", "when lifted"),
        (
            a_hold(Mode.PAUSED, until_ms=NOW_MS + 7_200_000),
            Mode.PAUSED,
            "until 2027-01-15T10:00:00Z (2h left)",
            "in 2h",
        ),
        (
            a_hold(Mode.MAINTENANCE, until_ms=NOW_MS - 1000, settle_ms=30_000),
            Mode.OBSERVE_ONLY,
            "until 2027-01-15T08:00:29Z (29s left)",
            "in 29s",
        ),
    ],
)
def test_the_end_of_a_hold_is_told(hold: Hold, mode: Mode, words: str, short: str) -> None:
    each = InForce(mode, "fleet", hold)

    assert (until(each, NOW_MS), ends_in(each, NOW_MS)) == (words, short)
