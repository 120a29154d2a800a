"""Joins the parts of a worker, and those of a beat's monitor: settings in, ready-made services out.

Beside `bootstrap`, which has what every process needs, so that a command does not load what only a worker does.
"""

import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from functools import lru_cache, partial
from importlib.metadata import version

import structlog
from celery import Celery

from workers.bootstrap import (
    Fleet,
    driver_problems,
    drivers,
    health_policy,
    milliseconds,
    recovery_policy,
    redis_client,
    stray_rules,
)
from workers.domain.errors import ReliabilityError
from workers.domain.vm import Vantage, VmRecord
from workers.host.clock import BootClock
from workers.host.files import drop_half_written
from workers.host.identity import incarnation_of, read_vantage
from workers.host.memory import HostMemory
from workers.host.rundir import HostFiles
from workers.host.trouble import Trouble
from workers.host.vmm_host import LocalVmmHost
from workers.host.watcher import ROUND_S, Watcher
from workers.integration.http_host import HooksApiHost
from workers.integration.replay import JournalReplay
from workers.messages import CeleryWakeups, NoWakeups
from workers.ports import StrayFound, Telemetry
from workers.runtime import Deaths, HostLease, HostRuntime, watching
from workers.services.host_services import HostPolicies, HostPorts, HostServices, host_services
from workers.services.ledger import Ledger
from workers.services.registry_sync import RegistrySync, SyncRules
from workers.settings import Settings
from workers.store.hosts import HostWorker
from workers.telemetry.beat_monitor import BeatMonitor
from workers.telemetry.story import LogTelemetry
from workers.telemetry.together import Together
from workers.telemetry.vitals import WATCHER
from workers.telemetry.worker_monitor import WorkerMonitor
from workers.vmm.prober import EpollProber

_log = structlog.get_logger(component="worker")

DISTRIBUTION = "metald-reliability"
_LOG_LIMIT_BYTES = 16 << 20
# Paths of sockets, made once per start and not at each check: more than any host has VMs.
_SOCKETS_KEPT = 20_000


def beat_monitor(settings: Settings) -> BeatMonitor:
    return BeatMonitor(settings, version(DISTRIBUTION), survey=Fleet(settings).surveys.fleet)


def _this_worker(settings: Settings, vantage: Vantage) -> HostWorker:
    process = incarnation_of(os.getpid(), vantage)
    if process is None:
        raise NotAWorker("/proc does not show this process; is it mounted?")
    return HostWorker(
        owner=uuid.uuid4().hex,
        host=settings.host,
        process=process,
        since_ms=int(time.time() * 1000),
        version=version(DISTRIBUTION),
    )


def hooks_api(settings: Settings) -> HooksApiHost | None:
    """The hooks of this host as an HTTP API, where that is wanted."""
    return HooksApiHost(Fleet(settings), version(DISTRIBUTION)) if settings.hooks.http else None


class NotAWorker(ReliabilityError):
    """A task ran where no host agent was started."""


_runtime: HostRuntime | None = None
_runtime_lock = threading.Lock()


def host_runtime() -> HostRuntime:
    """Return the runtime of this worker process. Raises NotAWorker."""
    if _runtime is None:
        raise NotAWorker("no host agent runs in this process; start it with `reliability worker`")
    return _runtime


def start_host_runtime(settings: Settings, app: Celery) -> HostRuntime:
    """Join the parts of this host, once per process."""
    global _runtime  # noqa: PLW0603 - Celery gives tasks no other way to their surroundings
    with _runtime_lock:
        if _runtime is None:
            _runtime = build_host_runtime(settings, app)
        return _runtime


