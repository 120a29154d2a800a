"""What every process joins from the settings: policies, a client, the fleet. A worker's parts: `bootstrap_host`."""

from collections.abc import Sequence
from datetime import timedelta

import redis

from workers.domain.breaker import BreakerPolicy
from workers.domain.health import HealthPolicy
from workers.domain.recovery import CrashPolicy, RecoveryPolicy
from workers.domain.storm import StormPolicy
from workers.domain.strays import StrayRules
from workers.ports import Limits, Memory, Wakeups
from workers.services.ledger import Ledger
from workers.services.modes import OperatorModes
from workers.services.operations import Operations, Send, SentWakeups
from workers.services.registry import Registry
from workers.settings import Settings
from workers.store.breakers import RedisBreakers
from workers.store.client import Observe, connect, unobserved
from workers.store.closeup import CloseUp
from workers.store.data import RedisData
from workers.store.events import EventLog
from workers.store.hosts import HostRegistry
from workers.store.modes import RedisModes
from workers.store.places import Places
from workers.store.schedule import DETECT_ORPHANS, RECONCILE, RedisSchedule
from workers.store.survey import Surveys
from workers.store.vm_store import RedisVmStore
from workers.store.weather import Weather
from workers.telemetry.story import NoTelemetry
from workers.vmm.driver import Driver
from workers.vmm.firecracker import EXITS as FIRECRACKER_EXITS
from workers.vmm.firecracker import FirecrackerDriver
from workers.vmm.plugins import third_party_drivers
from workers.vmm.qemu import QemuDriver

# A VM in doubt is looked at so much sooner than the settings say, so that with messages and writes in between a hang is
# known within the sum that they make.
_LEAD = timedelta(milliseconds=100)


def milliseconds(duration: timedelta) -> int:
    return int(duration.total_seconds() * 1000)


def crash_policy(settings: Settings) -> CrashPolicy:
    return CrashPolicy(
        stable_period_ms=milliseconds(settings.recovery.stable_period),
        max_retries=settings.recovery.max_retries,
        restart_burst=settings.recovery.restart_burst,
        exits={name: driver.exits for name, driver in drivers(settings).items()},
    )


def health_policy(settings: Settings) -> HealthPolicy:
    check = settings.health_check
    return HealthPolicy(
        interval_ms=milliseconds(check.interval),
        timeout_ms=milliseconds(check.timeout),
        failing_interval_ms=milliseconds(check.failing_interval - min(_LEAD, check.failing_interval / 5)),
        failure_threshold=check.failure_threshold,
        recovery_threshold=check.recovery_threshold,
        start_period_ms=milliseconds(check.start_period),
        crash=crash_policy(settings),
    )


def recovery_policy(settings: Settings) -> RecoveryPolicy:
    recovery = settings.recovery
    return RecoveryPolicy(
        max_retries=recovery.max_retries,
        retry_interval_ms=milliseconds(recovery.retry_interval),
        backoff_factor=recovery.backoff_factor,
        max_retry_interval_ms=milliseconds(recovery.max_retry_interval),
        recovery_timeout_ms=milliseconds(recovery.recovery_timeout),
        lease_ms=milliseconds(recovery.lease),
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
        lease_ms=milliseconds(recovery.lease),
        call_ms=milliseconds(recovery.call_timeout),
        events_kept=settings.events.max_length,
        breaker=BreakerPolicy(
            window_ms=milliseconds(breaker.window),
            min_calls=breaker.min_calls,
            failure_rate=breaker.failure_rate,
            cooldown_ms=milliseconds(breaker.cooldown),
            max_cooldown_ms=milliseconds(breaker.max_cooldown),
            probes=breaker.probes,
            successes=breaker.successes,
        ),
        storm=StormPolicy(
            window_ms=milliseconds(storm.window),
            at_least=storm.at_least,
            host_share=storm.host_share,
            fleet_share=storm.fleet_share,
        ),
    )


def stray_rules(settings: Settings) -> StrayRules:
    return StrayRules(settings.strays.policy, settings.strays.min_age.total_seconds())


def redis_client(settings: Settings, observe: Observe = unobserved) -> redis.Redis:
    return connect(
        settings.redis.url.get_secret_value(),
        timeout_s=settings.redis.timeout.total_seconds(),
        connect_timeout_s=settings.redis.connect_timeout.total_seconds(),
        observe=observe,
    )


def fleet_schedule(settings: Settings) -> RedisSchedule:
    return RedisSchedule(
        redis_client(settings),
        prefix=settings.redis.prefix,
        interval_ms=milliseconds(settings.health_check.interval),
        per_message=settings.health_check.batch_size,
        sweeps={
            DETECT_ORPHANS: milliseconds(settings.recovery.detection_interval),
            RECONCILE: milliseconds(settings.reconcile_interval),
        },
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
        self.data = RedisData(client, prefix=prefix, lease_ms=milliseconds(settings.recovery.lease))
        self.modes = RedisModes(client, prefix=prefix, events_kept=settings.events.max_length)
        self.breakers = RedisBreakers(client, prefix=prefix, limits=limits(settings))
        self.weather = Weather(client, prefix=prefix)
        self.closeup = CloseUp(client, prefix=prefix)
        self.places = Places(client, prefix=prefix)
        self.surveys = Surveys(client, prefix=prefix, limits=limits(settings))

    def operations(self, send: Send, *, actor: str) -> Operations:
        """What people may ask for; messages go out by `send`."""
        return Operations(
            self.store,
            Ledger(self.store, SentWakeups(send), NoTelemetry()),
            send,
            hosts=self.hosts,
            halts=self.data,
            stream=self.events,
            breakers=self.breakers,
            actor=actor,
            policy=recovery_policy(self.settings),
        )

    def operator_modes(self, *, actor: str) -> OperatorModes:
        return OperatorModes(self.modes, actor=actor, settle_ms=milliseconds(self.settings.recovery.detection_interval))

    def registry(self, wakeups: Wakeups, *, actor: str) -> Registry:
        return Registry(self.store, Ledger(self.store, wakeups, NoTelemetry()), actor=actor)


def drivers(settings: Settings) -> dict[str, Driver]:
    """Ours, and those of other packages that can be used."""
    firecracker, qemu = settings.drivers.firecracker, settings.drivers.qemu
    made: Sequence[Driver] = (
        FirecrackerDriver(firecracker.binary, firecracker.environment, {**FIRECRACKER_EXITS, **firecracker.exits}),
        QemuDriver(qemu.binary, qemu.accel, qemu.environment, qemu.exits),
    )
    return {driver.name: driver for driver in made} | third_party_drivers(settings.drivers.third_party)[0]


def driver_problems(settings: Settings) -> list[str]:
    """Say what keeps drivers of other packages from being used, one line each."""
    return third_party_drivers(settings.drivers.third_party)[1]
