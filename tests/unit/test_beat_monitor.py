"""What a beat shows: its own lag and work, and the fleet as Redis has it."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from tests.support.fakes import FakeClock
from tests.support.figures import Page, labelled
from tests.support.processes import wait_until
from workers.domain.errors import StoreUnavailable
from workers.domain.modes import Mode
from workers.domain.vm import State
from workers.ports import DueChecks
from workers.settings import load
from workers.store.survey import FleetSurvey, HostAge
from workers.telemetry import instruments as m
from workers.telemetry.beat_monitor import BeatMonitor
from workers.telemetry.vitals import Vitals

NONE = dict.fromkeys((str(state) for state in State), 0)


def a_survey(**changes: Any) -> FleetSurvey:
    quiet = FleetSurvey(
        now_ms=1_800_000_000_000,
        states=NONE | {"healthy": 50},
        breakers={},
        halted={"frozen": 0, "paused": 0},
        hosts=[HostAge("host-a", 2500, 30), HostAge("host-b", 400, 20)],
        slots_used=3,
        slots_limit=64,
        storm=False,
        refused_writes=0,
        held={},
    )
    return replace(quiet, **changes)


class Shown:
    """A beat's monitor over surveys that the test gives; `begin` starts the thread that asks for them."""

    def __init__(self, folder: Path, survey: Callable[[], FleetSurvey]) -> None:
        told = {"RELIABILITY_STATE_DIR": str(folder), "RELIABILITY_HOST": "host-a"}
        told["RELIABILITY_TELEMETRY__ENDPOINTS"] = "false"
        self.clock = FakeClock(0)
        self.vitals = Vitals(monotonic=self.clock.monotonic)
        self.beat = BeatMonitor(load(told, folder).settings, "1.2.3", survey=survey, vitals=self.vitals)
        self.beat.monitor.series.monotonic = self.clock.monotonic

    def page(self) -> Page:
        return Page(self.beat.monitor.exports.page().body.decode())

    def readiness(self) -> dict[str, str]:
        reply = self.beat.monitor.readiness()
        failing = json.loads(reply.body)["failing"]
        assert reply.is_good is not bool(failing)
        return cast("dict[str, str]", failing)

    @property
    def status(self) -> dict[str, Any]:
        return cast("dict[str, Any]", json.loads(self.beat.monitor.status().body))


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[[Callable[[], FleetSurvey]], Shown]]:
    begun: list[Shown] = []

    def start(survey: Callable[[], FleetSurvey]) -> Shown:
        shown = Shown(tmp_path, survey)
        shown.beat.start()
        begun.append(shown)
        return shown

    yield start
    for shown in begun:
        shown.beat.stop()


def never() -> FleetSurvey:
    raise AssertionError("nobody asked for the fleet")


@pytest.fixture
def shown(tmp_path: Path) -> Shown:
    return Shown(tmp_path, never)


def a_claim(**changes: Any) -> DueChecks:
    due = DueChecks(
        now_ms=1_800_000_000_000,
        checks=[("host-a", ["vm-1", "vm-2", "vm-3"]), ("host-b", ["vm-4"])],
        sweeps=[("detect_orphans", "host-a"), ("detect_orphans", "host-b"), ("reconcile", "host-a")],
        next_in_ms=100,
        late_ms=1500,
    )
    return replace(due, **changes)


# Its own work


def test_a_claim_shows_its_lag_and_what_was_handed_out(shown: Shown) -> None:
    shown.beat.claimed(a_claim())
    shown.beat.claimed(a_claim(late_ms=20))

    page = shown.page()
    assert page.value(m.BEAT_LAG.name) == 0.02
    assert (page.value(m.BEAT_TICK.name) or 0) > 1_700_000_000
    assert page.samples[m.BEAT_CLAIMED.name] == {labelled(): 8}
    assert page.samples[m.BEAT_MESSAGES.name] == {
        labelled(kind="check_vms"): 4,
        labelled(kind="detect_orphans"): 4,
        labelled(kind="reconcile"): 2,
    }


def test_counters_that_alerts_watch_begin_at_zero(shown: Shown) -> None:
    page = shown.page()
    assert page.value(m.BEAT_CLAIMED.name) == 0
    assert page.value(m.BEAT_REDIS_ERRORS.name) == 0


def test_a_claim_that_found_nothing_due_is_one_too(shown: Shown) -> None:
    shown.beat.claimed(a_claim(checks=[], sweeps=[], late_ms=0))
    page = shown.page()
    assert (page.value(m.BEAT_LAG.name), page.value(m.BEAT_CLAIMED.name)) == (0, 0)
    assert page.value(m.BEAT_TICK.name) is not None
    assert page.value(m.BEAT_MESSAGES.name, kind="check_vms") == 0


def test_a_beat_is_ready_after_its_first_claim(shown: Shown) -> None:
    assert shown.readiness() == {"first_claim": "none yet"}
    shown.beat.claimed(a_claim())
    assert shown.readiness() == {}


