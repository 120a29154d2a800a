"""The endpoints of a real worker and a real beat: what they say in good times, without Redis, and when one is stuck."""

import os
import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from celery import Celery

from tests.support.cluster import Cluster, cluster, kill
from tests.support.figures import Page
from tests.support.link import link_to
from tests.support.processes import RunningProcess, wait_until
from tests.support.servers import BROKER_DB, start_server
from workers.domain.vm import State
from workers.embedded import EmbeddedServer
from workers.telemetry import instruments as m

STALLED_AFTER_S = 2
# By then the pauses between two tries to connect are as long as they get.
_OUTAGE_S = 16
VMS = ("vm-1", "vm-2", "vm-3")


@dataclass(frozen=True)
class Endpoint:
    """What a process serves; a port of its own, as its log says."""

    url: str

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=5)

    def status(self, path: str) -> int:
        return self.get(path).status_code

    @property
    def page(self) -> Page:
        return Page(self.get("/metrics").text)

    @property
    def failing(self) -> dict[str, str]:
        """Return what keeps it from being ready."""
        reply = self.get("/readyz")
        told: dict[str, Any] = reply.json()
        assert reply.status_code == (200 if told["ready"] else 503)
        assert told["ready"] is not bool(told["failing"])
        return dict(told["failing"])

    @property
    def stalled(self) -> str:
        reply = self.get("/healthz")
        told: dict[str, Any] = reply.json()
        assert reply.status_code == (200 if told["healthy"] else 503)
        return "; ".join(told["stalled"])

    def wait_ready(self, *, timeout_s: float = 20) -> None:
        wait_until(lambda: not self.failing, timeout_s=timeout_s, what=f"{self.url}/readyz to be green")


def endpoint_of(process: RunningProcess) -> Endpoint:
    said = wait_until(
        lambda: re.findall(r"component=endpoints .*?url=(http://127\.0\.0\.1:\d+)", process.log()),
        timeout_s=20,
        what="the line that says where its endpoints are",
    )
    return Endpoint(said[-1])


@dataclass
class Site:
    """A worker and a beat with some VMs, and where both are asked."""

    cluster: Cluster
    worker: Endpoint
    beat: Endpoint


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    settings = {"TELEMETRY__STALLED_AFTER": f"{STALLED_AFTER_S}s"}
    server = start_server(tmp_path_factory.mktemp("endpoints-server"))
    with server, cluster(tmp_path_factory.mktemp("endpoints"), server, **settings) as made:
        first = made.start_beat("first")
        worker = made.start_successor(include="tests.support.wedge")
        made.run_vms(*VMS)
        # Its first survey has all of them; the next one would come seconds later.
        beat = made.start_beat()
        first.stop()
        both = Site(made, endpoint_of(worker), endpoint_of(beat))
        for each in (both.worker, both.beat):
            each.wait_ready()
        yield both


def test_a_worker_and_a_beat_at_work_are_healthy_and_ready(site: Site) -> None:
    for each in (site.worker, site.beat):
        assert each.stalled == ""
        assert each.failing == {}
    told = site.worker.get("/healthz").json()["seen_s_ago"]
    assert told.keys() >= {"main loop", "heartbeat", "watcher"}
    assert site.beat.get("/healthz").json()["seen_s_ago"].keys() == {"scheduler"}
    assert set(site.worker.get("/readyz").json()["good"]) == {"run_directory", "clock", "first_heartbeat"}


