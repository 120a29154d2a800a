"""What a worker shows of its host: gauges from each heartbeat's survey, readiness, and the status document."""

import errno
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workers.domain.audit import Deferral
from workers.domain.errors import StoreUnavailable
from workers.domain.vm import LOSS_REASONS, State
from workers.ports import Halt, Ignorance
from workers.settings import Settings
from workers.store.survey import HostSurvey
from workers.store.weather import Weather
from workers.telemetry import instruments as m
from workers.telemetry.metrics import MetricsTelemetry
from workers.telemetry.monitor import Check, Monitor, utc
from workers.telemetry.vitals import VITALS, Vitals

if TYPE_CHECKING:
    from workers.telemetry.tracing import TracingTelemetry

CLOCK_OFF_S = 30.0
# What a file system says that has no files without a name.
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR)
_UNWELL = (State.UNHEALTHY, State.ORPHANED, State.RECOVERING, State.FAILED)


class WorkerMonitor:
    """`weather` tells of breakers when somebody asks for the status."""

    def __init__(self, settings: Settings, version: str, *, runs: Path, vitals: Vitals = VITALS) -> None:
        self._host, self._runs, self._version = settings.host, runs, version
        self.weather: Weather | None = None
        self._per_hour = settings.strays.reaped_per_hour
        self._survey: HostSurvey | None = None
        self._halt: Halt | None = None
        self._off_s, self._watched, self._strays = 0.0, 0, 0
        lease_s = settings.worker.host_lease.total_seconds()
        self.monitor = Monitor(
            "worker",
            version,
            settings.telemetry,
            m.OF_WORKER,
            port=settings.telemetry.worker_port,
            ready=self._ready,
            status=self._status,
            host=settings.host,
            # Older figures than this are no longer those of now: no figures, then.
            stale_s=2 * lease_s,
            vitals=vitals,
        )
        self.metrics = MetricsTelemetry(
            self.monitor.series,
            per_vm=settings.telemetry.per_vm,
            check_interval_s=settings.health_check.interval.total_seconds(),
        )
        self.monitor.series.gauge(m.STRAYS, 0)
        begin = self.monitor.series.count
        for metric in (m.LEASES_LOST, m.UNSENT, m.REDIS_ERRORS, m.MONITOR_FAULTS, m.REAPED):
            begin(metric, by=0)
        for metric, causes in ((m.DEFERRALS, Deferral), (m.IGNORED, Ignorance), (m.STORMS, ("host", "fleet"))):
            for cause in causes:
                begin(metric, str(cause), by=0)

    def start(self) -> None:
        self.monitor.start()

    def stop(self) -> None:
        self.monitor.stop()

    @property
    def vitals(self) -> Vitals:
        return self.monitor.vitals

    def tracing(self) -> "TracingTelemetry | None":
        """Return the spans' part of telemetry, where spans are wanted."""
        provider = self.monitor.exports.tracer_provider
        if provider is None:
            return None
        # Celery's instrumentation is loaded only where it has something to do.
        from workers.telemetry.tracing import TracingTelemetry, instrument  # noqa: PLC0415

        instrument(provider, self.monitor.exports.meter_provider)
        return TracingTelemetry(provider.get_tracer("reliability"), host=self._host)

    # What others tell

    def called_redis(self, seconds: float, failed: bool) -> None:  # noqa: FBT001 - told by position
        if failed:
            self.monitor.series.count(m.REDIS_ERRORS)
        else:
            self.monitor.series.record(m.REDIS_SECONDS, seconds)

    def could_not_send(self) -> None:
        self.monitor.series.count(m.UNSENT)

    def found_strays(self, number: int) -> None:
        self._strays = number

    def surveyed(
        self,
        survey: HostSurvey,
        *,
        halt: Halt | None,
        is_paused: bool,
        watched: int,
        off_s: float,
        hooks_left: int = 0,
    ) -> None:
        """At each heartbeat that Redis took."""
        self._survey, self._halt, self._watched, self._off_s = survey, halt, watched, off_s
        states = survey.states
        figures: dict[m.Metric, float] = {
            m.HEALTHY_VMS: states[State.HEALTHY],
            m.UNHEALTHY_VMS: sum(states[state] for state in _UNWELL),
            m.ORPHANED_AGE: survey.oldest_orphan_ms / 1000,
            m.QUEUE_VMS: survey.waiting,
            m.QUEUE_AGE: survey.longest_wait_ms / 1000,
            m.IN_FLIGHT: len(survey.in_flight),
            m.SLOTS_USED: survey.slots_used,
            m.SLOTS_LIMIT: survey.slots_limit,
            m.STRAYS: self._strays,
            m.BUDGET_LEFT: self._budget_left(survey),
            m.FROZEN: halt is not None and halt.frozen,
            m.KILL_SWITCH: is_paused,
            m.STORM: survey.storm,
            m.HOOKS_LEFT: hooks_left,
            m.WATCHED: watched,
            m.CLOCK_SKEW: off_s,
            m.HEARTBEAT: time.time(),
        }
        gauge = self.monitor.series.gauge
        for metric, value in figures.items():
            gauge(metric, float(value))
        if survey.should_run:
            gauge(m.PASSED_AGE, self.metrics.since_passed_s)
        else:
            self.metrics.nothing_should_run()
            gauge(m.PASSED_AGE, {})
        gauge(m.VMS, {(state,): number for state, number in states.items()})
        # A reason that was never seen begins at 0, so that its alert can end.
        orphans = dict.fromkeys(LOSS_REASONS, 0) | dict(survey.orphans)
        gauge(m.ORPHANED_VMS, {(str(reason),): number for reason, number in orphans.items()})
        gauge(m.WORKER_INFO, {(self._version,): 1})

    def _budget_left(self, survey: HostSurvey) -> int:
        return max(0, self._per_hour - survey.destroyed)

    # What is asked

    def _ready(self) -> list[Check]:
        off = abs(self._off_s) > CLOCK_OFF_S
        return [
            Check("run_directory", _why_not_writable(self._runs)),
            Check("clock", f"{self._off_s:+.0f} s off Redis: set it right" if off else ""),
            Check("first_heartbeat", "" if self._survey else "none yet"),
        ]

    def _status(self) -> Mapping[str, Any]:
        return {"host": self._host} | self._of_heartbeat() | self._of_now()

    def _of_heartbeat(self) -> dict[str, Any]:
        survey = self._survey
        if survey is None:
            return {"as_of": None}
        return {
            "as_of": utc(survey.now_ms),
            "vms": dict(survey.states),
            "orphans": {"by_reason": dict(survey.orphans), "oldest_s": survey.oldest_orphan_ms / 1000},
            "recoveries": {
                "in_flight": [asdict(each) for each in survey.in_flight],
                "waiting": survey.waiting,
                "longest_wait_s": survey.longest_wait_ms / 1000,
            },
            "slots": {"used": survey.slots_used, "limit": survey.slots_limit},
            "storm": survey.storm,
            "strays": self._strays,
            "destruction_budget_left": self._budget_left(survey),
            "halted": asdict(self._halt) if self._halt else None,
            "watched_vmms": self._watched,
            "clock_skew_s": round(self._off_s, 3),
            "since_check_passed_s": round(self.metrics.since_passed_s, 1),
        }

    def _of_now(self) -> dict[str, Any]:
        if self.weather is None:
            return {}
        try:
            breakers = [asdict(each) for each in self.weather.breakers()]
        except StoreUnavailable as error:
            return {"breakers": None, "redis": str(error)}
        return {"breakers": breakers, "redis": "answers"}


def _why_not_writable(folder: Path) -> str:
    """A byte is written where it leaves no name behind."""
    try:
        fd = os.open(folder, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, b"x")
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _NO_TMPFILE:
            return "" if os.access(folder, os.W_OK) else f"{folder} may not be written"
        return f"{folder}: {error.strerror}"
    return ""
