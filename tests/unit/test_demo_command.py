"""What the demo refuses before it begins, and how it takes signals."""

import os
import signal
from pathlib import Path

import pytest

from workers.demo import run
from workers.demo.interrupts import Interrupted, Interrupts


def refusal(capsys: pytest.CaptureFixture[str], **wish: object) -> str:
    plain: dict[str, object] = {
        "vms": 2,
        "faults": 2,
        "driver": "firecracker",
        "seed": None,
        "json_file": None,
        "keep": False,
    }
    assert run(**(plain | wish)) == 2  # type: ignore[arg-type] # a builder
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


@pytest.mark.parametrize("wish", [{"vms": 0}, {"faults": 0}, {"vms": -3}])
def test_a_demo_of_nothing_is_refused_in_one_line(wish: dict[str, int], capsys: pytest.CaptureFixture[str]) -> None:
    assert "at least 1" in refusal(capsys, **wish)


def test_an_unknown_driver_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "firecracker or qemu" in refusal(capsys, driver="vmware")


def test_a_report_that_could_not_be_written_is_refused_before_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no folder" in refusal(capsys, json_file=tmp_path / "missing" / "r.json")
    assert "is a folder" in refusal(capsys, json_file=tmp_path)


def test_a_signal_is_noted_and_told_when_it_is_asked_for() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Interrupted) as told:
            interrupts.check()

    assert told.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before
