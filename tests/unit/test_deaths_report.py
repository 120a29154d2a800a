"""What the benchmark of deaths reads out of the times that a worker wrote down."""

import pytest

from tests.benchmarks.deaths_report import (
    Lost,
    Run,
    checks_per_s,
    figures_of,
    mark,
    notes_of,
    percentile,
    stage_table,
    stages,
)
from tests.benchmarks.figures import Figure
from workers.crashpoints import Point

TIMES = """\
9.900000 known vm-9
10.000500 known vm-1
10.001500 before_verdicts
10.002500 before_call
10.003000 checked 500
10.030000 looked
10.090000 looked
11.000700 known vm-2
11.001000 checked 100
11.0020"""


def two_deaths() -> list[Lost]:
    deaths = [Lost("vm-1", 10.0, 10.003, 10.02), Lost("vm-2", 11.0, 11.002, 11.04)]
    mark(deaths, notes_of(TIMES))
    return deaths


def test_a_line_that_is_being_written_is_left_out() -> None:
    assert [note.name for note in notes_of(TIMES)].count("known") == 3
    assert list(notes_of(TIMES))[-1].at == 11.001


def test_each_death_has_the_first_note_of_each_name_after_it_and_before_the_next() -> None:
    first, second = two_deaths()

    assert first.marks == {
        "known": 10.0005,
        Point.BEFORE_VERDICTS: 10.0015,
        Point.BEFORE_CALL: 10.0025,
        Point.LOOKED: 10.03,
    }
    assert second.marks == {"known": 11.0007}


def test_a_death_that_a_check_saw_first_was_known_then() -> None:
    seen_by_a_check = Lost("vm-1", 10.0, marks={"known": 10.004, Point.BEFORE_VERDICTS: 10.002})

    assert seen_by_a_check.known_ms == pytest.approx(2.0)


def test_the_rate_of_checks_counts_what_was_done_meanwhile() -> None:
    assert checks_per_s(notes_of(TIMES), 10.0, 11.0) == 500


@pytest.mark.parametrize(("share", "value"), [(0.5, 2), (0.75, 3), (0.99, 4), (1.0, 4)])
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(share: float, value: float) -> None:
    assert percentile([4, 1, 3, 2], share) == value


def test_a_stage_lasts_from_the_last_point_that_was_passed_and_points_never_reached_are_left_out() -> None:
    took = stages(two_deaths())

    assert took["killed, and the watcher knows"] == pytest.approx([0.5, 0.7])
    assert took["record written, its events told"] == pytest.approx([1.0])
    assert took["kill switch, lock, processes and API looked at"] == pytest.approx([27.5])
    assert len(took) == 4


def test_what_a_recovery_takes_beyond_the_start_of_the_vmm_alone_has_a_figure_with_a_limit() -> None:
    runs = {"tiny VMM, idle": [Run(two_deaths(), bare_ms=[4.0, 5.0, 6.0])]}

    by_name: dict[str, Figure] = {figure.name: figure for figure in figures_of(runs)}

    beyond = by_name["beyond the VMM's start, tiny VMM, idle: p50"]
    assert beyond.values == pytest.approx([15.0])
    assert (beyond.limit, beyond.is_kept) == (25.0, True)
    assert by_name["death known, tiny VMM, idle: most"].values == pytest.approx([0.7])


def test_the_table_of_stages_has_a_line_for_each_and_names_its_columns() -> None:
    table = stage_table({"tiny VMM, idle": [Run(two_deaths(), [1.0])]}).splitlines()

    assert table[0] == "A: tiny VMM, idle"
    assert any(line.startswith("message published") and line.split()[-2:] == ["-", "-"] for line in table)
