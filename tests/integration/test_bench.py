"""The bench as its user starts it: a process with a report, and nothing left behind however it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import redis

from tests.support.leftovers import assert_nothing_is_left
from tests.support.processes import start_process
from workers.embedded import EmbeddedServer

BENCH = [sys.executable, "-m", "workers.cli", "bench"]
# Waits for a condition; Python, Redis and Celery have to load first, on a machine that may be busy.
PATIENCE_S = 100.0


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "t"
    folder.mkdir()
    return folder


def test_redis_and_disk_are_measured_without_a_fleet_and_without_a_trace(tmp_path: Path, temporary: Path) -> None:
    report, state = tmp_path / "report.json", tmp_path / "state"
    state.mkdir()
    with EmbeddedServer(tmp_path / "server") as server:
        settings = {"REDIS__URL": server.url(0), "BROKER__URL": server.url(1), "STATE_DIR": str(state)}
        ended = subprocess.run(
            [*BENCH, "--quick", "--only", "redis,disk", "--json", str(report)],
            env={**os.environ, "TMPDIR": str(temporary)}
            | {f"RELIABILITY_{name}": value for name, value in settings.items()},
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        keys = redis.Redis.from_url(server.url(0)).dbsize()

    found = json.loads(report.read_text())
    assert (ended.returncode, ended.stderr) == (0, "")
    assert set(found["redis"]["round_trips_s"]) == {"PING", "TIME", "EVALSHA"}
    assert found["disk"]["fsync_s"]["runs"] == 30
    assert "Redis at redis://:***@127.0.0.1:" in ended.stdout
    assert keys == 0
    assert list(state.iterdir()) == []
    assert_nothing_is_left(temporary)


@pytest.mark.full
@pytest.mark.timeout(150)
def test_a_quick_bench_measures_everything_and_leaves_nothing_behind(tmp_path: Path, temporary: Path) -> None:
    report = tmp_path / "report.json"
    with start_process(
        [*BENCH, "--quick", "--json", str(report)], log_path=tmp_path / "bench.log", env={"TMPDIR": str(temporary)}
    ) as bench:
        assert bench.popen.wait(PATIENCE_S) == 0, bench.log_tail()

    found = json.loads(report.read_text())
    assert found["check"]["reached_per_s"] > 0
    assert found["check"]["share_of_a_processor"]["1000"] > 0
    assert found["recovery"]["recovered"] == found["recovery"]["deaths"] == 6
    assert found["hang"]["known_s"]["runs"] == 1
    assert found["idle"]["memory_mib"]["worker"] > 0
    assert_nothing_is_left(temporary)


@pytest.mark.full
@pytest.mark.timeout(150)
def test_ctrl_c_while_a_vm_hangs_leaves_nothing_behind(tmp_path: Path, temporary: Path) -> None:
    words = ("--quick", "--only", "hang")
    with start_process([*BENCH, *words], log_path=tmp_path / "bench.log", env={"TMPDIR": str(temporary)}) as bench:
        bench.wait_for_log("hangs: 1 of 1", timeout_s=PATIENCE_S)
        bench.popen.send_signal(signal.SIGINT)

        assert bench.popen.wait(PATIENCE_S) == 130, bench.log_tail()
        assert_nothing_is_left(temporary)
