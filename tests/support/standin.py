"""One stand-in VMM as a child process, and a client that talks to it the way a driver would.

What the stand-in answers is judged by the tests; ending it is done here.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.processes import RunningProcess, start_process, wait_until
from workers.vmm import standin

EXECUTABLE = Path(standin.__file__)

_ANSWER_TIMEOUT_S = 10.0
_EXIT_TIMEOUT_S = 20.0


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = connect(self._path, timeout_s=_ANSWER_TIMEOUT_S if self.timeout is None else self.timeout)


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: Any
    headers: Mapping[str, str]


def connect(path: Path, *, timeout_s: float = _ANSWER_TIMEOUT_S) -> socket.socket:
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    client.settimeout(timeout_s)
    try:
        client.connect(str(path))
    except OSError:
        client.close()
        raise
    return client


def read_reply(client: socket.socket) -> Reply:
    """Read one answer off a connection that stays open."""
    response = http.client.HTTPResponse(client)
    try:
        response.begin()
        raw = response.read()
        return Reply(response.status, json.loads(raw) if raw else None, dict(response.getheaders()))
    finally:
        response.close()


def send_request(client: socket.socket, method: str, path: str, body: object = None) -> None:
    content = "" if body is None else json.dumps(body)
    client.sendall(f"{method} {path} HTTP/1.1\r\nContent-Length: {len(content)}\r\n\r\n{content}".encode())


@dataclass(frozen=True, slots=True)
class Standin:
    process: RunningProcess
    socket_path: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def call(self, method: str, path: str, body: object = None, *, timeout_s: float = _ANSWER_TIMEOUT_S) -> Reply:
        """Make one call on a connection of its own; text goes out as it is, anything else as JSON."""
        content = body if isinstance(body, str) or body is None else json.dumps(body)
        connection = _UnixConnection(self.socket_path, timeout_s)
        try:
            connection.request(method, path, content)
            response = connection.getresponse()
            raw = response.read()
            return Reply(response.status, json.loads(raw) if raw else None, dict(response.getheaders()))
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        reply = self.call("GET", path)
        assert reply.status == http.HTTPStatus.OK, reply
        return reply.body

    def put(self, path: str, body: object) -> None:
        reply = self.call("PUT", path, body)
        assert reply.status == http.HTTPStatus.NO_CONTENT, reply

    def state(self) -> str:
        return str(self.get("/")["state"])

    def boot(self, kernel: Path) -> None:
        self.put("/boot-source", {"kernel_image_path": str(kernel)})
        self.put("/actions", {"action_type": "InstanceStart"})

    def wait_for_exit(self) -> int:
        return self.process.popen.wait(timeout=_ANSWER_TIMEOUT_S)


def command(*flags: str, executable: Path = EXECUTABLE) -> list[str]:
    return [sys.executable, "-S", "-I", str(executable), *flags]


def run_to_its_end(folder: Path, *flags: str, faults: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Start one that is expected to end by itself; its id is vm-1 if the flags give none."""
    own_id = [] if "--id" in flags else ["--id", "vm-1"]
    return subprocess.run(
        command(*own_id, *flags),
        cwd=folder,
        env=_environment(faults),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_EXIT_TIMEOUT_S,
        check=False,
    )


def _environment(faults: Path | None) -> dict[str, str]:
    return {**os.environ, "STANDIN_FAULTS": str(faults or "")}


@contextmanager
def running_standin(
    folder: Path,
    *flags: str,
    vm_id: str = "vm-1",
    faults: Path | None = None,
    executable: Path = EXECUTABLE,
) -> Iterator[Standin]:
    """Start one in this folder and wait until its socket takes connections; console and errors go to `<id>.log`."""
    with start_process(
        command("--api-sock", "api.sock", "--id", vm_id, *flags, executable=executable),
        log_path=folder / f"{vm_id}.log",
        env=_environment(faults),
        cwd=folder,
    ) as process:
        vm = Standin(process, folder / "api.sock")
        wait_until(lambda: _takes_connections(vm), what="the API socket of the stand-in")
        yield vm


def _takes_connections(vm: Standin) -> bool:
    assert vm.process.is_alive, f"the stand-in ended before its socket was there:\n{vm.process.log_tail()}"
    try:
        connect(vm.socket_path).close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True
