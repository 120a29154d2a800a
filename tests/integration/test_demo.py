"""The demo as its user starts it: a process with a report, and nothing left behind however it ends."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import require
from tests.support.leftovers import assert_nothing_is_left, processes_of
from tests.support.processes import RunningProcess, start_process, wait_until
from workers.demo.home import Home
from workers.demo.outside import are_free
from workers.demo.plan import Fault
from workers.demo.sampler import Sampler

DEMO = [sys.executable, "-m", "workers.cli", "demo"]
# Waits for a condition; Python, Redis, Celery and Flower have to load first, on a machine that may be busy.
PATIENCE_S = 50.0


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "t"
    folder.mkdir()
    return folder


@contextmanager
def running_demo(temporary: Path, *words: str) -> Iterator[RunningProcess]:
    """Start one whose folder is made in `temporary`; its output and its logs go to one file."""
    log = temporary.parent / "demo.log"
    with start_process([*DEMO, *words], log_path=log, env={"TMPDIR": str(temporary)}) as process:
        yield process


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, str, dict[str, Any], Path]:
    """Play one fault of each kind; give exit status, output, report, and the folder that was used."""
    temporary = tmp_path_factory.mktemp("demo") / "t"
    temporary.mkdir()
    report = temporary.parent / "report.json"
    with (temporary.parent / "stderr.log").open("wb") as log:
        ended = subprocess.run(
            [*DEMO, "--vms", "4", "--faults", "7", "--seed", "1", "--json", str(report)],
            env={**os.environ, "TMPDIR": str(temporary)},
            stdout=subprocess.PIPE,
            stderr=log,
            timeout=PATIENCE_S,
            check=False,
        )
    return ended.returncode, ended.stdout.decode(), json.loads(report.read_text()), temporary


@pytest.mark.full
def test_every_kind_of_fault_is_recovered_and_reported(whole_run: tuple[int, str, dict[str, Any], Path]) -> None:
    status, output, report, _ = whole_run

    assert status == 0, output
    assert report["schema_version"] == 1
    assert [fault["fault"] for fault in report["faults"]] == list(Fault)
    assert (report["recovered"], report["unrecovered"]) == (7, 0)
    assert (report["doubled"], report["false_positives"]) == (0, 0)
    assert {fault["fault"]: fault["reason"] for fault in report["faults"]} == {
        Fault.SIGKILL: "process_dead",
        Fault.SIGSTOP: "health_check_failed",
        Fault.SOCKET_REMOVED: "socket_unreachable",
        Fault.OTHER_VM: "process_mismatch",
        Fault.REFUSES_STARTS: "process_dead",
        Fault.WORKER_KILLED: None,
        Fault.REDIS_KILLED: None,
    }
    assert all(fault["injected_at"] <= fault["detected_at"] <= fault["recovered_at"] for fault in report["faults"])
    assert [fault["attempts"] for fault in report["faults"]] == [1, 1, 1, 1, 3, 0, 0]


@pytest.mark.full
def test_the_verdict_stands_before_the_details(whole_run: tuple[int, str, dict[str, Any], Path]) -> None:
    _, output, _, _ = whole_run

    verdict = output.index("7 of 7 faults recovered, none doubled, no healthy VM touched")
    assert output.index("Flower: http://127.0.0.1:") < verdict < output.index("MTTD")


@pytest.mark.full
def test_a_whole_run_leaves_nothing_behind(whole_run: tuple[int, str, dict[str, Any], Path]) -> None:
    *_, temporary = whole_run

    assert_nothing_is_left(temporary)


@pytest.mark.full
def test_ctrl_c_in_the_middle_of_a_fault_leaves_nothing_behind(temporary: Path) -> None:
    with running_demo(temporary, "--vms", "3", "--faults", "2", "--seed", "1") as demo:
        demo.wait_for_log(" 1/2 ", timeout_s=PATIENCE_S)
        demo.popen.send_signal(signal.SIGINT)

        assert demo.popen.wait(PATIENCE_S) == 130
        assert_nothing_is_left(temporary)


@pytest.mark.full
def test_sigterm_while_the_vms_are_starting_leaves_nothing_behind(temporary: Path) -> None:
    with running_demo(temporary, "--vms", "3", "--faults", "2") as demo:
        wait_until(lambda: any("--id" in line for line in processes_of(temporary)), timeout_s=PATIENCE_S)
        demo.popen.send_signal(signal.SIGTERM)

        assert demo.popen.wait(PATIENCE_S) == 143
        assert_nothing_is_left(temporary)


@pytest.mark.full
def test_a_kept_fleet_can_be_played_with_until_ctrl_c(temporary: Path) -> None:
    """The line for curl is taken as it is printed."""
    require("curl", shutil.which("curl") is not None, "apt-get install curl")
    with running_demo(temporary, "--vms", "2", "--faults", "1", "--keep") as demo:
        demo.wait_for_log("until Ctrl-C", timeout_s=PATIENCE_S)
        line = next(line for line in demo.log().splitlines() if line.startswith("  curl "))
        answer = subprocess.run(shlex.split(line), capture_output=True, timeout=PATIENCE_S, check=True)
        demo.wait_for_log("vm is healthy", timeout_s=PATIENCE_S)
        demo.popen.send_signal(signal.SIGINT)

        assert "task-id" in json.loads(answer.stdout)
        assert demo.popen.wait(PATIENCE_S) == 0
        assert_nothing_is_left(temporary)


@contextmanager
def a_vmm(folder: Path, vm_id: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process that looks like a VMM to /proc, and wait until it does."""
    process = subprocess.Popen(
        [sys.executable, "-S", "-I", "-c", "import sys; sys.stdin.read()", "--id", vm_id],
        cwd=folder,
        stdin=subprocess.PIPE,
    )
    try:
        cmdline = Path(f"/proc/{process.pid}/cmdline")
        wait_until(lambda: b"--id" in cmdline.read_bytes(), what="exec")
        yield process
    finally:
        process.communicate()


