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
        assert all(window["checks"] for window in found["windows"][way])


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_admission_prints_its_tables_and_counts_one_round_trip(tmp_path: Path) -> None:
    text, found = run("admission.py", "--seconds", "0.5", "--many", "50", tmp_path=tmp_path)

    assert len(found) == 4
    for state, took in found.items():
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
    assert found["overview, unchanged"]["status"] == 304


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_hooks_prints_each_state_and_leaves_nothing_behind(tmp_path: Path) -> None:
    text, found = run("hooks.py", "--vms", "3", tmp_path=tmp_path)

    assert len(found) == 5
    for state, took in found.items():
        assert state in text
        assert {len(values) for values in took.values()} == {3}
