"""What moved between two runs of the benchmarks, by documents made here; and what is kept of earlier runs."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks import everything, figures, ratios
from tests.benchmarks.everything import RUNS, Run, run_all, tell
from tests.benchmarks.figures import Better, Figure
from tests.benchmarks.ratios import KEPT, Ratio, Unusable, Verdict, keep, main, read_documents, read_kept, verdict

BENCHMARKS = Path(everything.__file__).parent


def a_ratio(least: float, median: float, most: float, better: Better = Better.LOWER) -> Ratio:
    return Ratio(better, None, 3, least, median, most)


def a_document(*found: Figure, bench: str = "deaths", commit: str = "0123456789ab", **more: Any) -> dict[str, Any]:
    return figures.document(bench, found, **more) | {"commit": commit}


def naive(*values: float, limit: float | None = None) -> Figure:
    return Figure("times the naive one", "ratio", values, Better.HIGHER, limit)


def written(folder: Path, document: dict[str, Any], name: str = "found.json") -> Path:
    file = folder / name
    figures.write(file, document)
    return file


def compared(
    folder: Path, before: dict[str, Any], now: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    kept = folder / "ratios.json"
    keep({ratios.name_of(before): before}, kept)
    status = main(["compare", "--kept", str(kept), str(written(folder, now))])
    return status, capsys.readouterr().out


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (a_ratio(1.9, 2.0, 2.1), Verdict.SAME),
        (a_ratio(2.11, 2.15, 2.2), Verdict.SAME),
        (a_ratio(2.0, 2.6, 3.0), Verdict.SAME),
        (a_ratio(2.2, 2.3, 2.4), Verdict.WORSE),
        (a_ratio(1.5, 1.6, 1.7), Verdict.BETTER),
        (None, Verdict.MISSING),
    ],
    ids=["as before", "within the tolerance", "runs overlap", "grew", "shrank", "gone"],
)
def test_a_move_counts_beyond_the_runs_and_beyond_the_tolerance(now: Ratio | None, expected: Verdict) -> None:
    assert verdict(a_ratio(1.9, 2.0, 2.1), now) is expected


def test_where_more_is_better_growing_is_good() -> None:
    before = a_ratio(20, 21, 22, Better.HIGHER)

    assert verdict(before, a_ratio(30, 31, 32, Better.HIGHER)) is Verdict.BETTER
    assert verdict(before, a_ratio(10, 11, 12, Better.HIGHER)) is Verdict.WORSE


def test_a_ratio_that_was_never_kept_is_new() -> None:
    assert verdict(None, a_ratio(1, 2, 3)) is Verdict.NEW


def test_what_got_worse_is_told_first_and_gives_status_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Figure("times the bare loop", "ratio", [2.0, 2.1])

    status, out = compared(tmp_path, a_document(other, naive(20, 22)), a_document(other, naive(10, 12)), capsys)

    worse = out.splitlines()[1]
    assert status == 1
    assert all(word in worse for word in ("times the naive one", "21 (20-22)", "11 (10-12)", "-48%", "WORSE"))
    assert "1 WORSE, 1 same, 0 limits missed" in out


def test_what_is_new_or_missing_is_told_and_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    renamed = Figure("times the peer", "ratio", [3.0])

    status, out = compared(tmp_path, a_document(naive(20, 22)), a_document(renamed), capsys)

    assert status == 0
    assert "1 new, 1 missing" in out


def test_a_missed_limit_gives_status_1_whatever_its_unit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    late = Figure("death known, p99", "ms", [6.0, 7.0, 8.0], limit=5.0)

    status, out = compared(tmp_path, a_document(), a_document(late), capsys)

    assert status == 1
    assert "limit missed: deaths: death known, p99: 7 ms, limit <= 5" in out


def test_another_number_of_processors_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = a_document(naive(20))
    before = now | {"machine": {"processors": 64}}

    _, out = compared(tmp_path, before, now, capsys)

    assert "64 processors then" in out


def test_only_ratios_are_kept_and_other_benchmarks_stay_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "ratios.json"
    keep({"hooks": a_document(naive(5), bench="hooks")}, file)

    keep({"deaths": a_document(naive(20, 21, 23), Figure("known", "ms", [1.0]))}, file)

    kept = read_kept(file)
    assert list(kept) == ["deaths", "hooks"]
    assert kept["deaths"].ratios == {"times the naive one": Ratio(Better.HIGHER, None, 3, 20, 21, 23)}


@pytest.mark.parametrize("commit", ["0123456789ab+", "unknown"])
def test_what_no_commit_answers_for_is_kept_only_when_asked(
    commit: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document, kept = written(tmp_path, a_document(naive(20), commit=commit)), tmp_path / "ratios.json"

    assert main(["keep", "--kept", str(kept), str(document)]) == 2
    assert "--dirty" in capsys.readouterr().err
    assert not kept.exists()

    assert main(["keep", "--dirty", "--kept", str(kept), str(document)]) == 0
    assert read_kept(kept)["deaths"].commit == commit


def test_two_runs_of_one_benchmark_are_told_apart_by_their_variant(tmp_path: Path) -> None:
    plain = written(tmp_path, a_document(naive(20)), "a.json")
    other = written(tmp_path, a_document(naive(30), variant="200 hurt"), "b.json")

    assert list(read_documents([plain, other])) == ["deaths", "deaths 200 hurt"]
    with pytest.raises(Unusable, match="twice"):
        read_documents([plain, plain])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "bench": "x", "figures": [{}]}'])
def test_what_is_no_document_is_refused_by_name(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    file.write_text(text)

    assert main(["compare", str(file), "--kept", str(tmp_path / "none.json")]) == 2
    assert "found.json: " in capsys.readouterr().err


def test_the_kept_ratios_can_be_read_and_are_those_of_benchmarks_that_exist() -> None:
    for name, bench in read_kept(KEPT).items():
        assert (BENCHMARKS / f"{name.partition(' ')[0]}.py").is_file(), name
        assert bench.commit
        assert all(ratio.min <= ratio.median <= ratio.max for ratio in bench.ratios.values())


def test_every_benchmark_that_is_run_exists_and_is_named_once() -> None:
    assert [run.name for run in RUNS if not run.path.is_file()] == []
    assert len({run.name for run in RUNS}) == len(RUNS)


@pytest.mark.full
@pytest.mark.parametrize("run", RUNS, ids=[run.name for run in RUNS])
def test_a_benchmark_knows_the_options_it_is_run_with(run: Run) -> None:
    known = subprocess.run([sys.executable, str(run.path), "--help"], capture_output=True, text=True, check=True).stdout

    assert [word for word in [*run.options, *run.quick] if word.startswith("--") and f"{word} " not in known] == []


class Script(Run):
    """A benchmark made in a test."""

    @property
    def path(self) -> Path:
        return Path(self.script)


def a_script(folder: Path, name: str, *lines: str, variant: str = "") -> Script:
    file = folder / f"{name}.py"
    file.write_text("\n".join(lines))
    return Script(str(file), variant=variant)


def run(folder: Path, scripts: Sequence[Script]) -> bool:
    return tell(run_all(scripts, folder / "out", quick=True), quick=True)


def test_a_benchmark_that_fails_is_told_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json.dumps(a_document(naive(20, 21, 23), bench="good"))
    broken = a_script(tmp_path, "broken", "raise SystemExit('no VMMs')")
    silent = a_script(tmp_path, "silent", "print('nothing')")
    good = a_script(tmp_path, "good", f"import sys; open(sys.argv[-1], 'w').write({found!r})", variant="200 hurt")

    assert run(tmp_path, [broken, silent, good]) is False

    out = capsys.readouterr().out
    assert "good 200 hurt: times the naive one  21      20-23       3" in out
    assert "broken.py FAILED: status 1" in out
    assert "    no VMMs" in out
    assert "silent.py FAILED: wrote no document" in out
    assert "1 of 3 benchmarks ran" in out
