"""What Redis has not taken yet, on this host's disk: one file per VM, replaced as a whole and durably.

<state_dir>/hooks/<vm>.json      what was told about this VM, coalesced; gone once Redis has taken it
<state_dir>/hooks/.lock.<n>      held by who writes one of its VMs; holds the last number that was given
<state_dir>/hooks/.turn          held by the one process that delivers
<state_dir>/hooks/<vm>.damaged   a file that could not be read, put aside

A file says in `unwanted` that its VM shall not run: the spawn path looks there under the VM's lock (host/rundir.py), so
the wish to stop a VM and the note for Redis are one write. Several processes may use the folder at once.
"""

import errno
import fcntl
import os
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from workers.host.rundir import HOOKS
from workers.integration.entries import Entries, Entry, coalesce, dump, load
from workers.specs import check_vm_id, is_vm_id

_log = structlog.get_logger(component="integration")

_STRIPES = 16  # so that hooks about different VMs wait for the disk together, not one after the other
_SUFFIX = ".json"
_MAX_BYTES = 4 << 20
_OPEN = os.O_CLOEXEC | os.O_NOFOLLOW

_NO_FILE = frozenset({errno.ELOOP, errno.EISDIR, errno.ENXIO})  # a link, a folder, a socket

Make = Callable[[int], Entry]


