"""The one-process guard on real processes: start, adopt, refuse, fence, clean up (DESIGN section 8)."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import require
from tests.support.hosts import TEST_HOST, LocalHost, holders, local_host, no_check
from tests.support.processes import wait_until
from workers.domain.errors import GuardBusy, Paused, StaleGeneration, StartFailed, StopFailed, Unwanted
from workers.domain.vm import Incarnation
from workers.host.identity import incarnation_of, read_stat
from workers.host.pidfd import open_checked
from workers.integration.entries import Entry, Kind
from workers.integration.journal import Journal
from workers.services.attempt import LeaseLost
from workers.specs import spec_from

# A worker that is killed right after it started a VMM.
STARTER = """
import os
from pathlib import Path
from tests.support.hosts import *

files = HostFiles(Path({state_dir!r}))
drivers = {{"firecracker": FirecrackerDriver("standin", {{}})}}
vmms = LocalVmmHost(
    files,
    drivers,
    read_vantage(files.state_dir),
    host_name={name!r},
    image_roots=[Path({images!r})],
    stop_grace_s=1,
    start_timeout_s=5,
)
vmms.start(a_spec("vm-1", kernel={kernel!r}), 10, before_exec=no_check, while_waiting=no_check)
os.kill(os.getpid(), 9)
"""


@pytest.fixture
def host(tmp_path: Path) -> Iterator[LocalHost]:
    with local_host(tmp_path) as made:
        yield made


def is_alive(process: Incarnation) -> bool:
    stat = read_stat(process.pid)
    return stat is not None and not stat.has_ended and stat.start_ticks == process.start_ticks


def test_a_started_vmm_holds_its_lock_as_stdin_and_serves_from_its_own_folder(host: LocalHost) -> None:
    process = host.start(generation=10)

    assert holders(host.files.locks) == [(process.pid, "vm-1")]
    with pytest.raises(GuardBusy), host.files.lock("vm-1"):
        pass
    run = host.files.run("vm-1", 10)
    assert run.socket.is_socket()
    assert run.process == process
    assert (run.path.parent / "current").resolve() == run.path
    assert json.loads((run.path / "intent.json").read_text())["generation"] == 10
    assert os.getsid(process.pid) == process.pid
    assert "vm-1 booted" in (run.path / "console.log").read_text()


def test_the_vmm_inherits_nothing_else_of_ours(host: LocalHost) -> None:
    process = host.start()
    links = set()
    for entry in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it closes its last connection just now
            links.add(os.readlink(entry))
    ours = {str(host.files.lock_path("vm-1")), *map(str, host.files.run("vm-1", 10).path.iterdir())}
    files = {link for link in links if link.startswith("/")}
    assert files <= ours


def test_a_second_start_is_refused_while_the_first_one_lives(host: LocalHost) -> None:
    first = host.start(generation=10)

    with pytest.raises(GuardBusy):
        host.start(generation=11)

    assert holders(host.files.locks) == [(first.pid, "vm-1")]
    assert host.vmms.running("vm-1") is not None


def test_the_holder_is_found_also_when_its_identity_was_never_written(host: LocalHost) -> None:
    process = host.start(generation=10)
    (host.files.run("vm-1", 10).path / "identity.json").unlink()

    running = host.vmms.running("vm-1")

    assert running is not None
    assert (running.process, running.guarded, running.generation) == (process, True, 10)
    assert running.socket == str(host.files.run("vm-1", 10).socket)


def test_a_damaged_identity_file_is_no_obstacle(host: LocalHost) -> None:
    process = host.start(generation=10)
    (host.files.run("vm-1", 10).path / "identity.json").write_text('{"pid": "many')
    running = host.vmms.running("vm-1")
    assert running is not None
    assert running.process == process


def test_a_lock_held_by_something_that_is_no_vmm_blocks_the_start(host: LocalHost) -> None:
    with host.files.lock("vm-1"):
        with pytest.raises(GuardBusy):
            host.vmms.running("vm-1")
        with pytest.raises(GuardBusy):
            host.start()
    assert host.vmms.running("vm-1") is None


def test_an_unguarded_vmm_of_the_same_id_blocks_the_start(host: LocalHost, tmp_path: Path) -> None:
    command = [*host.drivers["firecracker"].launch(host.spec()).argv]
    stranger = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL)
    try:
        wait_until((tmp_path / "api.sock").exists, what="the stranger's socket")

        running = host.vmms.running("vm-1")
        assert running is not None
        assert (running.process.pid, running.guarded) == (stranger.pid, False)
        assert running.socket == str(tmp_path / "api.sock")
        with pytest.raises(StartFailed, match=f"pid {stranger.pid} already runs this vm"):
            host.start()
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("generation", [9, 10])
def test_a_generation_that_is_not_newer_is_refused(host: LocalHost, generation: int) -> None:
    host.fence(host.start(generation=10))
    with pytest.raises(StaleGeneration):
        host.start(generation=generation)
    assert holders(host.files.locks) == []


def test_fencing_confirms_the_end_and_keeps_its_cause(host: LocalHost) -> None:
    process = host.start()
    assert host.fence(process) == "signal 15"
    assert not is_alive(process)
    assert host.files.run("vm-1", 10).exit_cause == "signal 15"
    assert host.fence(process) == "signal 15", "gone already is fine"


def test_a_vmm_that_ignores_sigterm_is_killed_after_its_grace(host: LocalHost) -> None:
    host.faults("vm-1", '{"ignore_sigterm": true}')
    assert host.fence(host.start()) == "signal 9"


def test_a_stopped_vmm_gets_no_grace(host: LocalHost) -> None:
    process = host.start()
    os.kill(process.pid, signal.SIGSTOP)
    wait_until(lambda: (stat := read_stat(process.pid)) and stat.state == "T", what="the process to be stopped")
    assert host.fence(process) == "signal 9"


def test_a_recycled_pid_is_never_signalled(host: LocalHost) -> None:
    innocent = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        now = incarnation_of(innocent.pid, host.vantage)
        assert now is not None
        before = replace(now, start_ticks=now.start_ticks - 1)

        assert open_checked(before, host.vantage) is None
        assert host.fence(before) == "gone already"
        assert innocent.poll() is None
    finally:
        innocent.kill()
        innocent.communicate()


def test_a_process_that_is_no_vmm_is_never_signalled_whatever_the_record_says(host: LocalHost) -> None:
    innocent = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        named = incarnation_of(innocent.pid, host.vantage)
        assert named is not None
        with pytest.raises(StopFailed, match="no VMM of this vm"):
            host.fence(named)
        with pytest.raises(StopFailed, match="no VMM of this vm"):
            host.fence(host.start("vm-2"), "vm-1")
        assert innocent.poll() is None
        assert [vm_id for _, vm_id in holders(host.files.locks)] == ["vm-2"]
    finally:
        innocent.kill()
        innocent.communicate()


@pytest.mark.parametrize("elsewhere", [{"machine_id": "another"}, {"pid_ns": 1}])
def test_a_process_of_another_place_is_never_signalled(host: LocalHost, elsewhere: dict[str, str | int]) -> None:
    process = host.start()
    with pytest.raises(StopFailed, match="another machine or pid namespace"):
        host.fence(replace(process, **elsewhere))  # type: ignore[arg-type] # one of two fields
    assert is_alive(process)


def test_a_process_of_an_earlier_boot_is_gone_and_its_pid_not_touched(host: LocalHost) -> None:
    process = host.start()
    assert host.fence(replace(process, boot_id="before")) == "gone already"
    assert is_alive(process)


def test_the_kill_switch_stops_signals_and_spawns(host: LocalHost) -> None:
    process = host.start(generation=10)
    (host.files.state_dir / "PAUSE").touch()

    with pytest.raises(Paused):
        host.fence(process)
    with pytest.raises(Paused):
        host.start("vm-2")
    assert is_alive(process)
    assert [vm_id for _, vm_id in holders(host.files.locks)] == ["vm-1"]


def test_a_check_that_fails_before_a_signal_stops_it(host: LocalHost) -> None:
    process = host.start()

    def lease_lost() -> None:
        raise LeaseLost("gone")

    with pytest.raises(LeaseLost):
        host.vmms.fence("vm-1", process, before_signal=lease_lost)
    assert is_alive(process)


def test_a_check_that_fails_before_exec_leaves_no_process(host: LocalHost) -> None:
    def lease_lost() -> None:
        raise LeaseLost("gone")

    with pytest.raises(LeaseLost):
        host.vmms.start(host.spec(), 10, before_exec=lease_lost, while_waiting=no_check)
    assert holders(host.files.locks) == []
    assert is_alive(host.start(generation=11))


def test_a_lease_lost_during_the_start_leaves_the_vmm_to_the_successor(host: LocalHost) -> None:
    host.faults("vm-1", '{"boot_delay_ms": 1500}')

    def lease_lost() -> None:
        raise LeaseLost("gone")

    with pytest.raises(LeaseLost):
        host.vmms.start(host.spec(), 10, before_exec=no_check, while_waiting=lease_lost)
    assert [vm_id for _, vm_id in holders(host.files.locks)] == ["vm-1"]


def test_a_vmm_that_ends_at_once_fails_the_start_with_its_cause(host: LocalHost) -> None:
    host.faults("vm-1", '{"refuse_starts": 1, "exit_code": 3}')
    with pytest.raises(StartFailed, match="exit 3"):
        host.start(generation=10)
    assert host.files.run("vm-1", 10).exit_cause == "exit 3"
    assert is_alive(host.start(generation=11))


def test_a_vmm_that_answers_as_another_vm_fails_the_start_and_is_ended(host: LocalHost) -> None:
    host.faults("vm-1", '{"report_id": "vm-99"}')
    with pytest.raises(StartFailed, match="vm-99"):
        host.start()
    assert holders(host.files.locks) == []


def test_a_configuration_the_vmm_refuses_fails_the_start_in_the_vmms_words(host: LocalHost) -> None:
    host.kernel.with_name("rootfs").write_bytes(b"")
    spec = host.spec(rootfs=str(host.kernel.with_name("rootfs")))
    host.kernel.with_name("rootfs").unlink()
    with pytest.raises(StartFailed, match="rootfs"):
        host.vmms.start(spec, 10, before_exec=no_check, while_waiting=no_check)
    assert holders(host.files.locks) == []


def test_a_vmm_that_never_serves_fails_the_start_in_time_and_is_ended(tmp_path: Path) -> None:
    with local_host(tmp_path, start_timeout_s=0.5) as host:
        host.faults("vm-1", '{"hang": true}')
        with pytest.raises(StartFailed, match="no answer"):
            host.start()
        assert holders(host.files.locks) == []


def test_an_image_outside_the_roots_is_refused_before_anything_is_done(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"")
    spec = spec_from({"id": "vm-1", "host": "host-a", "driver": "firecracker", "kernel": str(tmp_path / "secret")})
    with pytest.raises(StartFailed, match="kernel"):
        host.vmms.start(spec, 10, before_exec=no_check, while_waiting=no_check)
    assert host.files.runs("vm-1") == []


def test_a_missing_binary_is_named(tmp_path: Path) -> None:
    with local_host(tmp_path, binary="no-such-vmm") as host, pytest.raises(StartFailed, match=r"no-such-vmm.*binary"):
        host.start()


def test_the_last_three_generations_are_kept_and_their_sockets_swept(host: LocalHost) -> None:
    for generation in range(10, 15):
        host.fence(host.start(generation=generation))
    kept = host.files.runs("vm-1")
    assert [run.generation for run in kept] == [12, 13, 14]
    assert [run.socket.exists() for run in kept] == [False, False, True]
    assert all(run.exit_cause == "signal 15" for run in kept)


def test_a_log_that_grew_too_long_is_cut_while_it_is_written(host: LocalHost) -> None:
    host.start()
    console = host.files.run("vm-1", 10).path / "console.log"
    with console.open("ab") as log:
        log.write(b"x" * 3_000_000 + b"the end\n")

    host.files.bound_logs("vm-1", 2_000_000)

    assert console.stat().st_size == 0
    assert (console.with_suffix(".log.old")).read_bytes().endswith(b"the end\n")
    with console.open("ab") as log:
        log.write(b"goes on")
    assert console.read_bytes() == b"goes on"


def test_the_vmm_lives_on_when_its_starter_is_killed_and_is_found_again(host: LocalHost, tmp_path: Path) -> None:
    script = STARTER.format(
        state_dir=str(host.files.state_dir), images=str(tmp_path / "images"), kernel=str(host.kernel), name=TEST_HOST
    )
    starter = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], timeout=30, check=False)
    assert starter.returncode == -signal.SIGKILL

    running = host.vmms.running("vm-1")

    assert running is not None
    assert running.guarded
    assert is_alive(running.process)
    with pytest.raises(GuardBusy):
        host.start(generation=11)
    assert host.fence(running.process)


def test_inventory_finds_every_vmm_of_the_host(host: LocalHost) -> None:
    started = {vm_id: host.start(vm_id) for vm_id in ("vm-1", "vm-2", "vm-3")}
    found = {running.vm_id: running.process for running in host.vmms.inventory() if running.vm_id in started}
    assert found == started


@pytest.mark.parametrize("vm_id", ["../vm", "vm/1", "VM", "", "vm-1\n", ".vm"])
def test_an_id_never_reaches_a_path_unchecked(host: LocalHost, vm_id: str) -> None:
    for use in (host.files.lock_path, host.files.runs, lambda text: host.files.run(text, 1)):
        with pytest.raises(ValueError, match="must be 1 to 64"):
            use(vm_id)


def test_a_long_state_folder_does_not_break_the_socket(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    with local_host(deep) as host:
        process = host.start()
        assert is_alive(process)
        with suppress(StopFailed):
            host.fence(process)


def test_a_vmm_of_another_host_by_name_on_the_same_machine_is_left_alone(host: LocalHost, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with local_host(tmp_path / "other", host_name="another-host") as other:
        theirs = other.start("vm-1")

        assert host.vmms.running("vm-1") is None
        assert [running for running in host.vmms.inventory() if running.process == theirs] == []
        ours = host.start("vm-1")
        assert is_alive(theirs)
        assert is_alive(ours)


def test_a_vmm_is_moved_to_its_cgroup(tmp_path: Path) -> None:
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    roots = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2" and os.access(fields[1], os.W_OK)]
    require("a cgroup v2 that tests may write", bool(roots), "run as root with /sys/fs/cgroup mounted read-write")
    cgroup = roots[0] / f"reliability-test-{os.getpid()}"
    cgroup.mkdir()
    try:
        with local_host(tmp_path, cgroup=cgroup) as host:
            process = host.start()
            assert str(process.pid) in (cgroup / "cgroup.procs").read_text().split()
            host.fence(process)
    finally:
        wait_until(lambda: not (cgroup / "cgroup.procs").read_text(), what="the cgroup to be empty")
        cgroup.rmdir()


def test_a_cgroup_that_cannot_be_used_fails_the_start_before_there_is_a_process(tmp_path: Path) -> None:
    with local_host(tmp_path, cgroup=tmp_path / "missing") as host:
        with pytest.raises(StartFailed, match="vm_cgroup"):
            host.start()
        assert holders(host.files.locks) == []


def test_a_state_folder_that_cannot_be_written_fails_the_start_clearly(host: LocalHost) -> None:
    """A file where a folder is wanted: unlike rights and full disks it stops root too."""
    (host.files.state_dir / "runs" / "vm-1").write_bytes(b"")
    with pytest.raises(StartFailed, match="state folder"):
        host.start()
    assert holders(host.files.locks) == []


def test_a_state_folder_that_is_gone_stops_every_signal(host: LocalHost) -> None:
    process = host.start()
    away = host.files.state_dir.rename(host.folder / "away")
    try:
        with pytest.raises(Paused):
            host.fence(process)
        assert is_alive(process)
    finally:
        away.rename(host.files.state_dir)


def test_a_start_outlasts_somebody_who_only_looks_at_the_lock(host: LocalHost) -> None:
    looking = threading.Event()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            with suppress(GuardBusy):
                host.vmms.running("vm-1")
            looking.set()

    looker = threading.Thread(target=look)
    looker.start()
    try:
        looking.wait()
        for generation in range(10, 15):
            host.fence(host.start(generation=generation))
    finally:
        done.set()
        looker.join()


def test_a_vm_whose_manager_told_of_its_end_is_not_started_though_redis_does_not_know(host: LocalHost) -> None:
    journal = Journal(host.files.state_dir)
    journal.prepare()

    def told_meanwhile() -> None:
        """Redis has just said that it is wanted."""
        journal.add("vm-1", lambda number: Entry(number, Kind.STOPPED, "on_vm_stopped"))

    with pytest.raises(Unwanted, match="on_vm_stopped"):
        host.vmms.start(host.spec("vm-1"), 10, before_exec=told_meanwhile, while_waiting=no_check)
    assert holders(host.files.locks) == []
    journal.add("vm-1", lambda number: Entry(number, Kind.RUNNING, "on_vm_started"))
    assert is_alive(host.start(generation=11))
