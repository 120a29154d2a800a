"""A VM of a driver from another package: applied, started, killed and recovered like any other."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.cli import ME, PROGRAM, environment
from tests.support.cluster import REPOSITORY, cluster, kill
from tests.support.packages import install
from workers.embedded import EmbeddedServer

pytestmark = pytest.mark.full


def test_a_vm_of_a_third_party_driver_lives_like_any_other(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    install(tmp_path / "acme", "acme-metald", {"acme": "tests.support.acme.driver:Acme"})
    install(tmp_path / "broken", "broken-metald", {"broken": "nowhere.at:All"})
    path = {"PYTHONPATH": os.pathsep.join(map(str, (REPOSITORY, tmp_path / "acme", tmp_path / "broken")))}
    vm_id = f"{ME}-acme"
    with cluster(tmp_path, fresh_server) as site:
        site.start_beat()
        worker = site.start_successor(environ=path)
        assert "driver not usable" in worker.log()
        (tmp_path / "vm.yaml").write_text(f"id: {vm_id}\ndriver: acme\nkernel: {site.kernel}\ncolour: blue\n")
        environ = os.environ | environment(site) | path
        subprocess.run([*PROGRAM, "apply", "-f", str(tmp_path / "vm.yaml")], env=environ, cwd=tmp_path, check=True)
        before = site.wait_healthy(vm_id)

        kill(before, signal.SIGKILL)

        after = site.wait_healthy(vm_id, after=before)
        assert after.process is not None
        assert site.live(vm_id) == [after.process.pid]
