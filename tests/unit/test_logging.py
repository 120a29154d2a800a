"""The log pipeline: one line per record, from whoever it comes and whatever happens."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import structlog
from celery import Celery
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from workers.telemetry.logging import bind_tasks, configure_logging

Logging = Callable[..., io.StringIO]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Logging]:
    """Configure logging to a stream of its own; gives that stream."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def configured(form: str = "logfmt", *, stream: io.StringIO | None = None, **options: object) -> io.StringIO:
        stream = stream or io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        configure_logging("info", form, **options)  # type: ignore[arg-type] # handed through
        return stream

    yield configured
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:] = handlers
    root.setLevel(level)


def only_line(stream: io.StringIO) -> str:
    [line] = stream.getvalue().splitlines()
    return line


def own() -> structlog.stdlib.BoundLogger:
    log: structlog.stdlib.BoundLogger = structlog.get_logger("tests.own")
    return log


def failed(log: structlog.stdlib.BoundLogger | logging.Logger) -> None:
    try:
        int("bad\nnumber")
    except ValueError:
        log.exception("it failed")


def test_json_has_a_record_per_line_from_us_and_from_libraries(logged: Logging) -> None:
    stream = logged("json")

    own().info("vm is healthy", component="health_check", vm_id="vm-1", fails=0, detail="a\nb")
    logging.getLogger("kombu.connection").warning("gone: %s", "redis")

    mine, theirs = map(json.loads, stream.getvalue().splitlines())
    assert (mine["event"], mine["level"], mine["vm_id"], mine["fails"]) == ("vm is healthy", "info", "vm-1", 0)
    assert mine["detail"] == "a | b"
    assert (theirs["event"], theirs["level"], theirs["component"]) == ("gone: redis", "warning", "kombu")
    assert mine["timestamp"].endswith("Z")
    assert len(theirs["timestamp"]) == len(mine["timestamp"])


def test_a_traceback_is_a_field_of_its_one_line(logged: Logging) -> None:
    stream = logged()

    failed(own())
    failed(logging.getLogger("library"))

    assert stream.getvalue().count("\n") == 2
    for line in stream.getvalue().splitlines():
        assert 'exception="Traceback (most recent call last): | ' in line
        assert "ValueError: invalid literal" in line


def test_nothing_in_a_record_moves_the_cursor_or_begins_a_line(logged: Logging) -> None:
    stream = logged()

    own().info("a\rb", detail="\x1b[2J\tc\u2028d", error=ValueError("e\nf"))

    line = only_line(stream)
    assert line.isprintable()
    assert 'event="a | b"' in line
    assert "\\x1b[2J" in line


def test_on_a_terminal_there_are_colours_and_whole_tracebacks(logged: Logging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    stream = logged("auto", stream=Terminal())

    own().info("vm is healthy")
    failed(own())

    assert "\x1b[" in stream.getvalue()
    assert "\nTraceback (most recent call last):\n" in stream.getvalue()


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("NO_COLOR", "0"), ("TERM", "dumb")])
def test_whoever_wants_no_colours_gets_none(
    logged: Logging, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    stream = logged("auto", stream=Terminal())

    own().warning("vm is unhealthy")

    assert "vm is unhealthy" in stream.getvalue()
    assert "\x1b[" not in stream.getvalue()


def test_an_empty_no_color_says_nothing(logged: Logging, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "")
    stream = logged("console", stream=Terminal())

    own().info("vm is healthy")

    assert "\x1b[" in stream.getvalue()


def test_static_fields_stand_where_the_record_has_none_of_its_own(logged: Logging) -> None:
    stream = logged("json", static={"host": "h1"})

    own().info("here")
    own().info("there", host="h2")
    logging.getLogger("kombu").warning("gone")
    with structlog.contextvars.bound_contextvars(host="h3"):
        own().info("bound")

    assert [json.loads(line)["host"] for line in stream.getvalue().splitlines()] == ["h1", "h2", "h1", "h3"]


def test_context_is_in_the_records_of_libraries_too(logged: Logging) -> None:
    stream = logged()

    with structlog.contextvars.bound_contextvars(vm_id="vm-1", attempt=2):
        logging.getLogger("redis").warning("slow")

    assert "vm_id=vm-1" in only_line(stream)
    assert "attempt=2" in only_line(stream)


def test_the_span_at_hand_is_named(logged: Logging) -> None:
    stream = logged("json")
    span = NonRecordingSpan(SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1)))

    with trace.use_span(span):
        own().info("inside")
        own().info("of another", trace_id="f" * 32)
        logging.getLogger("kombu").warning("theirs")
    own().info("outside")

    inside, other, theirs, outside = map(json.loads, stream.getvalue().splitlines())
    assert (inside["trace_id"], inside["span_id"]) == (f"{0xABC:032x}", f"{0xDEF:016x}")
    assert theirs["trace_id"] == inside["trace_id"]
    assert other["trace_id"] == "f" * 32
    assert "span_id" not in other
    assert "trace_id" not in outside


