"""What a process shows of itself: metrics, and the four endpoints that every worker and beat has."""

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.settings import Telemetry as TelemetrySettings
from workers.telemetry.endpoints import Endpoints, Reply, json_reply
from workers.telemetry.export import Exports, exports
from workers.telemetry.instruments import Metric
from workers.telemetry.series import Series
from workers.telemetry.vitals import VITALS, Vitals

SCHEMA_VERSION = 1


def utc(ms: int) -> str:
    """Write a time as status documents do."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(ms / 1000))


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to be as it should. `why` says what is wrong with it, and is empty when nothing is."""

    name: str
    why: str = ""


class Monitor:
    """`ready` lists what has to hold before this process does its work; `status` is the document of /status."""

    def __init__(
        self,
        name: str,
        version: str,
        settings: TelemetrySettings,
        metrics: tuple[Metric, ...],
        *,
        port: int,
        ready: Callable[[], list[Check]],
        status: Callable[[], Mapping[str, Any]],
        host: str | None = None,
        stale_s: float,
        vitals: Vitals = VITALS,
    ) -> None:
        self.vitals, self._version, self._name = vitals, version, name
        vitals.patience_s = settings.stalled_after.total_seconds()
        self.exports: Exports = exports(f"metald-reliability-{name}", version, endpoint=settings.otlp_endpoint)
        self.series = Series(self.exports.meter_provider.get_meter("reliability"), metrics, host=host, stale_s=stale_s)
        self._ready, self._status = ready, status
        routes = {
            "/healthz": self.health,
            "/readyz": self.readiness,
            "/metrics": self.exports.page,
            "/status": self.status,
        }
        self._endpoints = Endpoints(settings.address, port, routes) if settings.endpoints else None

    def start(self) -> None:
        if self._endpoints is not None:
            self._endpoints.start()

    def stop(self) -> None:
        if self._endpoints is not None:
            self._endpoints.stop()
        self.exports.close()

    def health(self) -> Reply:
        """Red: this process stands still where it should go on, and only a restart helps."""
        stalls = self.vitals.stalls()
        ages = {what: round(age_s, 1) for what, age_s in sorted(self.vitals.ages_s().items())}
        document = {"healthy": not stalls, "stalled": [str(stall) for stall in stalls], "seen_s_ago": ages}
        return json_reply(document, is_good=not stalls)

    def readiness(self) -> Reply:
        """Red: it lives, and cannot do its work now."""
        troubles = [Check(what, why) for what, why in sorted(self.vitals.troubles.items())]
        checks = [*troubles, *self._ready()]
        failing = {check.name: check.why for check in checks if check.why}
        good = [check.name for check in checks if not check.why]
        return json_reply({"ready": not failing, "failing": failing, "good": good}, is_good=not failing)

    def status(self) -> Reply:
        about = {
            "schema_version": SCHEMA_VERSION,
            "process": self._name,
            "version": self._version,
            "pid": os.getpid(),
            "healthy": not self.vitals.stalls(),
            "troubles": self.vitals.troubles,
        }
        return json_reply(about | dict(self._status()))
