"""A Unix socket that this process listens on: nobody else's is taken away, and a stale file is in nobody's way.

Who listens holds the lock file beside the socket. A socket that answers without it belongs to another program.
"""

import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_BACKLOG = 128
_CONNECT_S = 1.0


@contextmanager
def listening(path: Path, *, mode: int, gid: int | None) -> Iterator[socket.socket]:
    """Listen at `path`, and remove it in the end. Raises OSError, also where somebody else listens there."""
    with _locked(path):
        _drop_stale(path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
            ours = _bind(server, path, mode, gid)
            try:
                yield server
            finally:
                server.close()
                if _file_at(path) == ours:
                    path.unlink()


def _bind(server: socket.socket, path: Path, mode: int, gid: int | None) -> tuple[int, int] | None:
    """Nobody can connect before it listens, and it listens only once it has its owner and mode."""
    try:
        server.bind(str(path))
    except OSError as error:
        if error.errno is None:
            raise OSError(errno.ENAMETOOLONG, f"{path} is longer than a socket's path may be: set another") from None
        raise
    if gid is not None:
        os.chown(path, -1, gid, follow_symlinks=False)
    path.chmod(mode)
    server.listen(_BACKLOG)
    return _file_at(path)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """The lock file stays: whoever removed it could let two hold it."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(path.with_name(path.name + ".lock"), flags, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(errno.EADDRINUSE, "another worker listens there") from None
        yield
    finally:
        os.close(fd)


def _drop_stale(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, f"{path} is no socket: remove it, or set another path")
    if _answers(path):
        raise OSError(errno.EADDRINUSE, f"another program listens at {path}: end it, or set another path")
    path.unlink()


def _answers(path: Path) -> bool:
    """Anything but a refusal may be somebody who is only busy."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(_CONNECT_S)
        try:
            client.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
    return True


def closed_folder(path: Path, gid: int) -> Path | None:
    """Return the outermost folder above `path` that the group may not enter. Raises OSError."""
    return next((folder for folder in reversed(path.parents) if not _is_open(folder.stat(), gid)), None)


def _is_open(folder: os.stat_result, gid: int) -> bool:
    return bool(folder.st_mode & (stat.S_IXGRP if folder.st_gid == gid else stat.S_IXOTH))


def _file_at(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
