"""The Telemetry port as log lines: each decision once, in the words that operators grep for (DESIGN section 10)."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import structlog

from workers.domain.audit import Event, EventKind, trace_id_of
from workers.domain.evidence import RULINGS, Evidence, Observation, Verdict
from workers.domain.vm import Desired, Reason, State, VmRecord
from workers.ports import Ignorance, Stored, Work

# Under this name nothing is left out as a repetition: what is counted by grep has to be there.
DECISIONS = "workers.decisions"

_log = structlog.get_logger()
_decisions = structlog.get_logger(DECISIONS)

LOST = frozenset({State.UNHEALTHY, State.ORPHANED})
ATTEMPT_FAILED = "vm recovery attempt failed"
_TRANSITIONS = {
    State.UNHEALTHY: ("warning", "vm marked as unhealthy"),
    State.ORPHANED: ("warning", "orphaned vm detected"),
    State.FAILED: ("error", "vm recovery failed completely"),
}
# What is known already, or dealt with, is not said again at every check.
_SETTLED = frozenset({State.ORPHANED, State.RECOVERING, State.FAILED, State.STOPPED})
KINDS = {
    EventKind.ATTEMPT_STARTED: ("info", "attempting vm recovery"),
    EventKind.ATTEMPT_FAILED: ("warning", ATTEMPT_FAILED),
    EventKind.RECOVERED: ("info", "vm recovery successful"),
    EventKind.ADOPTED: ("info", "running vm taken over"),
    EventKind.DEFERRED: ("info", "recovery deferred"),
    EventKind.STRAY: ("warning", "stray vmm found"),
    EventKind.REAPED: ("warning", "stray vmm reaped"),
    EventKind.REBUILT: ("info", "records rebuilt"),
    EventKind.BREAKER: ("warning", "circuit breaker changed"),
    EventKind.STORM_BEGAN: ("warning", "storm guard active"),
    EventKind.STORM_ENDED: ("info", "storm guard over"),
    EventKind.QUARANTINE: ("warning", "recovery in quarantine"),
    EventKind.FROZEN: ("critical", "recovery halted"),
    EventKind.THAWED: ("info", "recovery goes on"),
    EventKind.CONFIRMED: ("warning", "data confirmed"),
    EventKind.UNLISTED: ("warning", "vm not in the registry"),
    EventKind.STOPPED_AGAIN: ("warning", "vm stopped again"),
    EventKind.MODE: ("warning", "operator mode changed"),
    EventKind.WOULD_HAVE: ("warning", "observe-only: would have acted"),
    EventKind.HELD: ("info", "recovery held back"),
    EventKind.RESET: ("warning", "vm reset"),
}
# A first start is no recovery: whoever counts recoveries must not count it.
FIRST_STARTS = {
    EventKind.ATTEMPT_STARTED: ("info", "starting vm for the first time"),
    EventKind.ATTEMPT_FAILED: ("warning", "vm start attempt failed"),
    EventKind.RECOVERED: ("info", "vm started"),
    EventKind.TRANSITION: ("error", "vm could not be started"),
}
# More VMs of a batch than this that could not be judged for the same reason are told together.
_MOST_ALIKE = 5
_OF_RECOVERY = frozenset(
    {
        EventKind.ATTEMPT_STARTED,
        EventKind.ATTEMPT_FAILED,
        EventKind.RECOVERED,
        EventKind.DEFERRED,
        EventKind.HELD,
        EventKind.WOULD_HAVE,
    }
)


class LogTelemetry:
    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        for event in events:
            is_recovery = event.reason is not Reason.NOT_STARTED
            if is_recovery and event.kind is EventKind.ATTEMPT_STARTED and event.attempt == 1:
                _say("info", "starting vm recovery", event)
            if is_recovery and ends_last_attempt(event):
                _say("warning", ATTEMPT_FAILED, event, error=_error_of(record))
            _say(*_words(event), event)

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        del now_ms
        failing = [vm_id for vm_id, seen in looks.items() if seen.evidence is not Evidence.ANSWERS]
        told = [vm_id for vm_id in failing if not is_wanted(found[vm_id].record, looks[vm_id])]
        for evidence, number in Counter(looks[vm_id].evidence for vm_id in told).items():
            if number > _MOST_ALIKE and RULINGS[evidence].verdict is Verdict.INCONCLUSIVE:
                told = [vm_id for vm_id in told if looks[vm_id].evidence is not evidence]
                _tell_alike(evidence, {vm_id: seen for vm_id, seen in looks.items() if seen.evidence is evidence})
        for vm_id in told:
            _tell_look(found[vm_id].record, looks[vm_id])

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        _log.info("message changed nothing", component="recovery", vm_id=vm_id, why=why, cause=str(cause))

    def checks_came(self, age_ms: int) -> None:
        pass

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        """Every line that is written inside names the VM and the attempt."""
        return _bound(record) if record is not None and work is Work.ATTEMPT else nullcontext()


@contextmanager
def _bound(record: VmRecord) -> Iterator[None]:
    episode = record.episode
    fields: dict[str, Any] = {"vm_id": record.vm_id, "generation": record.generation}
    if episode is not None:
        fields |= {"attempt": episode.attempt, "trace_id": trace_id_of(episode)}
    with structlog.contextvars.bound_contextvars(**fields):
        yield


def ends_last_attempt(event: Event) -> bool:
    """Whether with this episode, for which a person is asked now, an attempt failed that was running."""
    return event.kind is EventKind.TRANSITION and event.after is State.FAILED and event.before is State.RECOVERING


def is_new_loss(event: Event) -> bool:
    """Whether with this a VM is marked as lost that was not before."""
    return event.kind is EventKind.TRANSITION and event.after in LOST and event.before not in LOST


def is_wanted(record: VmRecord, seen: Observation) -> bool:
    """Whether a VM fails that is to be stopped: no news but its stop, which is told as such."""
    return record.desired is Desired.STOPPED and seen.ruling.verdict is Verdict.FAIL


def _error_of(record: VmRecord | None) -> str | None:
    return record.episode.error if record is not None and record.episode is not None else None


def _tell_alike(evidence: Evidence, looks: Mapping[str, Observation]) -> None:
    """What is wrong with ourselves is one story, however many VMs it keeps us from seeing."""
    first, seen = next(iter(looks.items()))
    _log.warning(
        "many vm health checks inconclusive",
        component="health_check",
        evidence=str(evidence),
        vms=len(looks),
        first_vm=first,
        detail=seen.detail,
    )


def _tell_look(record: VmRecord, seen: Observation) -> None:
    ruling = seen.ruling
    if ruling.reason is Reason.NOT_STARTED:
        return
    fields = {
        "component": "health_check",
        "vm_id": record.vm_id,
        "host": record.host,
        "evidence": str(seen.evidence),
        "detail": seen.detail,
        "state": str(record.state),
    }
    if record.state in _SETTLED:
        _log.debug("vm still fails its health check", **fields)
    elif seen.evidence is Evidence.DRIFT:
        _log.warning("vm drifts from its desired state", **fields)
    elif ruling.verdict is Verdict.INCONCLUSIVE:
        _log.warning("vm health check inconclusive", **fields)
    else:
        _decisions.warning("vm health check failed", reason=str(ruling.reason), fails=record.fails + 1, **fields)


class NoTelemetry:
    """For programs that show what they do themselves."""

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        pass

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        pass

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        pass

    def checks_came(self, age_ms: int) -> None:
        pass

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        del work, record
        return nullcontext()


def _words(event: Event) -> tuple[str, str]:
    is_start = event.reason is Reason.NOT_STARTED
    if event.kind is EventKind.TRANSITION:
        if is_start and event.after is State.FAILED:
            return FIRST_STARTS[event.kind]
        return _TRANSITIONS.get(event.after or State.UNKNOWN, ("info", f"vm is {event.after}"))
    if is_start and event.kind in FIRST_STARTS:
        return FIRST_STARTS[event.kind]
    return KINDS.get(event.kind, ("info", f"vm {event.kind}"))


def _say(level: str, message: str, event: Event, *, error: str | None = None) -> None:
    component = "recovery" if event.kind in _OF_RECOVERY or event.after is State.FAILED else event.actor
    fields: dict[str, Any] = {
        "component": component,
        "actor": event.actor if event.actor != component else None,
        "vm_id": event.vm_id,
        "host": event.host,
        "reason": event.reason,
        "attempt": event.attempt,
        "generation": event.generation,
        "before": event.before,
        "after": event.after,
        "why": error or event.why,
        "cause": event.cause,
        "request_id": event.request_id,
        "scope": event.scope,
        "trace_id": event.trace_id,
    }
    getattr(_decisions, level)(message, **{name: value for name, value in fields.items() if value not in (None, "")})
