"""Checks of this host's files: state folder, kill switch, locks, run directories, leftovers, secrets in files."""

import os
import pwd
import re
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from workers.doctor.finding import Finding, fine, listed, problem, warning
from workers.doctor.place import Place
from workers.domain.errors import Paused
from workers.domain.evidence import Evidence
from workers.host.identity import look_at, read_vantage
from workers.host.rundir import CONSOLE, VMM_LOG, HostFiles, Run
from workers.specs import is_vm_id

_MIB = 1 << 20
_LITTLE_BYTES, _NOTHING_BYTES = 512 * _MIB, 32 * _MIB
_LITTLE_INODES, _NOTHING_INODES = 10_000, 500
_LOG_BYTES = 64 * _MIB  # a worker cuts them at a quarter of this
_MOST_LOOKED_AT = 2000  # VMs
_OPEN_TO_WRITE, _OPEN_TO_ENTER = stat.S_IWGRP | stat.S_IWOTH, stat.S_IXGRP | stat.S_IXOTH
_IN_FILE = re.compile(r"file (.+?)( \(RELIABILITY_\w+\))?")


def state_folder(place: Place) -> Iterator[Finding]:
    folder = place.settings.state_dir
    if folder.is_dir():
        yield judge_folder(folder, os.geteuid())
    else:
        yield judge_absent(folder)


def judge_absent(folder: Path) -> Finding:
    """The first worker makes it, if it may."""
    above = next(each for each in folder.parents if each.exists())
    if above.is_dir() and os.access(above, os.W_OK | os.X_OK):
        return fine("state folder", f"{folder} is not there yet: the first worker makes it")
    says = f"{folder} is not there, and {above} is not ours to write to"
    return problem("state folder", says, "make it for the worker's user, or set state_dir")


def judge_folder(folder: Path, uid: int) -> Finding:
    """The superuser may look at any; whoever else is not its owner could run no worker here."""
    seen = folder.stat()
    if uid not in (0, seen.st_uid):
        owner, does = _user(seen.st_uid), "run it, and the worker, as its owner, or chown it"
        return problem("state folder", f"{folder} belongs to user {owner}, and this is {_user(uid)}", does)
    if seen.st_mode & _OPEN_TO_WRITE:
        says = f"others may write to {folder}: they could start and stop VMs here"
        return problem("state folder", says, f"chmod 700 {folder}")
    runs = folder / "runs"
    if runs.exists() and seen.st_mode & runs.stat().st_mode & _OPEN_TO_ENTER:
        return warning("state folder", f"others may read the consoles of guests in {runs}", f"chmod 700 {runs}")
    return fine("state folder", f"{folder}, of user {_user(seen.st_uid)}")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def space(place: Place) -> Iterator[Finding]:
    folder = place.settings.state_dir
    room = os.statvfs(folder if folder.exists() else next(each for each in folder.parents if each.exists()))
    # Some file systems count no inodes at all.
    inodes = room.f_favail if room.f_files else None
    yield judge_space(room.f_bavail * room.f_frsize, inodes)


def judge_space(free_bytes: int, free_inodes: int | None) -> Finding:
    says = f"{free_bytes // _MIB} MiB" + (f" and {free_inodes} inodes" if free_inodes is not None else "") + " free"
    does = "make room where state_dir is: a VM cannot be started on a full disk"
    inodes = _LITTLE_INODES if free_inodes is None else free_inodes
    if free_bytes < _NOTHING_BYTES or inodes < _NOTHING_INODES:
        return problem("disk space", says, does)
    if free_bytes < _LITTLE_BYTES or inodes < _LITTLE_INODES:
        return warning("disk space", says, does)
    return fine("disk space", says)


def kill_switch(place: Place) -> Iterator[Finding]:
    if place.settings.state_dir.is_dir():
        yield judge_kill_switch(place.files)
    else:
        yield fine("kill switch", "off")


def judge_kill_switch(files: HostFiles) -> Finding:
    try:
        files.check_kill_switch()
    except Paused as error:
        return problem("kill switch", f"{error.path} is on: nothing is started or ended here", f"rm {error.path}")
    return fine("kill switch", "off")


def folders(place: Place) -> Iterator[Finding]:
    """Run directories and locks."""
    files = place.files
    known = [folder for folder in (files.runs_dir, files.locks) if folder.exists()]
    if not known:
        yield fine("run folders", "none yet: the first worker makes them")
        return
    yield judge_writable([*known, *_folders_of_vms(files)])
    if files.runs_dir.exists():
        yield judge_locks(files.locks)


def _folders_of_vms(files: HostFiles) -> list[Path]:
    return [files.runs_dir / vm_id for vm_id in _kept(files)]


def judge_writable(places: Sequence[Path]) -> Finding:
    closed = [str(each) for each in places if not os.access(each, os.W_OK | os.X_OK)]
    if closed:
        does = "give them to the worker's user: chown -R"
        return problem("run folders", f"cannot be written to: {listed(closed)}", does)
    return fine("run folders", "can be written to")


def judge_locks(locks: Path) -> Finding:
    if not locks.is_dir():
        says = f"{locks} is gone: a VMM that runs could be started twice"
        return problem("locks", says, "restart the worker, and never remove that folder")
    with os.scandir(locks) as entries:
        odd = [entry.name for entry in entries if not _is_lock(entry)]
    if odd:
        return warning("locks", f"no locks of ours in {locks}: {listed(sorted(odd))}", "move them away")
    return fine("locks", str(locks))


