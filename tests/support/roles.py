"""The users of config/redis/roles.acl on a server of a test, and what that server refused them.

Its `default` user stays as the embedded server needs it; the test is its administrator.
"""

import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import redis
from redis.exceptions import NoPermissionError

from workers.embedded import EmbeddedServer
from workers.settings import Settings, load

RULES = Path(__file__).parents[2] / "config/redis/roles.acl"
_FILL_IN = RULES.with_name("roles.sh")
_MAY = b"OK"


class Role(StrEnum):
    HOOK = "hook"
    WORKER = "worker"
    BEAT = "beat"
    OPERATOR = "operator"
    READONLY = "readonly"


def fill_in(folder: Path) -> Path:
    """Make the passwords as an operator does; returns the file for the server's configuration."""
    subprocess.run(["sh", str(_FILL_IN), str(folder)], check=True, timeout=30)
    return folder / "users.acl"


@dataclass(frozen=True, slots=True)
class RoleSite:
    server: EmbeddedServer
    folder: Path
    passwords: Mapping[Role, str]
    admin: Any

    def url(self, role: Role, db: int = 0) -> str:
        return f"redis://{role}:{self.passwords[role]}@127.0.0.1:{self.server.port}/{db}"

    def settings(self, role: Role) -> Settings:
        environ = {
            "RELIABILITY_HOST": "host-a",
            "RELIABILITY_STATE_DIR": str(self.folder / "state"),
            "RELIABILITY_REDIS__URL": self.url(role),
            "RELIABILITY_BROKER__URL": self.url(role, 1),
        }
        return load(environ, self.folder).settings

    def may(self, role: Role, *command: object) -> bool:
        """Ask the server, which does nothing, whether this user may."""
        return bool(self.admin.execute_command("ACL DRYRUN", role, *command) == _MAY)

    def refused(self) -> list[str]:
        """Everything refused to anybody since the last look."""
        rows = self.admin.acl_log()
        self.admin.acl_log_reset()
        return sorted({f"{row['username']}: {row['reason']} {row['object']} ({row['context']})" for row in rows})

    @contextmanager
    def connected(self, role: Role, db: int = 0) -> Iterator[Any]:
        client = redis.Redis.from_url(self.url(role, db))
        try:
            yield client
        finally:
            client.close()

    def is_refused(self, role: Role, *command: object) -> bool:
        with self.connected(role) as client:
            try:
                client.execute_command(*command)
            except NoPermissionError:
                return True
        return False


@contextmanager
def role_site(server: EmbeddedServer, folder: Path) -> Iterator[RoleSite]:
    users = fill_in(folder)
    admin: Any = redis.Redis.from_url(server.url())
    try:
        for line in users.read_text().splitlines():
            word, _, rest = line.partition(" ")
            if word == "user" and not rest.startswith("default "):
                admin.execute_command("ACL SETUSER", *rest.split())
        passwords = {role: (folder / f"{role}.password").read_text() for role in Role}
        yield RoleSite(server, folder, passwords, admin)
    finally:
        admin.close()
