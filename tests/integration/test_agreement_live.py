"""Observe-only with a real worker and real processes: what is written down, what `why` says, and the report."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, cluster, kill
from tests.support.processes import wait_until
from tests.support.servers import start_server
from workers.domain.agreement import Agreement, Fate, agreement
from workers.domain.audit import EventKind
from workers.domain.modes import Mode, host_scope
from workers.domain.vm import State
from workers.services.why import why

pytestmark = pytest.mark.full

ME = f"agree{os.getpid()}"


def report(site: Cluster) -> Agreement:
    return agreement(site.events(), since_ms=0, now_ms=site.fleet.modes.modes([])[0], host=site.host)


def wait_would_have(site: Cluster, vm_id: str) -> None:
    def written() -> bool:
        return any(entry.event.kind is EventKind.WOULD_HAVE for entry in site.events(vm_id))

    wait_until(written, timeout_s=20, what=f"what would have been done about {vm_id}")


def test_a_day_of_observing_in_short(tmp_path: Path) -> None:
    dead, hung = f"{ME}-dead", f"{ME}-hung"
    (tmp_path / "server").mkdir()
    with start_server(tmp_path / "server") as server, cluster(tmp_path, server) as site:
        site.serve()
        before = site.run_vms(dead, hung)
        site.fleet.operator_modes(actor="test").hold(host_scope(site.host), Mode.OBSERVE_ONLY, why="first week")

        kill(before[dead], signal.SIGKILL)
        kill(before[hung], signal.SIGSTOP)
        wait_would_have(site, dead)
        wait_would_have(site, hung)
        lost = why(site.fleet, dead)
        kill(before[hung], signal.SIGCONT)
        site.wait_state(hung, State.HEALTHY)

        assert site.live(dead) == []
        assert lost.next_step.words == f"nothing until a person acts: `reliability resume --host {site.host}`"
        assert "would_have" in [each.kind for each in lost.findings]
        found = report(site)
        assert {case.vm_id: case.fate for case in found.cases} == {dead: Fate.STILL_LOST, hung: Fate.CAME_BACK}
        assert [case.vm_id for case in found.wrong] == [hung]
        assert found.recovered == 2

        site.fleet.operator_modes(actor="test").lift(host_scope(site.host))
        site.wait_healthy(dead, after=before[dead])
        assert {case.fate for case in report(site).cases} == {Fate.RECOVERED, Fate.CAME_BACK}
