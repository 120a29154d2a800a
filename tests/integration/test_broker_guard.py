"""A real worker loses Redis while it holds an unacknowledged message, and lives on.

Each case: {held countdown task, running late-acknowledged task} x {Redis killed, Redis stopped, connections cut}.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from kombu.connection import Connection
from kombu.transport import get_transport_cls
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.support.guard_app import HOLD, NODE, NOTE, QUEUE, UNACKED_KEY, VISIBILITY_TIMEOUT_S, make_app
from tests.support.processes import RunningProcess, start_process, wait_until
from tests.support.servers import BROKER_DB
from workers.broker import GuardedSentinelTransport, GuardedTransport, install_guard
from workers.embedded import EmbeddedServer
from workers.host.identity import read_stat

ROOT = Path(__file__).parents[2]
KOMBU_BUG = "'NoneType' object has no attribute 'hostname'"


@dataclass(frozen=True, slots=True)
class Rig:
    """A worker with its server, a client app to send with, and what its tasks wrote."""

    server: EmbeddedServer
    worker: RunningProcess
    app: Celery
    notes_path: Path

    def notes(self) -> list[str]:
        return self.notes_path.read_text().splitlines()

    def await_note(self, line: str) -> None:
        wait_until(lambda: line in self.notes(), timeout_s=20, what=f"the note {line!r}")

    def release(self, word: str) -> None:
        (self.notes_path.parent / word).touch()

    @contextmanager
    def broker(self) -> Iterator[redis.Redis]:
        client = redis.Redis.from_url(self.server.url(BROKER_DB))
        try:
            yield client
        finally:
            client.close()

    def unacknowledged(self) -> int:
        with self.broker() as client:
            return client.hlen(UNACKED_KEY)

    def cut(self, connections: str) -> None:
        with self.broker() as client:
            client.client_kill_filter(_type=connections)

    def ping(self) -> object:
        # A new connection: control commands, unlike tasks, are not sent again when a pooled one turns out dead.
        with self.app.connection() as connection:
            return self.app.control.ping(destination=[NODE], timeout=5, connection=connection)


@contextmanager
def running_rig(server: EmbeddedServer, folder: Path) -> Iterator[Rig]:
    url = server.url(BROKER_DB)
    notes_path = folder / "notes"
    notes_path.touch()
    env = {
        "GUARD_TEST_BROKER": url,
        "GUARD_TEST_NOTES": str(notes_path),
    }
    command = [sys.executable, "-m", "tests.support.guard_app"]
    with start_process(command, log_path=folder / "worker.log", env=env, cwd=ROOT) as worker:
        worker.wait_for_log("ready.", timeout_s=20)
        app = make_app(url)
        try:
            yield Rig(server, worker, app, notes_path)
        finally:
            app.close()


def hold_a_countdown(rig: Rig) -> None:
    rig.app.send_task(NOTE, ["first"], countdown=VISIBILITY_TIMEOUT_S)
    wait_until(lambda: rig.unacknowledged() == 1, what="the worker to hold the task")


def hold_a_running_task(rig: Rig) -> None:
    rig.app.send_task(HOLD, ["first"])
    rig.await_note("first started")


def kill_redis(rig: Rig) -> None:
    """Kill the server so that the worker surely hears of it on the remote control's connection first.

    That order is the one kombu dies of; left to chance, one time in three it comes the other way round.
    """
    rig.worker.popen.send_signal(signal.SIGSTOP)
    # The signal takes effect a moment later.
    wait_until(lambda: is_stopped(rig.worker.pid), what="the worker to be stopped")
    rig.cut("pubsub")
    rig.server.kill()
    rig.worker.popen.send_signal(signal.SIGCONT)


def is_stopped(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state == "T"


def stop_redis(rig: Rig) -> None:
    rig.server.stop()


def cut_connections(rig: Rig) -> None:
    rig.cut("normal")
    rig.cut("pubsub")


def await_loss_and_bring_back(rig: Rig) -> None:
    rig.worker.wait_for_log("Connection to broker lost")
    if not rig.server.is_running:
        rig.worker.wait_for_log("Connection refused")
        rig.server.start()


@pytest.mark.parametrize("hold", [pytest.param(hold_a_countdown, marks=pytest.mark.full), hold_a_running_task])
@pytest.mark.parametrize(
    "lose",
    [
        kill_redis,
        pytest.param(cut_connections, marks=pytest.mark.full),
        pytest.param(stop_redis, marks=pytest.mark.full),
    ],
)
def test_worker_outlives_the_loss_of_redis_and_finishes_what_it_held(
    fresh_server: EmbeddedServer, tmp_path: Path, hold: Callable[[Rig], None], lose: Callable[[Rig], None]
) -> None:
    with running_rig(fresh_server, tmp_path) as rig:
        hold(rig)

        lose(rig)
        await_loss_and_bring_back(rig)

        rig.app.send_task(NOTE, ["second"])
        rig.await_note("second")
        rig.release("first")
        rig.await_note("first" if hold is hold_a_countdown else "first finished")
        wait_until(lambda: rig.unacknowledged() == 0, what="every message to be acknowledged")
        assert rig.ping() == [{NODE: {"ok": "pong"}}]
        assert rig.worker.is_alive
        assert KOMBU_BUG not in rig.worker.log()


@pytest.mark.parametrize(
    ("transport", "error"),
    [("kombu.transport.redis:Transport", AttributeError), ("workers.broker:GuardedTransport", RedisConnectionError)],
)
def test_a_channel_whose_transport_is_closed_is_a_lost_connection_and_no_error_of_ours(
    broker_url: str, transport: str, error: type[Exception]
) -> None:
    """The bug of kombu 5.7.0 that ends a worker; once its own transport behaves, the guard can go.

    On the second close a channel wants to restore what it held, through a transport that is detached already. In a
    worker that depends on which lost connection is noticed first, so it is shown on the channel itself.
    """
    connection: Any = Connection(broker_url, transport=transport)  # type: ignore[no-untyped-call] # kombu is half typed
    channel = connection.default_channel
    client, channel.connection.client = channel.connection.client, None
    try:
        with pytest.raises(error):
            channel._connparams()
    finally:
        channel.connection.client = client
        connection.release()


def test_an_idle_worker_ends_in_good_order_and_a_held_countdown_goes_back_to_the_queue(
    fresh_server: EmbeddedServer, tmp_path: Path
) -> None:
    with running_rig(fresh_server, tmp_path) as rig:
        rig.app.send_task(NOTE, ["later"], countdown=60)
        wait_until(lambda: rig.unacknowledged() == 1, what="the worker to hold the task")

        assert rig.worker.stop() == 0

        assert rig.unacknowledged() == 0
        with rig.broker() as client:
            assert client.llen(QUEUE) == 1


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://:secret@127.0.0.1:1/1", GuardedTransport),
        ("rediss://:secret@127.0.0.1:1/1", GuardedTransport),
        ("redis+socket://:secret@/run/redis.sock", GuardedTransport),
        ("sentinel://127.0.0.1:1;sentinel://127.0.0.1:2", GuardedSentinelTransport),
    ],
)
def test_every_ordinary_redis_url_is_guarded(url: str, expected: type) -> None:
    install_guard()
    install_guard()

    assert make_app(url).connection().get_transport_cls() is expected


def test_the_guard_replaces_a_transport_that_was_looked_up_before() -> None:
    get_transport_cls("redis")

    install_guard()

    assert get_transport_cls("redis") is GuardedTransport


def test_a_closed_transport_is_a_lost_connection(fresh_server: EmbeddedServer) -> None:
    install_guard()
    with make_app(fresh_server.url(BROKER_DB)).connection() as connection:
        channel = connection.default_channel
        connection.transport.client = None

        with pytest.raises(connection.connection_errors, match="already closed"):
            channel._create_client()

        connection.transport.client = connection
