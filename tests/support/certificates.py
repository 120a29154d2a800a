"""Certificates made for one test, as an operator makes them: docs/security.md has the same commands."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

_NEW_KEY = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority of its own in a folder."""

    folder: Path

    @property
    def certificate(self) -> Path:
        return self.folder / "ca.crt"

    def make(self) -> "Authority":
        self.folder.mkdir()
        self._openssl(f"req -x509 {_NEW_KEY} -days 2 -subj /CN=ca -keyout ca.key -out ca.crt")
        return self

    def issue(self, name: str, *alternatives: str) -> tuple[Path, Path]:
        """Return certificate and key of `name`; `alternatives` are like IP:127.0.0.1 or DNS:localhost."""
        (self.folder / f"{name}.ext").write_text(f"subjectAltName={','.join(alternatives)}\n" if alternatives else "")
        self._openssl(f"req {_NEW_KEY} -subj /CN={name} -keyout {name}.key -out {name}.csr")
        signed_by = "-CA ca.crt -CAkey ca.key -CAcreateserial -days 2"
        self._openssl(f"x509 -req -in {name}.csr {signed_by} -extfile {name}.ext -out {name}.crt")
        return self.folder / f"{name}.crt", self.folder / f"{name}.key"

    def _openssl(self, command: str) -> None:
        subprocess.run(["openssl", *command.split()], cwd=self.folder, check=True, capture_output=True, timeout=30)