def test_a_claim_that_failed_is_counted_and_named_until_the_next_one(shown: Shown) -> None:
    shown.beat.claimed(a_claim())
    for _ in range(2):
        shown.beat.could_not_claim("Redis: refused")
    assert shown.readiness() == {"redis": "Redis: refused"}
    assert shown.page().value(m.BEAT_REDIS_ERRORS.name) == 2
    assert shown.beat.monitor.health().is_good, "there is nothing that a restart would mend"
    shown.beat.claimed(a_claim())
    assert shown.readiness() == {}


def test_a_beat_that_ticks_no_more_stands_still(shown: Shown) -> None:
    shown.beat.ticked()
    shown.clock.sleep(30)
    assert shown.beat.monitor.health().is_good
    shown.clock.sleep(1)
    reply = shown.beat.monitor.health()
    assert not reply.is_good
    assert json.loads(reply.body)["stalled"][0].startswith("scheduler has stood still for 31 s")
    shown.beat.ticked()
    assert shown.beat.monitor.health().is_good


def test_figures_vanish_when_claims_end(shown: Shown) -> None:
    shown.beat.claimed(a_claim())
    shown.clock.sleep(19)
    assert shown.page().value(m.BEAT_LAG.name) is not None
    shown.clock.sleep(2)
    assert shown.page().value(m.BEAT_LAG.name) is None
    assert shown.page().value(m.BEAT_CLAIMED.name) == 4


# The fleet


def test_a_survey_shows_how_the_fleet_stands(begin: Callable[[Callable[[], FleetSurvey]], Shown]) -> None:
    survey = a_survey(
        breakers={("image", "open"): 2, ("host", "half_open"): 1},
        halted={"frozen": 1, "paused": 2},
        held={("host", "paused"): 3},
        storm=True,
        slots_limit=3,
        refused_writes=4,
    )
    shown = begin(lambda: survey)
    wait_until(lambda: m.REFUSED_WRITES.name in shown.page().samples, what="the first survey")

    page = shown.page()
    assert page.value(m.FLEET_VMS.name, state="healthy") == 50
    assert len(page.samples[m.FLEET_VMS.name]) == len(State)
    assert (page.value(m.FLEET_SLOTS_USED.name), page.value(m.FLEET_SLOTS_LIMIT.name)) == (3, 3)
    assert page.value(m.FLEET_STORM.name) == 1
    assert {labels for labels, number in page.samples[m.BREAKERS.name].items() if number} == {
        labelled(kind="image", state="open"),
        labelled(kind="host", state="half_open"),
    }
    assert len(page.samples[m.BREAKERS.name]) == 4 * 2, "those that are closed are 0"
    assert page.samples[m.HALTED_HOSTS.name] == {labelled(kind="frozen"): 1, labelled(kind="paused"): 2}
    assert {labels for labels, number in page.samples[m.HELD_PLACES.name].items() if number} == {
        labelled(kind="host", mode="paused")
    }
    assert len(page.samples[m.HELD_PLACES.name]) == 2 * len(Mode)
    assert page.samples[m.HOST_AGE.name] == {labelled(host="host-a"): 2.5, labelled(host="host-b"): 0.4}
    assert page.samples[m.HOST_VMS.name] == {labelled(host="host-a"): 30, labelled(host="host-b"): 20}
    assert page.value(m.REFUSED_WRITES.name) == 4

    told = shown.status
    assert told["as_of"] == "2027-01-15T08:00:00Z"
    assert told["hosts"]["host-a"] == {"heartbeat_s": 2.5, "vms": 30}
    assert told["breakers"] == {"image open": 2, "host half_open": 1}
    assert told["held"] == {"host paused": 3}
    assert told["halted_hosts"] == {"frozen": 1, "paused": 2}
    assert (told["slots"], told["storm"], told["refused_writes"]) == ({"used": 3, "limit": 3}, True, 4)


def test_the_status_says_who_it_is_before_it_knows_anything(shown: Shown) -> None:
    told = shown.status
    assert (told["process"], told["version"], told["lag_s"], told["as_of"]) == ("beat", "1.2.3", 0.0, None)


@pytest.mark.parametrize("error", [StoreUnavailable("Redis: refused"), RuntimeError("a bug")])
def test_a_survey_that_fails_ends_nothing(
    begin: Callable[[Callable[[], FleetSurvey]], Shown], error: Exception
) -> None:
    asked = threading.Event()

    def fails() -> FleetSurvey:
        asked.set()
        raise error

    shown = begin(fails)
    assert asked.wait(5)
    assert m.FLEET_VMS.name not in shown.page().samples
    assert shown.beat._thread.is_alive()
    shown.beat.claimed(a_claim())
    assert shown.readiness() == {}


def test_a_survey_that_hangs_holds_up_neither_beat_nor_its_end(
    begin: Callable[[Callable[[], FleetSurvey]], Shown],
) -> None:
    asked, released = threading.Event(), threading.Event()

    def hangs() -> FleetSurvey:
        asked.set()
        released.wait(20)
        return a_survey()

    shown = begin(hangs)
    try:
        assert asked.wait(5)
        shown.beat.ticked()
        shown.beat.claimed(a_claim())
        assert shown.page().value(m.BEAT_CLAIMED.name) == 4
        shown.beat.stop()
    finally:
        released.set()
