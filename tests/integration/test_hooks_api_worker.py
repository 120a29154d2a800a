"""The hooks API of a real worker: a manager that speaks HTTP only runs a VM from its beginning to its end."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.cluster import Cluster, cluster, kill
from tests.support.hooks import caller
from tests.support.processes import wait_until
from workers.domain.vm import State
from workers.embedded import EmbeddedServer

pytestmark = [pytest.mark.full, pytest.mark.timeout(120)]

VM = "/v1/vms/vm-1"


@pytest.fixture
def site(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Cluster]:
    with cluster(tmp_path, fresh_server) as made:
        made.serve()
        yield made


@pytest.fixture
def http(site: Cluster) -> Iterator[httpx.Client]:
    path = site.state_dir / "hooks.sock"
    wait_until(path.is_socket, what="the socket")
    with caller(path) as made:
        yield made


def say(http: httpx.Client, what: str, body: Any = None) -> int:
    reply = http.post(f"{VM}/{what}", json=body)
    assert reply.status_code == 202, reply.text
    return int(reply.json()["number"])


def state(http: httpx.Client) -> str | None:
    reply = http.get(f"{VM}/health")
    return str(reply.json()["state"]) if reply.status_code == 200 else None


def config(site: Cluster) -> dict[str, Any]:
    return {"driver": "firecracker", "kernel": str(site.kernel)}


def test_a_vm_lives_and_ends_by_hooks(site: Cluster, http: httpx.Client) -> None:
    place = http.get("/v1/events").json()["next"]
    first = say(http, "created", {"config": config(site)})
    wait_until(lambda: state(http) == "healthy", what="it to be started and healthy")
    assert [each["vm_id"] for each in http.get("/v1/vms").json()["vms"]] == ["vm-1"]
    assert http.get(f"{VM}/why").json()["state"] == "healthy"

    record = site.record("vm-1")
    kill(record, 9)
    change: dict[str, Any] = {}

    def is_back() -> bool:
        nonlocal place
        page = http.get("/v1/events", params={"after": place, "changes": "true", "wait_s": 5}).json()
        place = page["next"]
        for each in page["events"]:
            change[each["change"]] = each
        return "recovered" in change

    wait_until(is_back, timeout_s=30, what="its loss and its recovery to be told")
    assert change["orphaned"]["reason"] == "process_dead"
    assert http.get(f"{VM}/attempts").json()["attempts"][-1]["outcome"] == "recovered"
    assert http.get("/v1/orphans").json() == {"vms": []}

    last = say(http, "stopping")
    last = say(http, "stopped")
    assert last > first
    wait_until(lambda: state(http) == "stopped", what="it to be stopped")
    wait_until(lambda: not site.live("vm-1"), what="its VMM to end")
    say(http, "deleted")
    wait_until(lambda: state(http) is None, what="its record to go")


def test_an_operation_outlives_the_worker_and_is_ended_at_the_next_one(site: Cluster, http: httpx.Client) -> None:
    say(http, "created", {"config": config(site)})
    wait_until(lambda: state(http) == "healthy", what="it to be healthy")
    begun = http.post(f"{VM}/operations", json={"kind": "snapshot", "deadline_s": 600}).json()
    wait_until(lambda: held(site), what="the hold")

    assert site.worker is not None
    site.worker.stop()
    site.start_successor()

    assert held(site)
    wait_until(lambda: http.delete(f"{VM}/operations/{begun['operation']}").status_code == 202, what="it to end")
    wait_until(lambda: not held(site), what="the hold to be lifted")


def held(site: Cluster) -> bool:
    _, modes = site.fleet.modes.all_modes()
    return any(scope.holds for scope in modes.scopes.values())


def test_hooks_are_taken_while_redis_is_away_and_the_socket_ends_with_the_worker(
    site: Cluster, http: httpx.Client, fresh_server: EmbeddedServer
) -> None:
    say(http, "created", {"config": config(site)})
    wait_until(lambda: state(http) == "healthy", what="it to be healthy")
    fresh_server.kill()

    reply = http.get(f"{VM}/health")
    assert (reply.status_code, json.loads(reply.text)["error"]["code"]) == (503, "store_unavailable")
    say(http, "stopping")
    say(http, "stopped")

    fresh_server.start()
    site.wait_state("vm-1", State.STOPPED)
    assert site.worker is not None
    site.worker.stop()
    assert not (site.state_dir / "hooks.sock").exists()
