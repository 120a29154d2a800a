"""What a program has left behind: processes and files of the folder that it was given for temporary files."""

import os
from pathlib import Path


def processes_of(folder: Path) -> list[str]:
    """Return the command line of every process that works in this folder, or has it in its environment."""
    return [line for pid in filter(str.isdigit, os.listdir("/proc")) if (line := _mentions(pid, str(folder)))]


def _mentions(pid: str, folder: str) -> str | None:
    process = Path("/proc", pid)
    try:
        words = (process / "cmdline").read_bytes().decode(errors="replace")
        known = words + (process / "environ").read_bytes().decode(errors="replace") + str((process / "cwd").readlink())
    except OSError:
        return None
    return words if folder in known else None


def assert_nothing_is_left(temporary: Path) -> None:
    assert processes_of(temporary) == []
    assert list(temporary.rglob("*")) == []
