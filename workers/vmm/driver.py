"""The port of a VMM driver, and what all drivers share."""

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from workers.domain.errors import DriverUnavailable
from workers.domain.evidence import Evidence
from workers.domain.exits import ExitTable
from workers.specs import VmSpec
from workers.vmm.conversation import Conversation

Finding = tuple[Evidence, str]

UNKNOWN_VERSION = "unknown"
_VERSION = re.compile(r"\d+(\.\d+)+")
_VERSION_S = 5.0


@dataclass(frozen=True, slots=True)
class Launch:
    """What to exec, in the run directory of the generation; relative paths in `argv` mean that folder."""

    argv: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Claim:
    """Whom a process says it is on its command line, and where it listens (relative to its folder, or absolute).

    `vm_id` is empty where it does not say, and may be no id at all: it is somebody else's text. `socket` is None where
    the command line names none.
    """

    vm_id: str
    socket: str | None


class Driver(Protocol):
    """One kind of VMM. Nothing here blocks: sockets and processes are the caller's."""

    name: str
    # What each way to end says about starting again; what is not listed is an ordinary loss.
    exits: ExitTable

    def version(self) -> str:
        """Return the version of the program as it is installed now, `unknown` where it does not tell."""
        ...

    def launch(self, spec: VmSpec) -> Launch:
        """Raises DriverUnavailable when the binary is missing, StartFailed when the spec cannot be used here."""
        ...

    def configure(self, spec: VmSpec) -> Conversation[None]:
        """Bring a freshly started VMM to a running guest. Raises StartFailed with the VMM's own words."""
        ...

    def probe(self, vm_id: str) -> Conversation[Finding]:
        """Ask once whether this VM runs here. Does not raise: what goes wrong is a finding."""
        ...

    def identify(self, argv: Sequence[str], exe: str) -> Claim | None:
        """Say which VM this process claims to be, None when it is no VMM of this kind.

        Does not raise, and is cheap: it is asked for each process of the host.
        """
        ...


def has_stateless_probe(driver: Driver) -> bool:
    """Whether the driver vouches, by `stateless_probe = True`, that what its probe hears always means the same.

    Then a VM that says to the byte what it said last time is as well as it was then, and nothing is parsed again.
    """
    return getattr(driver, "stateless_probe", False) is True


@dataclass(frozen=True, slots=True)
class Program:
    """The program of a driver: what to exec, and how to know a process of it again.

    `words` is the binary, or an interpreter with its flags and the script.
    """

    driver: str
    words: tuple[str, ...]

    def resolve(self) -> tuple[str, ...]:
        """Return the words with the binary as an absolute path. Raises DriverUnavailable."""
        found = shutil.which(self.words[0])
        if found is None:
            hint = f"install it, or set drivers.{self.driver}.binary"
            raise DriverUnavailable(self.driver, f"binary {self.words[0]!r} not found; {hint}")
        return (found, *self.words[1:])

    def version(self) -> str:
        """Ask the program once for each state of its file; `unknown` where it is missing or does not tell."""
        try:
            words = self.resolve()
            return _version_of(words, tuple(Path(word).stat().st_mtime_ns for word in (words[0], words[-1])))
        except (DriverUnavailable, OSError):
            return UNKNOWN_VERSION

    def is_run_by(self, argv: Sequence[str], exe: str) -> bool:
        """Whether a process with this command line and /proc/PID/exe runs the program; cheap for all others."""
        if len(self.words) > 1:
            return list(argv[: len(self.words)])[1:] == list(self.words[1:])
        return Path(exe.removesuffix(" (deleted)")).name == Path(self.words[0]).name


@lru_cache(maxsize=64)
def _version_of(words: tuple[str, ...], _modified_ns: tuple[int, ...]) -> str:
    try:
        asked = subprocess.run(
            [*words, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_VERSION_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return UNKNOWN_VERSION
    found = _VERSION.search(asked.stdout.decode(errors="replace"))
    return found[0] if found else UNKNOWN_VERSION
