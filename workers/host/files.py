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


def write_json(path: Path, value: object) -> None:
    """Replace the file as a whole, durably; two threads may do it at once. Raises OSError, and leaves nothing then."""
    made = path.with_suffix(f".{threading.get_ident()}.new")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(json.dumps(value).encode())
            file.flush()
            os.fsync(fd)
        made.replace(path)
    except OSError:
        made.unlink(missing_ok=True)
        raise
