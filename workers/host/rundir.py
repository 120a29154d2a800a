"""The files of a VM on this host: its lock, and one folder per generation with intent, identity, socket and logs.

<state_dir>/locks/<vm>.lock            held by the VMM for its whole life as its stdin; never swept, never unlinked
<state_dir>/runs/<vm>/<generation>/    intent.json identity.json served exit.json api.sock console.log vmm.log
<state_dir>/runs/<vm>/current          link to the last generation that was begun
<state_dir>/runs/<vm>/stopped.json     it was brought down on purpose; gone with the next start
<state_dir>/runs/<vm>/forgotten.json   its record was forgotten; gone with the next start
<state_dir>/hooks/<vm>.json            what its manager told and Redis has not taken yet (integration/journal.py)
<state_dir>/epoch.json                 what this host remembers of the data in Redis (host/memory.py)
<state_dir>/PAUSE                      the kill switch
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from workers.domain.errors import GuardBusy, Paused, Unwanted
from workers.domain.evidence import Sockets
from workers.domain.guard import check_generation
from workers.domain.vm import Incarnation
from workers.host.files import read_json, sync, write_json
from workers.ports import Kept
from workers.specs import VmSpec, check_vm_id, is_vm_id, parse_spec

SOCKET_NAME = "api.sock"
HOOKS = "hooks"
_HOOKS_MAX_BYTES = 4 << 20  # of one VM; others may write there, and what is longer cannot be read
_CURRENT = "current"
_INTENT = "intent.json"
_SERVED, _STOPPED, _FORGOTTEN = "served", "stopped.json", "forgotten.json"
CONSOLE = "console.log"
VMM_LOG = "vmm.log"
GENERATIONS_KEPT = 3
# As long as Redis keeps it (scripts/write.lua).
_FORGOTTEN_KEPT_S = 30 * 24 * 3600
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
        intent = read_json(self.path / _INTENT)
        return str(intent["driver"]) if intent and "driver" in intent else None

    @property
    def spec(self) -> VmSpec | None:
        """What it was begun with, None if that is damaged."""
        intent = read_json(self.path / _INTENT)
        try:
            return parse_spec(str(intent["spec"])) if intent and "spec" in intent else None
        except ValueError:
            return None

    @property
    def process(self) -> Incarnation | None:
        known = read_json(self.path / "identity.json")
        try:
            return _INCARNATION.validate_python(known) if known else None
        except ValidationError:
            return None

    @property
    def exit_cause(self) -> str | None:
        end = read_json(self.path / "exit.json")
        return str(end["cause"]) if end and "cause" in end else None

    def keep(self) -> None:
        """Wait until the intent would outlive the machine, for records that are rebuilt from it. Raises OSError."""
        sync(self.path / _INTENT)

    def write_process(self, process: Incarnation) -> None:
        # Whose process it was is of no use after the next boot, and the disk need not be waited for.
        write_json(self.path / "identity.json", asdict(process), durably=False)

    @property
    def served(self) -> bool:
        return (self.path / _SERVED).exists()

    def note_served(self) -> None:
        """The VMM came up and was verified."""
        (self.path / _SERVED).touch(mode=0o600)

    def write_exit(self, cause: str) -> None:
        # Many may end at once, and who waits to be told of the next one must not wait for the disk.
        write_json(self.path / "exit.json", {"cause": cause}, durably=False)


class HostFiles:
    """All of them; a VM id is checked before it becomes part of a path."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        self.locks = state_dir / "locks"
        self.runs_dir = state_dir / "runs"
        self._hooks = state_dir / HOOKS
        self._pause = state_dir / "PAUSE"

    def prepare(self) -> None:
        for folder in (self.state_dir, self.locks, self.runs_dir):
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

    def check_wanted(self, vm_id: str) -> None:
        """Raises Unwanted where the VM's manager told this host that it shall not run: Redis may not know yet.

        To be called under the lock. A file that cannot be read may say so too: nothing is started on it.
        """
        path = self._hooks / f"{check_vm_id(vm_id)}.json"
        try:
            # Others may write in that folder: no link is followed, and no pipe is waited for.
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Unwanted(vm_id, f"{path}: {error.strerror}") from error
        with os.fdopen(fd, "rb") as file:
            hook = _unwanted_in(file.read(_HOOKS_MAX_BYTES))
        if hook is not None:
            raise Unwanted(vm_id, f"{hook} ({path})")

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
        folder = self.runs_dir / check_vm_id(vm_id)
        try:
            names = [entry.name for entry in folder.iterdir()]
        except FileNotFoundError:
            return []
        numbers = sorted(int(name) for name in names if name.isdigit())
        return [Run(vm_id, number, folder / str(number)) for number in numbers]

    def run(self, vm_id: str, generation: int) -> Run:
        return Run(vm_id, generation, self.runs_dir / check_vm_id(vm_id) / str(generation))

    def run_of(self, vm_id: str, process: Incarnation) -> Run | None:
        """The run that this incarnation is the process of, if its folder is still kept."""
        return next((run for run in reversed(self.runs(vm_id)) if run.process == process), None)

    def current(self, vm_id: str) -> Run | None:
        runs = self.runs(vm_id)
        return runs[-1] if runs else None

    def begin(self, vm_id: str, generation: int, *, driver: str, spec: str) -> Run:
        """Write down what is about to be started. To be called under the lock. Raises StaleGeneration.

        Everybody on this host sees it from now on, whoever dies; that it outlives the machine is up to `Run.keep`.
        """
        seen = self.current(vm_id)
        check_generation(vm_id, generation, seen.generation if seen else 0)
        run = self.run(vm_id, generation)
        run.path.mkdir(mode=0o700, parents=True)
        intent = {"vm_id": vm_id, "driver": driver, "generation": generation, "spec": spec}
        write_json(run.path / _INTENT, intent, durably=False)
        _point(run.path.parent / _CURRENT, str(generation))
        for mark in (_STOPPED, _FORGOTTEN):
            (run.path.parent / mark).unlink(missing_ok=True)
        *ended, _ = self.runs(vm_id)
        for run_ended in ended:
            run_ended.socket.unlink(missing_ok=True)
        _drop(ended[: 1 - GENERATIONS_KEPT])
        return run

    def tidy(self, vm_id: str, *, grace_s: float) -> None:
        """Drop what a VM without a live VMM left behind longer than the grace ago. To be called under the lock.

        Of a VM that was forgotten only that is kept, and that for a month; of any other the last incarnations, without
        their sockets.
        """
        folder = self.runs_dir / check_vm_id(vm_id)
        runs, now = self.runs(vm_id), time.time()
        is_forgotten = (folder / _FORGOTTEN).exists()
        old = [run for run in runs if _modified_at(run.path) < now - grace_s]
        for run in old:
            run.socket.unlink(missing_ok=True)
        spare = runs if is_forgotten else runs[:-GENERATIONS_KEPT]
        _drop([run for run in spare if run in old])
        if is_forgotten and not self.runs(vm_id) and _modified_at(folder / _FORGOTTEN) < now - _FORGOTTEN_KEPT_S:
            shutil.rmtree(folder, ignore_errors=True)

    def sockets(self, vm_ids: Iterable[str]) -> Sockets:
        """Look for the sockets of these VMs, whose processes live; adopted ones have none here and do not count."""
        folders = [self.runs_dir / check_vm_id(vm_id) / _CURRENT for vm_id in vm_ids]
        known = [folder / SOCKET_NAME for folder in folders if folder.is_dir()]
        return Sockets(sum(not socket.exists() for socket in known), len(known))

    def kept(self, vm_id: str) -> Kept:
        """Return what the run directory tells of this VM; nothing is raised for what is damaged or gone."""
        folder = self.runs_dir / check_vm_id(vm_id)
        run = self.current(vm_id)
        return Kept(
            vm_id,
            generation=run.generation if run else 0,
            driver=(run.driver if run else None) or "",
            spec=run.spec if run else None,
            process=run.process if run else None,
            served=run.served if run else False,
            stopped_ms=_marked_ms(folder / _STOPPED),
            forgotten_ms=_marked_ms(folder / _FORGOTTEN),
        )

    def all_kept(self) -> list[str]:
        return sorted(entry.name for entry in self.runs_dir.iterdir() if entry.is_dir() and is_vm_id(entry.name))

    def note_stopped(self, vm_id: str, at_ms: int) -> None:
        self._mark(vm_id, _STOPPED, at_ms)

    def note_forgotten(self, vm_id: str, at_ms: int) -> None:
        self._mark(vm_id, _FORGOTTEN, at_ms)

    def _mark(self, vm_id: str, name: str, at_ms: int) -> None:
        """Only where this VM has ever run. Raises OSError."""
        folder = self.runs_dir / check_vm_id(vm_id)
        if folder.is_dir():
            write_json(folder / name, {"at_ms": at_ms})

    def bound_logs(self, vm_id: str, limit_bytes: int) -> None:
        """Cut a log that has grown past the limit; its last MiB is kept beside it as `….old`."""
        run = self.current(vm_id)
        for name in (CONSOLE, VMM_LOG) if run else ():
            path = run.path / name if run else Path()
            if path.exists() and path.stat().st_size > limit_bytes:
                _keep_tail(path)


def _unwanted_in(text: bytes) -> str | None:
    try:
        hook = json.loads(text)["unwanted"]
    except (ValueError, KeyError, TypeError):
        return "what its manager told cannot be read"
    return None if hook is None else f"its manager told {hook}"


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


def _drop(runs: Sequence[Run]) -> None:
    for run in runs:
        shutil.rmtree(run.path, ignore_errors=True)


def _modified_at(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _marked_ms(path: Path) -> int:
    mark = read_json(path)
    at_ms = mark.get("at_ms") if mark else None
    return at_ms if isinstance(at_ms, int) else 0


def _keep_tail(path: Path) -> None:
    with path.open("rb") as log:
        log.seek(-_TAIL_BYTES, os.SEEK_END)
        path.with_suffix(".log.old").write_bytes(log.read(_TAIL_BYTES))
    os.truncate(path, 0)


def _point(link: Path, target: str) -> None:
    made = link.with_suffix(".new")
    made.unlink(missing_ok=True)
    made.symlink_to(target)
    made.replace(link)
