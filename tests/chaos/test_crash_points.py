"""The worker dies by SIGKILL at each point where it touches the outside, once each; then a new one starts."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.chaos import Arena, arena, ask
from tests.support.cluster import kill, send_by_name
from tests.support.processes import wait_until
from tests.support.servers import start_server
from workers.crashpoints import Point
from workers.domain.audit import EventKind
from workers.domain.vm import Desired, EpisodeEnd, State, VmRecord

FAULT = "worker killed at a crash point"
Trigger = Callable[[Arena, str], None]


def die(here: Arena, vm_id: str) -> None:
    here.injure(vm_id, lambda record: kill(record, signal.SIGKILL))


def die_and_refuse_one_start(here: Arena, vm_id: str) -> None:
    here.site.fault(vm_id, '{"refuse_starts": 1}')
    die(here, vm_id)


def lose_its_socket(here: Arena, vm_id: str) -> None:
    here.injure(vm_id, lambda record: here.site.socket(record).unlink())


def hang(here: Arena, vm_id: str) -> None:
    here.injure(vm_id, lambda record: kill(record, signal.SIGSTOP))


def be_asked_for(here: Arena, vm_id: str) -> None:
    """A person asks for a VM that has failed."""
    here.site.fault(vm_id, '{"refuse_starts": 1, "exit_code": 152}')
    die(here, vm_id)
    here.site.wait_state(vm_id, State.FAILED)
    send_by_name(here.site, vm_id, request_id="person-1")


def be_stopped(here: Arena, vm_id: str) -> None:
    here.site.apply(here.site.spec(vm_id, desired="stopped"))


TRIGGERS: dict[Point, Trigger] = {
    **dict.fromkeys(Point, die),
    Point.RECORDS_READ: hang,
    Point.BEFORE_REQUEST: be_asked_for,
    Point.AFTER_REQUEST: be_asked_for,
    Point.BEFORE_SIGTERM: lose_its_socket,
    Point.AFTER_SIGTERM: lose_its_socket,
    Point.BEFORE_SIGKILL: hang,
    Point.AFTER_SIGKILL: hang,
    Point.BEFORE_RETRY: die_and_refuse_one_start,
    Point.AFTER_RETRY: die_and_refuse_one_start,
    Point.BEFORE_STOP: be_stopped,
    Point.AFTER_STOP: be_stopped,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    server = start_server(tmp_path_factory.mktemp("server"))
    with server, arena(tmp_path_factory.mktemp("crash"), server) as made:
        made.site.start_beat()
        yield made


@pytest.mark.parametrize("point", list(Point))
def test_a_worker_that_dies_here_is_followed_by_one_vmm_and_an_ended_episode(here: Arena, point: Point) -> None:
    site, vm_id = here.site, f"crash-{point.replace('_', '-')}"
    crash_file = site.folder / "crash"
    if site.worker is None:
        site.start_successor(CRASH_FILE=str(crash_file))
    worker = site.worker
    assert worker is not None
    site.run_vms(vm_id)

    ask(crash_file, point)
    TRIGGERS[point](here, vm_id)

    wait_until(lambda: not worker.is_alive, timeout_s=20, what=f"the worker to die at {point}")
    assert (worker.popen.wait(), crash_file.exists()) == (-signal.SIGKILL, False)
    site.start_successor(CRASH_FILE=str(crash_file))
    if point is Point.BEFORE_REQUEST:
        # It is nowhere written down yet, and its message comes again only after the visibility timeout.
        send_by_name(site, vm_id, request_id="person-1")
    if TRIGGERS[point] is be_asked_for:
        site.wait_healthy(vm_id)
    here.account(FAULT)
    record = site.record(vm_id)
    assert attempts_of(here, vm_id) == list(range(1, counted(record) + 1))
    assert record.episode is not None
    assert record.episode.end is EpisodeEnd.RECOVERED
    if record.desired is Desired.RUNNING:
        assert record.process is not None
        assert site.socket(record).parent.name == str(record.generation)
        assert Path(f"/proc/{record.process.pid}/cwd").resolve() == site.socket(record).parent.resolve()


def attempts_of(here: Arena, vm_id: str) -> list[int | None]:
    """The numbers of the attempts of its last episode."""
    started = [e.event.attempt for e in here.site.events(vm_id) if e.event.kind is EventKind.ATTEMPT_STARTED]
    begun = max(index for index, number in enumerate(started) if number == 1)
    return list(started[begun:])


def counted(record: VmRecord) -> int:
    """A first start that went well, at its first attempt here, is not kept in the record."""
    return record.episode.attempt if record.episode is not None else 1
