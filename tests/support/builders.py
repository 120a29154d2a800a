"""Builders of values with sane defaults: a test names only what it is about."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from workers.domain.breaker import BreakerPolicy
from workers.domain.evidence import Evidence, Observation
from workers.domain.health import HealthPolicy
from workers.domain.recovery import CrashPolicy, RecoveryPolicy
from workers.domain.storm import StormPolicy
from workers.domain.vm import Episode, Incarnation, Reason, State, Vantage, VmRecord
from workers.ports import Limits
from workers.specs import FirecrackerSpec, VmSpec, spec_from
from workers.vmm.firecracker import EXITS

HOST = "host-a"
HERE = Vantage(boot_id="boot-1", machine_id="machine-1", pid_ns=1)
NOW_MS = 1_800_000_000_000


def a_process(pid: int = 100, start_ticks: int = 5000, vantage: Vantage = HERE) -> Incarnation:
    return Incarnation(pid, start_ticks, vantage.boot_id, vantage.machine_id, vantage.pid_ns)


def a_vm(vm_id: str = "vm-1", **changes: Any) -> VmRecord:
    """A healthy VM of generation 7, for an hour."""
    healthy = VmRecord(
        vm_id=vm_id,
        host=HOST,
        driver="firecracker",
        state=State.HEALTHY,
        since_ms=NOW_MS - 3_600_000,
        generation=7,
        process=a_process(),
    )
    return replace(healthy, **changes)


def an_episode(**changes: Any) -> Episode:
    opened = Episode(id="vm-1@1", reason=Reason.PROCESS_DEAD, started_ms=NOW_MS - 1000)
    return replace(opened, **changes)


def a_lost_vm(vm_id: str = "vm-1", **changes: Any) -> VmRecord:
    """An orphan whose first attempt is due."""
    return a_vm(vm_id, **{"state": State.ORPHANED, "since_ms": NOW_MS - 1000, "episode": an_episode()} | changes)


def seen(evidence: Evidence, detail: str = "") -> Observation:
    return Observation(evidence, detail)


def a_health_policy(**changes: Any) -> HealthPolicy:
    production = HealthPolicy(
        interval_ms=30_000,
        timeout_ms=5_000,
        failing_interval_ms=2_000,
        failure_threshold=3,
        recovery_threshold=2,
        start_period_ms=60_000,
        crash=CrashPolicy(stable_period_ms=600_000, max_retries=3, exits={"firecracker": EXITS}),
    )
    return replace(production, **changes)


def a_recovery_policy(**changes: Any) -> RecoveryPolicy:
    production = RecoveryPolicy(
        max_retries=3,
        retry_interval_ms=30_000,
        backoff_factor=2.0,
        max_retry_interval_ms=300_000,
        recovery_timeout_ms=600_000,
        lease_ms=30_000,
        crash=CrashPolicy(stable_period_ms=600_000, max_retries=3, exits={"firecracker": EXITS}),
    )
    return replace(production, **changes)


def some_limits(**changes: Any) -> Limits:
    production = Limits(
        per_host=4,
        per_fleet=64,
        lease_ms=30_000,
        call_ms=10_000,
        events_kept=100_000,
        breaker=a_breaker_policy(),
        storm=a_storm_policy(),
    )
    return replace(production, **changes)


def a_breaker_policy(**changes: Any) -> BreakerPolicy:
    production = BreakerPolicy(
        window_ms=120_000,
        min_calls=5,
        failure_rate=0.5,
        cooldown_ms=30_000,
        max_cooldown_ms=600_000,
        probes=1,
        successes=2,
    )
    return replace(production, **changes)


def a_storm_policy(**changes: Any) -> StormPolicy:
    return replace(StormPolicy(window_ms=60_000, at_least=5, host_share=0.3, fleet_share=0.1), **changes)


def a_spec(vm_id: str = "vm-1", *, kernel: Path | str = "/images/vmlinux", **fields: Any) -> VmSpec:
    plain = {"id": vm_id, "host": HOST, "driver": "firecracker", "kernel": str(kernel), **fields}
    return spec_from(plain)


def a_firecracker_spec(**fields: Any) -> FirecrackerSpec:
    spec = a_spec(**fields)
    assert isinstance(spec, FirecrackerSpec)
    return spec
