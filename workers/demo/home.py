"""The one folder of a demo, or of a bench, below the system's folder for temporary files, and the log beside it."""

import os
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

_PREFIX = "reliability-demo-"


@dataclass(frozen=True, slots=True)
class Home:
    root: Path

    @classmethod
    def make(cls, prefix: str = _PREFIX) -> Self:
        """Make a folder that nobody else can look into: passwords and sockets stand in it."""
        return cls(Path(tempfile.mkdtemp(prefix=prefix)).resolve())

    def siblings(self) -> list[Path]:
        """Return the folders of other demos, also of those that were killed."""
        return [folder for folder in self.root.parent.glob(f"{_PREFIX}*/") if folder != self.root]

    @property
    def state(self) -> Path:
        return self.root / "state"

    @property
    def locks(self) -> Path:
        return self.state / "locks"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def faults(self) -> Path:
        return self.root / "faults"

    @property
    def server(self) -> Path:
        return self.root / "server"

    @property
    def samples(self) -> Path:
        return self.root / "samples.jsonl"

    @property
    def no_settings(self) -> Path:
        """An empty settings file, so that no other one of this machine is read."""
        return self.root / "reliability.toml"

    @property
    def curlrc(self) -> Path:
        return self.root / "curlrc"

    @property
    def env(self) -> Path:
        return self.root / "env.sh"

    @property
    def log(self) -> Path:
        return self.root.with_name(f"{self.root.name}.log")

    def prepare(self) -> None:
        for folder in (self.state, self.images, self.faults):
            folder.mkdir()
        self.no_settings.touch()

    def remove_folder(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    def remove_log(self) -> None:
        self.log.unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)


def open_log(home: Home) -> tuple[IO[bytes], str]:
    """Return where all processes log to, and its name for people: stderr if it was redirected, else a file."""
    try:
        fd = sys.stderr.fileno()
    except (AttributeError, OSError):  # it is closed, or no file
        fd = None
    if fd is None or os.isatty(fd):
        return home.log.open("ab"), str(home.log)
    return os.fdopen(os.dup(fd), "ab"), "stderr"
