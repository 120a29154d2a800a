"""`reliability` as a child process of a test, in the place of a cluster, and what it answered."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import REPOSITORY, Cluster, cluster
from tests.support.processes import RunningProcess, start_process
from tests.support.servers import start_server
from workers.cli import main

PROGRAM = [sys.executable, "-m", "workers.cli"]
PASSWORD = "sesame-7"  # noqa: S105 - of a Flower in a test
ME = f"cli{os.getpid()}"  # of VM ids: other runs on this machine must not take our VMMs for theirs


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        read = json.loads(self.out)
        assert read["schema_version"] == 1
        return read


@contextmanager
def cli_site(folder: Path) -> Iterator[Cluster]:
    """A cluster whose worker recovers nothing by itself, so that every recovery is the one asked for."""
    (folder / "server").mkdir()
    with (
        start_server(folder / "server") as server,
        cluster(
            folder,
            server,
            RECOVERY__ENABLED="false",
            RECOVERY__MAX_RETRIES="1",
            FLOWER__BASIC_AUTH=f"operator:{PASSWORD}",
        ) as made,
    ):
        yield made


def program(site: Cluster, *arguments: str, name: str, **extra: str) -> AbstractContextManager[RunningProcess]:
    """Start a command that goes on until it is ended."""
    return start_process(
        [*PROGRAM, *arguments],
        log_path=site.folder / "logs" / f"{name}.log",
        env=environment(site, **extra),
        cwd=site.folder,
    )


def execute(site: Cluster, *arguments: str, given: str = "", **extra: str) -> Answer:
    done = subprocess.run(
        [*PROGRAM, *arguments],
        input=given,
        capture_output=True,
        text=True,
        env=os.environ | environment(site, **extra),
        cwd=site.folder,
        timeout=40,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


Ask = Callable[..., Answer]


def asking(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    """Return what runs a command in this process: the same code, without a second of imports.

    Not for commands that send messages: the Celery app is made once per process.
    """
    for name, value in site.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(site.folder)

    def run(*arguments: str) -> Answer:
        status = main(arguments)
        output = capsys.readouterr()
        return Answer(status, output.out, output.err)

    return run


def environment(site: Cluster, **extra: str) -> dict[str, str]:
    own = {f"RELIABILITY_{key}": value for key, value in extra.items()}
    return {"PYTHONPATH": str(REPOSITORY)} | site.environment | own


def declare(site: Cluster, vm_id: str, **fields: object) -> str:
    site.apply(site.spec(vm_id, **fields))
    return vm_id
