"""What a worker shows of its host: figures, readiness, health and the status document."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from tests.support.fakes import FakeClock
from tests.support.figures import Page, labelled
from tests.support.processes import wait_until
from workers.domain.audit import Deferral
from workers.domain.breaker import BreakerState
from workers.domain.errors import StoreUnavailable
from workers.domain.vm import State
from workers.ports import Halt, Ignorance
from workers.settings import load
from workers.store.survey import HostSurvey, InFlight
from workers.store.weather import BreakerSeen, Weather
from workers.telemetry import instruments as m
from workers.telemetry.endpoints import Reply
from workers.telemetry.vitals import Vitals
from workers.telemetry.worker_monitor import WorkerMonitor

NONE = dict.fromkeys((str(state) for state in State), 0)


def a_survey(**changes: Any) -> HostSurvey:
    quiet = HostSurvey(
        now_ms=1_800_000_000_000,
        states=NONE | {"healthy": 5},
        orphans={},
        oldest_orphan_ms=0,
        waiting=0,
        longest_wait_ms=0,
        in_flight=[],
        slots_used=0,
        slots_limit=4,
        storm=False,
        destroyed=0,
    )
    return replace(quiet, **changes)


class Sky:
    """Breakers as the store would tell them."""

    def __init__(self, breakers: Callable[[], list[BreakerSeen]]) -> None:
        self.breakers = breakers


class Shown:
    def __init__(self, folder: Path, **settings: str) -> None:
        environ = {f"RELIABILITY_TELEMETRY__{name}": value for name, value in settings.items()}
        told = {"RELIABILITY_HOST": "host-a", "RELIABILITY_STATE_DIR": str(folder)}
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.clock = FakeClock(0)
        self.vitals = Vitals(monotonic=self.clock.monotonic)
        loaded = load(told | environ, folder).settings
        self.worker = WorkerMonitor(loaded, "1.2.3", runs=self.runs, vitals=self.vitals)
        self.worker.monitor.series.monotonic = self.clock.monotonic

    def heartbeat(self, survey: HostSurvey | None = None, **told: Any) -> None:
        as_ever: dict[str, Any] = {"halt": None, "is_paused": False, "watched": 5, "off_s": 0.1}
        self.worker.surveyed(survey or a_survey(), **as_ever | told)

    def under(self, breakers: Callable[[], list[BreakerSeen]]) -> None:
        self.worker.weather = cast("Weather", Sky(breakers))

    def page(self) -> Page:
        return Page(self.worker.monitor.exports.page().body.decode())

    def figure(self, metric: m.Metric, **labels: object) -> float | None:
        return self.page().value(metric.name, host="host-a", **labels)

    @property
    def status(self) -> dict[str, Any]:
        reply = self.worker.monitor.status()
        assert reply.is_good
        return document(reply)


def document(reply: Reply) -> dict[str, Any]:
    return cast("dict[str, Any]", json.loads(reply.body))


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    return Shown(tmp_path)


# Figures


def test_counters_that_alerts_watch_begin_at_zero(shown: Shown) -> None:
    page = shown.page()
    for metric in (m.LEASES_LOST, m.UNSENT, m.REDIS_ERRORS, m.MONITOR_FAULTS, m.REAPED):
        assert page.value(metric.name, host="host-a") == 0
    for metric, label, values in (
        (m.DEFERRALS, "cause", Deferral),
        (m.IGNORED, "cause", Ignorance),
        (m.STORMS, "kind", ("host", "fleet")),
    ):
        zero = {labelled(host="host-a", **{label: value}): 0.0 for value in values}
        assert page.samples[metric.name] == zero


def test_there_are_no_figures_of_now_before_the_first_heartbeat(shown: Shown) -> None:
    page = shown.page()
    assert m.HEALTHY_VMS.name not in page.samples
    assert m.HEARTBEAT.name not in page.samples
    assert page.value(m.STRAYS.name) == 0


def test_a_heartbeat_shows_how_the_host_stands(shown: Shown) -> None:
    shown.worker.found_strays(2)
    shown.heartbeat(
        a_survey(
            states=NONE
            | {"healthy": 5, "degraded": 1, "unhealthy": 2, "orphaned": 3, "recovering": 4, "failed": 6, "stopped": 9},
            orphans={"process_dead": 2, "socket_unreachable": 1},
            oldest_orphan_ms=90_500,
            waiting=7,
            longest_wait_ms=12_500,
            in_flight=[InFlight("vm-1", 1, "process_dead"), InFlight("vm-2", 0, None)],
            slots_used=3,
            slots_limit=1,
            storm=True,
            destroyed=4,
        ),
        is_paused=True,
        watched=11,
        off_s=-2.5,
        hooks_left=3,
    )

    expected = {
        m.HEALTHY_VMS: 5,
        m.UNHEALTHY_VMS: 2 + 3 + 4 + 6,
        m.ORPHANED_AGE: 90.5,
        m.QUEUE_VMS: 7,
        m.QUEUE_AGE: 12.5,
        m.IN_FLIGHT: 2,
        m.SLOTS_USED: 3,
        m.SLOTS_LIMIT: 1,
        m.STRAYS: 2,
        m.BUDGET_LEFT: 6,
        m.FROZEN: 0,
        m.KILL_SWITCH: 1,
        m.STORM: 1,
        m.HOOKS_LEFT: 3,
        m.WATCHED: 11,
        m.CLOCK_SKEW: -2.5,
    }
    page = shown.page()
    assert {metric: page.value(metric.name, host="host-a") for metric in expected} == expected
    assert page.value(m.VMS.name, state="orphaned") == 3
    assert len(page.samples[m.VMS.name]) == len(State)
    assert page.value(m.WORKER_INFO.name, version="1.2.3") == 1
    assert (page.value(m.HEARTBEAT.name) or 0) > 1_700_000_000
    assert page.value(m.PASSED_AGE.name) is not None


def test_a_reason_without_an_orphan_is_zero_so_that_its_alert_can_end(shown: Shown) -> None:
    shown.heartbeat(a_survey(orphans={"process_dead": 1, "manual": 2}))
    found = {dict(labels)["reason"]: value for labels, value in shown.page().samples[m.ORPHANED_VMS.name].items()}
    assert found == {
        "process_dead": 1,
        "socket_unreachable": 0,
        "health_check_failed": 0,
        "process_mismatch": 0,
        "manual": 2,
    }


def test_a_budget_that_is_overdrawn_is_spent(shown: Shown) -> None:
    shown.heartbeat(a_survey(destroyed=25))
    assert shown.figure(m.BUDGET_LEFT) == 0


def test_only_data_that_are_not_trusted_are_frozen(shown: Shown) -> None:
    shown.heartbeat(halt=Halt("PAUSE"), is_paused=True)
    assert (shown.figure(m.FROZEN), shown.figure(m.KILL_SWITCH)) == (0, 1)
    shown.heartbeat(halt=Halt("rolled back", "epoch-1", frozen=True))
    assert (shown.figure(m.FROZEN), shown.figure(m.KILL_SWITCH)) == (1, 0)


def test_where_nothing_should_run_no_check_is_missed(shown: Shown) -> None:
    shown.heartbeat(a_survey(states=NONE | {"stopped": 3}))
    assert shown.figure(m.PASSED_AGE) is None
    shown.heartbeat()
    assert shown.figure(m.PASSED_AGE) is not None
    shown.heartbeat(a_survey(states=NONE))
    assert shown.figure(m.PASSED_AGE) is None


def test_the_first_vm_of_an_idle_host_is_not_blamed_for_the_time_before_it(shown: Shown) -> None:
    metrics = shown.worker.metrics
    metrics._monotonic = shown.clock.monotonic
    metrics.nothing_should_run()
    for _ in range(3):
        shown.clock.sleep(3600)
        shown.heartbeat(a_survey(states=NONE))
    shown.clock.sleep(5)
    shown.heartbeat(a_survey(states=NONE | {"starting": 1}))
    assert shown.figure(m.PASSED_AGE) == 5


def test_figures_vanish_when_heartbeats_end_and_counts_stay(shown: Shown) -> None:
    shown.heartbeat()
    shown.worker.could_not_send()
    shown.clock.sleep(29)
    assert shown.figure(m.HEALTHY_VMS) == 5
    shown.clock.sleep(2)
    assert shown.figure(m.HEALTHY_VMS) is None
    assert shown.figure(m.VMS, state="healthy") is None
    assert shown.figure(m.UNSENT) == 1


def test_calls_of_redis_are_timed_or_counted_as_failed(shown: Shown) -> None:
    shown.worker.called_redis(0.004, False)  # noqa: FBT003 - as the client tells it
    shown.worker.called_redis(0.002, False)  # noqa: FBT003 - the same
    shown.worker.called_redis(3.0, True)  # noqa: FBT003 - the same
    page = shown.page()
    assert page.value(f"{m.REDIS_SECONDS.name}_count") == 2
    assert page.value(f"{m.REDIS_SECONDS.name}_sum") == pytest.approx(0.006)
    assert page.value(m.REDIS_ERRORS.name) == 1


def test_vms_have_series_of_their_own_only_where_that_is_set(tmp_path: Path) -> None:
    for name, per_vm in (("off", "false"), ("on", "true")):
        (tmp_path / name).mkdir()
        shown = Shown(tmp_path / name, PER_VM=per_vm)
        assert shown.worker.metrics._per_vm is (per_vm == "true")


def test_spans_are_made_only_where_a_collector_is_named(shown: Shown) -> None:
    assert shown.worker.tracing() is None


# Readiness


def readiness(shown: Shown) -> tuple[bool, dict[str, str]]:
    reply = shown.worker.monitor.readiness()
    told = document(reply)
    assert told["ready"] is reply.is_good
    return reply.is_good, told["failing"]


def test_a_worker_is_ready_after_its_first_heartbeat(shown: Shown) -> None:
    assert readiness(shown) == (False, {"first_heartbeat": "none yet"})
    shown.heartbeat()
    assert readiness(shown) == (True, {})
    assert document(shown.worker.monitor.readiness())["good"] == ["run_directory", "clock", "first_heartbeat"]


def test_troubles_are_named_until_they_are_over(shown: Shown) -> None:
    shown.heartbeat()
    shown.vitals.trouble("redis", "connection refused")
    shown.vitals.trouble("broker", "not connected")
    assert readiness(shown) == (False, {"broker": "not connected", "redis": "connection refused"})
    shown.vitals.well("redis")
    shown.vitals.well("broker")
    assert readiness(shown) == (True, {})


def test_a_run_directory_that_is_gone_is_named(shown: Shown) -> None:
    shown.heartbeat()
    shown.runs.rmdir()
    ready, failing = readiness(shown)
    assert not ready
    assert failing.keys() == {"run_directory"}
    assert str(shown.runs) in failing["run_directory"]
    shown.runs.mkdir()
    assert readiness(shown) == (True, {})


def test_a_run_directory_that_is_none_is_named(shown: Shown) -> None:
    shown.heartbeat()
    shown.runs.rmdir()
    shown.runs.write_text("a file")
    assert readiness(shown) == (False, {"run_directory": f"{shown.runs}: Not a directory"})


def test_a_run_directory_that_may_not_be_written_is_named(shown: Shown) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    shown.heartbeat()
    shown.runs.chmod(0o500)
    assert readiness(shown) == (False, {"run_directory": f"{shown.runs}: Permission denied"})


def test_looking_leaves_nothing_in_the_run_directory(shown: Shown) -> None:
    shown.worker.monitor.readiness()
    assert list(shown.runs.iterdir()) == []


@pytest.mark.parametrize(("off_s", "is_off"), [(0.5, False), (-29.9, False), (31.4, True), (-45.0, True)])
def test_a_clock_that_is_not_that_of_redis_is_named(shown: Shown, off_s: float, *, is_off: bool) -> None:
    shown.heartbeat(off_s=off_s)
    ready, failing = readiness(shown)
    assert ready is not is_off
    assert failing == ({"clock": f"{off_s:+.0f} s off Redis: set it right"} if is_off else {})


# Health


def test_a_worker_is_healthy_while_nothing_stands_still_whatever_it_cannot_reach(shown: Shown) -> None:
    shown.vitals.pulse("main loop")
    shown.vitals.trouble("redis", "connection refused")
    reply = shown.worker.monitor.health()
    assert reply.is_good
    assert document(reply) == {"healthy": True, "stalled": [], "seen_s_ago": {"main loop": 0.0}}


def test_what_stands_still_is_named_with_its_time(shown: Shown) -> None:
    shown.vitals.pulse("main loop")
    shown.vitals.begin("id-1", "task recover", 100)
    shown.clock.sleep(42)
    reply = shown.worker.monitor.health()
    assert not reply.is_good
    assert document(reply) == {
        "healthy": False,
        "stalled": ["main loop has stood still for 42 s, the limit is 30 s"],
        "seen_s_ago": {"main loop": 42.0, "task recover": 42.0},
    }


def test_the_limit_is_the_one_that_is_set(tmp_path: Path) -> None:
    shown = Shown(tmp_path, STALLED_AFTER="3s")
    shown.vitals.pulse("main loop")
    shown.clock.sleep(3.5)
    assert not shown.worker.monitor.health().is_good


# Status


def test_the_status_says_who_it_is_before_it_knows_anything(shown: Shown) -> None:
    assert shown.status == {
        "schema_version": 1,
        "process": "worker",
        "version": "1.2.3",
        "pid": os.getpid(),
        "healthy": True,
        "troubles": {},
        "host": "host-a",
        "as_of": None,
    }


def test_the_status_has_the_figures_of_the_last_heartbeat_and_when_that_was(shown: Shown) -> None:
    shown.worker.found_strays(1)
    shown.heartbeat(
        a_survey(
            orphans={"process_dead": 1},
            oldest_orphan_ms=1500,
            waiting=1,
            longest_wait_ms=500,
            in_flight=[InFlight("vm-7", 2, "process_dead")],
            slots_used=1,
            destroyed=3,
        ),
        halt=Halt("rolled back", "epoch-1", frozen=True),
        off_s=0.12345,
    )
    told = shown.status
    assert told["as_of"] == "2027-01-15T08:00:00Z"
    assert told["vms"] == NONE | {"healthy": 5}
    assert told["orphans"] == {"by_reason": {"process_dead": 1}, "oldest_s": 1.5}
    assert told["recoveries"] == {
        "in_flight": [{"vm_id": "vm-7", "attempt": 2, "reason": "process_dead"}],
        "waiting": 1,
        "longest_wait_s": 0.5,
    }
    assert told["slots"] == {"used": 1, "limit": 4}
    assert (told["strays"], told["destruction_budget_left"], told["watched_vmms"]) == (1, 7, 5)
    assert told["halted"] == {"why": "rolled back", "epoch": "epoch-1", "frozen": True}
    assert told["clock_skew_s"] == 0.123
    assert not told["storm"]
    assert told["since_check_passed_s"] >= 0


def test_breakers_are_looked_up_when_somebody_asks(shown: Shown) -> None:
    shown.under(lambda: [BreakerSeen("image:x", BreakerState.OPEN, 1000, 3)])
    told = shown.status
    assert told["breakers"] == [{"scope": "image:x", "state": "open", "next_probe_ms": 1000, "waiting": 3}]
    assert told["redis"] == "answers"


def test_the_status_is_told_also_without_redis(shown: Shown) -> None:
    def away() -> list[BreakerSeen]:
        raise StoreUnavailable("Redis: refused")

    shown.under(away)
    shown.vitals.trouble("redis", "Redis: refused")
    told = shown.status
    assert (told["breakers"], told["redis"]) == (None, "Redis: refused")
    assert told["troubles"] == {"redis": "Redis: refused"}


# All together


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Shown, str]]:
    shown = Shown(tmp_path, WORKER_PORT="0")
    monitor = shown.worker.monitor
    monitor.start()
    endpoints = monitor._endpoints
    assert endpoints is not None
    yield shown, str(wait_until(lambda: endpoints.url, what="it to listen"))
    monitor.stop()


def test_the_four_endpoints_answer(served: tuple[Shown, str]) -> None:
    shown, url = served
    shown.heartbeat()
    replies = {path: httpx.get(url + path, timeout=5) for path in ("/healthz", "/readyz", "/metrics", "/status")}
    assert {path: reply.status_code for path, reply in replies.items()} == dict.fromkeys(replies, 200)
    assert Page(replies["/metrics"].text).value(m.HEALTHY_VMS.name) == 5
    assert replies["/status"].json()["vms"]["healthy"] == 5

    shown.vitals.trouble("redis", "gone")
    assert httpx.get(url + "/readyz", timeout=5).status_code == 503
    assert httpx.get(url + "/healthz", timeout=5).status_code == 200


def test_without_endpoints_nothing_listens(tmp_path: Path) -> None:
    shown = Shown(tmp_path, ENDPOINTS="false")
    before = threading.active_count()
    shown.worker.monitor.start()
    assert shown.worker.monitor._endpoints is None
    assert threading.active_count() == before
    shown.worker.monitor.stop()
