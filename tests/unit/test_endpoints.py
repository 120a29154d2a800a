"""The small HTTP server beside the work: what it answers, and that it is in nobody's way."""

import io
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack

import httpx
import pytest

from tests.support.log_lines import logged
from tests.support.processes import wait_until
from workers.embedded import free_port
from workers.telemetry.endpoints import Endpoints, Reply, Route, json_reply

Serve = Callable[..., str]


def broken() -> Reply:
    raise KeyError("a bug")


ROUTES: Mapping[str, Route] = {
    "/good": lambda: json_reply({"is": "good"}),
    "/bad": lambda: json_reply({"is": "bad"}, is_good=False),
    "/text": lambda: Reply(b"plain\n", content_type="text/plain; version=0.0.4"),
    "/broken": broken,
}


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(routes: Mapping[str, Route] = ROUTES, **options: float) -> str:
            served = Endpoints("127.0.0.1", 0, routes, **options)
            stack.callback(served.stop)
            served.start()
            return url_of(served)

        yield start


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """One server for all tests that only ask."""
    served = Endpoints("127.0.0.1", 0, ROUTES)
    served.start()
    yield url_of(served)
    served.stop()


def url_of(served: Endpoints) -> str:
    return str(wait_until(lambda: served.url, what="it to listen"))


def port_of(url: str) -> int:
    return int(url.rpartition(":")[2])


def get(url: str) -> httpx.Response:
    return httpx.get(url, timeout=5)


def test_a_good_answer_is_200(url: str) -> None:
    reply = get(url + "/good")
    assert (reply.status_code, reply.json()) == (200, {"is": "good"})
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"


def test_a_bad_answer_is_503_with_its_document(url: str) -> None:
    reply = get(url + "/bad")
    assert (reply.status_code, reply.json()) == (503, {"is": "bad"})


def test_a_route_says_what_its_answer_is(url: str) -> None:
    reply = get(url + "/text")
    assert reply.headers["content-type"] == "text/plain; version=0.0.4"
    assert reply.text == "plain\n"


def test_an_unknown_path_is_404_and_says_what_is_known(url: str) -> None:
    reply = get(url + "/nothing")
    assert reply.status_code == 404
    assert reply.json() == {"error": "no /nothing here", "known": [*ROUTES]}


def test_the_root_lists_what_there_is(url: str) -> None:
    reply = get(url + "/")
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "text/plain"
    assert reply.text.split() == [*ROUTES]


@pytest.mark.parametrize("path", ["/good?verbose=1", "/good/", "/good/?x"])
def test_a_query_or_a_slash_at_the_end_changes_nothing(url: str, path: str) -> None:
    assert get(url + path).json() == {"is": "good"}


@pytest.mark.parametrize(("path", "status"), [("/good", 200), ("/bad", 503), ("/nothing", 404), ("/", 200)])
def test_head_is_answered_as_get_is_but_without_a_body(url: str, path: str, status: int) -> None:
    url = url + path
    asked, got = httpx.head(url, timeout=5), get(url)
    assert asked.status_code == got.status_code == status
    assert asked.content == b""
    assert asked.headers["content-length"] == str(len(got.content))
    assert asked.headers["content-type"] == got.headers["content-type"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_nothing_can_be_changed_here(url: str, method: str) -> None:
    assert httpx.request(method, url + "/good", timeout=5).status_code == 501


def test_a_route_that_fails_is_503_with_its_error_and_the_next_request_is_served(
    lines: io.StringIO, serve: Serve
) -> None:
    url = serve()
    for _ in range(2):
        reply = get(url + "/broken")
        assert reply.status_code == 503
        assert reply.json() == {"error": "KeyError: 'a bug'"}
    assert get(url + "/good").status_code == 200
    assert 'event="an endpoint failed"' in lines.getvalue()
    assert "path=/broken" in lines.getvalue()


def test_where_it_listens_is_said_once_and_requests_are_no_news(lines: io.StringIO, serve: Serve) -> None:
    url = serve()
    for path in ROUTES.keys() - {"/broken"}:
        get(url + path)
    said = [line for line in lines.getvalue().splitlines() if "component=httpx" not in line]
    assert len(said) == 1
    assert f"url={url}" in said[0]


def test_the_answer_of_a_broken_client_concerns_nobody(url: str) -> None:
    port = port_of(url)
    for sent in (b"", b"GET", b"nonsense\r\n\r\n", b"GET /text HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x00" * 20):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(sent)
    assert get(url + "/good").status_code == 200


def test_a_client_that_does_not_go_on_blocks_no_other(url: str) -> None:
    port = port_of(url)
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5))
            client.sendall(b"GET /good HTTP/1.1\r\nHost: x")
        assert get(url + "/good").status_code == 200


