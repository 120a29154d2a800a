"""No log line shows a secret, wherever in a record it is."""

import io
import logging
import subprocess
import sys
from collections.abc import Iterator

import pytest
import structlog

from workers.telemetry.logging import configure_logging
from workers.telemetry.redaction import Redaction, header_values, passwords_in

CONFIGURED = "tr0ub4dor&3"


@pytest.fixture(params=["logfmt", "json", "console"])
def lines(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    configure_logging("info", request.param, secrets={CONFIGURED, "admin:adm1npass", "abc"})
    yield stream
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def failed(log: structlog.stdlib.BoundLogger | logging.Logger, what: str) -> None:
    try:
        int(what)
    except ValueError:
        log.exception("no connection to %s", what)


def test_passwords_of_urls_are_in_no_message_field_or_traceback(lines: io.StringIO) -> None:
    url = "redis://user:s3cret@redis.internal:6379/0"
    log, library = structlog.get_logger("tests.own"), logging.getLogger("library")

    log.info("trying %s", url, url=url, urls=[url], inside={"deep": {"url": url}}, error=OSError(url), raw=url.encode())
    library.warning("trying %s", url)
    failed(log, url)
    failed(library, url)

    assert "s3cret" not in lines.getvalue()
    assert "redis://user:***@redis.internal:6379/0" in lines.getvalue()


def test_configured_secrets_are_in_no_line_in_any_of_their_forms(lines: io.StringIO) -> None:
    log = structlog.get_logger("tests.own")

    log.warning("said %s", CONFIGURED, plain=CONFIGURED, quoted="tr0ub4dor%263", basic="YWRtaW46YWRtMW5wYXNz")
    failed(logging.getLogger("library"), f"AUTH {CONFIGURED}")

    for form in ("tr0ub4dor", "YWRtaW46"):
        assert form not in lines.getvalue()


def test_short_values_are_no_secrets(lines: io.StringIO) -> None:
    logging.getLogger("library").warning("the abc of logging")
    assert "the abc of logging" in lines.getvalue()


@pytest.mark.parametrize(
    "name", ["password", "db_passwd", "token", "client_secret", "Authorization", "basic_auth", "API-KEY", "Set-Cookie"]
)
def test_fields_that_are_secret_by_name_are_hidden_at_any_depth(name: str) -> None:
    event = {name: "s3cret", "headers": {name: ["s3cret"], "number": {name: 12345}}, "vm_id": "vm-1"}

    cleaned = Redaction()(None, "", event)

    assert cleaned == {name: "***", "headers": {name: "***", "number": {name: "***"}}, "vm_id": "vm-1"}


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("redis://:s3cret@h/0", "redis://:***@h/0"),
        ("redis://s3cret@h/0", "redis://***@h/0"),
        ("redis://u:s3c@ret@h/0", "redis://u:***@h/0"),
        ("redis://u:s3c/r'et@h/0", "redis://u:***@h/0"),
        ("redis://u:123456@h/0", "redis://u:***@h/0"),
        ("rediss://h1:6379/0 or rediss://:s3cret@h2/0", "rediss://h1:6379/0 or rediss://:***@h2/0"),
        ("unix:///run/r.sock?db=0&password=s3cret", "unix:///run/r.sock?db=0&password=***"),
        ("401 GET /api?access_token=s3cret&x=1 (::1)", "401 GET /api?access_token=***&x=1 (::1)"),
        ("{'Authorization': 'Basic czNjcmV0', 'Host': 'h'}", "{'Authorization': '***', 'Host': 'h'}"),
        ("Cookie: a=s3cret; b=s3cret\nHost: h", "Cookie: ***\nHost: h"),
    ],
)
def test_secrets_in_texts_are_hidden(text: str, cleaned: str) -> None:
    assert Redaction().text(text) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:5555/user@example",
        "http://h/a:b@c",
        "mail to a@b.c about redis://h:6379/0",
        "what is it? token or password",
        "lease of vm-1 lost: token 7 is older than 8",
    ],
)
def test_innocent_texts_stay_as_they_are(text: str) -> None:
    assert Redaction(["unrelated"]).text(text) == text


@pytest.mark.parametrize("value", [None, True, 0, 1.5, "text"])
def test_plain_values_keep_their_type(value: object) -> None:
    assert Redaction()(None, "", {"value": value})["value"] is value


def test_the_secrets_of_urls_and_header_variables_are_found() -> None:
    assert passwords_in("redis://u:p%40ss@h/0?password=0ther") == {"p%40ss", "0ther"}
    assert passwords_in("redis://lonely@h/0") == {"lonely"}
    assert passwords_in("redis://h:6379/0") == set()
    assert header_values("Authorization=Basic%20abc123, x-key=k=1") == {"Basic abc123", "abc123", "k=1"}
    assert header_values("") == set()


def test_a_secret_that_is_no_text_of_unicode_does_no_harm() -> None:
    assert Redaction(["s3cret\udcff"]).text("say s3cret\udcff") == "say ***"


def test_a_program_logs_none_of_the_secrets_in_its_settings() -> None:
    environ = {
        "HOME": "/nonexistent",
        "RELIABILITY_HOST": "h1",
        "RELIABILITY_REDIS__URL": "redis://:first-s3cret@h/0",
        "RELIABILITY_BROKER__URL": "redis://:second-s3cret@h/1",
        "RELIABILITY_FLOWER__BASIC_AUTH": "admin:third-s3cret",
        "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "x-team=fourth-s3cret",
    }
    program = (
        "import logging; from workers.app import start_logging; start_logging();"
        "logging.getLogger('library').warning('first-s3cret second-s3cret third-s3cret fourth-s3cret')"
    )

    ended = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=30, check=True
    )

    assert 'event="*** *** *** ***" component=library host=h1' in ended.stderr
