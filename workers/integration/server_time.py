"""Redis server time as this host knows it, also while Redis is away: what was told when is put in order by it."""

import time
from pathlib import Path

from workers.host.files import read_json, write_json

# Worth writing down for the other processes.
_NEWS_MS = 5


class ServerTime:
    """The latest that it can be: what seems to be later than a hook surely is.

    Kept in a file for the other processes of this boot; without it, or after a boot, the time is unknown.
    """

    def __init__(self, path: Path, boot_id: str) -> None:
        self._path, self._boot_id = path, boot_id
        self._offset_ms = self._kept()

    def _kept(self) -> int | None:
        kept = read_json(self._path)
        offset_ms = kept.get("offset_ms") if kept and kept.get("boot_id") == self._boot_id else None
        return offset_ms if isinstance(offset_ms, int) else None

    def now_ms(self) -> int | None:
        if self._offset_ms is None:
            self._offset_ms = self._kept()
        return None if self._offset_ms is None else self._offset_ms + boot_ms()

    def saw(self, now_ms: int, *, asked_ms: int) -> None:
        """Redis was asked at `asked_ms` of our clock (`boot_ms`), and has just answered with its own time.

        Raises OSError where that cannot be kept.
        """
        earliest, latest = now_ms - boot_ms(), now_ms - asked_ms
        known = self._offset_ms
        # A slow answer says less than what is known, unless that has become wrong: clocks drift, and are set.
        if known is None or latest < known - _NEWS_MS or earliest > known:
            self._offset_ms = latest
            write_json(self._path, {"boot_id": self._boot_id, "offset_ms": latest})


def boot_ms() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1000)
