"""The watcher: deaths told at once, with cause, also of processes that are not our children."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.processes import wait_until
from workers.domain.vm import Incarnation, Vantage
from workers.host.identity import incarnation_of, look_at, read_vantage
from workers.host.watcher import Death, Watcher
from workers.runtime import watching

FOREVER = [sys.executable, "-S", "-I", "-c", "import signal; signal.pause()"]


PARENT = f"""
import subprocess, sys
child = subprocess.Popen({FOREVER!r})
print(child.pid, flush=True)
sys.stdin.readline()
child.wait()
sys.stdin.readline()
"""


class Told:
    def __init__(self) -> None:
        self.deaths: list[Death] = []
        self.causes: list[tuple[str, str]] = []
        self.refuse = 0

    def on_deaths(self, deaths: Sequence[Death]) -> Sequence[Death]:
        if self.refuse:
            self.refuse -= 1
            return deaths
        self.deaths += deaths
        return ()

    def on_cause(self, vm_id: str, process: Incarnation, cause: str) -> None:
        del process
        self.causes.append((vm_id, cause))


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def vantage(tmp_path: Path) -> Vantage:
    return read_vantage(tmp_path)


@pytest.fixture
def watcher(told: Told, vantage: Vantage) -> Iterator[Watcher]:
    made = Watcher(vantage, on_deaths=told.on_deaths, on_cause=told.on_cause)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def child(vantage: Vantage) -> Iterator[Incarnation]:
    process = subprocess.Popen(FOREVER)
    identity = incarnation_of(process.pid, vantage)
    assert identity is not None
    process.returncode = 0  # the watcher reaps it
    yield identity
    if incarnation_of(process.pid, vantage) == identity:
        os.kill(identity.pid, signal.SIGKILL)
        os.waitpid(identity.pid, 0)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_child_is_told_with_its_signal(
    watcher: Watcher, told: Told, child: Incarnation, number: signal.Signals
) -> None:
    watcher.watch("vm-1", child)
    os.kill(child.pid, number)

    wait_until(lambda: told.deaths, what="the death")

    assert told.deaths == [Death("vm-1", child, f"signal {number.value}")]
    assert len(watcher) == 0


def test_an_exit_status_is_told(watcher: Watcher, told: Told, vantage: Vantage) -> None:
    process = subprocess.Popen(
        [sys.executable, "-S", "-I", "-c", "input(); raise SystemExit(42)"], stdin=subprocess.PIPE
    )
    identity = incarnation_of(process.pid, vantage)
    assert identity is not None
    watcher.watch("vm-1", identity)
    process.returncode = 0
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.close()

    wait_until(lambda: told.deaths, what="the death")
    assert told.deaths[0].cause == "exit 42"


def test_who_sees_a_death_before_it_is_told_hears_its_cause_and_takes_it_from_nobody(
    told: Told, vantage: Vantage, child: Incarnation
) -> None:
    watcher = Watcher(vantage, on_deaths=told.on_deaths, on_cause=told.on_cause)
    watcher.watch("vm-1", child)
    assert watcher.cause_of(child) is None

    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: look_at(child, vantage), what="its end")
    assert watcher.cause_of(child) == "signal 9"

    watcher.start()
    wait_until(lambda: told.deaths, what="the death")
    watcher.stop()
    assert told.deaths == [Death("vm-1", child, "signal 9")]
    assert watcher.cause_of(child) == "signal 9", "also when a check comes later"


def test_a_death_that_could_not_be_told_comes_again(watcher: Watcher, told: Told, child: Incarnation) -> None:
    told.refuse = 2
    watcher.watch("vm-1", child)
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: told.deaths, what="the death, told the third time")
    assert [death.vm_id for death in told.deaths] == ["vm-1"]


def test_watching_a_process_that_has_ended_already_tells_it_too(
    watcher: Watcher, told: Told, child: Incarnation
) -> None:
    dead = replace(child, start_ticks=child.start_ticks - 1)
    watcher.watch("vm-1", dead)
    wait_until(lambda: told.deaths, what="the death")
    assert told.deaths == [Death("vm-1", dead, None)]


def test_watching_twice_tells_once(watcher: Watcher, told: Told, child: Incarnation) -> None:
    for _ in range(3):
        watcher.watch("vm-1", child)
    assert len(watcher) == 1
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: told.deaths, what="the death")
    assert len(told.deaths) == 1


def test_a_process_of_another_place_is_not_watched(watcher: Watcher, child: Incarnation) -> None:
    watcher.watch("vm-1", replace(child, machine_id="elsewhere"))
    assert len(watcher) == 0


def test_the_death_of_a_stranger_is_told_at_once_and_its_cause_when_it_is_known(
    watcher: Watcher, told: Told, vantage: Vantage
) -> None:
    """A grandchild: its parent reaps it only later, as pid 1 does with VMMs whose worker went away."""
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    with parent:
        pid = int(parent.stdout.readline())
        identity = incarnation_of(pid, vantage)
        assert identity is not None
        watcher.watch("vm-1", identity)

        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: told.deaths, what="the death of a stranger")
        assert told.deaths[0].cause is None, "nobody has reaped it: never read that as exit 0"

        parent.stdin.write("reap\n")
        parent.stdin.flush()
        if _kernel_tells_exit_causes():
            wait_until(lambda: told.causes, what="the late cause")
            assert told.causes == [("vm-1", "signal 9")]
        parent.stdin.write("end\n")


def _kernel_tells_exit_causes() -> bool:
    """PIDFD_GET_INFO gives exit codes since Linux 6.15."""
    major, minor = (int(part) for part in os.uname().release.split(".")[:2])
    return (major, minor) >= (6, 15)


def test_many_deaths_at_once_are_all_told(watcher: Watcher, told: Told, vantage: Vantage) -> None:
    reader, writer = os.pipe()
    command = [sys.executable, "-S", "-I", "-c", f"import os; os.read({reader}, 1)"]
    processes = [subprocess.Popen(command, pass_fds=[reader]) for _ in range(50)]
    for number, process in enumerate(processes):
        identity = incarnation_of(process.pid, vantage)
        assert identity is not None
        watcher.watch(f"vm-{number}", identity)
        process.returncode = 0
    os.close(reader)
    os.close(writer)
    wait_until(lambda: len(told.deaths) == len(processes), what="all deaths")
    assert {death.cause for death in told.deaths} == {"exit 0"}


def test_it_stops_promptly_with_vmms_under_watch(told: Told, vantage: Vantage, child: Incarnation) -> None:
    made = Watcher(vantage, on_deaths=told.on_deaths, on_cause=told.on_cause)
    made.start()
    made.watch("vm-1", child)
    made.stop()
    assert not made.is_alive
    assert "vmm-watcher" not in {thread.name for thread in threading.enumerate()}


def test_who_has_ended_is_not_among_the_living_before_it_is_told(
    told: Told, vantage: Vantage, child: Incarnation
) -> None:
    me = incarnation_of(os.getpid(), vantage)
    assert me is not None
    quiet = Watcher(vantage, on_deaths=told.on_deaths, on_cause=told.on_cause)
    quiet.watch("vm-1", child)
    quiet.watch("vm-2", me)
    assert dict(quiet.living()) == {"vm-1": child, "vm-2": me}

    os.kill(child.pid, signal.SIGKILL)

    wait_until(lambda: dict(quiet.living()) == {"vm-2": me}, what="the death to be seen")
    assert told.deaths == []
    quiet.start()
    wait_until(lambda: bool(told.deaths), what="the death to be told: who asks takes nothing away")
    assert dict(quiet.living()) == {"vm-2": me}
    quiet.stop()
    assert dict(quiet.living()) == {}


def test_whom_a_host_without_descriptors_cannot_watch_it_watches_as_soon_as_one_is_free(
    watcher: Watcher, child: Incarnation
) -> None:
    watch = watching(watcher)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        watch("vm-1", child)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(watcher) == 0
    assert dict(watcher.living()) == {}

    watch("vm-1", child)

    assert len(watcher) == 1
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: len(watcher) == 0, what="the death")
