"""VMMs that die, hang, refuse, multiply or change under our hands."""

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.benchmarks.stage import vmm_binary
from tests.conftest import require
from tests.support.chaos import Arena, arena, die, hang
from tests.support.cluster import Cluster, send_by_name
from tests.support.processes import wait_until
from workers.domain.vm import State, VmRecord
from workers.embedded import EmbeddedServer

_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
_FREEZER = Path("/sys/fs/cgroup/freezer")
_BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest.fixture
def here(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Arena]:
    with arena(tmp_path, fresh_server) as made:
        made.site.start_beat()
        yield made


def pid_of(record: VmRecord) -> int:
    assert record.process is not None
    return record.process.pid


def test_a_stopped_vmm_one_that_ignores_sigterm_and_one_whose_socket_has_another_listener(here: Arena) -> None:
    site = here.site
    worker = site.start_successor()
    site.fault("deaf-1", '{"ignore_sigterm": true}')
    site.run_vms("deaf-1", "still-1", "usurped-1", "fine-1")
    fine = site.record("fine-1")

    here.injure("deaf-1", lambda record: site.socket(record).unlink())
    here.account("vmm ignores SIGTERM", worker=worker)
    here.injure("still-1", hang)
    here.account("vmm in state T", worker=worker)
    with usurper(here, "usurped-1"):
        here.account("socket taken by another listener", worker=worker)
    assert site.record("fine-1").process == fine.process


@contextmanager
def usurper(here: Arena, vm_id: str) -> Iterator[None]:
    """Listen where the VM's API was; answer nobody."""
    listener = socket.socket(socket.AF_UNIX)

    def take(record: VmRecord) -> None:
        path = here.site.socket(record)
        path.unlink()
        folder = os.open(path.parent, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        listener.listen(64)

    here.injure(vm_id, take)
    try:
        yield
    finally:
        listener.close()


def test_a_stop_during_a_recovery_wins_and_one_after_it_too(here: Arena) -> None:
    site = here.site
    worker = site.start_successor()
    for vm_id, before in site.run_vms("halt-1", "halt-2").items():
        site.fault(vm_id, '{"boot_delay_ms": 700}')
        here.injure(vm_id, die)
        # Another process than before: the dead one may still be seen for a moment.
        wait_until(partial(_new_pids, site, vm_id, before), what="its start to be under way")
        if vm_id == "halt-2":
            site.wait_healthy(vm_id, after=before)
        site.apply(site.spec(vm_id, desired="stopped"))
    here.account("stop during and after a recovery", times=2, worker=worker)
    assert (site.live("halt-1"), site.live("halt-2")) == ([], [])


def _new_pids(site: Cluster, vm_id: str, before: VmRecord) -> set[int]:
    return {*site.live(vm_id)} - {pid_of(before)}


def test_the_pid_of_a_dead_vmm_belongs_to_somebody_else_now(here: Arena) -> None:
    site = here.site
    require("a writable ns_last_pid", os.access(_LAST_PID, os.W_OK), "run as root")
    worker = site.start_successor()
    before = site.run_vms("reused-1")["reused-1"]
    worker.popen.kill()
    worker.popen.wait()
    here.injure("reused-1", die)
    wait_until(lambda: not Path(f"/proc/{pid_of(before)}").exists(), what="its pid to be free")
    stranger = process_with_pid(pid_of(before))
    try:
        here.account("pid of a dead vmm reused", worker=site.start_successor())
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def process_with_pid(pid: int) -> subprocess.Popen[bytes]:
    for _ in range(200):
        _LAST_PID.write_text(str(pid - 1))
        made = subprocess.Popen(["sleep", "600"])
        if made.pid == pid:
            return made
        made.kill()
        made.wait()
    raise AssertionError(f"pid {pid} was not to be had")


def test_a_vmm_that_cannot_be_killed_ends_failed_and_keeps_no_slot_from_others(here: Arena) -> None:
    site = here.site
    group = _FREEZER / f"chaos-{os.getpid()}"
    require("a cgroup v1 freezer", os.access(_FREEZER, os.W_OK), "run as root where /sys/fs/cgroup/freezer is mounted")
    worker = site.start_successor()
    before = site.run_vms("stuck-1", "other-1")
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid_of(before["stuck-1"])))
        (group / "freezer.state").write_text("FROZEN")
        here.injure("stuck-1", lambda _: None)
        site.wait_state("stuck-1", State.FAILED, timeout_s=30)
        here.injure("other-1", die)
        site.wait_healthy("other-1", after=before["other-1"])
        error = site.record("stuck-1").episode
        assert error is not None
        assert "alive after SIGKILL" in str(error.error)
        assert site.live("stuck-1") == [pid_of(before["stuck-1"])], "nothing was started beside it"
    finally:
        (group / "freezer.state").write_text("THAWED")
        wait_until(lambda: not (group / "cgroup.procs").read_text(), what="the VMM to go")
        group.rmdir()
    send_by_name(site, "stuck-1")
    site.wait_healthy("stuck-1", after=before["stuck-1"])
    here.account("vmm cannot be killed", worker=worker)


def test_all_vmms_of_a_host_die_with_its_reboot(here: Arena) -> None:
    """The boot id is another one for the worker that starts then: a file of ours is mounted over the kernel's."""
    site = here.site
    worker = site.start_successor()
    before = site.run_vms(*[f"boot-{number}" for number in range(1, 7)])
    worker.popen.kill()
    worker.popen.wait()
    for vm_id in before:
        here.injure(vm_id, die)
    other = site.folder / "boot_id"
    other.write_text("11111111-2222-3333-4444-555555555555\n")
    script = f'mount --bind "$0" {_BOOT_ID} && exec "$@"'
    site.start_successor(within=["unshare", "--mount", "sh", "-c", script, str(other)])
    here.account("host rebooted")
    assert {site.record(vm_id).process.boot_id for vm_id in before} == {other.read_text().strip()}  # type: ignore[union-attr] # all run


def test_two_hundred_vms_killed_within_a_second(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    require("a C compiler", shutil.which("cc") is not None, "apt-get install gcc libc6-dev")
    names = [f"many-{number:03}" for number in range(200)]
    binary = vmm_binary(tmp_path)
    with arena(tmp_path, fresh_server, DRIVERS__FIRECRACKER__BINARY=binary, WORKER__CONCURRENCY="8") as here:
        site = here.site
        site.start_beat()
        worker = site.start_successor()
        site.apply(*[site.spec(name) for name in names])
        wait_until(lambda: site.fleet.store.counts().get(State.HEALTHY) == len(names), timeout_s=90, what="200 VMs")
        before = {vm_id: site.record(vm_id) for vm_id in names}
        for vm_id in names:
            here.hurt_unseen(before[vm_id], die)
        here.account("200 VMs killed within a second", worker=worker)