def _is_lock(entry: os.DirEntry[str]) -> bool:
    name = entry.name.removesuffix(".lock")
    return name != entry.name and is_vm_id(name) and entry.is_file(follow_symlinks=False)


def _kept(files: HostFiles) -> list[str]:
    try:
        return files.all_kept()[:_MOST_LOOKED_AT]
    except FileNotFoundError:
        return []


def leftovers(place: Place) -> Iterator[Finding]:
    files, grace_s = place.files, place.settings.strays.leftovers_after.total_seconds()
    runs = [run for vm_id in _kept(files) if (run := files.current(vm_id))]
    found = list(judge_leftovers(half_written(files.state_dir), orphan_sockets(files, runs, grace_s), long_logs(runs)))
    yield from found
    if not found:
        yield fine("leftovers", "none")


def judge_leftovers(written: Sequence[str], sockets: Sequence[str], logs: Sequence[str]) -> Iterator[Finding]:
    if written:
        says = f"half-written, by a process that is gone: {listed(list(written))}"
        yield warning("leftovers", says, "the next start of the worker removes them")
    if sockets:
        says = f"sockets whose VMM ended long ago: {listed(list(sockets))}"
        yield warning("leftovers", says, "see whether a worker runs here: its sweeps remove them")
    if logs:
        says = f"logs beyond {_LOG_BYTES // _MIB} MiB: {listed(list(logs))}"
        yield warning("leftovers", says, "see whether a worker runs here: its sweeps cut them")


def half_written(folder: Path) -> list[str]:
    """As `workers.host.files` names them, by the pid of their writer."""
    found = []
    for path in folder.rglob("*.new"):
        writer = re.search(r"\.(\d+)-\d+\.new$", path.name)
        if writer and not Path("/proc", writer[1]).exists():
            found.append(str(path.relative_to(folder)))
    return sorted(found)


def orphan_sockets(files: HostFiles, runs: Sequence[Run], grace_s: float) -> list[str]:
    """VMs whose socket is older than what is tidied away, and whose process does not live."""
    old = [run for run in runs if _age_s(run.socket) > grace_s]
    if not old:
        return []
    vantage = read_vantage(files.state_dir)
    ended = {Evidence.PROCESS_ENDED, Evidence.PID_REUSED, Evidence.BOOTED_ANEW}
    return [run.vm_id for run in old if run.process and look_at(run.process, vantage) in ended]


def _age_s(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return -1.0


def long_logs(runs: Sequence[Run]) -> list[str]:
    found = []
    for run in runs:
        for name in (CONSOLE, VMM_LOG):
            with suppress(FileNotFoundError):
                if (run.path / name).stat().st_size > _LOG_BYTES:
                    found.append(f"{run.vm_id}/{name}")
    return found


def without_record(place: Place) -> Iterator[Finding]:
    """Needs Redis: run directories of VMs that nobody registered, and nobody forgot."""
    store, files = place.fleet.store, place.files
    kept = _kept(files)
    snapshot, forgotten = store.read(kept), store.forgotten(kept)
    known = {*snapshot.found, *snapshot.unreadable, *forgotten}
    yield judge_without_record([each for each in kept if each not in known and not files.kept(each).forgotten_ms])


def judge_without_record(vm_ids: Collection[str]) -> Finding:
    if vm_ids:
        does = "`reliability state rebuild` makes records of them; else remove the folders"
        return warning("run folders", f"of VMs without a record: {listed(sorted(vm_ids))}", does)
    return fine("run folders", "each belongs to a record, or was forgotten")


def images(place: Place) -> Iterator[Finding]:
    for root in place.settings.image_roots:
        yield judge_images(root)


def judge_images(root: Path) -> Finding:
    try:
        seen = root.stat()
    except FileNotFoundError:
        return warning("images", f"{root} is not there: no VM can be started from it", "make it, or set image_roots")
    if not stat.S_ISDIR(seen.st_mode):
        return problem("images", f"{root} is no folder", "set image_roots to the folders of kernels and disks")
    if seen.st_mode & stat.S_IWOTH and not seen.st_mode & stat.S_ISVTX:
        says = f"everybody may write to {root}, and so choose what guests boot"
        return problem("images", says, f"chmod o-w {root}")
    return fine("images", str(root))


def secret_files(place: Place) -> Iterator[Finding]:
    """Files that hold a password, as the settings name them."""
    settings = place.settings
    given = {
        "redis.url": "@" in settings.redis.url.get_secret_value(),
        "broker.url": "@" in settings.broker.url.get_secret_value(),
        "flower.basic_auth": settings.flower.basic_auth is not None,
    }
    sources = {place.sources[key] for key, is_secret in given.items() if is_secret}
    paths = sorted({found[1] for source in sources if (found := _IN_FILE.fullmatch(source))})
    yield judge_secret_files([Path(path) for path in paths])


def judge_secret_files(paths: Sequence[Path]) -> Finding:
    read = [str(path) for path in paths if path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH)]
    if read:
        return warning("passwords", f"every user of this host may read {listed(read)}", f"chmod o= {' '.join(read)}")
    return fine("passwords", "in no file that others may read")
