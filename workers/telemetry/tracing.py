"""The Telemetry port as spans.

All of one episode is one trace, whoever works on it: its id, and that of its first span, are made from the episode's
(`domain.audit.trace_id_of`), so neither a lost message nor another worker breaks the story. Celery's own spans are
traces of their own, linked to it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, Status, StatusCode, TraceFlags

from workers.domain.audit import Event, EventKind, trace_id_of
from workers.domain.evidence import Evidence, Observation, Verdict
from workers.domain.vm import Episode, Reason, State, VmRecord
from workers.ports import Ignorance, Stored, Work
from workers.telemetry.story import is_new_loss, is_wanted

LOST_SPAN = "vm_lost"
_STEPS = frozenset({Work.FENCE, Work.START, Work.VERIFY, Work.COMMIT})
# Of one batch; more would only be cut by the limit of OpenTelemetry (128 events per span).
_MOST_EVENTS = 100

_ids: ContextVar[tuple[int, int] | None] = ContextVar("ids", default=None)


class EpisodeIds(IdGenerator):
    """Random ids, but for the first span of an episode."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()

    def generate_trace_id(self) -> int:
        given = _ids.get()
        return given[0] if given else self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        given = _ids.get()
        return given[1] if given else self._random.generate_span_id()


def _ids_of(episode: Episode) -> tuple[int, int]:
    trace_id = int(trace_id_of(episode), 16)
    return trace_id, (trace_id >> 64) or 1


def _root_of(episode: Episode) -> SpanContext:
    trace_id, span_id = _ids_of(episode)
    return SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))


class TracingTelemetry:
    def __init__(self, tracer: trace.Tracer, *, host: str) -> None:
        self._tracer, self._host = tracer, host

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        span = trace.get_current_span()
        for event in events:
            if record is not None and record.episode is not None:
                self._begin_story(event, record, record.episode)
            if span.is_recording():
                span.add_event(event.kind, _facts(event))
                if event.kind is EventKind.ATTEMPT_FAILED or event.after is State.FAILED:
                    span.set_status(Status(StatusCode.ERROR, event.why))

    def _begin_story(self, event: Event, record: VmRecord, episode: Episode) -> None:
        """The first span of an episode stands for its detection; it links to the batch that saw it, and back."""
        if not is_new_loss(event) or event.reason is Reason.NOT_STARTED or episode.attempt:
            return
        seen_in = trace.get_current_span()
        token = _ids.set(_ids_of(episode))
        try:
            links = [Link(seen_in.get_span_context())] if seen_in.get_span_context().is_valid else []
            span = self._tracer.start_span(LOST_SPAN, context_api.Context(), links=links, attributes=_about(record))
        finally:
            _ids.reset(token)
        span.set_attribute("why", event.why)
        span.end()
        if seen_in.is_recording():
            seen_in.add_link(span.get_span_context())

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        del now_ms
        span = trace.get_current_span()
        if not span.is_recording():
            return
        failing = [vm_id for vm_id, seen in looks.items() if _fails(found[vm_id].record, seen)]
        for vm_id in failing[:_MOST_EVENTS]:
            seen = looks[vm_id]
            facts = {"vm_id": vm_id, "evidence": seen.evidence, "detail": seen.detail, "verdict": seen.ruling.verdict}
            span.add_event("vm health check failed", facts | {"state": found[vm_id].record.state})
        counts = getattr(span, "attributes", None) or {}
        span.set_attribute("vms", int(counts.get("vms", 0)) + len(looks))
        span.set_attribute("failing", int(counts.get("failing", 0)) + len(failing))

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            span.add_event("message changed nothing", {"vm_id": vm_id, "why": why, "cause": cause})

    def checks_came(self, age_ms: int) -> None:
        span = trace.get_current_span()
        if span.is_recording():
            span.set_attribute("queue_age_ms", age_ms)

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        if work is Work.ATTEMPT and record is not None and record.episode is not None:
            return self._attempt(record, record.episode)
        if work in _STEPS and not trace.get_current_span().is_recording():
            return nullcontext()
        return self._within(work)

    @contextmanager
    def _within(self, work: Work) -> Iterator[None]:
        with self._tracer.start_as_current_span(work, attributes={"host": self._host}):
            yield

    @contextmanager
    def _attempt(self, record: VmRecord, episode: Episode) -> Iterator[None]:
        """Part of the episode's trace; the Celery task that carries it out is linked."""
        carrier = trace.get_current_span().get_span_context()
        links = [Link(carrier)] if carrier.is_valid else []
        story = trace.set_span_in_context(NonRecordingSpan(_root_of(episode)), context_api.Context())
        with self._tracer.start_as_current_span(Work.ATTEMPT, story, links=links, attributes=_about(record)):
            yield


def _fails(record: VmRecord, seen: Observation) -> bool:
    """A VM that waits for its first start does not fail, nor does one that is to be stopped."""
    waits = seen.evidence is Evidence.NOT_STARTED or is_wanted(record, seen)
    return seen.ruling.verdict is not Verdict.PASS and not waits


def _about(record: VmRecord) -> dict[str, str | int]:
    episode = record.episode
    about: dict[str, str | int] = {
        "vm_id": record.vm_id,
        "host": record.host,
        "driver": record.driver,
        "generation": record.generation,
    }
    return about | ({"episode": episode.id, "reason": episode.reason, "attempt": episode.attempt} if episode else {})


def _facts(event: Event) -> dict[str, str | int]:
    named = {
        "vm_id": event.vm_id,
        "why": event.why,
        "before": event.before,
        "after": event.after,
        "reason": event.reason,
        "attempt": event.attempt,
        "generation": event.generation,
        "trace_id": event.trace_id,
    }
    return {name: value for name, value in named.items() if value not in (None, "")}


def instrument(tracer_provider: Any, meter_provider: Any) -> None:
    """Trace what Celery does in this process; links instead of parents, or each retry would nest in the one before."""
    CeleryInstrumentor().instrument(  # type: ignore[no-untyped-call] # OpenTelemetry's contrib is half typed
        tracer_provider=tracer_provider, meter_provider=meter_provider, use_span_links=True
    )


def uninstrument() -> None:
    CeleryInstrumentor().uninstrument()  # type: ignore[no-untyped-call] # the same
