"""The benchmark of the check path still runs; what it measures here means nothing."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.processes import start_process

_SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "check_path.py"


@pytest.mark.timeout(240)
@pytest.mark.full
def test_the_benchmark_of_the_check_path_prints_its_table_and_leaves_nothing_behind(tmp_path: Path) -> None:
    require("a C compiler", shutil.which("cc") is not None, "apt-get install gcc libc6-dev")
    found = tmp_path / "found.json"
    command = [sys.executable, str(_SCRIPT), "--vms", "20", "--seconds", "1", "--rate", "200", "--json", str(found)]

    # Not below tmp_path, which is too long for sockets.
    with tempfile.TemporaryDirectory(prefix="smoke-") as folder:
        with start_process(command, log_path=tmp_path / "out.log", env={"TMPDIR": folder}) as benchmark:
            status = benchmark.popen.wait(200)
        left = list(Path(folder).iterdir())

    assert status == 0, benchmark.log_tail()
    for way in ("this system", "one task per VM", "bare epoll loop"):
        assert way in benchmark.log()
        assert all(window["checks"] for window in json.loads(found.read_text("utf-8"))["windows"][way])
    assert left == []
