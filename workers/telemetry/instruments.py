"""Every metric, declared once: name, kind, unit, help, labels. `docs/observability.md` lists them; a test compares.

The names that existing dashboards rely on are those of the first block. A worker serves the metrics of its host, each
with the label `host`; a beat serves those of the fleet. No label ever names a VM, unless `telemetry.per_vm` is on: then
those in `PER_VM` also have `vm_id`.
"""

from dataclasses import dataclass
from enum import StrEnum

VM = "unkey_metald_vm_"
RELIABILITY = "unkey_metald_reliability_"

HOST, DRIVER, REASON, OUTCOME, VERDICT, EVIDENCE, CAUSE, STATE, KIND, VERSION, VM_ID, MODE = (
    "host",
    "driver",
    "reason",
    "outcome",
    "verdict",
    "evidence",
    "cause",
    "state",
    "kind",
    "version",
    "vm_id",
    "mode",
)

# From 1 ms, which a watched death takes, to 10 min, the time for all attempts of an episode.
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 30, 60, 120, 300, 600)
# A probe and a call of Redis end within a few seconds, and mostly within a few milliseconds.
QUICK_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


def _counter(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Kind.COUNTER, help_, (HOST, *labels))


def _gauge(name: str, help_: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, help_, (HOST, *labels))


def _histogram(name: str, help_: str, *labels: str, buckets: tuple[float, ...] = SECONDS) -> Metric:
    return Metric(name, Kind.HISTOGRAM, help_, (HOST, *labels), buckets)


def _fleet(name: str, help_: str, *labels: str, kind: Kind = Kind.GAUGE) -> Metric:
    return Metric(name, kind, help_, labels)


# Checks. Both counters have the same labels: their ratio is the failure rate.
CHECKS = _counter(VM + "health_checks_total", "Looks at VMs: by checks, and deaths told by the kernel.", DRIVER)
CHECK_FAILURES = _counter(VM + "health_check_failures_total", "Looks that found the VM failing.", DRIVER)
CHECK_SECONDS = _histogram(
    VM + "health_check_duration_seconds", "Time one probe of one VM took.", DRIVER, buckets=QUICK_SECONDS
)
VERDICTS = _counter(
    VM + "health_check_verdicts_total", "Looks by verdict, reason and evidence.", DRIVER, VERDICT, REASON, EVIDENCE
)
MONITOR_FAULTS = _counter(RELIABILITY + "monitor_faults_total", "Looks that failed because of this host itself.")

# Losses.
LOST = _counter(VM + "lost_total", "VMs marked as unhealthy or orphaned that were not before.", DRIVER, REASON)
ORPHANED = _counter(VM + "orphaned_total", "VMs marked as orphaned.", DRIVER, REASON)
FALSE_POSITIVES = _counter(
    VM + "false_positives_total",
    "Losses that mended themselves before any attempt, deaths left out: the VM was fine, or sick for a moment.",
    DRIVER,
    REASON,
)
DETECTION_SECONDS = _histogram(
    VM + "detection_latency_seconds",
    "From when a lost VM was last known to be well (the kernel's word for a death, else the last check before the "
    "first failing one) to when it was marked as lost.",
    DRIVER,
    REASON,
)

# Recovery. Attempts and success have the same labels: their ratio is the success rate.
ATTEMPTS = _counter(VM + "recovery_attempts_total", "Recovery attempts begun; first starts are no recovery.", DRIVER)
SUCCESS = _counter(VM + "recovery_success_total", "Recovery attempts after which the VM served again.", DRIVER)
OUTCOMES = _counter(
    VM + "recovery_outcomes_total",
    "Ends: success and attempt_failed of attempts; failed (a person is asked) and withdrawn of episodes.",
    DRIVER,
    OUTCOME,
)
ATTEMPT_SECONDS = _histogram(
    VM + "recovery_duration_seconds", "From admission of a recovery attempt to its end.", DRIVER, OUTCOME
)
RECOVERY_SECONDS = _histogram(
    VM + "time_to_recovery_seconds",
    "From when a VM was marked as lost to when it served again, waits and retries included.",
    DRIVER,
    REASON,
)
STARTS = _counter(VM + "starts_total", "First starts of VMs, by how the attempt ended.", DRIVER, OUTCOME)
DEFERRALS = _counter(RELIABILITY + "deferrals_total", "Times that recovery had to wait, by what kept it back.", CAUSE)
IGNORED = _counter(
    RELIABILITY + "ignored_messages_total",
    "Messages that changed nothing: late, doubled, or not to be followed.",
    CAUSE,
)
LEASES_LOST = _counter(RELIABILITY + "leases_lost_total", "Attempts that stopped because their lease was gone.")
UNSENT = _counter(RELIABILITY + "messages_unsent_total", "Messages the broker did not take; the sweeps make up for it.")
STORMS = _counter(RELIABILITY + "storms_total", "Storm guards that became active.", KIND)
REAPED = _counter(RELIABILITY + "strays_reaped_total", "VMMs without a record that were ended.")

