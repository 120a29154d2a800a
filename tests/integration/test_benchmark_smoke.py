"""The benchmarks still run; what they measure here means nothing."""

import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support.processes import start_process

_SCRIPTS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(script: str, *arguments: str, tmp_path: Path) -> tuple[str, Any]:
    """Return what it printed and the figures it wrote; it has to end well and leave nothing behind."""
    found = tmp_path / "found.json"
    command = [sys.executable, str(_SCRIPTS / script), *arguments, "--json", str(found)]

    # Not below tmp_path, which is too long for sockets.
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        with start_process(command, log_path=tmp_path / "out.log", env={"TMPDIR": folder}) as benchmark:
            status = benchmark.popen.wait(200)
        left = list(Path(folder).iterdir())

    assert status == 0, benchmark.log_tail()
    assert left == []
    return benchmark.log(), json.loads(found.read_text("utf-8"))


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_the_check_path_prints_its_table_and_leaves_nothing_behind(tmp_path: Path) -> None:
    require("a C compiler", shutil.which("cc") is not None, "apt-get install gcc libc6-dev")

    text, found = run("check_path.py", "--vms", "20", "--seconds", "1", "--rate", "200", tmp_path=tmp_path)

    for way in ("this system", "one task per VM", "bare epoll loop"):
        assert way in text
        assert all(window["checks"] for window in found["found"]["windows"][way])


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_admission_prints_its_tables_and_counts_one_round_trip(tmp_path: Path) -> None:
    text, found = run("admission.py", "--seconds", "0.5", "--many", "50", tmp_path=tmp_path)

    assert len(found["states"]) == 4
    for state, took in found["states"].items():
        assert state in text
        assert took["ms"]["admission"]
        assert took["round_trips"] == [1]


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_a_storm_brings_all_back_once(tmp_path: Path) -> None:
    require("a C compiler", shutil.which("cc") is not None, "apt-get install gcc libc6-dev")
    few = ("--hurt", "20", "--unhurt", "5", "--per-host", "4", "--boot-ms", "20", "--interval", "2", "--waves", "1")

    text, found = run("storm.py", *few, tmp_path=tmp_path)

    assert "over the ideal at the cap" in text
    assert len(found["storm_ms"]) == 20
    assert (found["twice"], found["lost"], found["unhurt_recovered"]) == (0, 0, 0)


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_the_fleet_page_prints_its_table(tmp_path: Path) -> None:
    arguments = ("--vms", "100", "--events", "200", "--seconds", "2", "--browsers", "2")
    text, found = run("fleet_page.py", *arguments, tmp_path=tmp_path)

    assert "100 VMs, 200 events" in text
    assert found["pages"]["overview, unchanged"]["status"] == 304


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_hooks_prints_each_state_and_leaves_nothing_behind(tmp_path: Path) -> None:
    text, found = run("hooks.py", "--vms", "3", tmp_path=tmp_path)

    assert len(found["states"]) == 5
    for state, took in found["states"].items():
        assert state in text
        assert {len(values) for values in took.values()} == {3}


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_beside_the_peers_brings_all_back_and_leaves_nothing_behind(tmp_path: Path) -> None:
    require("a C compiler", shutil.which("cc") is not None, "apt-get install gcc libc6-dev")
    few = ("--deaths", "2", "--slow-deaths", "1", "--rounds", "1", "--again", "0", "--at-once", "3")

    text, found = run("peers.py", *few, "--only", "this system", tmp_path=tmp_path)

    assert "many at once, old (3)" in text
    assert len(found["ms"]["one at a time, young: this system"][0]) == 2
    assert len(found["ms"]["many at once, young: this system, 16 at once"][0]) == 3


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_hangs_finds_each_and_compares_it_with_the_settings(tmp_path: Path) -> None:
    require("a C compiler", shutil.which("cc") is not None, "apt-get install gcc libc6-dev")
    few = ("--vms", "20", "--hangs", "4", "--seconds", "5", "--profile", "fast")

    text, found = run("hangs.py", *few, tmp_path=tmp_path)

    assert "known within 5 + 3 x 2 + 2 x 0.5 = 12 s" in text
    assert [len(each["hangs"]) for each in found["profiles"].values()] == [4]
    assert found["profiles"]["fast"]["untouched_recovered"] == 0


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_the_footprint_measures_each_size_of_a_host(tmp_path: Path) -> None:
    require("a C compiler", shutil.which("cc") is not None, "apt-get install gcc libc6-dev")
    few = ("--vms", "20", "--most", "40", "--restarts", "1", "--seconds", "3")

    text, found = run("footprint.py", *few, tmp_path=tmp_path)

    assert "empty host 0 VMs, full host 20 VMs, crowded host 40 VMs" in text
    sizes = found["sizes"]
    assert [size["vms"] for size in sizes.values()] == [0, 20, 40]
    assert sizes["crowded host"]["descriptors"] > sizes["full host"]["descriptors"] > sizes["empty host"]["descriptors"]


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_beats_prints_its_table_and_leaves_nothing_behind(tmp_path: Path) -> None:
    sizes = ("--small", "100", "--middle", "200", "--large", "500")
    short = ("--interval", "3", "--seconds", "3", "--beats", "2", "--kills", "1")
    text, found = run("beat_scale.py", *sizes, *short, tmp_path=tmp_path)

    figures = {figure["name"]: figure for figure in found["figures"]}
    assert all(name in text for name in figures)
    assert figures["large fleet: due VMs"]["median"] > 0
    assert figures["2 beats: VMs claimed twice"]["max"] == 0


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_whole_fleets_prints_a_column_per_fleet_and_draws_its_plot(tmp_path: Path) -> None:
    sizes = ("--sizes", "100,200", "--interval", "2", "--settle", "3", "--seconds", "4", "--windows", "1")
    more = ("--script-seconds", "1", "--processes", "2", "--plot", str(tmp_path / "plot.svg"))

    text, found = run("fleet_in_a_box.py", *sizes, *more, tmp_path=tmp_path)

    assert "Redis bytes per VM" in text
    assert [size["vms"] for size in found["sizes"]] == [100, 200]
    assert all(window["checks"] > 0 for size in found["sizes"] for window in size["windows"])
    assert found["sizes"][1]["windows"][0]["events"]["recovered"] >= 50
    assert "<svg" in (tmp_path / "plot.svg").read_text("utf-8")


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_deaths_tells_when_each_was_known_and_where_its_time_went(tmp_path: Path) -> None:
    require("a C compiler", shutil.which("cc") is not None, "apt-get install gcc libc6-dev")
    few = ("--vms", "12", "--deaths", "3", "--runs", "2", "--standins", "4", "--rate", "100", "--watched", "250")

    text, found = run("deaths.py", *few, tmp_path=tmp_path)

    names = {figure["name"] for figure in found["figures"]}
    for load in ("idle", "under check load"):
        assert f"death known, tiny VMM, {load}: p99" in names
        assert f"beyond the VMM's start, stand-in VMM, {load}: p50" in names
    assert "descriptors per VMM watched" in names
    assert "committed: record, slots, audit; told" in text