def sampled(sampler: Sampler, times: int = 3) -> None:
    for _ in range(times):
        sampler.look(now=float(sampler.passes))  # each process is young, or forgotten, at every look


def test_two_live_processes_of_one_vm_are_told_once(tmp_path: Path) -> None:
    told: list[dict[str, object]] = []
    sampler = Sampler(str(tmp_path.parent), told.append)

    with a_vmm(tmp_path, "vm-01") as first, a_vmm(tmp_path, "vm-01") as second, a_vmm(tmp_path, "vm-02"):
        sampled(sampler)

    assert [line["pids"] for line in told if "doubled" in line] == [sorted([first.pid, second.pid])]


def test_a_zombie_beside_its_successor_is_no_double(tmp_path: Path) -> None:
    told: list[dict[str, object]] = []
    sampler = Sampler(str(tmp_path.parent), told.append)

    with a_vmm(tmp_path, "vm-01") as first:
        sampled(sampler)
        first.kill()
        os.waitid(os.P_PID, first.pid, os.WEXITED | os.WNOWAIT)  # dead, and still in /proc
        with a_vmm(tmp_path, "vm-01"):
            sampled(sampler)

    assert [line for line in told if "doubled" in line] == []
    assert len([line for line in told if "met" in line]) == 2


def test_names_of_other_vms_on_this_machine_are_not_free(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")

    with a_vmm(tmp_path, "vm-taken-01"):
        assert not are_free(["vm-taken-01"], home)
        assert are_free(["vm-taken-02"], home)


def test_processes_elsewhere_are_not_counted(tmp_path: Path) -> None:
    told: list[dict[str, object]] = []
    ours, others = tmp_path / "ours", tmp_path / "others"
    ours.mkdir()
    others.mkdir()

    with a_vmm(others, "vm-01"):
        sampled(Sampler(str(ours), told.append))

    assert told == []
