"""Nothing listens beyond loopback unless it is told to: the defaults, what opens a port at all, running programs."""

import ast
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.cli import program
from tests.support.cluster import cluster
from tests.support.processes import wait_until
from workers.embedded import EmbeddedServer, free_port
from workers.settings import KEYS, load, value_of
from workers.telemetry.endpoints import Endpoints

ROOT = Path(__file__).parents[2]
# Every way of opening a port that this code could take. A new one has to be shown here to be on loopback.
OPENS = {"bind", "listen", "create_server", "start_server", "start_unix_server", "bind_sockets", "bind_unix_socket"}
SERVERS = {"HTTPServer", "ThreadingHTTPServer", "TCPServer", "ThreadingTCPServer", "UDPServer", "UnixStreamServer"}
KNOWN = {
    "workers/embedded.py": "the server's port: _HOST",
    "workers/telemetry/endpoints.py": "telemetry.address",
    "workers/vmm/standin.py": "a Unix socket in the VM's own folder",
    "workers/integration/unix_socket.py": "a Unix socket with mode and group",
}
# Their `bind` and `listen` have nothing to do with sockets.
OTHER_WORDS = {"workers/simulator/happenings.py", "workers/simulator/scenario.py", "workers/simulator/schedules.py"}


def openers() -> Iterator[str]:
    for folder in ("workers", "beat"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            text = path.read_text("utf-8")
            if any(word in text for word in OPENS | SERVERS) and any(map(_opens, ast.walk(ast.parse(text)))):
                yield str(path.relative_to(ROOT))


def _opens(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr=name)) if name in OPENS:
            return True
        case ast.Call(func=ast.Name(id=name)) | ast.ClassDef(bases=[ast.Name(id=name), *_]):
            return name in SERVERS
        case _:
            return False


def test_only_these_modules_open_anything_to_connect_to() -> None:
    assert set(openers()) - OTHER_WORDS == set(KNOWN)


@pytest.mark.parametrize("key", [key for key in KEYS if key.rpartition(".")[2] == "address"])
def test_every_address_is_loopback_by_default(key: str, tmp_path: Path) -> None:
    settings = load({"RELIABILITY_STATE_DIR": str(tmp_path)}, tmp_path).settings

    assert ipaddress.ip_address(value_of(settings, key)).is_loopback


def listening(pid: int) -> set[str]:
    """Every address on which a process, or a child of it, waits for connections."""
    process = psutil.Process(pid)
    found = (each for one in (process, *process.children(recursive=True)) for each in one.net_connections("inet"))
    return {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}


def test_the_embedded_server_listens_on_loopback(server_process: EmbeddedServer) -> None:
    assert listening(server_process.pid) == {"127.0.0.1"}


def test_endpoints_listen_where_they_are_told() -> None:
    endpoints = Endpoints("127.0.0.1", 0, {})
    endpoints.start()
    try:
        url = wait_until(lambda: endpoints.url, what="the endpoints to listen")
        assert url is not None
        assert url.startswith("http://127.0.0.1:")
    finally:
        endpoints.stop()


@pytest.mark.full
def test_worker_beat_and_flower_listen_on_loopback(fresh_server: EmbeddedServer, tmp_path: Path) -> None:
    with cluster(tmp_path, fresh_server) as fleet:
        worker, beat = fleet.serve(), fleet.start_beat("second")
        with program(fleet, "flower", "--port", str(free_port()), name="flower") as flower:
            fleet.run_vms("listener-1")
            for each in (worker, beat, flower):
                assert wait_until(lambda pid=each.pid: listening(pid), timeout_s=20) == {"127.0.0.1"}  # type: ignore[misc]
            # A VMM has sockets in its own folder only.
            for pid in fleet.live("listener-1"):
                assert listening(pid) == set()
