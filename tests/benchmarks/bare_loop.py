"""The lower bound: the same sockets asked in one epoll loop, with no records, no verdicts, no Celery and no Redis."""

import select
import socket
import time
from collections.abc import Sequence

_REQUEST = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
# Enough at once to keep the loop busy; what it holds open stays below the usual limit of files.
_BATCH = 200
_TIMEOUT_S = 5.0


class BareLoop:
    def __init__(self, paths: Sequence[str]) -> None:
        self._batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
        self.checks = 0

    def run(self, seconds: float) -> None:
        """Check batch after batch until so much time has passed."""
        end = time.monotonic() + seconds
        while True:
            for batch in self._batches:
                self._check(batch)
                if time.monotonic() > end:
                    return

    def run_once(self, paths: Sequence[str]) -> None:
        for start in range(0, len(paths), _BATCH):
            self._check(paths[start : start + _BATCH])

    def _check(self, paths: Sequence[str]) -> None:
        waiting: dict[int, socket.socket] = {}
        epoll = select.epoll()
        try:
            for path in paths:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
                sock.connect(path)
                sock.send(_REQUEST)
                waiting[sock.fileno()] = sock
                epoll.register(sock, select.EPOLLIN)
            while waiting:
                self._receive(epoll, waiting)
        finally:
            epoll.close()
            for sock in waiting.values():
                sock.close()

    def _receive(self, epoll: select.epoll, waiting: dict[int, socket.socket]) -> None:
        ready = epoll.poll(_TIMEOUT_S)
        if not ready:
            raise TimeoutError(f"{len(waiting)} VMMs do not answer")
        for fd, _ in ready:
            sock = waiting.pop(fd)
            if b"Running" in sock.recv(4096):
                self.checks += 1
            sock.close()
