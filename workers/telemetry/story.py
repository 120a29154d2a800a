"""The Telemetry port as log lines: each decision once, in the words that operators grep for (DESIGN section 10)."""

from collections.abc import Sequence
from typing import Any

import structlog

from workers.domain.audit import Event, EventKind
from workers.domain.evidence import Evidence, Observation, Verdict
from workers.domain.vm import Reason, State, VmRecord

_log = structlog.get_logger()

_TRANSITIONS = {
    State.UNHEALTHY: ("warning", "vm marked as unhealthy"),
    State.ORPHANED: ("warning", "orphaned vm detected"),
    State.FAILED: ("error", "vm recovery failed completely"),
}
# What is known already, or dealt with, is not said again at every check.
_SETTLED = frozenset({State.ORPHANED, State.RECOVERING, State.FAILED, State.STOPPED})
_KINDS = {
    EventKind.ATTEMPT_STARTED: ("info", "attempting vm recovery"),
    EventKind.ATTEMPT_FAILED: ("warning", "vm recovery attempt failed"),
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
    EventKind.STOPPED_AGAIN: ("warning", "vm stopped again"),
}


class LogTelemetry:
    def decided(self, events: Sequence[Event]) -> None:
        for event in events:
            level, message = _words(event)
            if event.kind is EventKind.ATTEMPT_STARTED and event.attempt == 1:
                _say("info", "starting vm recovery", event)
            _say(level, message, event)

    def looked(self, record: VmRecord, seen: Observation) -> None:
        ruling = seen.ruling
        if seen.evidence is Evidence.ANSWERS or ruling.reason is Reason.NOT_STARTED:
            return
        fields = {
            "vm_id": record.vm_id,
            "host": record.host,
            "evidence": str(seen.evidence),
            "detail": seen.detail,
            "state": str(record.state),
        }
        if record.state in _SETTLED:
            _log.debug("vm still fails its health check", component="health_check", **fields)
        elif seen.evidence is Evidence.DRIFT:
            _log.warning("vm drifts from its desired state", component="health_check", **fields)
        elif ruling.verdict is Verdict.INCONCLUSIVE:
            _log.info("vm health check inconclusive", component="health_check", **fields)
        else:
            _log.warning("vm health check failed", component="health_check", reason=str(ruling.reason), **fields)

    def ignored(self, vm_id: str, why: str) -> None:
        _log.info("message changed nothing", component="recovery", vm_id=vm_id, why=why)


class NoTelemetry:
    """For programs that show what they do themselves."""

    def decided(self, events: Sequence[Event]) -> None:
        pass

    def looked(self, record: VmRecord, seen: Observation) -> None:
        pass

    def ignored(self, vm_id: str, why: str) -> None:
        pass


def _words(event: Event) -> tuple[str, str]:
    if event.kind is EventKind.TRANSITION and event.after in _TRANSITIONS:
        return _TRANSITIONS[event.after]
    if event.after is not None and event.kind is EventKind.TRANSITION:
        return "info", f"vm is {event.after}"
    return _KINDS.get(event.kind, ("info", f"vm {event.kind}"))


def _say(level: str, message: str, event: Event) -> None:
    fields: dict[str, Any] = {
        "component": event.actor,
        "vm_id": event.vm_id,
        "host": event.host,
        "reason": event.reason,
        "attempt": event.attempt,
        "generation": event.generation,
        "before": event.before,
        "after": event.after,
        "why": event.why,
        "request_id": event.request_id,
        "scope": event.scope,
    }
    getattr(_log, level)(message, **{name: value for name, value in fields.items() if value not in (None, "")})