# This host, now.
VMS = _gauge(RELIABILITY + "vms", "VMs of this host by state.", STATE)
HEALTHY_VMS = _gauge(RELIABILITY + "healthy_vms_total", "VMs of this host that are healthy now.")
UNHEALTHY_VMS = _gauge(
    RELIABILITY + "unhealthy_vms_total", "VMs of this host that are unhealthy, orphaned, recovering or failed now."
)
ORPHANED_VMS = _gauge(RELIABILITY + "orphaned_vms", "VMs of this host that are orphaned now, by reason.", REASON)
ORPHANED_AGE = _gauge(
    RELIABILITY + "orphaned_oldest_age_seconds", "Time since the longest orphaned VM of this host was lost; 0: none."
)
QUEUE_VMS = _gauge(
    RELIABILITY + "recovery_waiting_vms", "VMs of this host whose next attempt is due and has not begun."
)
QUEUE_AGE = _gauge(
    RELIABILITY + "recovery_queue_age_seconds", "How long the first of them has waited for its attempt; 0: none waits."
)
IN_FLIGHT = _gauge(RELIABILITY + "recoveries_in_flight", "Attempts running on this host now.")
SLOTS_USED = _gauge(RELIABILITY + "recovery_slots_used", "Recovery slots of this host that are taken or kept.")
SLOTS_LIMIT = _gauge(
    RELIABILITY + "recovery_slots_limit", "Recovery slots of this host that may be taken now; fewer in a storm."
)
STRAYS = _gauge(RELIABILITY + "strays", "VMMs of this host that no record names.")
BUDGET_LEFT = _gauge(
    RELIABILITY + "destruction_budget_left", "Strays that may still be ended on this host within this hour."
)
FROZEN = _gauge(RELIABILITY + "state_frozen", "1: this host does not trust the data in Redis and recovers nothing.")
KILL_SWITCH = _gauge(RELIABILITY + "kill_switch_on", "1: a file PAUSE stops every signal and spawn on this host.")
HOOKS_LEFT = _gauge(
    RELIABILITY + "hooks_undelivered", "VMs of which the manager told something that Redis has not taken."
)
STORM = _gauge(RELIABILITY + "storm_active", "1: the storm guard of this host is active.")
WATCHED = _gauge(RELIABILITY + "watched_vmms", "VMM processes whose death this worker is told of at once.")
CLOCK_SKEW = _gauge(RELIABILITY + "clock_skew_seconds", "This host's wall clock less that of Redis.")
HEARTBEAT = _gauge(
    RELIABILITY + "worker_heartbeat_timestamp_seconds", "Unix time of this worker's last heartbeat that Redis took."
)
PASSED_AGE = _gauge(
    RELIABILITY + "successful_check_age_seconds",
    "Time since a check of this host last passed, its worker began, or a VM was first to run here; else missing.",
)
MESSAGE_AGE = _gauge(RELIABILITY + "check_queue_age_seconds", "How old the last check message was on arrival.")
REDIS_SECONDS = _histogram(
    RELIABILITY + "redis_call_duration_seconds", "Time one call of Redis took.", buckets=QUICK_SECONDS
)
REDIS_ERRORS = _counter(RELIABILITY + "redis_errors_total", "Calls of Redis that failed.")
WORKER_INFO = _gauge(RELIABILITY + "worker_info", "1, with the version of the worker that serves this host.", VERSION)

# The fleet, as any beat sees it: several beats serve the same figures.
FLEET_VMS = _fleet(RELIABILITY + "fleet_vms", "VMs of the fleet by state.", STATE)
FLEET_SLOTS_USED = _fleet(RELIABILITY + "fleet_slots_used", "Recovery slots of the fleet that are taken or kept.")
FLEET_SLOTS_LIMIT = _fleet(
    RELIABILITY + "fleet_slots_limit", "Recovery slots of the fleet that may be taken now; fewer in a storm."
)
FLEET_STORM = _fleet(RELIABILITY + "fleet_storm_active", "1: the storm guard of the whole fleet is active.")
BREAKERS = _fleet(
    RELIABILITY + "breakers", "Circuit breakers that are not closed, by kind of scope and state.", KIND, STATE
)
HALTED_HOSTS = _fleet(RELIABILITY + "halted_hosts", "Hosts that recover nothing now: frozen data, or paused.", KIND)
HELD_PLACES = _fleet(
    RELIABILITY + "held_places", "Places on which people hold an operator mode: the fleet, or hosts.", KIND, MODE
)
HOST_AGE = _fleet(RELIABILITY + "host_heartbeat_age_seconds", "Time since a worker of this host was last seen.", HOST)
HOST_VMS = _fleet(RELIABILITY + "host_vms", "VMs registered on this host.", HOST)
BEAT_LAG = _fleet(RELIABILITY + "beat_lag_seconds", "How late the most overdue work was when this beat last claimed.")
BEAT_TICK = _fleet(RELIABILITY + "beat_tick_timestamp_seconds", "Unix time of this beat's last claim that Redis took.")
BEAT_CLAIMED = _fleet(RELIABILITY + "beat_claimed_total", "VM checks this beat has handed out.", kind=Kind.COUNTER)
BEAT_MESSAGES = _fleet(RELIABILITY + "beat_messages_total", "Messages this beat has sent.", KIND, kind=Kind.COUNTER)
REFUSED_WRITES = _fleet(
    RELIABILITY + "refused_writes_total", "Writes of attempts that had lost their lease, refused.", kind=Kind.COUNTER
)
BEAT_REDIS_ERRORS = _fleet(
    RELIABILITY + "beat_redis_errors_total", "Claims of this beat that failed.", kind=Kind.COUNTER
)

METRICS: tuple[Metric, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Metric))
PER_VM = (CHECKS, CHECK_FAILURES, LOST, ORPHANED, ATTEMPTS, SUCCESS)
OF_BEAT = (
    FLEET_VMS,
    FLEET_SLOTS_USED,
    FLEET_SLOTS_LIMIT,
    FLEET_STORM,
    BREAKERS,
    HALTED_HOSTS,
    HELD_PLACES,
    HOST_AGE,
    HOST_VMS,
    BEAT_LAG,
    BEAT_TICK,
    BEAT_CLAIMED,
    BEAT_MESSAGES,
    REFUSED_WRITES,
    BEAT_REDIS_ERRORS,
)
OF_WORKER = tuple(metric for metric in METRICS if metric not in OF_BEAT)