def test_what_a_task_says_has_its_id_and_what_follows_has_not(logged: Logging) -> None:
    stream = logged("json")
    app = Celery("tests", set_as_current=False)

    @app.task(name="tests.say")  # type: ignore[untyped-decorator] # Celery is untyped
    def say() -> None:
        own().info("inside")

    bind_tasks()
    bind_tasks()
    say.apply(task_id="task-1")
    own().info("outside")

    inside, outside = map(json.loads, stream.getvalue().splitlines())
    assert inside["task_id"] == "task-1"
    assert "task_id" not in outside


class Unsayable:
    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


def test_what_cannot_be_written_is_told_and_not_raised(logged: Logging) -> None:
    stream = logged()

    own().info("own", value=Unsayable())
    own().warning("own too", value=Unsayable())
    own().info("strange name", **{"a b": 1})
    logging.getLogger("library").warning("two words: %s %s", *["one"])
    logging.getLogger("library").warning(Unsayable())

    lines = stream.getvalue().splitlines()
    assert len(lines) == 5
    assert all('event="log record could not be written"' in line for line in lines)
    assert 'about="own too"' in lines[1]
    assert 'about="two words: %s %s"' in lines[3]


def test_a_closed_stderr_does_not_matter(logged: Logging) -> None:
    stream = logged()
    stream.close()

    own().error("nobody hears")
    logging.getLogger("library").error("nobody hears")
    logged("auto", stream=stream)
    own().error("nobody hears")


@pytest.mark.parametrize("redirect", ["2>&-", "2>/dev/full", "2> >(exec true)"])
def test_a_process_without_stderr_lives_on(redirect: str) -> None:
    program = (
        "import time, structlog, logging; from workers.telemetry.logging import configure_logging;"
        "configure_logging('info', 'auto'); time.sleep(0.2);"
        "structlog.get_logger().error('nobody hears'); logging.getLogger('x').error('nobody hears');"
        "logging.getLogger('x').error('nobody hears'); print('alive')"
    )
    command = ["bash", "-c", f'"$0" -c "$1" {redirect}', sys.executable, program]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    assert ended.stdout == "alive\n"


def test_records_below_the_level_are_not_even_gathered(logged: Logging) -> None:
    stream = logged()

    own().debug("not asked for", value=Unsayable())

    assert stream.getvalue() == ""


def test_nothing_is_written_twice_after_configuring_again(logged: Logging) -> None:
    logged()
    stream = logged()

    logging.getLogger("celery.worker").warning("once")

    assert only_line(stream)


@pytest.mark.parametrize("name", ["tornado.access", "kombu", "celery.app.trace", "celery.worker.strategy"])
def test_chatter_is_left_out(logged: Logging, name: str) -> None:
    stream = logged()

    logging.getLogger(name).info("200 GET /workers (127.0.0.1) 3.10ms")

    assert stream.getvalue() == ""
