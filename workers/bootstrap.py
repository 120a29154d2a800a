"""The only place that joins parts: settings in, ready-made services out."""

import os
import random
import threading
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from functools import lru_cache
from importlib.metadata import version

import redis
import structlog

from workers.domain.breaker import BreakerPolicy
from workers.domain.errors import ReliabilityError
from workers.domain.health import HealthPolicy
from workers.domain.recovery import CrashPolicy, RecoveryPolicy
from workers.domain.storm import StormPolicy
from workers.domain.strays import StrayRules
from workers.domain.vm import Vantage, VmRecord
from workers.host.clock import BootClock
from workers.host.identity import incarnation_of, read_vantage
from workers.host.memory import HostMemory
from workers.host.rundir import HostFiles
from workers.host.trouble import Trouble
from workers.host.vmm_host import LocalVmmHost
from workers.host.watcher import Watcher
from workers.ports import Limits, Memory, Wakeups
from workers.runtime import Deaths, HostLease, HostRuntime
from workers.services.host_services import HostPolicies, HostPorts, host_services
from workers.services.ledger import Ledger
from workers.services.registry import Registry
from workers.settings import Settings
from workers.store.client import connect
from workers.store.data import RedisData
from workers.store.events import EventLog
from workers.store.hosts import HostRegistry, HostWorker
from workers.store.schedule import DETECT_ORPHANS, RECONCILE, RedisSchedule
from workers.store.vm_store import RedisVmStore
from workers.store.weather import Weather
from workers.telemetry.story import LogTelemetry, NoTelemetry
from workers.vmm.driver import Driver
from workers.vmm.firecracker import EXITS as FIRECRACKER_EXITS
from workers.vmm.firecracker import FirecrackerDriver
from workers.vmm.prober import EpollProber
from workers.vmm.qemu import QemuDriver

_log = structlog.get_logger(component="worker")

DISTRIBUTION = "metald-reliability"
_LOG_LIMIT_BYTES = 16 << 20
# Paths of sockets, made once per start and not at each check: more than any host has VMs.
_SOCKETS_KEPT = 20_000


