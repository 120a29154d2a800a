"""HTTP/1.1 over a Unix socket, for one kind of callers: every read has a deadline, every size a limit.

The endpoints of telemetry (workers/telemetry/endpoints.py) are open to whoever reaches their port, and read only; here
callers are known, and bodies are read. Like those, it runs in threads of its own and keeps no worker from its work.
"""

import io
import json
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer, ThreadingMixIn
from typing import Any

import structlog

from workers.integration.peers import Admission, Peer, gid_of, peer_of
from workers.integration.unix_socket import closed_folder, listening

_log = structlog.get_logger(component="hooks_api")

MODE = 0o660
BODY_MAX = 256 * 1024
_HEAD_MAX = 16 * 1024
# Beyond the limit, so much is still read and thrown away: a caller that sends cannot see an answer.
_DISCARD_MAX = 8 * 1024 * 1024
_AGAIN_S = 5.0
_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Times:
    """In seconds: between two requests of a connection, and for reading one."""

    idle_s: float = 30.0
    request_s: float = 10.0
    stranger_s: float = 2.0


@dataclass(frozen=True, slots=True)
class Request:
    """`is_over` says whether nobody waits for the answer any more. The target is as it was sent."""

    method: str
    target: str
    body: bytes
    is_over: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    document: Mapping[str, Any]
    headers: Mapping[str, str] = field(default_factory=dict)


Answerer = Callable[[Request], Answer]


def error_answer(
    status: int, code: str, message: str, *, about: str | None = None, headers: Mapping[str, str] | None = None
) -> Answer:
    """`about` is the field that is wrong, where one is."""
    return Answer(status, {"error": {"code": code, "field": about, "message": message}}, headers or {})


class HooksServer:
    """`start` never fails: a socket that cannot be had is tried again every `again_s`, and said once."""

    def __init__(
        self,
        path: Path,
        answer: Answerer,
        *,
        group: str | None = None,
        connections: int = 64,
        times: Times = Times(),
        again_s: float = _AGAIN_S,
    ) -> None:
        self.path, self._group, self._again_s = path, group, again_s
        self._answer, self._connections, self._times = answer, connections, times
        self._stopping = threading.Event()
        self._listens = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="hooks-api", daemon=True)

    @property
    def listens(self) -> bool:
        return self._listens.is_set()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._wake.close()
        if self._thread.is_alive():
            self._thread.join(timeout=2)
        else:
            self._woken.close()

    def _run(self) -> None:
        with self._woken:
            self._keep_serving()

    def _keep_serving(self) -> None:
        said = ""
        while not self._stopping.is_set():
            try:
                self._serve()
            except OSError as error:
                why = error.strerror or str(error)
                if why != said:
                    _log.warning("hooks api waits for its socket", path=str(self.path), why=why)
                said = why
            except Exception:  # noqa: BLE001 - the next try may do better, and the worker goes on without
                _log.exception("hooks api failed", path=str(self.path))
            self._stopping.wait(self._again_s)

    def _serve(self) -> None:
        gid = gid_of(self._group) if self._group else None
        with listening(self.path, mode=MODE, gid=gid) as sock:
            admission = Admission(os.geteuid(), gid)
            server = _Server(
                sock,
                self._answer,
                admission=admission,
                times=self._times,
                connections=self._connections,
                stopping=self._stopping,
            )
            self._listens.set()
            _log.info("hooks api", path=str(self.path), group=self._group)
            if gid is not None and (folder := closed_folder(self.path, gid)):
                _log.warning("hooks api is closed to its group", group=self._group, folder=str(folder))
            try:
                while not self._stopping.is_set():
                    _wait_for(sock, self._woken)
                    server.handle_request()
            finally:
                self._listens.clear()


class _Server(ThreadingMixIn, BaseServer):
    daemon_threads = True
    timeout = 0  # it is asked when somebody is there

    def __init__(
        self,
        sock: socket.socket,
        answer: Answerer,
        *,
        admission: Admission,
        times: Times,
        connections: int,
        stopping: threading.Event,
    ) -> None:
        super().__init__(str(sock.getsockname()), _Handler)
        self.socket, self.answer, self.admission, self.times, self.stopping = sock, answer, admission, times, stopping
        self._places = threading.BoundedSemaphore(connections)

    def fileno(self) -> int:
        return self.socket.fileno()

    def get_request(self) -> tuple[socket.socket, str]:
        try:
            connection, _ = self.socket.accept()
        except OSError:
            self.stopping.wait(_PAUSE_S)  # out of descriptors: it would be asked again at once
            raise
        return connection, "unix"

    def process_request(self, request: Any, client_address: Any) -> None:
        if self._places.acquire(blocking=False):
            try:
                super().process_request(request, client_address)
            except RuntimeError:  # no further thread can be had
                self._places.release()
                raise
            return
        _send_briefly(request, error_answer(503, "busy", "too many connections", headers={"Retry-After": "1"}))
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def shutdown_request(self, request: Any) -> None:
        request.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request, client_address
        _log.debug("a caller of the hooks api went away")


