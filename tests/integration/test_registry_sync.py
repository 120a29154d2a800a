"""A host whose worker follows the manager's registry: what `status` shows of it, and a life with a folder of specs."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builders import a_process
from tests.support.cli import ME, Ask, asking, cli_site, execute
from tests.support.cluster import Cluster, cluster
from tests.support.processes import wait_until
from workers.domain.audit import EventKind
from workers.domain.registry_diff import Notes
from workers.embedded import EmbeddedServer
from workers.store.hosts import HostWorker


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cli_site(tmp_path_factory.mktemp("registry")) as made:
        yield made


@pytest.fixture
def ask(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(site, monkeypatch, capsys)


def test_status_shows_how_the_registry_differs_and_what_is_wrong_with_it(site: Cluster, ask: Ask) -> None:
    hosts = site.fleet.hosts
    hosts.hold(HostWorker("me", site.host, a_process(), 0, "1"), ttl_ms=60_000)
    missing = {"vm-b": 1_800_000_000_000, "vm-a": 1_800_000_000_000}
    notes = Notes(missing, ("vm-c",), "it failed", ("entry 0: id: wrong",))

    hosts.put_registry_notes(site.host, notes, ttl_ms=60_000)

    kept = hosts.registry_notes(site.host)
    assert (dict(kept.missing), list(kept.suspects), kept.trouble) == (notes.missing, ["vm-c"], "it failed")
    assert hosts.registry_notes("host-none") == Notes()
    shown = ask("status").out
    assert f"the registry lists 2 VMs of host {site.host} no more: vm-a, vm-b" in shown
    assert f"host {site.host} does not follow the registry: it failed" in shown
    assert f"the registry of host {site.host}: entry 0: id: wrong" in shown
    assert ask("status", "-o", "json").document["registries"] == [
        {
            "host": site.host,
            "missing": {"vm-a": "2027-01-15T08:00:00.000Z", "vm-b": "2027-01-15T08:00:00.000Z"},
            "trouble": "it failed",
            "problems": ["entry 0: id: wrong"],
        }
    ]


@pytest.mark.full
def test_a_worker_follows_a_folder_of_specs(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    folder, listed = tmp_path / "site", tmp_path / "listed"
    folder.mkdir()
    listed.mkdir()
    extra = {"REGISTRY__FOLDER": str(listed), "REGISTRY__INTERVAL": "500ms", "REGISTRY__FORGET_MISSING": "true"}
    with cluster(folder, fresh_server, RECONCILE_INTERVAL="500ms", **extra) as site:
        for number in range(3):
            vm = {"id": f"{ME}-r{number}", "driver": "firecracker", "kernel": str(site.kernel)}
            (listed / f"{number}.json").write_text(json.dumps(vm))
        site.serve()
        wait_until(lambda: len(site.fleet.store.ids()) == 3, what="the VMs of the registry to be registered")
        gone = site.wait_healthy(f"{ME}-r2")

        (listed / "2.json").unlink()

        wait_until(lambda: f"{ME}-r2" not in site.fleet.store.ids(), what="the VM that is gone to be forgotten")
        assert gone.process is not None
        assert site.live(f"{ME}-r2") == [gone.process.pid], "its VMM runs on"
        kinds = [entry.event.kind for entry in site.events(f"{ME}-r2")]
        assert EventKind.UNLISTED in kinds
        assert EventKind.FORGOTTEN in kinds

        (listed / "0.json").write_text("broken")
        wait_until(lambda: "0.json" in execute(site, "status").out, what="the trouble to be shown")
        assert set(site.fleet.store.ids()) == {f"{ME}-r0", f"{ME}-r1"}