def _ms(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def crash_policy(settings: Settings) -> CrashPolicy:
    return CrashPolicy(
        stable_period_ms=_ms(settings.recovery.stable_period),
        max_retries=settings.recovery.max_retries,
        restart_burst=settings.recovery.restart_burst,
        exits={name: driver.exits for name, driver in drivers(settings).items()},
    )


def health_policy(settings: Settings) -> HealthPolicy:
    check = settings.health_check
    return HealthPolicy(
        interval_ms=_ms(check.interval),
        timeout_ms=_ms(check.timeout),
        failing_interval_ms=_ms(check.failing_interval),
        failure_threshold=check.failure_threshold,
        recovery_threshold=check.recovery_threshold,
        start_period_ms=_ms(check.start_period),
        crash=crash_policy(settings),
    )


def recovery_policy(settings: Settings) -> RecoveryPolicy:
    recovery = settings.recovery
    return RecoveryPolicy(
        max_retries=recovery.max_retries,
        retry_interval_ms=_ms(recovery.retry_interval),
        backoff_factor=recovery.backoff_factor,
        max_retry_interval_ms=_ms(recovery.max_retry_interval),
        recovery_timeout_ms=_ms(recovery.recovery_timeout),
        lease_ms=_ms(recovery.lease),
        crash=crash_policy(settings),
        enabled=settings.enabled and recovery.enabled,
        breakers=settings.breaker.enabled,
        allow_data_loss=settings.allow_data_loss,
    )


def limits(settings: Settings) -> Limits:
    recovery, breaker, storm = settings.recovery, settings.breaker, settings.storm
    return Limits(
        per_host=recovery.per_host,
        per_fleet=recovery.per_fleet,
        lease_ms=_ms(recovery.lease),
        call_ms=_ms(recovery.call_timeout),
        events_kept=settings.events.max_length,
        breaker=BreakerPolicy(
            window_ms=_ms(breaker.window),
            min_calls=breaker.min_calls,
            failure_rate=breaker.failure_rate,
            cooldown_ms=_ms(breaker.cooldown),
            max_cooldown_ms=_ms(breaker.max_cooldown),
            probes=breaker.probes,
            successes=breaker.successes,
        ),
        storm=StormPolicy(
            window_ms=_ms(storm.window),
            at_least=storm.at_least,
            host_share=storm.host_share,
            fleet_share=storm.fleet_share,
        ),
    )


def stray_rules(settings: Settings) -> StrayRules:
    return StrayRules(settings.strays.policy, settings.strays.min_age.total_seconds())


def redis_client(settings: Settings) -> redis.Redis:
    return connect(
        settings.redis.url.get_secret_value(),
        timeout_s=settings.redis.timeout.total_seconds(),
        connect_timeout_s=settings.redis.connect_timeout.total_seconds(),
    )


def fleet_schedule(settings: Settings) -> RedisSchedule:
    return RedisSchedule(
        redis_client(settings),
        prefix=settings.redis.prefix,
        interval_ms=_ms(settings.health_check.interval),
        per_message=settings.health_check.batch_size,
        sweeps={DETECT_ORPHANS: _ms(settings.recovery.detection_interval), RECONCILE: _ms(settings.reconcile_interval)},
    )


class Fleet:
    """What every process that reads or declares VMs needs: the CLI, pages, tests. Only a host has a `memory`."""

    def __init__(self, settings: Settings, client: redis.Redis | None = None, *, memory: Memory | None = None) -> None:
        self.settings = settings
        client = client or redis_client(settings)
        prefix = settings.redis.prefix
        self.store = RedisVmStore(
            client, prefix=prefix, limits=limits(settings), memory=memory, version=settings.redis.record_version
        )
        self.hosts = HostRegistry(client, prefix=prefix)
        self.events = EventLog(client, prefix=prefix)
        self.data = RedisData(client, prefix=prefix, lease_ms=_ms(settings.recovery.lease))
        self.weather = Weather(client, prefix=prefix)

    def registry(self, wakeups: Wakeups, *, actor: str) -> Registry:
        return Registry(self.store, Ledger(self.store, wakeups, NoTelemetry()), actor=actor)


def drivers(settings: Settings) -> dict[str, Driver]:
    firecracker, qemu = settings.drivers.firecracker, settings.drivers.qemu
    made: Sequence[Driver] = (
        FirecrackerDriver(firecracker.binary, firecracker.environment, {**FIRECRACKER_EXITS, **firecracker.exits}),
        QemuDriver(qemu.binary, qemu.accel, qemu.environment, qemu.exits),
    )
    return {driver.name: driver for driver in made}


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


class NotAWorker(ReliabilityError):
    """A task ran where no host agent was started."""


_runtime: HostRuntime | None = None
_runtime_lock = threading.Lock()


def host_runtime() -> HostRuntime:
    """Return the runtime of this worker process. Raises NotAWorker."""
    if _runtime is None:
        raise NotAWorker("no host agent runs in this process; start it with `reliability worker`")
    return _runtime


def start_host_runtime(settings: Settings, wakeups: Wakeups) -> HostRuntime:
    """Join the parts of this host, once per process."""
    global _runtime  # noqa: PLW0603 - Celery gives tasks no other way to their surroundings
    with _runtime_lock:
        if _runtime is None:
            _runtime = build_host_runtime(settings, wakeups)
        return _runtime


def build_host_runtime(settings: Settings, wakeups: Wakeups) -> HostRuntime:
    host, clock = settings.host, BootClock()
    files = HostFiles(settings.state_dir)
    files.prepare()
    memory = HostMemory(settings.state_dir)
    fleet = Fleet(settings, memory=memory)
    vantage = read_vantage(settings.state_dir)
    known = drivers(settings)
    deaths = Deaths(files)
    watcher = Watcher(vantage, on_deaths=deaths.deliver, on_cause=deaths.note_cause)
    trouble = Trouble(files.runs_dir, clock, redis_back_s=settings.health_check.timeout.total_seconds())

    @lru_cache(maxsize=_SOCKETS_KEPT)
    def own_socket(vm_id: str, generation: int) -> str:
        return str(files.run(vm_id, generation).socket)

    def socket_of(record: VmRecord) -> str:
        return record.socket or own_socket(record.vm_id, record.generation)

    timeout_s = settings.health_check.timeout.total_seconds()
    prober = EpollProber(known, vantage, socket_of=socket_of, timeout_s=timeout_s)
    vmm_host = LocalVmmHost(
        files,
        known,
        vantage,
        host_name=host,
        image_roots=settings.image_roots,
        stop_grace_s=settings.recovery.stop_grace.total_seconds(),
        start_timeout_s=settings.recovery.start_timeout.total_seconds(),
        tidy_grace_s=settings.strays.leftovers_after.total_seconds(),
        known_pids=watcher.pids_of_others,
        cgroup=settings.vm_cgroup,
    )
    lease_ms = _ms(settings.worker.host_lease)
    strays_ttl_ms = 3 * _ms(settings.reconcile_interval)
    policies = HostPolicies(
        host,
        health_policy(settings),
        recovery_policy(settings),
        stray_rules(settings),
        detection_interval_ms=_ms(settings.recovery.detection_interval),
        record_version=settings.redis.record_version,
    )
    ports = HostPorts(
        fleet.store,
        fleet.data,
        memory,
        vmm_host,
        prober,
        wakeups,
        LogTelemetry(),
        clock,
        watch=watcher.watch,
        trouble=trouble.now,
        sockets=lambda: files.sockets(watcher.vm_ids()),
        new_owner=lambda: uuid.uuid4().hex,
        jitter=random.SystemRandom().random,
        bound_logs=lambda vm_id: files.bound_logs(vm_id, _LOG_LIMIT_BYTES),
        silent_hosts=lambda: fleet.hosts.silent(longer_than_ms=3 * lease_ms),
        put_unreadable=lambda why_of: fleet.hosts.put_unreadable(host, why_of, ttl_ms=strays_ttl_ms),
        put_strays=lambda found: fleet.hosts.put_strays(host, found, ttl_ms=strays_ttl_ms),
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
    )


def _memory_not_saved(error: OSError) -> None:
    _log.warning("what this host knows of the data is not saved", error=str(error))