def _wait_for(*sockets: socket.socket) -> None:
    """Not `select`, which knows no descriptor beyond 1024: a worker has thousands."""
    poll = select.poll()
    for each in sockets:
        poll.register(each, select.POLLIN)
    poll.poll()


def _send_briefly(connection: socket.socket, answer: Answer) -> None:
    """Without a thread, and so without ever waiting for the caller."""
    body = _body_of(answer)
    head = [f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}", f"Content-Length: {len(body)}"]
    head += [f"{name}: {value}" for name, value in _headers_of(answer).items()]
    try:
        connection.settimeout(0)
        connection.send("\r\n".join([*head, "Connection: close", "", ""]).encode() + body)
    except OSError:
        return


def _body_of(answer: Answer) -> bytes:
    return json.dumps(answer.document).encode() + b"\n"


def _headers_of(answer: Answer) -> dict[str, str]:
    return {"Content-Type": "application/json", "Cache-Control": "no-store", **answer.headers}


class _Wire(io.RawIOBase):
    """What a caller sends, until a deadline."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._until = connection, 0.0

    def allow(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Reader(io.BufferedReader):
    """Reads no more head than it may."""

    head_left = _HEAD_MAX

    def readline(self, size: int | None = -1, /) -> bytes:
        del size
        line = super().readline(self.head_left + 1)
        self.head_left -= len(line)
        if self.head_left < 0:
            raise HTTPException(f"longer than {_HEAD_MAX} bytes")
        return line


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # so that an answer has a head, whatever was sent
    server_version, sys_version = "reliability", ""
    server: _Server
    close_connection: bool

    def setup(self) -> None:
        super().setup()
        self._wire = _Wire(self.connection)
        self.rfile = self._reader = _Reader(self._wire)

    def handle_one_request(self) -> None:
        try:
            self._handle()
        except TimeoutError:
            self.close_connection = True

    def _handle(self) -> None:
        stranger = self._stranger()
        times = self.server.times
        self._wire.allow(times.idle_s if stranger is None else times.stranger_s)
        self._reader.head_left = _HEAD_MAX
        try:
            self.raw_requestline = self._reader.readline()
        except HTTPException as error:
            self._refuse_head(str(error))
            return
        if not self.raw_requestline or self.server.stopping.is_set():
            self.close_connection = True
            return
        if stranger is None:
            self._wire.allow(times.request_s)
        if not self.parse_request():
            return
        self._send(self._answer() if stranger is None else self._refuse(stranger))

    def _stranger(self) -> Peer | None:
        """The caller, if he is none of those that may be here."""
        peer = peer_of(self.connection)
        return None if self.server.admission.admits(peer) else peer

    def _refuse(self, peer: Peer) -> Answer:
        self.close_connection = True
        _log.warning("hooks api refused a caller", uid=peer.uid, pid=peer.pid)
        text = "this account is not admitted: be a member of the group that hooks.group names"
        return error_answer(HTTPStatus.FORBIDDEN, "forbidden", text)

    def _refuse_head(self, why: str) -> None:
        self.command, self.request_version, self.requestline = "", self.protocol_version, ""
        self.send_error(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, why)

    def _answer(self) -> Answer:
        body = self._body()
        if isinstance(body, Answer):
            return body
        try:
            return self.server.answer(Request(self.command, self.path, body, self._is_over))
        except Exception:  # noqa: BLE001 - whatever it was, the caller gets an answer
            _log.exception("hooks api failed", method=self.command, path=self.path)
            return error_answer(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "this is an error of ours: see the log")

    def _body(self) -> bytes | Answer:
        """Read the body, or say why it is not."""
        if "Transfer-Encoding" in self.headers:
            self.close_connection = True
            return error_answer(HTTPStatus.LENGTH_REQUIRED, "length_required", "send a Content-Length, and no chunks")
        lengths = self.headers.get_all("Content-Length", ["0"])
        if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
            self.close_connection = True
            return error_answer(HTTPStatus.BAD_REQUEST, "bad_request", "the Content-Length is no number")
        length = int(lengths[0])
        if length > BODY_MAX:
            return self._too_large(length)
        body = self._reader.read(length)
        if len(body) < length:
            raise TimeoutError  # it went away
        return body

    def _too_large(self, length: int) -> Answer:
        if length <= _DISCARD_MAX:
            while length > 0 and (got := len(self._reader.read(min(length, BODY_MAX)))):
                length -= got
        else:
            self.close_connection = True
        text = f"the body may be {BODY_MAX} bytes long"
        return error_answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", text)

    def _is_over(self) -> bool:
        if self.server.stopping.is_set():
            return True
        self.connection.settimeout(0)  # whoever reads or writes next sets his own
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def _send(self, answer: Answer) -> None:
        body = _body_of(answer)
        self.connection.settimeout(self.server.times.request_s)
        self.send_response(answer.status)
        for name, value in _headers_of(answer).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the parser does not take."""
        del explain
        self.close_connection = True
        self._send(error_answer(int(code), HTTPStatus(code).name.lower(), message or HTTPStatus(code).phrase))

    def log_message(self, *_args: Any) -> None:
        """What matters about a request is logged by who answers it."""
