"""What this host can tell without Redis: ends of logs, the journal, versions, facts of the machine."""

import os
import platform
import resource
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import requires
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from workers.doctor.archive import NotHere
from workers.doctor.fleet import DISTRIBUTION
from workers.doctor.machine import installed_version
from workers.host.rundir import CONSOLE, VMM_LOG, HostFiles, Run
from workers.settings import Settings

UNITS = ("reliability-worker", "reliability-beat", "reliability-flower")
_OLD = ".old"
_JOURNAL_S, _JOURNAL_LINES = 15.0, 20_000
_PROC_FILES = ("loadavg", "meminfo", "uptime", "version", "pressure/memory", "pressure/io", "pressure/cpu")
_MOST_OF_PROC = 16_384


@dataclass(frozen=True, slots=True)
class Tail:
    text: str
    is_cut: bool


def tail(path: Path, most_bytes: int) -> Tail | None:
    """Return the end of a log, None where there is none. Raises NotHere, OSError.

    A VMM may have put anything in the place of its log: links are not followed, and only regular files are read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with os.fdopen(fd, "rb") as log:
        seen = os.fstat(fd)
        if not stat.S_ISREG(seen.st_mode):
            raise NotHere("it is no regular file")
        log.seek(max(0, seen.st_size - most_bytes))
        return Tail(log.read(most_bytes).decode(errors="replace"), is_cut=seen.st_size > most_bytes)


def log_tail(path: Path, most_bytes: int) -> Tail | None:
    """As `tail`; where the worker has cut a log in two, no line is kept of which a half may be in the other part."""
    found = tail(path, most_bytes)
    if found is None or not _old(path).exists():
        return found
    text = found.text[: found.text.rfind("\n") + 1] if path == _old(path) else found.text
    return Tail(text, is_cut=True)


def logs_of(run: Run) -> Iterator[Path]:
    for name in (CONSOLE, VMM_LOG):
        yield run.path / name
        yield _old(run.path / name)


def _old(log: Path) -> Path:
    """Where the worker keeps the end of a log that it has cut; of such a one, itself."""
    return log if log.suffix == _OLD else log.with_name(log.name + _OLD)


def run_document(run: Run) -> dict[str, Any]:
    process = run.process
    return {
        "vm_id": run.vm_id,
        "generation": run.generation,
        "driver": run.driver,
        "pid": process.pid if process else None,
        "served": run.served,
        "exit_cause": run.exit_cause,
        "socket_there": run.socket.exists(),
    }


def kept(files: HostFiles) -> list[str]:
    """VMs with run directories here, the one that was started last first."""
    try:
        names = files.all_kept()
    except FileNotFoundError:
        return []
    return sorted(names, key=lambda vm_id: (files.runs_dir / vm_id).stat().st_mtime, reverse=True)


def journal(unit: str, since_s: float, most_bytes: int) -> Tail:
    """Raises NotHere where there is no journal, or it tells nothing of this unit."""
    program = shutil.which("journalctl")
    if program is None:
        raise NotHere("there is no journalctl here")
    command = [program, "--no-pager", "--quiet", "--output=short-iso", f"--unit={unit}", f"--since=@{int(since_s)}"]
    try:
        asked = subprocess.run(
            [*command, f"--lines={_JOURNAL_LINES}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_JOURNAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise NotHere(f"journalctl did not answer within {_JOURNAL_S:g} s") from None
    if asked.returncode or not asked.stdout.strip():
        said = asked.stderr.decode(errors="replace").strip()
        raise NotHere(said.partition("\n")[0] or f"the journal has nothing of {unit} in this time")
    kept_bytes = asked.stdout[-most_bytes:]
    return Tail(kept_bytes.decode(errors="replace"), is_cut=len(kept_bytes) < len(asked.stdout))


def machine_document(settings: Settings) -> dict[str, Any]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {
        "uname": " ".join(platform.uname()),
        "os": _os_release(),
        "python": platform.python_version(),
        "cpus": os.cpu_count(),
        "uid": os.getuid(),
        "descriptors": {"soft": soft, "hard": hard},
        "state_dir": _room(settings.state_dir),
        "proc": {name: _read(Path("/proc", name)) for name in _PROC_FILES},
    }


def _os_release() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def _room(folder: Path) -> dict[str, Any]:
    try:
        room, seen = os.statvfs(folder), folder.stat()
    except OSError as error:
        return {"path": str(folder), "error": error.strerror}
    free = {"free_bytes": room.f_bavail * room.f_frsize, "free_inodes": room.f_favail}
    return {"path": str(folder), "uid": seen.st_uid, "mode": oct(seen.st_mode & 0o7777), **free}


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:_MOST_OF_PROC]
    except OSError:
        return None


def package_versions() -> dict[str, str | None]:
    names: Sequence[str] = [Requirement(text).name for text in requires(DISTRIBUTION) or ()]
    return {name: installed_version(name) for name in (DISTRIBUTION, *names)}
