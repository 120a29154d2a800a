"""Each situation that `reliability doctor` knows, and what it says of it."""

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.support.builders import NOW_MS, a_process, a_vm
from workers.doctor import fleet, host, machine, programs, server
from workers.doctor.finding import Finding, Level
from workers.doctor.machine import Kvm
from workers.doctor.programs import Listener, ProgramSeen
from workers.doctor.server import Rights
from workers.domain.modes import Flag, Hold, Mode, Modes, Scope, Switch
from workers.domain.vm import State
from workers.host.identity import read_vantage
from workers.host.rundir import CONSOLE, HostFiles
from workers.ports import Halt, Snapshot, Stored
from workers.settings import Settings, load
from workers.store.hosts import HostSeen, HostWorker

OK, WARNING, PROBLEM = Level.OK, Level.WARNING, Level.PROBLEM
Found = Finding | Iterator[Finding]


def settings(**environ: str) -> Settings:
    given = {"HOST": "host-a", "STATE_DIR": "/var/lib/metald-reliability"} | environ
    return load({f"RELIABILITY_{name}": value for name, value in given.items()}, Path("/nonexistent")).settings


def a_worker(name: str) -> HostSeen:
    return HostSeen(name, NOW_MS, HostWorker("me", name, a_process(), NOW_MS, "1.0"))


def a_silent(name: str) -> HostSeen:
    return HostSeen(name, NOW_MS, None)


def stored(*, checked_s_ago: int = 1, version: int = 2, **changes: Any) -> dict[str, Stored]:
    record = a_vm(**changes)
    return {record.vm_id: Stored(record, 1, checked_ms=NOW_MS - checked_s_ago * 1000, version=version)}


def seen(found: Mapping[str, Stored], unreadable: Mapping[str, str] | None = None) -> Snapshot:
    return Snapshot(NOW_MS * 1000, found, unreadable or {})


def checks(found: Mapping[str, Stored], modes: Modes | None = None, served: str = "host-a") -> Finding:
    return fleet.judge_checks(seen(found), modes or Modes(), {served}, 30_000)


def modes(scope: Scope) -> Iterator[Finding]:
    return fleet.judge_modes(Modes({"fleet": scope}), NOW_MS)


def a_hold(mode: Mode, until_ms: int = 0) -> Scope:
    return Scope((Hold("h", mode, "cli:ann", "new kernel", NOW_MS - 1, until_ms),))


def a_switch(flag: Flag) -> Switch:
    return Switch(flag, on=False, actor="cli:ann", why="trial", since_ms=1)


def program(path: str | None, *, version: str = "1.0", used: bool = False, driver: str = "qemu") -> ProgramSeen:
    return ProgramSeen(driver, "qemu-x", path, version, used)


def packages(installed: str | None) -> Finding:
    return machine.judge_packages({"redis": Requirement("redis>=8.1,<9")}, {"redis": installed})


def kvm(*, there: bool = True, allowed: bool = True, can: bool = True, has: str = "firecracker", **env: str) -> Finding:
    return machine.judge_kvm(Kvm(there, allowed, can), settings(**env), {has})


AOF = {"aof_enabled": 1, "aof_last_write_status": "ok"}
QEMU = "qemu-system-x86_64"
OURS = {"process": "worker", "pid": 7, "version": "1.0", "troubles": {}}

