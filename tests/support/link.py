"""A TCP link to a server that a test can cut, mend and slow down."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class Link:
    """Listens on loopback and forwards to `port`; while it is cut, connections break and new ones are refused."""

    def __init__(self, port: int) -> None:
        self.delay_s = 0.0
        self._target = port
        self._is_cut = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="link", daemon=True).start()

    def cut(self) -> None:
        with self._lock:
            self._is_cut = True
            ends, self._open = self._open, set()
        for end in ends:
            _close(end)

    def mend(self) -> None:
        self._is_cut = False

    def close(self) -> None:
        self.cut()
        _close(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target), timeout=2)
            except OSError:
                _close(near)
                continue
            far.settimeout(None)
            with self._lock:
                if not self._is_cut:
                    self._open |= {near, far}
            if near not in self._open:
                _close(near)
                _close(far)
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if self.delay_s:
                    time.sleep(self.delay_s)
                sink.sendall(data)
        _close(source)
        _close(sink)
        with self._lock:
            self._open -= {source, sink}


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextlib.contextmanager
def link_to(port: int) -> Iterator[Link]:
    link = Link(port)
    try:
        yield link
    finally:
        link.close()
