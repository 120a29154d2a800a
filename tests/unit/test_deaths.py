"""Between the watcher and the services: deaths are told first, and their causes are kept whatever becomes of that."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from workers.domain.errors import StoreUnavailable
from workers.domain.vm import Incarnation
from workers.host.rundir import HostFiles, Run
from workers.host.watcher import Death
from workers.ports import Ended
from workers.runtime import Deaths

PROCESS = Incarnation(4711, 1, "boot", "machine", 1)
DEATH = Death("vm-1", PROCESS, "signal 9")


@pytest.fixture
def files(tmp_path: Path) -> HostFiles:
    files = HostFiles(tmp_path)
    files.prepare()
    return files


@pytest.fixture
def run(files: HostFiles) -> Run:
    begun = files.begin("vm-1", 10, driver="firecracker", spec="{}")
    begun.write_process(PROCESS)
    return begun


def test_a_death_is_told_before_its_cause_is_kept_on_the_disk(files: HostFiles, run: Run) -> None:
    kept_when_told: list[str | None] = []
    deaths = Deaths(files)
    deaths.tell = lambda ended: kept_when_told.append(run.exit_cause) if "vm-1" in ended else None

    left = deaths.deliver([DEATH])

    assert list(left) == []
    assert kept_when_told == [None]
    assert run.exit_cause == "signal 9"


def test_a_death_that_cannot_be_told_comes_again_and_its_cause_is_kept(files: HostFiles, run: Run) -> None:
    def tell(_: Mapping[str, Ended]) -> None:
        raise StoreUnavailable("away")

    deaths = Deaths(files)
    deaths.tell = tell

    assert deaths.deliver([DEATH]) == [DEATH]
    assert run.exit_cause == "signal 9"
