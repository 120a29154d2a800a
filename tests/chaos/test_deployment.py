"""Two releases side by side: records of this and of the previous schema version, upgraded and rolled back under way."""

import signal
from pathlib import Path

from tests.support.chaos import Arena, arena
from tests.support.cluster import kill
from tests.support.processes import wait_until
from workers.embedded import EmbeddedServer


def versions(here: Arena) -> set[int]:
    store = here.site.fleet.store
    return {stored.version for stored in store.read(store.ids()).found.values()}


def test_an_upgrade_and_the_way_back_while_vms_die(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    with arena(tmp_path, fresh_server) as here:
        site = here.site
        site.start_beat()
        names = ["version-1", "version-2", "version-3"]
        worker = site.start_successor(REDIS__RECORD_VERSION="1")
        site.run_vms(*names)
        for turn, version in enumerate(("2", "1", "2")):
            worker.popen.kill()
            worker.popen.wait()
            here.injure(names[turn], lambda record: kill(record, signal.SIGKILL))
            worker = site.start_successor(REDIS__RECORD_VERSION=version)
            here.account("upgrade and rollback of the record schema", worker=worker)
            wait_until(lambda: versions(here) == {int(version)}, what="every record to be of this version")  # noqa: B023 - waited for here


def test_a_host_of_each_release_share_one_redis(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    with (
        arena(tmp_path / "old", fresh_server, REDIS__RECORD_VERSION="1") as old,
        arena(tmp_path / "new", fresh_server, REDIS__RECORD_VERSION="2") as new,
    ):
        old.site.start_beat()
        new.site.start_beat()
        old.site.start_successor()
        new.site.start_successor()
        old.site.run_vms("side-old")
        new.site.run_vms("side-new")
        old.site.start_beat("beat-too")
        before = old.injure("side-old", lambda record: kill(record, signal.SIGKILL))
        old.site.wait_healthy("side-old", after=before)
        before = new.injure("side-new", lambda record: kill(record, signal.SIGKILL))
        new.site.wait_healthy("side-new", after=before)
        found = new.site.fleet.store.read(["side-old", "side-new"]).found
        assert {vm_id: stored.version for vm_id, stored in found.items()} == {"side-old": 1, "side-new": 2}
