"""The working parts of one host, alive inside its worker: its lease, the watcher, checks, recovery and sweeps."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict

import structlog

from workers.domain.errors import StoreUnavailable
from workers.domain.recovery import WakeUp
from workers.domain.vm import Incarnation, State, Vantage
from workers.host.identity import look_at
from workers.host.rundir import HostFiles
from workers.host.trouble import Trouble
from workers.host.watcher import Death, Watcher
from workers.ports import Ended, VmStore
from workers.services.health import chunks
from workers.services.host_services import HostServices
from workers.services.recovery import Ignored, Result
from workers.store.hosts import HostRegistry, HostWorker
from workers.store.survey import Surveys
from workers.telemetry.worker_monitor import CLOCK_OFF_S, WorkerMonitor

_log = structlog.get_logger(component="worker")

_CHUNK = 500
_UNWATCHED = frozenset({State.STOPPED, State.FAILED})


class HostLease:
    """One worker per host name: a lease in Redis, kept by heartbeats."""

    def __init__(self, hosts: HostRegistry, worker: HostWorker, vantage: Vantage, *, ttl_ms: int) -> None:
        self._hosts, self._worker, self._vantage = hosts, worker, vantage
        self._ttl_ms = ttl_ms

    @property
    def every_s(self) -> float:
        return self._ttl_ms / 3000

    def acquire(self) -> HostWorker | None:
        """Take or keep the name; returns who has it instead. Raises StoreUnavailable.

        A holder whose process we can see to be dead is replaced at once; any other must let its lease run out.
        """
        holder = self._hosts.hold(self._worker, ttl_ms=self._ttl_ms)
        if holder is None or not self._is_dead(holder):
            return holder
        return self._hosts.hold(self._worker, ttl_ms=self._ttl_ms, instead_of=holder)

    def _is_dead(self, holder: HostWorker) -> bool:
        ruling = look_at(holder.process, self._vantage)
        return self._vantage.shares_place(holder.process) and ruling is not None

    def release(self) -> None:
        self._hosts.release(self._worker)


class Deaths:
    """Between the watcher and the services: what cannot be written now is kept and comes again."""

    def __init__(self, files: HostFiles) -> None:
        self._files = files
        self.tell: Callable[[Mapping[str, Ended]], None] | None = None

    def deliver(self, deaths: Sequence[Death]) -> Sequence[Death]:
        """Return the deaths that are still to be told. They are told first: recovery waits for no file."""
        left = self._told(deaths)
        for death in deaths:
            if death.cause is not None:
                self.note_cause(death.vm_id, death.process, death.cause)
        return left

    def _told(self, deaths: Sequence[Death]) -> Sequence[Death]:
        if self.tell is None:
            return deaths
        try:
            self.tell({death.vm_id: _ended(death) for death in deaths})
        except StoreUnavailable:
            return deaths
        except Exception:  # noqa: BLE001 - the watcher must live on; the next check sees the same dead process
            _log.exception("a death could not be told", vms=[death.vm_id for death in deaths])
        return ()

    def note_cause(self, vm_id: str, process: Incarnation, cause: str) -> None:
        try:
            if (run := self._files.run_of(vm_id, process)) is not None:
                run.write_exit(cause)
        except OSError as error:
            _log.warning("exit cause not kept", vm_id=vm_id, cause=cause, error=str(error))


def watching(watcher: Watcher) -> Callable[[str, Incarnation], None]:
    """`Watcher.watch` that raises nothing: whom we cannot watch (no descriptor is free) is checked, as anybody."""

    def watch(vm_id: str, process: Incarnation) -> None:
        try:
            watcher.watch(vm_id, process)
        except OSError as error:
            why = error.strerror or str(error)
            _log.warning("vmm not watched: its death is seen at its next check", vm_id=vm_id, error=why)

    return watch


def _ended(death: Death) -> Ended:
    return Ended(death.process, death.cause, (time.monotonic() - death.at) * 1000)


class HostRuntime:
    """What the tasks of this host call. Raises StoreUnavailable where Redis does not answer."""

    def __init__(
        self,
        host: str,
        services: HostServices,
        *,
        store: VmStore,
        trouble: Trouble,
        watcher: Watcher,
        lease: HostLease,
        surveys: Surveys,
        monitor: WorkerMonitor,
        replay_hooks: Callable[[], int],
        trim_events: Callable[[], int] | None = None,
        sync_registry: Callable[[], None] | None = None,
    ) -> None:
        self.host, self.lease, self.watcher, self.monitor = host, lease, watcher, monitor
        self._services, self._store, self._trouble, self._surveys = services, store, trouble, surveys
        self._replay_hooks, self._trim_events = replay_hooks, trim_events
        self._sync_registry = sync_registry
        self.active = False
        self._clock_is_off = False

    def tend(self) -> None:
        """At each heartbeat."""
        self._services.tending.tend()
        hooks_left = self._replay_hooks()
        try:
            survey = self._surveys.host(self.host)
        except StoreUnavailable as error:
            # The work goes on: without figures the alerts on their absence do theirs.
            _log.warning("no figures of this host", error=str(error))
            return
        off_s = time.time() - survey.now_ms / 1000
        self._judge_clock(off_s)
        tending = self._services.tending
        self.monitor.surveyed(
            survey,
            halt=tending.halted,
            is_paused=tending.is_paused,
            watched=len(self.watcher),
            off_s=off_s,
            hooks_left=hooks_left,
        )

    def _judge_clock(self, off_s: float) -> None:
        """Nothing goes by this host's wall clock but log lines and Celery's countdowns: say once that it is off."""
        is_off = abs(off_s) > CLOCK_OFF_S
        if is_off and not self._clock_is_off:
            _log.warning("the clock of this host is not that of redis: set it right", off_s=round(off_s))
        self._clock_is_off = is_off

    def redis_is_back(self) -> None:
        self._trouble.redis_is_back()

    def watch_known(self) -> int:
        """Watch every process that the records of this host name; returns how many are watched."""
        watch = watching(self.watcher)
        for part in chunks(self._store.ids(host=self.host), _CHUNK):
            for stored in self._store.read(part).found.values():
                record = stored.record
                if record.process is not None and record.state not in _UNWATCHED:
                    watch(record.vm_id, record.process)
        return len(self.watcher)

    def check(self, vm_ids: Collection[str], deadline_ms: int | None) -> None:
        if self.active:
            began = time.monotonic()
            report = self._services.checks.check(vm_ids, deadline_ms)
            took_ms = round((time.monotonic() - began) * 1000, 1)
            _log.debug("checked", vms=report.checked, late=report.late, took_ms=took_ms)

    def recover(self, vm_id: str, wake: WakeUp) -> Result:
        if not self.active:
            return Ignored("this worker is passive")
        return self._services.recovery.recover(vm_id, wake)

    def stop(self, vm_id: str) -> Result:
        return self._services.recovery.stop(vm_id) if self.active else Ignored("this worker is passive")

    def detect_orphans(self) -> None:
        if self.active:
            self.monitor.metrics.keep_only(lambda: self._store.ids(host=self.host))
            _log.debug("orphan detection", **_numbers(self._services.orphans.sweep()))

    def reconcile(self) -> None:
        if not self.active:
            return
        try:
            _log.debug("reconciliation", **_numbers(self._services.reconciliation.sweep()))
        except OSError as error:
            # Who cannot see what runs here says nothing of it.
            _log.warning("no reconciliation: this host cannot be looked at", error=str(error))
        if self._sync_registry is not None:
            self._sync_registry()
        if self._trim_events is not None:
            # Any host does it for all of them.
            _log.debug("old events dropped", number=self._trim_events())

    def rebuild(self, request_id: str | None) -> None:
        if self.active:
            _log.info("records rebuilt", **asdict(self._services.rebuild.run(request_id)))


def _numbers(report: object) -> dict[str, int]:
    return {name: getattr(report, name) for name in ("looked_at", "found_dead", "driven_again", "strays", "unreadable")}
