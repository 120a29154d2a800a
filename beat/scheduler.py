"""FleetScheduler: claims what is due from Redis and sends it, any number of beats side by side.

The schedule of VMs and sweeps lives in Redis; static entries of `beat_schedule` work as with stock beat.
"""

import time
from typing import Any

import structlog
from celery.beat import Scheduler
from kombu.exceptions import OperationalError

from workers import queues
from workers.bootstrap import fleet_schedule
from workers.bootstrap_host import beat_monitor
from workers.domain.errors import StoreUnavailable
from workers.ports import DueChecks
from workers.settings import Settings
from workers.store.schedule import DETECT_ORPHANS

_log = structlog.get_logger(component="beat")

_RETRY_S = 1.0
_QUIET_S = 60.0
# So long at least between two looks, so that hosts which fall due meanwhile share a claim and a batch of messages.
_REST_S = 0.05
# The queues are never declared, and nobody shows the arguments: both would be a third of the work of sending.
_PLAIN: dict[str, Any] = {"declare": (), "kwargsrepr": "{}"}


class FleetScheduler(Scheduler):  # type: ignore[misc] # Celery is untyped
    """Each tick claims once: a claim gives every due VM to exactly one beat, on server time."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._fleet: Any = None
        self._away_since: float | None = None
        self._told_at = 0.0
        self._monitor: Any = None
        super().__init__(*args, **kwargs)

    def setup_schedule(self) -> None:
        """Not called when Celery makes us only for the banner (`lazy=True`)."""
        self.install_default_entries(self.schedule)
        self.merge_inplace(self.app.conf.beat_schedule)
        self._settings: Settings = self.app.conf.settings
        self._interval_ms = int(self._settings.health_check.interval.total_seconds() * 1000)
        self._fleet = fleet_schedule(self._settings)

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due; return the seconds until the next look."""
        monitor = self._shown()
        monitor.ticked()
        patience = min(float(super().tick(*args, **kwargs)), self._settings.beat.max_interval.total_seconds())
        if not self._settings.enabled:
            return patience
        try:
            due: DueChecks = self._fleet.claim(self._settings.beat.claim_limit)
            monitor.claimed(due)
            self._publish(due)
        except (StoreUnavailable, OperationalError) as error:
            monitor.could_not_claim(str(error))
            return self._away(error)
        self._back()
        match due.next_in_ms:
            case None:
                return patience
            case 0:  # more is due than one claim takes
                return 0.0
            case next_in_ms:
                return min(patience, max(_REST_S, next_in_ms / 1000))

    def _shown(self) -> Any:
        """What this beat shows of itself begins with its first tick: Celery makes schedulers also for other ends."""
        if self._monitor is None:
            self._monitor = beat_monitor(self._settings)
            self._monitor.start()
        return self._monitor

    def close(self) -> None:
        """Celery calls it twice."""
        super().close()
        if self._monitor is not None:
            self._monitor.stop()
            self._monitor = None

    def _publish(self, due: DueChecks) -> None:
        """A message that is lost here costs one interval: the next time stands in Redis already."""
        if not due.checks and not due.sweeps:
            return
        deadline_ms = due.now_ms + self._interval_ms
        with self.app.producer_or_acquire() as producer, producer.batch():
            for host, vm_ids in due.checks if self._settings.health_check.enabled else ():
                self._send(producer, queues.CHECK_VMS, [list(vm_ids), deadline_ms], host)
            for kind, host in due.sweeps:
                self._send(
                    producer, queues.DETECT_ORPHANS if kind == DETECT_ORPHANS else queues.RECONCILE, [host], host
                )

    def _send(self, producer: Any, task: str, args: list[Any], host: str) -> None:
        queue = queues.checks(host)
        self.app.send_task(task, args=args, argsrepr=host, queue=queue, producer=producer, retry=False, **_PLAIN)

    def _away(self, error: Exception) -> float:
        """Say so once, then now and then."""
        now = time.monotonic()
        if self._away_since is None or now - self._told_at > _QUIET_S:
            _log.warning("redis is away, nothing is scheduled", error=str(error))
            self._told_at = now
        self._away_since = self._away_since or now
        return _RETRY_S

    def _back(self) -> None:
        if self._away_since is not None:
            _log.info("redis is back", away_s=round(time.monotonic() - self._away_since, 1))
            self._away_since = None

    @property
    def info(self) -> str:
        return "    . schedule -> redis, shared by all beats"
