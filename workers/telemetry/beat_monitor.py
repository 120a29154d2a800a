"""What a beat shows: its own lag and work, and the fleet as Redis has it."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from workers.domain.errors import StoreUnavailable
from workers.domain.modes import Mode
from workers.ports import DueChecks
from workers.settings import Settings
from workers.store.survey import FleetSurvey
from workers.telemetry import instruments as m
from workers.telemetry.monitor import Check, Monitor, utc
from workers.telemetry.series import Labels
from workers.telemetry.vitals import REDIS, SCHEDULER, VITALS, Vitals

_log = structlog.get_logger(component="beat")

# Every beat of a fleet asks this often: some milliseconds of Redis' time where there are thousands of hosts.
_EVERY_S = 5.0


class BeatMonitor:
    """`survey` reads the fleet; it is asked in a thread of its own, so that nothing is scheduled later for it."""

    def __init__(
        self, settings: Settings, version: str, *, survey: Callable[[], FleetSurvey], vitals: Vitals = VITALS
    ) -> None:
        self._survey_now = survey
        self._survey: FleetSurvey | None = None
        self._lag_s, self._every_s = 0.0, settings.beat.max_interval.total_seconds()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat-survey", daemon=True)
        self.monitor = Monitor(
            "beat",
            version,
            settings.telemetry,
            m.OF_BEAT,
            port=settings.telemetry.beat_port,
            ready=lambda: [Check("first_claim", "" if self._has_claimed else "none yet")],
            status=self._status,
            stale_s=4 * _EVERY_S,
            vitals=vitals,
        )
        self._has_claimed = False
        for metric in (m.BEAT_CLAIMED, m.BEAT_REDIS_ERRORS):
            self.monitor.series.count(metric, by=0)

    def start(self) -> None:
        self.monitor.start()
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self.monitor.stop()

    # What the scheduler tells

    def ticked(self) -> None:
        self.monitor.vitals.pulse(SCHEDULER, self._every_s)

    def claimed(self, due: DueChecks) -> None:
        self._has_claimed, self._lag_s = True, due.late_ms / 1000
        self.monitor.vitals.well(REDIS)
        series = self.monitor.series
        series.gauge(m.BEAT_LAG, self._lag_s)
        series.gauge(m.BEAT_TICK, time.time())
        counts: dict[tuple[m.Metric, Labels], float] = {
            (m.BEAT_CLAIMED, ()): sum(len(vm_ids) for _, vm_ids in due.checks),
            (m.BEAT_MESSAGES, ("check_vms",)): len(due.checks),
        }
        for kind, number in Counter(kind for kind, _ in due.sweeps).items():
            counts[m.BEAT_MESSAGES, (kind,)] = number
        series.count_all(counts)

    def could_not_claim(self, why: str) -> None:
        self.monitor.vitals.trouble(REDIS, why)
        self.monitor.series.count(m.BEAT_REDIS_ERRORS)

    # The fleet

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._show(self._survey_now())
            except StoreUnavailable as error:
                _log.debug("fleet not surveyed", error=str(error))
            except Exception:  # noqa: BLE001 - the next one may succeed, and beats go on without
                _log.exception("fleet not surveyed")
            self._stopping.wait(_EVERY_S)

    def _show(self, survey: FleetSurvey) -> None:
        self._survey = survey
        series = self.monitor.series
        series.gauge(m.FLEET_VMS, {(state,): number for state, number in survey.states.items()})
        series.gauge(m.FLEET_SLOTS_USED, survey.slots_used)
        series.gauge(m.FLEET_SLOTS_LIMIT, survey.slots_limit)
        series.gauge(m.FLEET_STORM, float(survey.storm))
        series.gauge(m.BREAKERS, _all_kinds(survey.breakers))
        series.gauge(m.HALTED_HOSTS, {(kind,): number for kind, number in survey.halted.items()})
        series.gauge(m.HELD_PLACES, _all_modes(survey.held))
        series.gauge(m.HOST_AGE, {(each.host,): each.heartbeat_ms / 1000 for each in survey.hosts})
        series.gauge(m.HOST_VMS, {(each.host,): each.vms for each in survey.hosts})
        series.total(m.REFUSED_WRITES, (), survey.refused_writes)

    def _status(self) -> Mapping[str, Any]:
        survey = self._survey
        lag = {"lag_s": round(self._lag_s, 3)}
        if survey is None:
            return lag | {"as_of": None}
        return lag | {
            "as_of": utc(survey.now_ms),
            "vms": dict(survey.states),
            "hosts": {each.host: {"heartbeat_s": each.heartbeat_ms / 1000, "vms": each.vms} for each in survey.hosts},
            "slots": {"used": survey.slots_used, "limit": survey.slots_limit},
            "storm": survey.storm,
            "breakers": {f"{kind} {state}": number for (kind, state), number in survey.breakers.items()},
            "halted_hosts": dict(survey.halted),
            "held": {f"{kind} {mode}": number for (kind, mode), number in survey.held.items()},
            "refused_writes": survey.refused_writes,
        }


def _all_modes(held: Mapping[tuple[str, str], int]) -> dict[tuple[str, ...], float]:
    return {(kind, mode): held.get((kind, mode), 0) for kind in ("fleet", "host") for mode in Mode}


def _all_kinds(breakers: Mapping[tuple[str, str], int]) -> dict[tuple[str, ...], float]:
    """Also those that are all closed, so that there always is a figure."""
    kinds = ("image", "driver", "host", "fleet")
    return {(kind, state): breakers.get((kind, state), 0) for kind in kinds for state in ("open", "half_open")}