def test_a_worker_serves_the_figures_of_its_host(site: Site) -> None:
    def all_are_counted() -> Page | None:
        page = site.worker.page
        counted = {page.value(metric.name, host=site.cluster.host) for metric in (m.HEALTHY_VMS, m.WATCHED)}
        return page if counted == {len(VMS)} else None

    page = wait_until(all_are_counted, what="all VMs to be counted")
    assert page is not None
    host = site.cluster.host
    labels = {each for name, series in page.samples.items() if name.startswith("unkey_") for each in series}
    hosts = {dict(each)["host"] for each in labels}
    assert hosts == {host}
    assert page.value(m.VMS.name, state="healthy", host=host) == len(VMS)
    assert page.value(m.UNHEALTHY_VMS.name) == 0
    assert (page.value(m.CHECKS.name, driver="firecracker") or 0) > 0
    assert page.value(m.STARTS.name, outcome="success") == len(VMS)
    assert (page.value(f"{m.CHECK_SECONDS.name}_count") or 0) > 0
    assert (page.value(f"{m.REDIS_SECONDS.name}_count") or 0) > 0
    assert abs(page.value(m.CLOCK_SKEW.name) or 0) < 5
    assert page.value(m.KILL_SWITCH.name) == 0
    ours = {name for name in page.types if name.startswith("unkey_metald_")}
    assert ours <= {metric.name for metric in m.OF_WORKER}
    assert (page.value("process_resident_memory_bytes") or 0) > 0


def test_a_beat_serves_the_figures_of_the_fleet(site: Site) -> None:
    wait_until(lambda: site.beat.page.value(m.FLEET_VMS.name, state="healthy") == len(VMS), what="a survey of all VMs")

    wait_until(lambda: site.beat.page.value(m.BEAT_MESSAGES.name, kind="check_vms"), what="a check to be handed out")

    page = site.beat.page
    assert (page.value(m.BEAT_CLAIMED.name) or 0) > 0
    assert (page.value(m.BEAT_LAG.name) or 0) < 5
    assert page.value(m.HOST_VMS.name, host=site.cluster.host) == len(VMS)
    assert (page.value(m.HOST_AGE.name, host=site.cluster.host) or 0) < 30, "it may just have been without Redis"
    assert {name for name in page.types if name.startswith("unkey_metald_")} <= {metric.name for metric in m.OF_BEAT}


def test_the_status_of_both_is_a_document(site: Site) -> None:
    wait_until(lambda: site.worker.get("/status").json()["vms"]["healthy"] == len(VMS), what="all VMs to be counted")
    told = site.worker.get("/status").json()
    assert (told["process"], told["host"], told["redis"]) == ("worker", site.cluster.host, "answers")
    assert (told["breakers"], told["recoveries"]["in_flight"], told["halted"]) == ([], [], None)
    assert told["watched_vmms"] == len(VMS)

    told = site.beat.get("/status").json()
    assert (told["process"], told["healthy"], told["troubles"]) == ("beat", True, {})


def test_a_death_is_on_the_page_as_it_was_told(site: Site) -> None:
    before = site.cluster.record("vm-3")
    counted = site.worker.page.value(m.SUCCESS.name, driver="firecracker") or 0

    kill(before, signal.SIGKILL)
    site.cluster.wait_healthy("vm-3", after=before)

    wait_until(
        lambda: site.worker.page.value(m.SUCCESS.name, driver="firecracker") == counted + 1,
        what="the recovery to be counted",
    )
    page = site.worker.page
    assert page.value(m.ATTEMPTS.name, driver="firecracker") == page.value(m.SUCCESS.name, driver="firecracker")
    assert (page.value(m.ORPHANED.name, reason="process_dead") or 0) >= 1
    # Milliseconds, but for what else this machine does meanwhile.
    latency = page.value(f"{m.DETECTION_SECONDS.name}_sum", reason="process_dead") or 0
    assert 0 < latency < 5


def test_without_redis_both_live_on_and_say_what_is_missing(site: Site) -> None:
    server = site.cluster.server
    server.kill()
    try:
        wait_until(lambda: "redis" in site.worker.failing, timeout_s=20, what="the worker to miss Redis")
        wait_until(lambda: "broker" in site.worker.failing, timeout_s=20, what="the worker to miss its broker")
        wait_until(lambda: "redis" in site.beat.failing, timeout_s=20, what="the beat to miss Redis")
        for each in (site.worker, site.beat):
            assert each.stalled == ""
            assert each.status("/metrics") == 200
            assert each.status("/status") == 200
        assert site.worker.get("/status").json()["breakers"] is None
    finally:
        server.start()
    for each in (site.worker, site.beat):
        each.wait_ready()
        assert each.stalled == ""
    assert (site.worker.page.value(m.REDIS_ERRORS.name) or 0) > 0
    assert (site.beat.page.value(m.BEAT_REDIS_ERRORS.name) or 0) > 0