def test_a_client_that_does_not_go_on_is_let_go(serve: Serve) -> None:
    port = port_of(serve(timeout_s=0.1))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.sendall(b"GET /good HTTP/1.1\r\nHost: x")
        assert client.recv(100) == b""


def test_a_route_that_takes_long_blocks_no_other(serve: Serve) -> None:
    released, entered = threading.Event(), threading.Event()

    def slow() -> Reply:
        entered.set()
        released.wait(10)
        return json_reply({"is": "slow"})

    url = serve({**ROUTES, "/slow": slow})
    answers: list[httpx.Response] = []
    asker = threading.Thread(target=lambda: answers.append(get(url + "/slow")))
    asker.start()
    try:
        assert entered.wait(5)
        assert get(url + "/good").status_code == 200
    finally:
        released.set()
        asker.join()
    assert answers[0].json() == {"is": "slow"}


def test_a_port_that_is_taken_is_waited_for_and_said_once(lines: io.StringIO) -> None:
    predecessor = Endpoints("127.0.0.1", free_port(), ROUTES)
    predecessor.start()
    url = url_of(predecessor)
    successor = Endpoints("127.0.0.1", port_of(url), {"/good": lambda: json_reply({"is": "new"})}, again_s=0.02)
    began = time.monotonic()
    successor.start()
    try:
        assert time.monotonic() - began < 1, "starting never waits"
        wait_until(lambda: "wait for their port" in lines.getvalue(), what="it to say that it waits")
        nowhere = successor.url
        assert nowhere is None
        assert get(url + "/good").json() == {"is": "good"}

        predecessor.stop()

        wait_until(lambda: successor.url, what="the successor to listen")
        assert successor.url == url
        assert get(url + "/good").json() == {"is": "new"}
        assert lines.getvalue().count("wait for their port") == 1
    finally:
        predecessor.stop()
        successor.stop()


def test_it_ends_promptly_also_while_it_waits_for_its_port_or_for_a_client() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        waiting = Endpoints("127.0.0.1", taken.getsockname()[1], ROUTES)
        waiting.start()
        began = time.monotonic()
        waiting.stop()
        assert time.monotonic() - began < 2

    busy = Endpoints("127.0.0.1", 0, {"/slow": lambda: Reply(str(threading.Event().wait(20)).encode())})
    busy.start()
    url = url_of(busy)
    with socket.create_connection(("127.0.0.1", port_of(url)), timeout=5) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        began = time.monotonic()
        busy.stop()
        assert time.monotonic() - began < 3


def test_the_end_comes_also_where_it_never_began_or_came_before() -> None:
    never = Endpoints("127.0.0.1", 0, ROUTES)
    never.stop()
    once = Endpoints("127.0.0.1", 0, ROUTES)
    once.start()
    url_of(once)
    once.stop()
    once.stop()


def test_an_end_that_comes_with_the_beginning_waits_for_nothing() -> None:
    for _ in range(3):
        served = Endpoints("127.0.0.1", 0, ROUTES)
        served.start()
        began = time.monotonic()
        served.stop()
        assert time.monotonic() - began < 2


def test_nobody_answers_after_the_end() -> None:
    served = Endpoints("127.0.0.1", 0, ROUTES)
    served.start()
    url = url_of(served)
    served.stop()
    with pytest.raises(httpx.ConnectError):
        get(url + "/good")


def test_a_document_is_json_that_people_can_read() -> None:
    reply = json_reply({"a": {"b": [1, None]}})
    assert json.loads(reply.body) == {"a": {"b": [1, None]}}
    assert reply.body.count(b"\n") > 1
