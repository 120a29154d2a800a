"""Watches from outside, through /proc alone, whether two VMM processes of one VM ever live at the same time.

Runs as a process of its own (`python -S -I sampler.py FOLDER`), so that nothing the demo does keeps it from looking:
standard library only, and it knows nothing of locks, records or Redis. It writes one JSON line per VMM process it meets
and per doubling, and a summary when its stdin closes. What that means is judged elsewhere.
"""

import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby

INTERVAL_S = 0.005
# A new child still has its parent's command line until it execs, so every process is looked at anew now and then.
_FORGET_AFTER_S = 1.0
_YOUNG_S = 0.1
_ENDED = frozenset("ZXx")
# The flags by which VMMs are told who they are: Firecracker's and QEMU's.
_ID_FLAGS = ("--id", "-name")


@dataclass(frozen=True, slots=True)
class Vmm:
    """One process that says it is this VM. `start_ticks` tells it from a later one with the same pid."""

    vm_id: str
    pid: int
    start_ticks: int


def vm_id_of(pid: int, folder: str) -> str | None:
    """Return which VM of this demo the process runs: it works below `folder` and its command line names one."""
    try:
        cwd = os.readlink(f"/proc/{pid}/cwd")
        if not cwd.startswith(f"{folder}/"):
            return None
        words = _read(f"/proc/{pid}/cmdline").decode(errors="replace").split("\0")
    except OSError:
        return None
    return next((words[words.index(flag) + 1] for flag in _ID_FLAGS if flag in words[:-1]), None)


def live_start(pid: int) -> int | None:
    """Return the start time of a process (field 22 of /proc/PID/stat), None when it has ended, also as a zombie."""
    try:
        text = _read(f"/proc/{pid}/stat")
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0].decode() in _ENDED else int(fields[19])


def all_pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def vmms_below(folder: str) -> list[Vmm]:
    """Return every live VMM of this demo."""
    found = ((vm_id_of(pid, folder), pid, live_start(pid)) for pid in all_pids())
    return [Vmm(vm_id, pid, start) for vm_id, pid, start in found if vm_id is not None and start is not None]


def doubled(vmms: list[Vmm], start_of: Callable[[int], int | None]) -> Iterator[list[Vmm]]:
    """Yield the processes of each VM that has several alive at one instant.

    Their pids come from a walk that takes time: the old one may have ended before the new one began. So all are looked
    at twice more: who is alive in both rounds was alive between them, and so were all others of whom that is true.
    """
    for _, group in groupby(sorted(vmms, key=lambda vmm: (vmm.vm_id, vmm.pid)), key=lambda vmm: vmm.vm_id):
        suspects = list(group)
        for _ in range(2):
            if len(suspects) > 1:
                suspects = [vmm for vmm in suspects if start_of(vmm.pid) == vmm.start_ticks]
        if len(suspects) > 1:
            yield suspects


@dataclass
class Sampler:
    folder: str
    tell: Callable[[dict[str, object]], None]
    passes: int = 0
    longest_gap_s: float = 0.0
    _vmms: dict[int, Vmm] = field(default_factory=dict)
    _others: dict[int, float] = field(default_factory=dict)
    _told: set[tuple[Vmm, ...]] = field(default_factory=set)
    _last_pass: float | None = None

    def look(self, now: float) -> None:
        """One pass over /proc; `now` is monotonic time."""
        if self._last_pass is not None:
            self.longest_gap_s = max(self.longest_gap_s, now - self._last_pass)
        self._last_pass = now
        self.passes += 1
        pids = all_pids()
        self._vmms = {pid: vmm for pid, vmm in self._vmms.items() if pid in pids}
        self._others = {pid: since for pid, since in self._others.items() if pid in pids}
        for pid in pids - self._vmms.keys():
            self._meet(pid, now)
        for vmms in doubled(list(self._vmms.values()), live_start):
            self._tell_once(vmms)

    def _meet(self, pid: int, now: float) -> None:
        since = self._others.setdefault(pid, now)
        if _YOUNG_S < now - since < _FORGET_AFTER_S:
            return
        if now - since >= _FORGET_AFTER_S:
            self._others[pid] = now - _YOUNG_S
        vm_id, start = vm_id_of(pid, self.folder), live_start(pid)
        if vm_id is None or start is None:
            return
        self._vmms[pid] = Vmm(vm_id, pid, start)
        del self._others[pid]
        self.tell({"met": vm_id, "pid": pid, "start_ticks": start, "at": time.time()})

    def _tell_once(self, vmms: list[Vmm]) -> None:
        if tuple(vmms) not in self._told:
            self._told.add(tuple(vmms))
            self.tell({"doubled": vmms[0].vm_id, "pids": [vmm.pid for vmm in vmms], "at": time.time()})


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 1 << 16)
    finally:
        os.close(fd)


def _tell(line: dict[str, object]) -> None:
    os.write(sys.stdout.fileno(), json.dumps(line).encode() + b"\n")


def main(folder: str) -> None:
    """Look every few milliseconds until stdin closes, which it also does when the demo is killed."""
    sampler = Sampler(folder, _tell)
    while True:
        began = time.monotonic()
        sampler.look(began)
        left_s = max(0.0, INTERVAL_S - (time.monotonic() - began))
        if select.select([sys.stdin], [], [], left_s)[0]:
            break
    _tell({"passes": sampler.passes, "longest_gap_s": sampler.longest_gap_s})


if __name__ == "__main__":
    main(sys.argv[1])
