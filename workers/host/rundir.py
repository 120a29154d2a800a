"""The files of a VM on this host: its lock, and one folder per generation with intent, identity, socket and logs.

<state_dir>/locks/<vm>.lock            held by the VMM for its whole life as its stdin; never swept, never unlinked
<state_dir>/runs/<vm>/<generation>/    intent.json identity.json exit.json api.sock console.log vmm.log
<state_dir>/runs/<vm>/current          link to the last generation that was begun
<state_dir>/PAUSE                      the kill switch
"""

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from workers.domain.errors import GuardBusy, Paused, StaleGeneration
from workers.domain.vm import Incarnation
from workers.specs import check_vm_id

SOCKET_NAME = "api.sock"
CONSOLE = "console.log"
VMM_LOG = "vmm.log"
GENERATIONS_KEPT = 3
_TAIL_BYTES = 1 << 20
_LOCK_TRY_S = 0.002
_INCARNATION = TypeAdapter(Incarnation)


@dataclass(frozen=True, slots=True)
class Run:
    """The folder of one generation."""

    vm_id: str
    generation: int
    path: Path

    @property
    def socket(self) -> Path:
        return self.path / SOCKET_NAME

    @property
    def driver(self) -> str | None:
        intent = _read_json(self.path / "intent.json")
        return str(intent["driver"]) if intent and "driver" in intent else None

    @property
    def process(self) -> Incarnation | None:
        known = _read_json(self.path / "identity.json")
        try:
            return _INCARNATION.validate_python(known) if known else None
        except ValidationError:
            return None

    @property
    def exit_cause(self) -> str | None:
        end = _read_json(self.path / "exit.json")
        return str(end["cause"]) if end and "cause" in end else None

    def write_process(self, process: Incarnation) -> None:
        _write_json(self.path / "identity.json", asdict(process))

    def write_exit(self, cause: str) -> None:
        _write_json(self.path / "exit.json", {"cause": cause})


class HostFiles:
    """All of them; a VM id is checked before it becomes part of a path."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.locks = state_dir / "locks"
        self._runs = state_dir / "runs"
        self._pause = state_dir / "PAUSE"

    def prepare(self) -> None:
        for folder in (self.state_dir, self.locks, self._runs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def check_kill_switch(self) -> None:
        """Raises Paused. An unreadable state folder counts as paused: nothing is killed on a disk that fails."""
        try:
            os.lstat(self._pause)
        except FileNotFoundError:
            if self.state_dir.is_dir():
                return
            raise Paused(f"{self._pause}: the state folder is gone") from None
        except OSError as error:
            raise Paused(f"{self._pause}: {error.strerror}") from error
        raise Paused(str(self._pause))

    def lock_path(self, vm_id: str) -> Path:
        return self.locks / f"{check_vm_id(vm_id)}.lock"

    @contextmanager
    def lock(self, vm_id: str, *, patience_s: float = 0.0) -> Iterator[int]:
        """Hold the VM's lock; yields the fd that a VMM gets as its stdin. Raises GuardBusy.

        Whoever only looks whether it is free holds it for an instant: `patience_s` outlasts that.

        The lock belongs to the open file, so it lives on in the VMM when we close our copy. It is never unlocked by
        call: that would drop it for the VMM too.
        """
        fd = os.open(self.lock_path(vm_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if not _take(fd, time.monotonic() + patience_s):
                raise GuardBusy(vm_id)
            yield fd
        finally:
            os.close(fd)

    def runs(self, vm_id: str) -> list[Run]:
        """All generations that are still kept, oldest first."""
        folder = self._runs / check_vm_id(vm_id)
        try:
            names = [entry.name for entry in folder.iterdir()]
        except FileNotFoundError:
            return []
        numbers = sorted(int(name) for name in names if name.isdigit())
        return [Run(vm_id, number, folder / str(number)) for number in numbers]

    def run(self, vm_id: str, generation: int) -> Run:
        return Run(vm_id, generation, self._runs / check_vm_id(vm_id) / str(generation))

    def run_of(self, vm_id: str, process: Incarnation) -> Run | None:
        """The run that this incarnation is the process of, if its folder is still kept."""
        return next((run for run in reversed(self.runs(vm_id)) if run.process == process), None)

    def current(self, vm_id: str) -> Run | None:
        runs = self.runs(vm_id)
        return runs[-1] if runs else None

    def begin(self, vm_id: str, generation: int, *, driver: str, spec: str) -> Run:
        """Write down what is about to be started, durably. To be called under the lock. Raises StaleGeneration."""
        seen = self.current(vm_id)
        if seen is not None and seen.generation >= generation:
            raise StaleGeneration(vm_id, generation, seen.generation)
        run = self.run(vm_id, generation)
        run.path.mkdir(mode=0o700, parents=True)
        _write_json(
            run.path / "intent.json", {"vm_id": vm_id, "driver": driver, "generation": generation, "spec": spec}
        )
        _point(run.path.parent / "current", str(generation))
        self._sweep(vm_id)
        return run

    def _sweep(self, vm_id: str) -> None:
        """Drop old generations, and the sockets of all that ended; nothing of ours lives while we hold the lock."""
        *ended, _ = self.runs(vm_id)
        for run in ended:
            run.socket.unlink(missing_ok=True)
        for run in ended[: 1 - GENERATIONS_KEPT]:
            shutil.rmtree(run.path, ignore_errors=True)

    def bound_logs(self, vm_id: str, limit_bytes: int) -> None:
        """Cut a log that has grown past the limit; its last MiB is kept beside it as `….old`."""
        run = self.current(vm_id)
        for name in (CONSOLE, VMM_LOG) if run else ():
            path = run.path / name if run else Path()
            if path.exists() and path.stat().st_size > limit_bytes:
                _keep_tail(path)


def _take(fd: int, deadline: float) -> bool:
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_LOCK_TRY_S)
        else:
            return True


def _keep_tail(path: Path) -> None:
    with path.open("rb") as log:
        log.seek(-_TAIL_BYTES, os.SEEK_END)
        path.with_suffix(".log.old").write_bytes(log.read(_TAIL_BYTES))
    os.truncate(path, 0)


def _read_json(path: Path) -> dict[str, object] | None:
    """None when absent or damaged: a worker may have died while it wrote, and the next source is asked."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _write_json(path: Path, value: object) -> None:
    """Replace the file as a whole, durably; two threads may do it at once."""
    made = path.with_suffix(f".{threading.get_ident()}.new")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, json.dumps(value).encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    made.replace(path)


def _point(link: Path, target: str) -> None:
    made = link.with_suffix(".new")
    made.unlink(missing_ok=True)
    made.symlink_to(target)
    made.replace(link)
