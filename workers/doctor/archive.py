"""A support bundle as it is written: every text freed of secrets, all of it bounded, in one file of its owner's."""

import errno
import gzip
import io
import json
import os
import re
import tarfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from workers.telemetry.redaction import HIDDEN, Redaction

_MODE = 0o600
# `password=…` and the like, as guests and other programs write it into their logs.
_ASSIGNED = re.compile(
    r"""((?:passw(?:or)?d|passphrase|secret|token|api[_-]?key)[\w-]*["']?\s*[=:]\s*["']?)[^\s"',;&]+""", re.IGNORECASE
)
MIB = 1 << 20
MANIFEST = "MANIFEST.json"


class NotHere(Exception):
    """A part that cannot be had; the text says why."""


class BundleFull(NotHere):
    """No room is left within the limit."""


class Archive:
    """Members stand below one folder, named for the bundle. `hide` comes before what may hold those secrets is added.

    What is added is bounded by `most_bytes` in all; the manifest comes last and beside that.
    """

    def __init__(self, folder: str, *, made_s: float, most_bytes: int) -> None:
        self._folder, self._made_s, self._left = folder, made_s, most_bytes
        self._secrets: set[str] = set()
        self._redaction = Redaction()
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", format=tarfile.PAX_FORMAT)  # noqa: SIM115 - `close` does
        self.files: list[dict[str, Any]] = []
        self.left_out: list[dict[str, str]] = []

    def hide(self, secrets: Collection[str]) -> None:
        self._secrets |= {form for secret in secrets for form in _forms(secret)}
        self._redaction = Redaction(self._secrets)

    @property
    def longest_secret(self) -> int:
        """In characters, in whatever form it may be written."""
        return 6 * max(map(len, self._secrets), default=0)

    def leave_out(self, what: str, why: str) -> None:
        self.left_out.append({"what": what, "why": self._redaction.text(" ".join(why.split()))})

    def add_document(self, name: str, document: Mapping[str, Any]) -> None:
        self._add(name, json.dumps(self._clean(document), indent=1) + "\n", is_cut=False)

    def add_documents(self, name: str, documents: Iterable[Mapping[str, Any]]) -> None:
        """One per line."""
        lines = [json.dumps(self._clean(each), separators=(",", ":")) for each in documents]
        self._add(name, "".join(f"{line}\n" for line in lines), is_cut=False)

    def add_text(self, name: str, text: str, *, is_cut: bool = False) -> None:
        """`is_cut`: its beginning is missing, so what it begins with may be the end of a secret."""
        text = _ASSIGNED.sub(rf"\1{HIDDEN}", self._redaction.text(text))
        if is_cut:
            text = text[text.find("\n") + 1 or self.longest_secret :]
        self._add(name, text, is_cut=is_cut)

    def _clean(self, document: Mapping[str, Any]) -> Mapping[str, Any]:
        cleaned: Mapping[str, Any] = self._redaction(None, "", dict(document))
        return cleaned

    def _add(self, name: str, text: str, *, is_cut: bool) -> None:
        content = text.encode(errors="replace")
        if len(content) > self._left:
            raise BundleFull(f"{len(content) / MIB:.1f} MiB do not fit into what is left of the bundle's limit")
        self._left -= len(content)
        self._put(name, content)
        self.files.append({"name": name, "bytes": len(content), "is_cut": is_cut})

    def _put(self, name: str, content: bytes) -> None:
        if name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} is no name for a file in a bundle")
        member = tarfile.TarInfo(f"{self._folder}/{name}")
        member.size, member.mtime, member.mode = len(content), int(self._made_s), _MODE
        self._tar.addfile(member, io.BytesIO(content))

    def close(self, about: Mapping[str, Any]) -> bytes:
        """Add the manifest, and return the whole file."""
        manifest = {**about, "files": self.files, "left_out": self.left_out}
        self._put(MANIFEST, (json.dumps(self._clean(manifest), indent=1) + "\n").encode())
        self._tar.close()
        return gzip.compress(self._buffer.getvalue(), mtime=int(self._made_s))


def _forms(secret: str) -> set[str]:
    """How a secret may stand in a URL, and in the JSON of others; Redaction adds what it knows itself."""
    plain = unquote(secret)
    return {secret, plain, quote(plain), json.dumps(secret)[1:-1], json.dumps(plain)[1:-1]}


def write_new(path: Path, content: bytes) -> None:
    """Write a file that was not there before, whole or not at all. Raises FileExistsError, OSError."""
    made = path.with_name(f".{path.name}.{os.getpid()}.new")
    fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(fd)
        _publish(made, path)
    finally:
        made.unlink(missing_ok=True)


def _publish(made: Path, path: Path) -> None:
    """By a link, since a rename would replace what somebody else has put there meanwhile."""
    try:
        path.hardlink_to(made)
    except FileExistsError:
        raise
    except OSError:  # a file system without links, such as that of a USB stick
        if path.exists():
            raise FileExistsError(errno.EEXIST, "exists already", str(path)) from None
        made.replace(path)
