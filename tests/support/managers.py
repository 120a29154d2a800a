"""A VM manager with the settings of a test's own host and server."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from tests.support.builders import HOST
from workers.integration import ReliabilityManager
from workers.settings import Settings, load

CONFIG = {"driver": "firecracker", "kernel": "/images/vmlinux"}


def settings_for(folder: Path, redis_url: str, **extra: str) -> Settings:
    own = {"HOST": HOST, "STATE_DIR": str(folder / "state"), "REDIS__URL": redis_url}
    return load({f"RELIABILITY_{name}": value for name, value in (own | extra).items()}, folder).settings


@contextmanager
def manager_with(settings: Settings, *, started: bool = True) -> Iterator[ReliabilityManager]:
    manager = ReliabilityManager(settings)
    try:
        if started:
            manager.start()
        yield manager
    finally:
        manager.stop()
        # It made structlog log into the standard library's logging, for the whole process.
        structlog.reset_defaults()
