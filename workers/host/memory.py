"""What this host remembers of the data in Redis, over restarts of its worker: their epoch and the newest event seen."""

import threading
from dataclasses import asdict
from pathlib import Path

from workers.domain.epoch import Known
from workers.host.files import read_json, write_json


class HostMemory:
    """Thread-safe. What was not saved yet is forgotten with the process: `save` is called at each heartbeat."""

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "epoch.json"
        self._lock = threading.Lock()
        self._known = _load(self._path)
        self._saved = self._known

    @property
    def known(self) -> Known | None:
        return self._known

    def saw(self, event_id: str) -> None:
        with self._lock:
            if self._known is not None:
                self._known = self._known.seeing(event_id)

    def trust(self, known: Known) -> None:
        with self._lock:
            same = self._known is not None and self._known.epoch == known.epoch
            self._known = self._known.seeing(known.last_event) if self._known and same else known

    def save(self) -> None:
        """Raises OSError."""
        known = self._known
        if known is not None and known != self._saved:
            write_json(self._path, asdict(known))
            self._saved = known


def _load(path: Path) -> Known | None:
    value = read_json(path)
    if value is None:
        return None
    epoch, last = value.get("epoch"), value.get("last_event")
    return Known(epoch, last) if isinstance(epoch, str) and isinstance(last, str) else None
