"""What the Celery instrumentation leaves behind when a message is not sent is put right."""

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery
from celery._state import _set_current_app, get_current_app
from kombu.exceptions import OperationalError
from opentelemetry import trace
from opentelemetry.instrumentation.celery import CeleryInstrumentor, utils
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from workers.publishing import TracedCelery
from workers.telemetry.tracing import instrument, uninstrument

NOBODY = "redis://127.0.0.1:9/0"


@pytest.fixture
def finished() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrument(provider, MeterProvider(shutdown_on_exit=False))
    before = get_current_app()
    yield exporter
    _set_current_app(before)
    uninstrument()
    provider.shutdown()


def an_app(broker: str, kind: type[Celery] = TracedCelery) -> Celery:
    app = kind("test", broker=broker)
    app.conf.task_publish_retry = False
    app.conf.broker_transport_options = {"max_retries": 0, "interval_start": 0, "interval_max": 0}

    @app.task(name="known", shared=False)  # type: ignore[untyped-decorator] # Celery is untyped
    def known() -> None:
        pass

    return app


def left_open(task: object) -> dict[Any, Any]:
    return dict(getattr(task, utils.CTX_KEY, None) or {})


@pytest.mark.parametrize("name", ["known", "unknown"])
def test_a_broker_that_is_away_leaves_no_span_behind(finished: InMemorySpanExporter, name: str) -> None:
    app = an_app(NOBODY)

    with pytest.raises(OperationalError):
        app.send_task(name)

    assert not trace.get_current_span().get_span_context().is_valid
    assert left_open(app.tasks["known"]) == {}
    if name == "known":
        assert [span.name for span in finished.get_finished_spans()] == ["apply_async/known"]


def test_a_task_that_is_not_known_here_does_not_become_the_parent_of_what_follows(
    finished: InMemorySpanExporter,
) -> None:
    app = an_app("memory://")

    app.send_task("unknown")

    assert not trace.get_current_span().get_span_context().is_valid
    assert [span.name for span in finished.get_finished_spans()] == ["apply_async/unknown"]


def test_a_message_that_is_sent_is_one_span(finished: InMemorySpanExporter) -> None:
    app = an_app("memory://")

    app.send_task("known")

    assert [span.name for span in finished.get_finished_spans()] == ["apply_async/known"]
    assert not trace.get_current_span().get_span_context().is_valid


def test_the_leak_is_still_there_in_celery_as_it_is(finished: InMemorySpanExporter) -> None:
    """Once this fails, the instrumentation has been mended, and `publishing` has nothing left to do."""
    del finished
    app = an_app(NOBODY, Celery)
    before = trace.get_current_span()

    with pytest.raises(OperationalError):
        app.send_task("known")

    leaked = trace.get_current_span()
    assert leaked is not before
    assert left_open(app.tasks["known"])
    for entered in left_open(app.tasks["known"]).values():
        entered[1].__exit__(None, None, None)


def test_nothing_is_needed_where_nothing_is_instrumented() -> None:
    assert not CeleryInstrumentor().is_instrumented_by_opentelemetry  # type: ignore[no-untyped-call]

    with pytest.raises(OperationalError):
        an_app(NOBODY).send_task("known")