def build_host_runtime(settings: Settings, app: Celery | None) -> HostRuntime:
    """Without an app no message is sent."""
    host, clock = settings.host, BootClock()
    files = HostFiles(settings.state_dir)
    files.prepare()
    drop_half_written(settings.state_dir)
    memory = HostMemory(settings.state_dir)
    monitor = WorkerMonitor(settings, version(DISTRIBUTION), runs=files.runs_dir)
    fleet = Fleet(settings, redis_client(settings, monitor.called_redis), memory=memory)
    monitor.weather = fleet.weather
    telemetry: list[Telemetry] = [LogTelemetry(), monitor.metrics]
    if (tracing := monitor.tracing()) is not None:
        telemetry.append(tracing)
    wakeups = CeleryWakeups(app, unsent=monitor.could_not_send) if app and settings.enabled else NoWakeups()
    vantage = read_vantage(settings.state_dir)
    known = drivers(settings)
    for problem in driver_problems(settings):
        _log.error("driver not usable", why=problem)
    deaths = Deaths(files)
    watcher = Watcher(
        vantage,
        on_deaths=deaths.deliver,
        on_cause=deaths.note_cause,
        on_round=lambda: monitor.vitals.pulse(WATCHER, ROUND_S),
    )
    trouble = Trouble(files.runs_dir, clock, redis_back_s=settings.health_check.timeout.total_seconds())

    @lru_cache(maxsize=_SOCKETS_KEPT)
    def own_socket(vm_id: str, generation: int) -> str:
        return str(files.run(vm_id, generation).socket)

    def socket_of(record: VmRecord) -> str:
        return record.socket or own_socket(record.vm_id, record.generation)

    timeout_s = settings.health_check.timeout.total_seconds()
    prober = EpollProber(
        known, vantage, socket_of=socket_of, timeout_s=timeout_s, cause_of=watcher.cause_of, living=watcher.living
    )
    vmm_host = LocalVmmHost(
        files,
        known,
        vantage,
        host_name=host,
        image_roots=settings.image_roots,
        image_devices=settings.image_devices,
        stop_grace_s=settings.recovery.stop_grace.total_seconds(),
        start_timeout_s=settings.recovery.start_timeout.total_seconds(),
        tidy_grace_s=settings.strays.leftovers_after.total_seconds(),
        known_pids=watcher.pids_of_others,
        cgroup=settings.vm_cgroup,
    )
    lease_ms = milliseconds(settings.worker.host_lease)
    strays_ttl_ms = 3 * milliseconds(settings.reconcile_interval)

    def put_strays(found: Sequence[StrayFound]) -> None:
        monitor.found_strays(len(found))
        fleet.hosts.put_strays(host, found, ttl_ms=strays_ttl_ms)

    policies = HostPolicies(
        host,
        health_policy(settings),
        recovery_policy(settings),
        stray_rules(settings),
        detection_interval_ms=milliseconds(settings.recovery.detection_interval),
        record_version=settings.redis.record_version,
    )
    ports = HostPorts(
        fleet.store,
        fleet.data,
        fleet.modes,
        memory,
        vmm_host,
        prober,
        wakeups,
        Together(*telemetry),
        clock,
        watch=watching(watcher),
        trouble=trouble.now,
        sockets=lambda: files.sockets(watcher.vm_ids()),
        new_owner=lambda: uuid.uuid4().hex,
        jitter=random.SystemRandom().random,
        bound_logs=partial(_bound_logs, files),
        silent_hosts=lambda: fleet.hosts.silent(longer_than_ms=3 * lease_ms),
        put_unreadable=lambda why_of: fleet.hosts.put_unreadable(host, why_of, ttl_ms=strays_ttl_ms),
        put_strays=put_strays,
        may_destroy=lambda: fleet.hosts.may_destroy(host, per_hour=settings.strays.reaped_per_hour),
        not_saved=_memory_not_saved,
    )
    services = host_services(ports, policies)
    deaths.tell = services.checks.processes_ended
    return HostRuntime(
        host,
        services,
        store=fleet.store,
        trouble=trouble,
        watcher=watcher,
        lease=HostLease(fleet.hosts, _this_worker(settings, vantage), vantage, ttl_ms=lease_ms),
        surveys=fleet.surveys,
        monitor=monitor,
        replay_hooks=JournalReplay(settings, fleet, vantage),
        trim_events=_trimming(fleet),
        sync_registry=_registry_sync(settings, fleet, services, ports),
    )


def _registry_sync(
    settings: Settings, fleet: Fleet, services: HostServices, ports: HostPorts
) -> Callable[[], None] | None:
    """What compares with the manager's registry, where there is one."""
    registry, host = settings.registry, settings.host
    if registry.provider is None and registry.folder is None:
        return None
    from workers.integration.registry import Listing, registry_of  # noqa: PLC0415 - few have one

    source = Listing(
        lambda: registry_of(registry.provider, registry.folder, host=host), timeout_s=registry.timeout.total_seconds()
    )
    rules = SyncRules(
        host,
        interval_s=registry.interval.total_seconds(),
        ttl_ms=3 * milliseconds(max(registry.interval, settings.reconcile_interval)),
        forget_missing=registry.forget_missing,
    )
    return RegistrySync(
        source,
        fleet.store,
        Ledger(fleet.store, ports.wakeups, ports.telemetry),
        fleet.hosts,
        rules=rules,
        clock=ports.clock,
        is_halted=lambda: services.tending.halted is not None,
    ).sync_if_due


def _trimming(fleet: Fleet) -> Callable[[], int] | None:
    """What drops events that are too old; None where only their number counts."""
    max_age = fleet.settings.events.max_age
    return partial(fleet.events.trim, milliseconds(max_age)) if max_age else None


def _bound_logs(files: HostFiles, vm_ids: Collection[str]) -> None:
    """Housekeeping: what keeps it from being done keeps no sweep from its work."""
    try:
        for vm_id in vm_ids:
            files.bound_logs(vm_id, _LOG_LIMIT_BYTES)
    except OSError as error:
        _log.warning("logs of vms are not bounded", error=str(error))


def _memory_not_saved(error: OSError) -> None:
    _log.warning("what this host knows of the data is not saved", error=str(error))