@pytest.mark.full
def test_a_main_loop_that_stands_still_is_named_while_all_else_goes_on(site: Site, tmp_path: Path) -> None:
    before = {vm_id: site.cluster.record(vm_id).process for vm_id in VMS}
    over = tmp_path / "over"
    app = Celery(broker=site.cluster.server.url(BROKER_DB), set_as_current=False)
    app.control.broadcast("wedge", arguments={"until": str(over)})
    app.close()
    try:
        wait_until(lambda: "main loop has stood" in site.worker.stalled, timeout_s=20, what="/healthz to name it")
        assert site.worker.status("/metrics") == 200
        assert site.worker.failing == {}, "it reaches all it needs"
        assert not site.worker.get("/status").json()["healthy"]
        assert site.beat.stalled == "", "a beat is another process"
        for vm_id in VMS:
            record = site.cluster.record(vm_id)
            assert record.process is not None
            assert (record.state, record.process) == (State.HEALTHY, before[vm_id])
            assert site.cluster.live(vm_id) == [record.process.pid]
    finally:
        over.touch()
    wait_until(lambda: not site.worker.stalled, timeout_s=20, what="/healthz to be green again")


@pytest.mark.full
def test_an_outage_that_lasts_is_nobodys_death(site: Site) -> None:
    """A restart would help nothing, and cost the host its worker: green all the way."""
    seen: set[str] = set()
    began = time.monotonic()

    def has_lasted() -> bool:
        seen.update(each.stalled for each in (site.worker, site.beat))
        return time.monotonic() - began > _OUTAGE_S

    site.cluster.server.kill()
    try:
        wait_until(has_lasted, timeout_s=50, what="the outage to outlast the patience")
    finally:
        site.cluster.server.start()
    assert seen == {""}
    for each in (site.worker, site.beat):
        each.wait_ready()


@pytest.mark.full
def test_a_broker_that_swallows_everything_is_named(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    """The connection is half open: nobody closes it, and nothing comes."""
    with cluster(tmp_path, fresh_server) as site, link_to(fresh_server.port) as link:
        through = fresh_server.url(BROKER_DB).replace(f":{fresh_server.port}/", f":{link.port}/")
        worker = endpoint_of(
            site.start_successor(TELEMETRY__STALLED_AFTER=f"{STALLED_AFTER_S}s", BROKER__URL=through),
        )
        worker.wait_ready()

        link.delay_s = 1e6

        wait_until(lambda: "consumer has stood still for " in worker.stalled, timeout_s=30, what="/healthz to name it")
        assert worker.status("/metrics") == 200


@pytest.mark.full
def test_a_redis_that_hangs_is_nobodys_death_either(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    """It takes connections and answers nothing: what waits for it waits for longer than anybody's patience."""
    with cluster(tmp_path, fresh_server, TELEMETRY__STALLED_AFTER="8s") as site:
        worker = endpoint_of(site.start_successor())
        worker.wait_ready()
        os.kill(fresh_server.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: "redis" in worker.failing, timeout_s=20, what="/readyz to name it")
            wait_until(lambda: _waits_for_s(worker) > 12, timeout_s=60, what="something to wait for 12 s")
            assert worker.stalled == ""
        finally:
            os.kill(fresh_server.pid, signal.SIGCONT)
        worker.wait_ready()
        assert worker.stalled == ""


def _waits_for_s(worker: Endpoint) -> float:
    """For how long the consumer, or the main loop behind it, has had no answer."""
    ages: dict[str, float] = worker.get("/healthz").json()["seen_s_ago"]
    return max(ages.get("consumer", 0.0), ages.get("main loop", 0.0))
