"""All services of one host, joined from ports and policies: the same for a real host and for a simulated one."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from workers.domain.evidence import Sockets
from workers.domain.health import HealthPolicy
from workers.domain.recovery import RecoveryPolicy
from workers.domain.strays import StrayRules
from workers.domain.vm import Incarnation
from workers.ports import Clock, Data, Memory, ModeStore, Prober, StrayFound, Telemetry, VmHost, VmStore, Wakeups
from workers.services.health import HealthChecks
from workers.services.ledger import Ledger
from workers.services.rebuild import Rebuild
from workers.services.recovery import Recovery
from workers.services.strays import Strays
from workers.services.sweeps import OrphanDetection, Reconciliation
from workers.services.tending import Tending


@dataclass(frozen=True, slots=True)
class HostPolicies:
    """What the settings say, for the host of this name."""

    host: str
    health: HealthPolicy
    recovery: RecoveryPolicy
    strays: StrayRules
    detection_interval_ms: int
    record_version: int


@dataclass(frozen=True, slots=True)
class HostPorts:
    """The outside of one host; the functions are said in the services that call them."""

    store: VmStore
    data: Data
    modes: ModeStore
    memory: Memory
    host: VmHost
    prober: Prober
    wakeups: Wakeups
    telemetry: Telemetry
    clock: Clock
    watch: Callable[[str, Incarnation], None]
    trouble: Callable[[], str | None]
    sockets: Callable[[], Sockets]
    new_owner: Callable[[], str]
    jitter: Callable[[], float]
    bound_logs: Callable[[Collection[str]], None]
    silent_hosts: Callable[[], Sequence[str]]
    put_unreadable: Callable[[Mapping[str, str]], None]
    put_strays: Callable[[Sequence[StrayFound]], None]
    may_destroy: Callable[[], bool]
    not_saved: Callable[[OSError], None]


@dataclass(frozen=True, slots=True)
class HostServices:
    checks: HealthChecks
    recovery: Recovery
    orphans: OrphanDetection
    reconciliation: Reconciliation
    tending: Tending
    rebuild: Rebuild


def host_services(ports: HostPorts, policies: HostPolicies) -> HostServices:
    host_name = policies.host
    store, host, prober, telemetry, clock = ports.store, ports.host, ports.prober, ports.telemetry, ports.clock
    ledger = Ledger(store, ports.wakeups, telemetry)
    checks = HealthChecks(
        store,
        prober,
        ledger,
        telemetry,
        host=host_name,
        policy=policies.health,
        clock=clock,
        watch=ports.watch,
        trouble=ports.trouble,
        sockets=ports.sockets,
        recovers=policies.recovery.enabled,
    )
    recovery = Recovery(
        store,
        host,
        prober,
        ledger,
        telemetry,
        host_name=host_name,
        policy=policies.recovery,
        clock=clock,
        watch=ports.watch,
        new_owner=ports.new_owner,
        jitter=ports.jitter,
    )
    orphans = OrphanDetection(
        store,
        prober,
        checks,
        ledger,
        telemetry,
        host=host_name,
        detection_interval_ms=policies.detection_interval_ms,
        recovers=policies.recovery.enabled,
        bound_logs=ports.bound_logs,
        put_unreadable=ports.put_unreadable,
    )
    tending = Tending(ledger, ports.data, ports.memory, host, host_name=host_name, not_saved=ports.not_saved)
    strays = Strays(
        store,
        host,
        ports.modes,
        ledger,
        host_name=host_name,
        rules=policies.strays,
        may_destroy=ports.may_destroy,
        is_halted=lambda: tending.halted is not None,
        put=ports.put_strays,
    )
    reconciliation = Reconciliation(
        store,
        host,
        strays,
        ledger,
        telemetry,
        host_name=host_name,
        silent_hosts=ports.silent_hosts,
        version=policies.record_version,
    )
    return HostServices(
        checks, recovery, orphans, reconciliation, tending, Rebuild(store, host, ledger, host_name=host_name)
    )