class Journal:
    """With `gid` the group may write here too: a manager of another account than the worker's."""

    def __init__(self, state_dir: Path, *, gid: int | None = None) -> None:
        self.folder, self._gid = state_dir / HOOKS, gid
        self._mode = 0o600 if gid is None else 0o660
        self._unsaved: dict[str, Entries] = {}
        self._last = 0
        self._memory_lock = threading.Lock()

    def prepare(self) -> None:
        """Make the folder. Raises OSError."""
        state_dir = self.folder.parent
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.mkdir(mode=0o700, exist_ok=True)
        if self._gid is not None and self.folder.stat().st_uid == os.geteuid():
            _admit(state_dir, self._gid, 0o710)
            # The group is kept by what is made inside.
            _admit(self.folder, self._gid, 0o2770)

    def add(self, vm_id: str, *makers: Make) -> int:
        """Keep these entries, each made with its number; returns the last number. Raises nothing.

        What the disk does not take is kept in memory, for as long as this process lives.
        """
        check_vm_id(vm_id)
        try:
            with self._locked(vm_id) as fd:
                first = self._number(_number_in(fd), len(makers))
                os.pwrite(fd, str(first + len(makers) - 1).encode(), 0)
                kept = self._unsaved.get(vm_id)
                self._save(vm_id, _added((*self._in_file(vm_id), *(kept or ())), first, makers))
                self._is_saved(vm_id, kept)
        except OSError as error:
            _log.error("hook is kept in memory only", vm_id=vm_id, error=str(error))
            first = self._number(0, len(makers))
            with self._memory_lock:
                self._unsaved[vm_id] = _added(self._unsaved.get(vm_id, ()), first, makers)
        return first + len(makers) - 1

    def _is_saved(self, vm_id: str, kept: Entries | None) -> None:
        """What was in memory only is on the disk now, or was taken; what another thread has put there since is not."""
        with self._memory_lock:
            if kept is not None and self._unsaved.get(vm_id) is kept:
                del self._unsaved[vm_id]

    def _number(self, kept: int, count: int) -> int:
        """Above all that this host ever gave, also where that was lost with the power."""
        with self._memory_lock:
            first = max(kept + 1, self._last + 1, time.time_ns() // 1000)
            self._last = first + count - 1
        return first

    def waiting(self) -> list[str]:
        """Return the VMs of which something is to be delivered. Raises OSError."""
        try:
            names = [entry.name for entry in os.scandir(self.folder) if entry.name.endswith(_SUFFIX)]
        except FileNotFoundError:
            names = []
        ids = {name.removesuffix(_SUFFIX) for name in names}
        return sorted({vm_id for vm_id in ids if is_vm_id(vm_id)} | self._unsaved.keys())

    def read(self, vm_id: str) -> Entries:
        """Return all that is to be delivered of this VM, in its order. Raises OSError."""
        return _added((*self._in_file(vm_id), *self._unsaved.get(vm_id, ())))

    def settle(self, vm_id: str, taken: Collection[int]) -> None:
        """Redis has taken the entries of these numbers, or they mean nothing any more. Raises OSError."""
        with self._memory_lock:
            if left := _without(self._unsaved.pop(vm_id, ()), taken):
                self._unsaved[vm_id] = left
        if not taken or not self._path(vm_id).exists():
            return
        with self._locked(vm_id):
            if left := _without(self._in_file(vm_id), taken):
                self._save(vm_id, left)
            else:
                self._path(vm_id).unlink(missing_ok=True)

    @contextmanager
    def turn(self) -> Iterator[bool]:
        """Whether it is ours to deliver, for as long as this is held: one process at a time does. Raises OSError."""
        if not self.folder.is_dir():
            yield True  # what there is, is in our memory only
            return
        fd = os.open(self.folder / ".turn", os.O_RDWR | os.O_CREAT | _OPEN, self._mode)
        try:
            yield _is_taken(fd)
        finally:
            os.close(fd)

    @contextmanager
    def _locked(self, vm_id: str) -> Iterator[int]:
        """Hold the lock under which this VM's file is written. Nobody holds one while he waits for Redis."""
        name = f".lock.{zlib.crc32(vm_id.encode()) % _STRIPES}"
        # A descriptor of its own each time: threads, and a forked manager, must not share the lock.
        fd = os.open(self.folder / name, os.O_RDWR | os.O_CREAT | _OPEN, self._mode)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield fd
        finally:
            os.close(fd)

    def _path(self, vm_id: str) -> Path:
        return self.folder / f"{check_vm_id(vm_id)}{_SUFFIX}"

    def _in_file(self, vm_id: str) -> Entries:
        path = self._path(vm_id)
        try:
            # Others may write in that folder: no link is followed, and no pipe is waited for.
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | _OPEN)
            with os.fdopen(fd, "rb") as file:
                return load(file.read(_MAX_BYTES))
        except FileNotFoundError:
            return ()
        except OSError as error:
            if error.errno not in _NO_FILE:
                raise
            why = str(error.strerror)
        except ValueError as error:
            why = str(error)
        aside = path.with_name(f"{vm_id}.damaged")
        _log.error("what was told about a vm cannot be read: put aside", vm_id=vm_id, file=str(aside), why=why)
        path.replace(aside)
        return ()

    def _save(self, vm_id: str, entries: Entries) -> None:
        """Replace the file: a reader, and whoever comes after a crash, sees the old one or the new one."""
        path = self._path(vm_id)
        made = self.folder / f".{vm_id}.{os.getpid()}-{threading.get_ident()}.new"
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _OPEN, self._mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(dump(entries))
                file.flush()
                if self._gid is not None:
                    os.fchmod(fd, self._mode)
                os.fsync(fd)
            made.replace(path)
        except OSError:
            made.unlink(missing_ok=True)
            raise
        _sync(self.folder)


def _added(told: Entries, first: int = 0, makers: tuple[Make, ...] = ()) -> Entries:
    """Return what was told, the older first, and then what these make of their numbers, coalesced."""
    entries: Entries = ()
    for entry in (*told, *(make(number) for number, make in enumerate(makers, first))):
        entries = coalesce(entries, entry)
    return entries


def _without(entries: Entries, taken: Collection[int]) -> Entries:
    return tuple(each for each in entries if each.number not in taken)


def _is_taken(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _number_in(fd: int) -> int:
    text = os.pread(fd, 32, 0)
    return int(text) if text.isdigit() else 0


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _admit(folder: Path, gid: int, mode: int) -> None:
    os.chown(folder, -1, gid)
    folder.chmod(mode)
