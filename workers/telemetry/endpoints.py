"""A small HTTP server beside the work: /healthz, /readyz, /metrics and /status, each answered by a function.

It only reads, runs in threads of its own, and never keeps a process from starting, working or ending.
"""

import json
import os
import select
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import structlog

_log = structlog.get_logger(component="endpoints")

JSON = "application/json"
_TIMEOUT_S = 10.0
_AGAIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Reply:
    body: bytes
    is_good: bool = True
    content_type: str = JSON


Route = Callable[[], Reply]


def json_reply(document: Mapping[str, Any], *, is_good: bool = True) -> Reply:
    return Reply(json.dumps(document, indent=1).encode() + b"\n", is_good)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # A successor may listen as soon as we are gone.
    allow_reuse_address = True
    # As many may knock at once: a queue of five, the default, makes the others wait for seconds.
    request_queue_size = 128
    timeout = 0  # it is asked when somebody is there

    def handle_error(self, request: Any, client_address: Any) -> None:
        del request
        _log.debug("a client went away", client=str(client_address[0]))


def _handler(routes: Mapping[str, Route], timeout_s: float) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = timeout_s
        server_version, sys_version = "reliability", ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0].rstrip("/") or "/"
            if path == "/":
                self._send(HTTPStatus.OK, Reply(("\n".join(routes) + "\n").encode(), content_type="text/plain"))
            elif path in routes:
                reply = self._answer(routes[path])
                self._send(HTTPStatus.OK if reply.is_good else HTTPStatus.SERVICE_UNAVAILABLE, reply)
            else:
                self._send(HTTPStatus.NOT_FOUND, json_reply({"error": f"no {path} here", "known": list(routes)}))

        do_HEAD = do_GET  # noqa: N815 - the name http.server calls

        def _answer(self, route: Route) -> Reply:
            try:
                return route()
            except Exception as error:  # noqa: BLE001 - whatever it was, the caller gets an answer
                _log.exception("an endpoint failed", path=self.path)
                return json_reply({"error": f"{type(error).__name__}: {error}"}, is_good=False)

        def _send(self, status: HTTPStatus, reply: Reply) -> None:
            self.send_response(status)
            self.send_header("Content-Type", reply.content_type)
            self.send_header("Content-Length", str(len(reply.body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body)

        def log_message(self, *_args: Any) -> None:
            """Scrapes come every few seconds: they are no news."""

    return Handler


class Endpoints:
    """`start` never fails: a port that is taken (by a worker that is about to end) is tried again until it is free.

    A client that does not go on is let go after `timeout_s`; `again_s` is the pause between two tries for the port.
    """

    def __init__(
        self,
        address: str,
        port: int,
        routes: Mapping[str, Route],
        *,
        timeout_s: float = _TIMEOUT_S,
        again_s: float = _AGAIN_S,
    ) -> None:
        self._address, self._port, self._routes = address, port, routes
        self._timeout_s, self._again_s = timeout_s, again_s
        self._server: _Server | None = None
        self._stopping = threading.Event()
        self._wake: int | None = None
        self._thread = threading.Thread(target=self._run, name="endpoints", daemon=True)

    def start(self) -> None:
        self._wake = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        if self._wake is None:
            return
        os.eventfd_write(self._wake, 1)
        self._thread.join(timeout=2)
        if not self._thread.is_alive():
            os.close(self._wake)
            self._wake = None

    @property
    def url(self) -> str | None:
        """Where it listens; None: not yet."""
        if self._server is None:
            return None
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def _run(self) -> None:
        said = False
        while not self._stopping.is_set():
            try:
                server = _Server((self._address, self._port), _handler(self._routes, self._timeout_s))
            except OSError as error:
                if not said:
                    where = f"{self._address}:{self._port}"
                    _log.warning("endpoints wait for their port: free it, or set another", at=where, why=error.strerror)
                said = True
                self._stopping.wait(self._again_s)
                continue
            with server:
                self._server = server
                _log.info("endpoints", url=self.url, paths=" ".join(self._routes))
                # Not `serve_forever`: its `shutdown` waits for ever where it has not begun.
                while not self._stopping.is_set():
                    self._wait_for(server)
                    server.handle_request()
            return

    def _wait_for(self, server: _Server) -> None:
        """Sleep until somebody knocks, or the end has come."""
        poll = select.poll()
        for fd in (server.fileno(), self._wake):
            if fd is not None:
                poll.register(fd, select.POLLIN)
        poll.poll()