SITUATIONS: Mapping[str, tuple[Found, Level, str]] = {
    "old redis": (server.judge_version({"redis_version": "6.2.14"}), PROBLEM, "Redis 6.2.14 is too old"),
    "new redis": (server.judge_version({"redis_version": "7.0.0"}), OK, "Redis 7.0.0"),
    "valkey": (server.judge_version({"redis_version": "7.2.4", "valkey_version": "8.0"}), OK, "Valkey 8.0"),
    "no append-only file": (server.judge_persistence({"aof_enabled": 0}), PROBLEM, "appendonly is off"),
    "redis cannot write": (server.judge_persistence(AOF | {"aof_last_write_status": "err"}), PROBLEM, "cannot write"),
    "redis is loading": (server.judge_persistence(AOF | {"loading": 1}), WARNING, "still loading"),
    "append-only file": (server.judge_persistence(AOF), OK, "appendonly is on"),
    "evicts": (
        server.judge_memory("m", {"maxmemory_policy": "allkeys-lru", "maxmemory": 1000}),
        PROBLEM,
        "records or messages",
    ),
    "would evict": (server.judge_memory("m", {"maxmemory_policy": "volatile-ttl"}), WARNING, "volatile-ttl"),
    "nearly full": (
        server.judge_memory("m", {"maxmemory": 1000, "used_memory": 950}),
        WARNING,
        "95 % of maxmemory",
    ),
    "room": (server.judge_memory("m", {"maxmemory": 4 << 20, "used_memory": 1 << 20}), OK, "1 MiB used of 4"),
    "slow redis": (server.judge_latency(0.02), WARNING, "20.0 ms"),
    "far redis": (server.judge_latency(0.2), PROBLEM, "200.0 ms"),
    "near redis": (server.judge_latency(0.0004), OK, "0.4 ms"),
    "clock far ahead": (server.judge_clock(31.0), PROBLEM, "31.0 s ahead"),
    "clock a little behind": (server.judge_clock(-2.5), WARNING, "2.5 s behind"),
    "clocks together": (server.judge_clock(0.004), OK, "apart by 4 ms"),
    "may not ask for rights": (server.judge_rights(Rights("operator", None)), OK, "user operator"),
    "may only look": (server.judge_rights(Rights("readonly", ["HSET", "XADD"])), WARNING, "may not HSET, XADD"),
    "may all": (server.judge_rights(Rights("default", [])), OK, "all that a worker does"),
    "unreadable record": (
        fleet.judge_records(seen({}, {"vm-1": "field v: schema version 9"}), 1, 2),
        PROBLEM,
        "schema version 9",
    ),
    "record of a later version": (
        fleet.judge_records(seen(stored(version=2)), 1, 1),
        WARNING,
        "later version than the 1",
    ),
    "records": (fleet.judge_records(seen(stored()), 1, 2), OK, "1 of version 2"),
    "many records": (fleet.judge_records(seen(stored()), 5000, 2), OK, "5000 in all"),
    "VMs without a worker": (
        fleet.judge_workers([a_worker("host-a"), a_silent("host-b")], {"host-b": 3}, "host-a"),
        PROBLEM,
        "no worker serves host-b: VMs unwatched: 3",
    ),
    "no worker here": (fleet.judge_workers([a_silent("host-a")], {}, "host-a"), WARNING, "this host (host-a)"),
    "worker here": (fleet.judge_workers([a_worker("host-a")], {"host-a": 1}, "host-a"), OK, "a live one: 1"),
    "other versions": (
        fleet.judge_versions({"host-b": "0.9"}, "1.0"),
        WARNING,
        "this is 1.0, and other versions run on host-b",
    ),
    "one version": (fleet.judge_versions({"host-b": "1.0"}, "1.0"), OK, "as every live worker"),
    "no beat": (fleet.judge_beat(95_000, 30), PROBLEM, "due for 95 s"),
    "a beat": (fleet.judge_beat(-200, 30), OK, "in time"),
    "nothing scheduled": (fleet.judge_beat(None, 30), OK, "nothing is scheduled"),
    "late checks": (checks(stored(checked_s_ago=91)), PROBLEM, "not checked for more than 90 s: vm-1"),
    "checks in time": (checks(stored(checked_s_ago=89)), OK, ""),
    "a VM just started": (checks(stored(checked_s_ago=999, since_ms=NOW_MS - 1000)), OK, ""),
    "a failed VM is not late": (checks(stored(checked_s_ago=999, state=State.FAILED)), OK, ""),
    "a paused VM is not late": (
        checks(stored(checked_s_ago=999), Modes({"fleet": a_hold(Mode.PAUSED)})),
        OK,
        "",
    ),
    "a VM without checks is not late": (
        checks(stored(checked_s_ago=999), Modes({"vm:vm-1": Scope((), (a_switch(Flag.HEALTH_CHECKS),))})),
        OK,
        "",
    ),
    "a VM without a worker is not late": (checks(stored(checked_s_ago=999), served="host-b"), OK, ""),
    "frozen host": (
        fleet.judge_halted({"host-b": Halt("older data", frozen=True)}),
        PROBLEM,
        "host-b recovers nothing",
    ),
    "no halted host": (fleet.judge_halted({}), OK, "none"),
    "paused": (modes(a_hold(Mode.PAUSED)), WARNING, "fleet: paused, by cli:ann: new kernel"),
    "maintenance is over": (modes(a_hold(Mode.MAINTENANCE, until_ms=NOW_MS - 1)), OK, "nothing is paused"),
    "switched off": (
        modes(Scope((), (a_switch(Flag.RECOVERY),))),
        WARNING,
        "fleet: recovery is off, by cli:ann: trial",
    ),
    "stray": (fleet.judge_strays({"host-b": [{"vm_id": "vm-x"}]}), WARNING, "vm-x on host-b"),
    "no stray": (fleet.judge_strays({}), OK, "none"),
    "off by settings": (fleet.judge_switches(settings(RECOVERY__ENABLED="false")), WARNING, "recovery.enabled"),
    "all on": (fleet.judge_switches(settings()), OK, "every 30s"),
    "nearly no space": (host.judge_space(10 << 20, 10**6), PROBLEM, "10 MiB"),
    "little space": (host.judge_space(300 << 20, 10**6), WARNING, "300 MiB"),
    "nearly no inodes": (host.judge_space(10 << 30, 100), PROBLEM, "100 inodes"),
    "space, inodes not counted": (host.judge_space(10 << 30, None), OK, "10240 MiB free"),
    "half-written files": (host.judge_leftovers(["a.1-2.new"], [], []), WARNING, "a.1-2.new"),
    "left sockets": (host.judge_leftovers([], ["vm-1"], []), WARNING, "ended long ago: vm-1"),
    "huge logs": (host.judge_leftovers([], [], ["vm-1/console.log"]), WARNING, "beyond 64 MiB: vm-1/console.log"),
    "folders without record": (host.judge_without_record(["vm-1"]), WARNING, "of VMs without a record: vm-1"),
    "folders with record": (host.judge_without_record([]), OK, ""),
    "old kernel": (machine.judge_kernel("5.2", has_pidfd=False, knows_peers=True), PROBLEM, "no pidfds"),
    "no peers": (machine.judge_kernel("6.1", has_pidfd=True, knows_peers=False), PROBLEM, "SO_PEERCRED"),
    "kernel": (machine.judge_kernel("6.1", has_pidfd=True, knows_peers=True), OK, "Linux 6.1"),
    "few descriptors": (machine.judge_descriptors(1024, 4096, 5000), PROBLEM, "5000 VMs here need 10256"),
    "enough descriptors": (machine.judge_descriptors(1024, 524_288, 5000), OK, "up to 524288"),
    "few pids": (machine.judge_tasks(200, {"pid_max": 32_768, "threads-max": 10**6}, 5000), PROBLEM, "(pid_max)"),
    "enough pids": (machine.judge_tasks(200, {"pid_max": 4 << 20, "threads-max": 10**6}, 5000), OK, "(threads-max)"),
    "no kvm": (kvm(there=False, allowed=False), PROBLEM, "is not there: Firecracker cannot start a VM"),
    "kvm not allowed": (kvm(allowed=False), PROBLEM, "may not be opened by this user"),
    "kvm of no use": (kvm(can=False), PROBLEM, "no vmx or svm"),
    "no kvm for qemu": (kvm(there=False, has=QEMU), WARNING, "slow"),
    "no kvm for qemu that has to": (
        kvm(there=False, has=QEMU, DRIVERS__QEMU__ACCEL="kvm"),
        PROBLEM,
        "QEMU (accel kvm)",
    ),
    "no kvm, and none needed": (kvm(there=False, has="standin", DRIVERS__FIRECRACKER__BINARY="standin"), OK, ""),
    "kvm": (kvm(), OK, "can be used"),
    "wrong package": (packages("7.0.0"), PROBLEM, "redis 7.0.0 (wants <9,>=8.1)"),
    "missing package": (packages(None), PROBLEM, "redis missing"),
    "right packages": (packages("8.1.0"), OK, "redis 8.1.0"),
    "no program at all": (programs.judge_drivers([program(None)]), PROBLEM, "qemu-x is not found"),
    "a program that VMs need": (
        programs.judge_drivers([program("/bin/f", driver="firecracker"), program(None, used=True)]),
        PROBLEM,
        "not found",
    ),
    "a program that nothing needs": (
        programs.judge_drivers([program("/bin/f", driver="firecracker"), program(None)]),
        OK,
        "no VM here needs it",
    ),
    "a program of no version": (programs.judge_drivers([program("/bin/q", version="unknown")]), WARNING, "tells none"),
    "free port": (programs.judge_port("worker", 9808, Listener(answers=False)), OK, "free for a worker"),
    "foreign port": (programs.judge_port("worker", 9808, Listener(answers=True)), PROBLEM, "taken by another program"),
    "our port": (programs.judge_port("worker", 9808, Listener(answers=True, document=OURS)), OK, "pid 7"),
    "a beat on the worker's port": (
        programs.judge_port("worker", 9808, Listener(answers=True, document=OURS | {"process": "beat"})),
        PROBLEM,
        "of a beat",
    ),
    "a worker in trouble": (
        programs.judge_port("worker", 9808, Listener(answers=True, document=OURS | {"troubles": {"redis": "away"}})),
        WARNING,
        "redis: away",
    ),
    "open flower": (programs.judge_flower(settings(FLOWER__ADDRESS="10.0.0.1"), listens=False), PROBLEM, "10.0.0.1"),
    "flower without a password": (programs.judge_flower(settings(), listens=True), WARNING, "on port 5555"),
    "no flower": (programs.judge_flower(settings(), listens=False), OK, ""),
    "flower": (programs.judge_flower(settings(FLOWER__BASIC_AUTH="a:secret"), listens=True), OK, "asks for a password"),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_each_situation_has_its_finding(situation: str) -> None:
    found, level, words = SITUATIONS[situation]
    findings = [found] if isinstance(found, Finding) else list(found)
    order = list(Level)
    worst = min((finding.level for finding in findings), key=order.index)

    assert worst is level, findings
    assert any(words in finding.says for finding in findings if finding.level is level), findings
    # What is not as it should be comes with what to do, and nothing takes more than a line.
    assert all(bool(finding.does) is (finding.level is not OK) for finding in findings)
    assert all("\n" not in finding.says + finding.does for finding in findings)


def test_a_folder_that_others_may_write_to_or_own_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir(mode=0o700)
    assert host.judge_folder(folder, os.geteuid()).level is OK

    assert "belongs to" in host.judge_folder(folder, os.geteuid() + 1).says
    folder.chmod(0o770)
    assert host.judge_folder(folder, os.geteuid()).does == f"chmod 700 {folder}"


def test_consoles_that_others_may_read_are_told(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    tmp_path.chmod(0o755)

    runs.chmod(0o755)
    assert host.judge_folder(tmp_path, os.geteuid()).level is WARNING
    runs.chmod(0o700)
    assert host.judge_folder(tmp_path, os.geteuid()).level is OK


def test_a_state_folder_that_nobody_has_made_yet_is_no_problem(tmp_path: Path) -> None:
    assert host.judge_absent(tmp_path / "a" / "b").level is OK
    (tmp_path / "file").touch()
    assert host.judge_absent(tmp_path / "file" / "state").level is PROBLEM


def test_the_kill_switch_is_a_problem_that_names_its_file(tmp_path: Path) -> None:
    files = HostFiles(tmp_path)
    assert host.judge_kill_switch(files).level is OK

    (tmp_path / "PAUSE").touch()
    assert host.judge_kill_switch(files).does == f"rm {tmp_path}/PAUSE"


def test_a_lock_folder_that_is_gone_or_holds_other_things_is_told(tmp_path: Path) -> None:
    locks = tmp_path / "locks"
    assert host.judge_locks(locks).level is PROBLEM

    locks.mkdir()
    (locks / "vm-1.lock").touch()
    assert host.judge_locks(locks).level is OK
    (locks / "vm-2.lock").symlink_to("/dev/null")
    assert "vm-2.lock" in host.judge_locks(locks).says


def test_leftovers_are_told_by_their_writer_and_their_size(tmp_path: Path) -> None:
    files = HostFiles(tmp_path)
    files.prepare()
    run = files.begin("vm-1", 7, driver="qemu", spec="{}")
    (run.path / "exit.99999999-1.new").touch()
    (run.path / f"intent.{os.getpid()}-1.new").touch()
    with (run.path / CONSOLE).open("wb") as console:
        console.truncate(65 << 20)

    assert host.half_written(tmp_path) == ["runs/vm-1/7/exit.99999999-1.new"]
    assert host.long_logs([run]) == [f"vm-1/{CONSOLE}"]


def test_a_socket_is_left_over_once_its_process_is_gone_for_long(tmp_path: Path) -> None:
    files = HostFiles(tmp_path)
    files.prepare()
    run = files.begin("vm-1", 7, driver="qemu", spec="{}")
    run.socket.touch()
    mine = read_vantage(tmp_path)
    run.write_process(replace(a_process(99_999_999), **{name: getattr(mine, name) for name in mine.__slots__}))

    assert host.orphan_sockets(files, [run], grace_s=3600) == []
    os.utime(run.socket, (0, 0))
    assert host.orphan_sockets(files, [run], grace_s=3600) == ["vm-1"]


def test_folders_of_images_are_looked_at(tmp_path: Path) -> None:
    assert host.judge_images(tmp_path).level is OK
    assert host.judge_images(tmp_path / "none").level is WARNING

    tmp_path.chmod(0o777)
    assert host.judge_images(tmp_path).does == f"chmod o-w {tmp_path}"


def test_a_file_with_passwords_that_everybody_may_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "reliability.toml"
    file.touch(mode=0o644)
    assert host.judge_secret_files([file]).level is WARNING

    file.chmod(stat.S_IRUSR)
    assert host.judge_secret_files([file]).level is OK


def test_the_cgroup_of_vms_has_to_be_one(tmp_path: Path) -> None:
    assert machine.judge_cgroup(None).level is OK
    assert machine.judge_cgroup(tmp_path).level is PROBLEM

    (tmp_path / "cgroup.procs").touch()
    assert machine.judge_cgroup(tmp_path).level is OK


def test_a_binary_that_may_not_be_executed_is_told_apart(tmp_path: Path) -> None:
    binary = tmp_path / "qemu"
    binary.touch(mode=0o600)

    (found,) = programs.judge_drivers([ProgramSeen("qemu", str(binary), None, "unknown", used=True)])

    assert "may not be executed" in found.says


@pytest.mark.parametrize(
    ("where", "near"),
    [
        ({"host": "127.0.0.2"}, True),
        ({"path": "/run/redis.sock"}, True),
        ({"host": "localhost"}, True),
        ({"host": "10.0.0.5"}, False),
        ({"host": "redis.internal"}, False),
    ],
)
def test_a_redis_beyond_this_machine_is_told_apart(where: Mapping[str, object], *, near: bool) -> None:
    assert server.is_near(where) is near


@pytest.mark.parametrize(
    ("scope", "does"),
    [("fleet", "resume --fleet"), ("host:host-b", "resume --host host-b"), ("vm:vm-1", "resume vm-1")],
)
def test_a_pause_comes_with_the_command_that_lifts_it(scope: str, does: str) -> None:
    (found,) = fleet.judge_modes(Modes({scope: a_hold(Mode.PAUSED)}), NOW_MS)

    assert does in found.does
