"""`reliability doctor` on a real server with faults prepared in it, without one, and with one that never answers."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis

from tests.support.builders import a_process
from tests.support.cli import ME, Ask, asking
from tests.support.cluster import Cluster, cluster
from tests.support.processes import wait_until
from workers.domain.modes import FLEET, Mode
from workers.embedded import EmbeddedServer
from workers.host.rundir import HostFiles
from workers.ports import Halt
from workers.store.hosts import HostWorker
from workers.telemetry.endpoints import Endpoints

_FOREVER_MS = 10**9
Findings = dict[str, list[dict[str, Any]]]


@pytest.fixture
def site(fresh_server: EmbeddedServer, tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path, fresh_server) as made:
        yield made


@pytest.fixture
def ask(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(site, monkeypatch, capsys)


@pytest.fixture
def client(site: Cluster) -> Iterator[Any]:
    with closing(redis.Redis.from_url(site.server.url())) as made:
        yield made


def found(answer: Any) -> Findings:
    by_name: Findings = {}
    for finding in answer.document["findings"]:
        by_name.setdefault(finding["name"], []).append(finding)
    return by_name


def serve(site: Cluster, host: str, version: str) -> None:
    worker = HostWorker("me", host, a_process(), 0, version)
    site.fleet.hosts.hold(worker, ttl_ms=_FOREVER_MS)


def test_a_server_as_it_should_be_has_no_problem_of_redis(ask: Ask) -> None:
    answer = ask("doctor", "-o", "json")

    of_redis = [finding for finding in answer.document["findings"] if finding["group"] == "Redis"]
    # How fast it is depends on what else this machine does.
    assert {finding["level"] for finding in of_redis if finding["name"] != "redis latency"} == {"ok"}, of_redis
    assert len(of_redis) == 9
    assert answer.document["not_looked_at"] == []


def test_what_is_wrong_in_the_fleet_is_found(ask: Ask, site: Cluster, client: Any) -> None:
    lost = f"{ME}-d1"
    site.apply(site.spec(lost), site.spec(f"{ME}-d2", host="host-old"))
    client.zadd("rel:due", {lost: 1})
    client.hset(f"rel:vm:{ME}-d2", "v", "9")
    serve(site, "host-old", "0.0.9")
    site.fleet.operator_modes(actor="cli:ann").hold(FLEET, Mode.OBSERVE_ONLY, why="first week")
    site.fleet.data.halt("host-old", Halt("older data", frozen=True))
    files = HostFiles(site.state_dir)
    files.prepare()
    files.begin(f"{ME}-left", 1, driver="firecracker", spec="{}")

    answer = ask("doctor", "-o", "json")

    assert answer.status == 1
    findings = found(answer)
    assert f"{site.host}: VMs unwatched: 1" in findings["workers"][0]["says"]
    assert "no beat" in findings["beat"][0]["says"]
    assert "host-old (0.0.9)" in findings["versions"][0]["says"]
    assert "schema version 9" in findings["records"][0]["says"]
    assert "first week" in findings["modes"][0]["says"]
    assert "older data" in findings["halted hosts"][0]["says"]
    assert any(f"{ME}-left" in finding["says"] for finding in findings["run folders"])


def test_a_user_who_may_only_look_is_told_apart(ask: Ask, site: Cluster, client: Any) -> None:
    reads = ["on", "nopass", "~*", "-@all", "+@read", "+@connection", "+info", "+time", "+script|load", "+evalsha"]
    url = urlsplit(site.server.url())
    try:
        for name, more in (("looker", ["+acl|whoami", "+acl|dryrun"]), ("modest", [])):
            client.execute_command("ACL SETUSER", name, *reads, *more)
            site.extra = {"REDIS__URL": f"redis://{name}:x@127.0.0.1:{url.port}/0"}
            findings = found(_ask_again(ask, site, "doctor", "-o", "json"))
            says = findings["redis rights"][0]["says"]
            assert says.startswith(f"user {name}"), says
            assert ("may not HSET" in says) is (name == "looker")
    finally:
        client.execute_command("ACL DELUSER", "looker", "modest")


def test_one_database_under_two_names_is_found(ask: Ask, site: Cluster) -> None:
    site.extra = {"BROKER__URL": site.server.url(0).replace("127.0.0.1", "127.1")}

    findings = found(_ask_again(ask, site, "doctor", "-o", "json"))

    assert findings["broker database"][0]["level"] == "problem"


def test_without_redis_the_host_is_looked_at_all_the_same(ask: Ask, site: Cluster) -> None:
    site.extra = {"REDIS__URL": "redis://127.0.0.1:1/0"}

    answer = _ask_again(ask, site, "doctor", "-o", "json")

    assert answer.status == 1
    findings = found(answer)
    assert "does not answer" in findings["redis"][0]["says"]
    assert "env RELIABILITY_REDIS__URL" in findings["redis"][0]["does"]
    assert findings["kernel"][0]["level"] == "ok"
    assert "beat" in answer.document["not_looked_at"]


def test_a_wrong_password_is_no_outage(ask: Ask, site: Cluster) -> None:
    site.extra = {"REDIS__URL": f"redis://:wrong-password@127.0.0.1:{site.server.port}/0"}

    answer = _ask_again(ask, site, "doctor", "-o", "json")

    assert "refuses us" in found(answer)["redis"][0]["says"]
    assert "wrong-password" not in answer.out


def test_a_server_that_never_answers_is_not_waited_for(ask: Ask, site: Cluster) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        site.extra = {"REDIS__URL": f"redis://127.0.0.1:{listener.getsockname()[1]}/0", "REDIS__TIMEOUT": "50ms"}
        answer = _ask_again(ask, site, "doctor", "-o", "json")

    assert "does not answer: Timeout" in found(answer)["redis"][0]["says"]


def test_what_is_not_redis_is_called_so(ask: Ask, site: Cluster) -> None:
    web = Endpoints("127.0.0.1", 0, {})
    web.start()
    try:
        url = wait_until(lambda: web.url, what="the web server to listen")
        site.extra = {"REDIS__URL": str(url).replace("http://", "redis://") + "/0"}
        answer = _ask_again(ask, site, "doctor", "-o", "json")
    finally:
        web.stop()

    assert "is not Redis: it speaks otherwise" in answer.out


def test_host_only_asks_nothing_of_redis(ask: Ask, site: Cluster) -> None:
    site.extra = {"REDIS__URL": "redis://127.0.0.1:1/0"}

    answer = _ask_again(ask, site, "doctor", "--host-only", "-o", "json")

    assert {finding["group"] for finding in answer.document["findings"]} == {"This host", "Machine and programs"}
    assert answer.document["not_looked_at"] == []


def test_people_get_groups_and_programs_a_line_for_each_thing(ask: Ask) -> None:
    answer = ask("doctor")

    lines = answer.out.splitlines()
    assert [line for line in lines if line and not line.startswith(" ")][:4] == [
        "Redis", "Fleet", "This host", "Machine and programs",
    ]  # fmt: skip
    assert any(line.startswith("  ok       redis: redis://:***@127.0.0.1:") for line in lines)
    assert lines[-1].endswith("things in order.")
    assert answer.err == ""
    assert "\x1b" not in answer.out


def test_of_many_alike_people_see_a_few(ask: Ask, site: Cluster) -> None:
    modes = site.fleet.operator_modes(actor="cli:ann")
    for number in range(7):
        modes.hold(f"vm:{ME}-{number}", Mode.PAUSED, why="trial")

    lines = ask("doctor").out.splitlines()

    assert sum("warning  modes:" in line for line in lines) == 5
    assert any(line.strip() == "… and 2 more (-o json shows all)" for line in lines)


def _ask_again(ask: Callable[..., Any], site: Cluster, *arguments: str) -> Any:
    """With the settings that the site has by now."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in site.environment.items():
            patch.setenv(name, value)
        return ask(*arguments)
