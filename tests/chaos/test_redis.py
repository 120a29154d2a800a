"""Redis dies, hangs, loses its data or goes back in time, and the way to it is cut or slow."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis

from tests.support.chaos import Arena, arena, die, hang, sweeps_pass
from tests.support.cli import execute
from tests.support.link import Link, link_to
from tests.support.processes import RunningProcess, wait_until
from tests.support.servers import start_server
from workers.domain.audit import EventKind
from workers.domain.vm import State
from workers.embedded import EmbeddedServer
from workers.messages import NoWakeups


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One of the test's own: its data may be taken away."""
    with start_server(tmp_path_factory.mktemp("own-server")) as own:
        yield own


@pytest.fixture
def here(tmp_path: Path, server: EmbeddedServer) -> Iterator[Arena]:
    with arena(tmp_path, server) as made:
        made.site.start_beat()
        yield made


def aof(server: EmbeddedServer) -> Path:
    return server.directory / "appendonlydir"


def is_on_disk(server: EmbeddedServer) -> None:
    """The append-only file is written once a second."""
    client = redis.Redis.from_url(server.url(0))
    client.execute_command("WAITAOF", 1, 0, 5000)  # type: ignore[no-untyped-call] # redis
    client.close()


def forget(here: Arena, vm_id: str) -> None:
    """Stop it, then delete its record, as the manager does."""
    here.site.apply(here.site.spec(vm_id, desired="stopped"))
    here.site.wait_state(vm_id, State.STOPPED)
    here.site.fleet.registry(NoWakeups(), actor="test").forget(vm_id)
    mark = here.site.state_dir / "runs" / vm_id / "forgotten.json"
    wait_until(mark.exists, what="its host to know that it was forgotten")


def confirm(here: Arena) -> None:
    answer = execute(here.site, "state", "confirm", "--reason", "looked at it", "--yes")
    assert answer.status == 0, answer.err


def wait_frozen(here: Arena) -> str:
    def frozen() -> str:
        halts = here.site.fleet.data.halted()
        return next((halt.why for halt in halts.values() if halt.frozen), "")

    return wait_until(frozen, what="the host to be frozen")


def is_calm(worker: RunningProcess) -> None:
    """An outage is said once, not at each try."""
    assert worker.is_alive
    assert worker.log().count("redis is away") == 1


def test_a_server_that_is_killed_and_comes_back_with_its_data(here: Arena, server: EmbeddedServer) -> None:
    worker = here.site.start_successor()
    before = here.site.run_vms("kill-1", "kill-2", "kill-3")
    is_on_disk(server)
    server.kill()
    worker.wait_for_log("redis is away")
    here.hurt_unseen(before["kill-1"], die)
    here.hurt_unseen(before["kill-2"], lambda record: here.site.socket(record).unlink())
    time.sleep(2)  # longer than every lease
    server.start()
    here.account("redis killed, back with its data", worker=worker)
    is_calm(worker)
    assert here.site.live("kill-3") == [before["kill-3"].process.pid]  # type: ignore[union-attr] # it is healthy


def test_a_server_that_hangs_for_longer_than_every_lease(here: Arena, server: EmbeddedServer) -> None:
    worker = here.site.start_successor()
    before = here.site.run_vms("hang-1", "hang-2")
    here.site.fault("hang-1", '{"boot_delay_ms": 800}')
    here.injure("hang-1", die)
    wait_until(lambda: here.site.record("hang-1").state is State.RECOVERING, what="the recovery to have begun")
    os.kill(server.pid, signal.SIGSTOP)
    here.hurt_unseen(before["hang-2"], die)
    time.sleep(4)
    os.kill(server.pid, signal.SIGCONT)
    here.account("redis hangs in a recovery", worker=worker)


