"""Small JSON files of this host, written durably and read with patience."""

import json
import os
import threading
from pathlib import Path


def read_json(path: Path) -> dict[str, object] | None:
    """None when absent or damaged: a worker may have died while it wrote, and the next source is asked."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def drop_half_written(folder: Path) -> None:
    """Remove what writers that died while they wrote have left anywhere below this folder."""
    for path in folder.rglob("*.new"):
        pid = path.suffixes[-2].removeprefix(".").partition("-")[0] if len(path.suffixes) > 1 else ""
        if pid.isdigit() and not Path("/proc", pid).exists():
            path.unlink(missing_ok=True)


def write_json(path: Path, value: object, *, durably: bool = True) -> None:
    """Replace the file as a whole; two threads may do it at once. Raises OSError, and leaves nothing then.

    Not durably: it outlives this process, but not the machine's sudden end. For what means nothing after a boot, and
    for what is `sync`ed before anything depends on that.
    """
    made = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}.new")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(value).encode())
            file.flush()
            if durably:
                os.fsync(fd)
        made.replace(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Wait until what was written to this file is on the disk. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
