"""Which process is which: reads /proc, never decides."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from workers.domain.evidence import Evidence
from workers.domain.vm import Incarnation, Vantage

_MACHINE_ID_FILES = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_ENDED_STATES = frozenset("ZXx")


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """State letter, parent and start time of a process (proc(5), fields 3, 4 and 22 of /proc/PID/stat)."""

    state: str
    parent: int
    start_ticks: int

    @property
    def has_ended(self) -> bool:
        """A zombie still has its entry, and answers signal 0."""
        return self.state in _ENDED_STATES


def read_vantage(state_dir: Path) -> Vantage:
    return Vantage(
        boot_id=Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
        machine_id=_machine_id(state_dir),
        pid_ns=Path("/proc/self/ns/pid").stat().st_ino,
    )


def _machine_id(state_dir: Path) -> str:
    """The machine's id, else one of our own, kept in the state folder (containers often have none)."""
    for file in (*_MACHINE_ID_FILES, state_dir / "machine-id"):
        try:
            text = file.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text:
            return text
    made = os.urandom(16).hex()
    (state_dir / "machine-id").write_text(made + "\n", encoding="ascii")
    return made


def read_stat(pid: int) -> ProcessStat | None:
    """Return None when there is no such process. Raises OSError when we are not able to look (fd limit, rights)."""
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return None
    try:
        text = os.read(fd, 4096)
    except ProcessLookupError:
        return None
    finally:
        os.close(fd)
    # The command in parentheses may hold anything, also spaces and parentheses: count from the last one.
    fields = text[text.rindex(b")") + 2 :].split()
    return ProcessStat(fields[0].decode(), int(fields[1]), int(fields[19]))


def incarnation_of(pid: int, vantage: Vantage) -> Incarnation | None:
    """Return the identity of the process that has this pid now, None when it has ended."""
    stat = read_stat(pid)
    if stat is None or stat.has_ended:
        return None
    return Incarnation(pid, stat.start_ticks, vantage.boot_id, vantage.machine_id, vantage.pid_ns)


def age_s(process: Incarnation) -> float:
    """Return how long ago this process of this boot began; its start is counted in clock ticks since boot (proc(5))."""
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - process.start_ticks / _TICKS_PER_S)


def look_at(process: Incarnation, vantage: Vantage) -> Evidence | None:
    """Say what speaks against this incarnation being alive; None when it lives.

    Only a look from the machine and pid namespace of the record means anything (invariant 9). Raises OSError when we
    are not able to look.
    """
    if not vantage.shares_place(process):
        return Evidence.FOREIGN_PLACE
    if vantage.boot_id != process.boot_id:
        return Evidence.BOOTED_ANEW
    stat = read_stat(process.pid)
    if stat is None:
        return Evidence.PROCESS_ENDED
    if stat.start_ticks != process.start_ticks:
        return Evidence.PID_REUSED
    return Evidence.ZOMBIE if stat.has_ended else None