def test_a_server_that_comes_back_without_its_data_freezes_the_host_until_someone_has_looked(
    here: Arena, server: EmbeddedServer
) -> None:
    site = here.site
    worker = site.start_successor()
    before = site.run_vms("wipe-1", "wipe-2", "wipe-3")
    forget(here, "wipe-3")
    server.kill()
    shutil.rmtree(aof(server))
    here.hurt_unseen(before["wipe-2"], die)
    server.start()

    assert "epoch" in wait_frozen(here)
    sweeps_pass(worker)
    assert site.live("wipe-1") == [before["wipe-1"].process.pid]  # type: ignore[union-attr] # it is healthy
    assert site.live("wipe-2") == []
    rebuilt = execute(site, "state", "rebuild")
    assert rebuilt.status == 0, rebuilt.err
    assert sorted(site.fleet.store.ids()) == ["wipe-1", "wipe-2"], "what was forgotten does not rise again"
    sweeps_pass(worker)
    assert site.live("wipe-2") == [], "nothing is started before it is confirmed"
    confirm(here)

    here.account("redis lost all its data", worker=worker)
    assert site.live("wipe-1") == [before["wipe-1"].process.pid]  # type: ignore[union-attr] # it is healthy
    assert site.live("wipe-3") == []


def test_a_server_that_comes_back_with_older_data_freezes_the_host_and_nothing_is_doubled_after(
    here: Arena, server: EmbeddedServer
) -> None:
    site = here.site
    worker = site.start_successor()
    before = site.run_vms("old-1", "old-2", "old-3")
    is_on_disk(server)
    backup = server.directory / "backup"
    shutil.copytree(aof(server), backup)
    here.injure("old-1", die)
    newer = site.wait_healthy("old-1", after=before["old-1"])
    forget(here, "old-3")
    here.account("redis rolled back to older data", times=0)
    server.kill()
    shutil.rmtree(aof(server))
    backup.rename(aof(server))
    server.start()

    wait_frozen(here)
    # Its record names a process that has ended: a loss on paper, mended by taking over what runs.
    here.hurt_unseen(newer, lambda _: None)
    here.hurt_unseen(before["old-2"], die)
    # So is that of the VM which was forgotten later than these data know: it must not rise again.
    here.hurt_unseen(before["old-3"], lambda _: None)
    sweeps_pass(worker)
    assert site.live("old-2") == []
    confirm(here)

    here.account("redis rolled back to older data", worker=worker)
    assert site.live("old-1") == [newer.process.pid]  # type: ignore[union-attr] # it is healthy
    assert site.live("old-3") == []
    assert site.record("old-3").state is State.FAILED


def start_worker_over(here: Arena, server: EmbeddedServer, link: Link) -> RunningProcess:
    state, broker = (server.url(db).replace(f":{server.port}/", f":{link.port}/") for db in (0, 1))
    return here.site.start_successor(REDIS__URL=state, BROKER__URL=broker)


def test_a_link_that_is_cut_within_and_beyond_the_lease_of_a_recovery(here: Arena, server: EmbeddedServer) -> None:
    site = here.site
    with link_to(server.port) as link:
        worker = start_worker_over(here, server, link)
        site.run_vms("cut-1", "cut-2")
        for vm_id, for_s in (("cut-1", 0.5), ("cut-2", 3.0)):
            site.fault(vm_id, '{"boot_delay_ms": 700}')
            before = here.injure(vm_id, die)
            wait_until(partial(site.live, vm_id), what="the start to be under way")
            link.cut()
            time.sleep(for_s)
            link.mend()
            site.wait_healthy(vm_id, after=before, timeout_s=30)
        here.account("link to redis cut in a recovery", times=2, worker=worker)


def test_a_slow_link_slows_recovery_down_and_nothing_else(here: Arena, server: EmbeddedServer) -> None:
    site = here.site
    with link_to(server.port) as link:
        worker = start_worker_over(here, server, link)
        site.run_vms("slow-1", "slow-2", "slow-3")
        link.delay_s = 0.04
        here.injure("slow-1", die)
        here.injure("slow-2", lambda record: site.socket(record).unlink())
        here.injure("slow-3", hang)
        here.account("link to redis slow", worker=worker)
        assert not [e for e in site.events() if e.event.kind is EventKind.ATTEMPT_FAILED]
