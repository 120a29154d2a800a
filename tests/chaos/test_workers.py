"""Workers and beats that freeze, double, or come from the wrong place; and what becomes of messages."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import redis

from tests.support.chaos import Arena, arena, ask, die, sweeps_pass
from tests.support.cluster import kill
from tests.support.processes import wait_until
from workers.crashpoints import Point
from workers.domain.audit import EventKind
from workers.domain.vm import State
from workers.embedded import EmbeddedServer
from workers.host.identity import read_stat


@pytest.fixture
def here(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Arena]:
    with arena(tmp_path, fresh_server) as made:
        yield made


def is_back(here: Arena, vm_id: str) -> bool:
    return here.site.record(vm_id).state is State.HEALTHY and len(here.site.live(vm_id)) == 1


def is_stopped(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state == "T"


@pytest.mark.parametrize(
    "point", [Point.BEFORE_ADMISSION, Point.AFTER_ADMISSION, Point.BEFORE_SIGKILL, Point.LOCKED, Point.VERIFIED]
)
def test_a_worker_that_freezes_in_a_recovery_and_wakes_after_its_successor_does_nothing_more(
    here: Arena, point: Point
) -> None:
    """Between LOCKED and exec the frozen one holds the VM's lock: its successor waits for it, and nothing doubles."""
    site, crash_file = here.site, here.site.folder / "crash"
    site.start_beat()
    frozen = site.start_successor(CRASH_FILE=str(crash_file))
    site.run_vms("freeze-1", "freeze-2")
    ask(crash_file, f"{point} SIGSTOP")
    here.injure(
        "freeze-1", lambda record: kill(record, signal.SIGSTOP if point is Point.BEFORE_SIGKILL else signal.SIGKILL)
    )
    wait_until(lambda: is_stopped(frozen.pid), timeout_s=20, what=f"the worker to freeze at {point}")

    successor = site.start_successor()
    here.injure("freeze-2", die)
    site.wait_healthy("freeze-2", after=site.record("freeze-2"))
    if point is not Point.LOCKED:
        wait_until(lambda: site.record("freeze-1").state is State.HEALTHY, timeout_s=30, what="the VM to be back")
    frozen.popen.send_signal(signal.SIGCONT)

    assert frozen.popen.wait(20) == 70, "it learns that another one serves its host, and ends"
    here.account("worker frozen in a recovery, woken later", worker=successor)


def test_two_workers_of_one_host_name_take_turns_and_never_share(here: Arena) -> None:
    site = here.site
    site.start_beat()
    active = site.start_successor()
    before = site.run_vms("twin-1", "twin-2", "twin-3")
    for vm_id in before:
        passive = site.start_worker(f"passive-{vm_id}")
        passive.wait_for_log("passive: waiting for the host's lease", timeout_s=30)
        here.injure(vm_id, die)
        active.popen.kill()
        active.popen.wait()
        passive.wait_for_log("this worker serves the host", timeout_s=20)
        active = passive
    here.account("two workers of one host, the active one killed", times=len(before), worker=active)


def test_a_worker_in_another_pid_namespace_touches_nothing_it_cannot_see(here: Arena) -> None:
    """It has the same host name and state folder, as a worker in a container has, and its pids mean something else."""
    site = here.site
    site.start_beat()
    first = site.start_successor()
    before = site.run_vms("ns-1", "ns-2")
    first.popen.kill()
    first.popen.wait()
    elsewhere = site.start_successor(within=["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
    here.injure("ns-2", die)
    looked = checked_ms(here, "ns-1")
    wait_until(lambda: checked_ms(here, "ns-1") > looked + 1000, what="a few checks from there")
    assert site.live("ns-1") == [before["ns-1"].process.pid]  # type: ignore[union-attr] # it is healthy
    assert not [e for e in site.events("ns-1") if e.event.after in (State.ORPHANED, State.UNHEALTHY)]
    elsewhere.popen.kill()
    elsewhere.popen.wait()
    here.account("worker in another pid namespace", worker=site.start_successor())


def checked_ms(here: Arena, vm_id: str) -> int:
    return here.site.fleet.store.read([vm_id]).found[vm_id].checked_ms or 0


def test_of_three_beats_any_may_die_at_any_time(here: Arena) -> None:
    site = here.site
    worker = site.start_successor()
    beats = [site.start_beat(f"beat-{number}") for number in range(3)]
    site.run_vms("beat-1", "beat-2", "beat-3", "beat-4")
    for turn in range(4):
        beats[0].popen.kill()
        beats[0].popen.wait()
        vm_id = f"beat-{turn + 1}"
        before = here.injure(vm_id, lambda record: site.socket(record).unlink())
        site.wait_healthy(vm_id, after=before)
        beats = [*beats[1:], site.start_beat(f"beat-again-{turn}")]
    here.account("three beats, one killed again and again", times=4, worker=worker)


@contextmanager
def a_broker_that_forgets(site_url: str) -> Iterator[list[int]]:
    """Empty the broker's database every fifth of a second."""
    client, ending, flushed = redis.Redis.from_url(site_url), threading.Event(), [0]

    def forget() -> None:
        while not ending.wait(0.2):
            client.flushdb()
            flushed[0] += 1

    thread = threading.Thread(target=forget)
    thread.start()
    try:
        yield flushed
    finally:
        ending.set()
        thread.join()
        client.close()


def test_the_broker_may_forget_everything_again_and_again(here: Arena) -> None:
    site = here.site
    site.start_beat()
    worker = site.start_successor()
    site.run_vms("flush-1", "flush-2", "flush-3")
    site.fault("flush-2", '{"refuse_starts": 1}')
    with a_broker_that_forgets(site.server.url(1)) as flushed:
        here.injure("flush-1", die)
        here.injure("flush-2", die)
        here.injure("flush-3", lambda record: kill(record, signal.SIGSTOP))
        for vm_id in ("flush-1", "flush-2", "flush-3"):
            wait_until(partial(is_back, here, vm_id), timeout_s=20, what=f"{vm_id} to be back")
    here.account("broker database emptied", times=flushed[0], worker=worker)


def test_the_kill_switch_stops_everything_and_its_end_sets_it_going_again(here: Arena) -> None:
    site = here.site
    site.start_beat()
    worker = site.start_successor()
    before = site.run_vms("pause-1", "pause-2")
    (site.state_dir / "PAUSE").touch()
    wait_until(site.fleet.data.halted, what="status to show it")
    here.injure("pause-1", die)
    here.injure("pause-2", lambda record: kill(record, signal.SIGSTOP))
    wait_until(lambda: site.record("pause-2").state in (State.UNHEALTHY, State.ORPHANED), what="both to be known")
    sweeps_pass(worker)
    assert site.live("pause-1") == []
    assert site.live("pause-2") == [before["pause-2"].process.pid]  # type: ignore[union-attr] # it is healthy
    assert not [e for e in site.events() if e.event.kind is EventKind.ATTEMPT_STARTED and e.event.attempt != 1]
    (site.state_dir / "PAUSE").unlink()
    here.account("kill switch on", times=1, worker=worker)
