"""The host itself fails: no descriptors, a full or read-only state folder, sockets swept away, a wrong clock."""

import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.chaos import Arena, arena, die, hang, sweeps_pass
from workers.domain.vm import State
from workers.embedded import EmbeddedServer

# Starts fail as long as the host does: more attempts than usual, and no long waits, so that its end is seen in time.
_PATIENT = {"RECOVERY__MAX_RETRIES": "50", "RECOVERY__MAX_RETRY_INTERVAL": "500ms"}

# Fewer than are open: no more can be opened, and what is open stays.
_NONE_IS_FREE = 3


@pytest.fixture
def here(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Arena]:
    with arena(tmp_path, fresh_server, **_PATIENT) as made:
        made.site.start_beat()
        yield made


@pytest.fixture
def on_a_small_disk(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Arena]:
    """The state folder is a file system of 4 MiB."""
    state = tmp_path / "state"
    state.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(state)], check=False)
    require("the right to mount", mounted.returncode == 0, "run as root")
    try:
        with arena(tmp_path, fresh_server, **_PATIENT) as made:
            made.site.start_beat()
            yield made
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_a_worker_without_free_descriptors_judges_nobody(here: Arena) -> None:
    site = here.site
    worker = site.start_successor()
    before = site.run_vms(*[f"fd-{number}" for number in range(1, 7)])
    limits = resource.prlimit(worker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, (_NONE_IS_FREE, limits[1]))
    here.injure("fd-1", die)
    sweeps_pass(worker, 3)
    assert all(site.record(vm_id).process == before[vm_id].process for vm_id in before if vm_id != "fd-1")
    assert "Exception in thread" not in worker.log(), "whatever cannot be written, the watcher lives on"
    resource.prlimit(worker.pid, resource.RLIMIT_NOFILE, limits)
    here.account("no free file descriptors", worker=worker)


def test_a_full_state_folder_stops_starts_and_nothing_else(on_a_small_disk: Arena) -> None:
    site = on_a_small_disk.site
    worker = site.start_successor()
    before = site.run_vms("full-1", "full-2")
    filler = site.state_dir / "filler"
    fill(filler)
    on_a_small_disk.injure("full-1", die)
    worker.wait_for_log("No space left on device", timeout_s=20)
    assert site.live("full-2") == [before["full-2"].process.pid]  # type: ignore[union-attr] # it is healthy
    filler.unlink()
    on_a_small_disk.account("state folder full", worker=worker)


def fill(filler: Path) -> None:
    """Leave no byte free."""
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"x" * 4096)


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Bound over itself: the kernel refuses it for a file system on which somebody writes, as VMMs do."""
    subprocess.run(["mount", "--bind", str(folder), str(folder)], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(folder)], check=True)
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_read_only_state_folder_stops_starts_and_nothing_else(on_a_small_disk: Arena) -> None:
    site = on_a_small_disk.site
    worker = site.start_successor()
    before = site.run_vms("ro-1", "ro-2")
    with read_only(site.state_dir):
        on_a_small_disk.injure("ro-1", die)
        worker.wait_for_log("Read-only file system", timeout_s=20)
        sweeps_pass(worker)
        assert site.live("ro-2") == [before["ro-2"].process.pid]  # type: ignore[union-attr] # it is healthy
    on_a_small_disk.account("state folder read-only", worker=worker)


def test_all_sockets_of_a_host_gone_at_once_are_a_fault_of_the_folder_and_no_vm_is_killed_for_it(here: Arena) -> None:
    site = here.site
    worker = site.start_successor()
    before = site.run_vms(*[f"swept-{number}" for number in range(1, 9)])
    for record in before.values():
        site.socket(record).unlink()
    worker.wait_for_log("8 of 8 sockets missing at once", timeout_s=20)
    sweeps_pass(worker, 3)
    assert {vm_id: site.record(vm_id).process for vm_id in before} == {
        vm_id: record.process for vm_id, record in before.items()
    }
    assert {record.process.pid for record in before.values() if record.process} == {
        pid for vm_id in before for pid in site.live(vm_id)
    }
    # The way out is a person's: each is stopped and started again.
    for desired in ("stopped", "running"):
        site.apply(*[site.spec(vm_id, desired=desired) for vm_id in before])
        for vm_id in before:
            site.wait_state(vm_id, State.STOPPED if desired == "stopped" else State.HEALTHY)
    here.account("all sockets of a host removed at once", worker=worker)


@pytest.mark.parametrize("offset", ["+5h", "-5h"])
def test_a_worker_whose_clock_is_hours_off_works_as_ever_and_says_so(here: Arena, offset: str) -> None:
    site = here.site
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    require("libfaketime", library is not None, "apt-get install faketime")
    environ = {"LD_PRELOAD": str(library), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    worker = site.start_successor(environ=environ)
    site.run_vms("clock-1", "clock-2", "clock-3", "clock-4")
    site.fault("clock-2", '{"refuse_starts": 2}')
    here.injure("clock-1", die)
    here.injure("clock-2", die)
    here.injure("clock-3", hang)
    here.account("clock of a worker hours off", worker=worker)
    assert worker.log().count("the clock of this host is not that of redis") == 1
