"""The units for systemd: they name settings that exist, VMs outlive their worker, and systemd understands them."""

import shutil
import subprocess
from pathlib import Path

import pytest

from workers.settings import load

UNITS = Path(__file__).parents[2] / "config" / "systemd"
NAMES = ["worker", "beat", "flower"]
# Each start of the worker would see other files, devices or processes than the VMMs of the one before.
NAMESPACES = {
    "PrivateTmp",
    "PrivateDevices",
    "PrivateNetwork",
    "PrivateUsers",
    "ProtectSystem",
    "ProtectHome",
    "ProtectControlGroups",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectKernelLogs",
    "ProtectClock",
    "ProtectProc",
    "ProcSubset",
    "DynamicUser",
}


def directives(name: str) -> dict[str, list[str]]:
    """Read all values of each name; systemd lets a name stand more than once."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / f"reliability-{name}.service").read_text().splitlines():
        if line and not line.startswith(("#", "[")):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_each_unit_runs_its_program_and_starts_it_again(name: str) -> None:
    unit = directives(name)

    assert unit["ExecStart"] == [f"/usr/local/bin/reliability {name}"]
    assert unit["Restart"] == ["always"]
    assert unit["StartLimitIntervalSec"] == ["0"]


@pytest.mark.parametrize("name", NAMES)
def test_credentials_reach_the_settings(tmp_path: Path, name: str) -> None:
    unit = directives(name)
    credentials = [each.partition(":")[0] for each in unit["LoadCredential"]]
    for each in credentials:
        (tmp_path / each).write_text("user:password\n" if each == "flower-basic-auth" else "redis://:pw@h/0\n")
    (tmp_path / "broker-url").write_text("redis://:pw@h/1\n")
    environ = dict(each.replace("%d", str(tmp_path)).split("=", 1) for each in unit["Environment"])

    result = load({"HOME": "/", **environ}, tmp_path)

    from_files = {source.removeprefix(f"file {tmp_path}/").split()[0] for source in result.sources.values()}
    assert from_files - {"default"} == set(credentials)
    assert (result.settings.flower.basic_auth is not None) == (name == "flower")


def test_vms_outlive_their_worker() -> None:
    unit = directives("worker")

    assert unit["KillMode"] == ["process"]
    assert unit["OOMPolicy"] == ["continue"]
    assert not NAMESPACES & unit.keys()
    assert "NoNewPrivileges" not in unit


def test_a_worker_has_the_time_to_finish_an_attempt(tmp_path: Path) -> None:
    [seconds] = directives("worker")["TimeoutStopSec"]
    deadline = load({"HOME": "/"}, tmp_path).settings.attempt_deadline
    assert int(seconds.removesuffix("s")) > deadline.total_seconds()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze (Debian package systemd)")
def test_systemd_understands_all_units(tmp_path: Path) -> None:
    copies = [tmp_path / f"reliability-{name}.service" for name in NAMES]
    for copy in copies:
        # It looks for the program, which is installed elsewhere here.
        copy.write_text((UNITS / copy.name).read_text().replace("/usr/local/bin/reliability", "/bin/true"))

    checked = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *copies], capture_output=True, text=True, timeout=30, check=False
    )

    # It also tells of other units of this machine.
    assert [line for line in checked.stderr.splitlines() if "reliability-" in line] == []
