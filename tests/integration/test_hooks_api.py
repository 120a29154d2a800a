"""The hooks API over a real Unix socket: what each route answers, and what is refused in which words."""

import io
import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import openapi_spec_validator
import pytest
from openapi_schema_validator import OAS31Validator

from tests.support.hooks import REQUEST_ID, Site, error_of, serving
from tests.support.log_lines import logged
from tests.support.processes import wait_until
from workers.domain.errors import Held, Refused, StoreUnavailable, UnknownVm, UnreadableRecord
from workers.domain.vm import Force, State
from workers.integration import openapi
from workers.integration.hooks import VmmProcess
from workers.integration.http_routes import ROUTES, Route

COMMITTED = Path(__file__).parents[2] / "config" / "openapi" / "hooks.json"
DESCRIPTION: dict[str, Any] = json.loads(COMMITTED.read_text())
SPEC = {"driver": "firecracker", "kernel": "/images/vmlinux"}
VM = "/v1/vms/vm-1"

# One call of each route that succeeds: what stands in its path and query, and its body.
EXAMPLES: dict[str, tuple[str, Any]] = {
    "created": ("", {"process": {"pid": 4242}, "config": SPEC}),
    "started": ("", {"process": {"pid": 4243, "start_ticks": 7, "boot_id": "b", "executable": "/bin/fc"}}),
    "stopping": ("", None),
    "stopped": ("", {}),
    "deleting": ("", None),
    "deleted": ("", None),
    "error": ("", {"error": "no memory"}),
    "begin_operation": ("", {"kind": "snapshot", "deadline_s": 90}),
    "end_operation": ("", None),
    "recover": ("", {"reason": "it hangs", "force": "force"}),
    "health": ("", None),
    "attempts": ("", None),
    "why": ("?at_ms=1800000000000", None),
    "vms": ("", None),
    "orphans": ("", None),
    "events": ("?after=0&limit=2&changes=true", None),
    "openapi": ("", None),
    "healthz": ("", None),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One server for all tests that only ask."""
    with serving(tmp_path_factory.mktemp("hooks")) as made:
        yield made


@pytest.fixture
def site(shared: Site) -> Site:
    shared.hooks.calls.clear()
    shared.hooks.raises.clear()
    shared.feed.__init__()  # type: ignore[misc] # as new
    return shared


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


def call(site: Site, route: Route) -> httpx.Response:
    query, body = EXAMPLES[route.name]
    path = route.path.replace("{vm_id}", "vm-1").replace("{operation}", "snapshot-0badcafe")
    return site.http.request(route.method, path + query, json=body)


def described(route: Route, status: int) -> OAS31Validator:
    """Return what checks an answer against the committed file."""
    response = DESCRIPTION["paths"][route.path][route.method.lower()]["responses"][str(status)]
    schema = response["content"]["application/json"]["schema"]
    return OAS31Validator({**schema, "components": DESCRIPTION["components"]})


# The description


def test_the_committed_description_is_the_one_that_is_generated() -> None:
    assert COMMITTED.read_text() == openapi.text(), f"python -m workers.integration.openapi > {COMMITTED}"


def test_the_description_is_valid_openapi() -> None:
    openapi_spec_validator.validate(DESCRIPTION)


def test_the_description_has_each_route_and_no_other() -> None:
    told = {(path, method.upper()) for path, methods in DESCRIPTION["paths"].items() for method in methods}
    assert told == {(route.path, route.method) for route in ROUTES}
    assert len(told) == len(ROUTES) == len(EXAMPLES)


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_each_route_answers_as_it_is_described(site: Site, route: Route) -> None:
    site.feed.happen("vm-1")
    reply = call(site, route)
    assert reply.status_code == route.status, reply.text
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["cache-control"] == "no-store"
    described(route, reply.status_code).validate(reply.json())


@pytest.mark.parametrize("route", [each for each in ROUTES if "{vm_id}" in each.path], ids=lambda route: route.name)
def test_each_error_is_as_it_is_described(site: Site, route: Route) -> None:
    path = route.path.replace("{vm_id}", "VM").replace("{operation}", "snapshot-0badcafe")
    reply = site.http.request(route.method, path)
    assert error_of(reply) == (400, "bad_request", "vm_id")
    described(route, 400).validate(reply.json())


def test_the_description_is_served_as_it_is_committed(site: Site) -> None:
    assert site.http.get("/v1/openapi.json").json() == DESCRIPTION


# Hooks


def test_what_a_hook_says_reaches_the_manager(site: Site) -> None:
    for route in ROUTES[:10]:
        assert call(site, route).status_code == 202
    assert site.hooks.calls == [
        ("created", "vm-1", VmmProcess(4242), {"id": "vm-1", **SPEC}, None),
        ("started", "vm-1", VmmProcess(4243, 7, "b", "/bin/fc"), None),
        ("stopping", "vm-1"),
        ("stopped", "vm-1"),
        ("deleting", "vm-1"),
        ("deleted", "vm-1"),
        ("error", "vm-1", "no memory"),
        ("begin_operation", "vm-1", "snapshot", timedelta(seconds=90)),
        ("end_operation", "vm-1", "snapshot-0badcafe"),
        ("recover", "vm-1", "it hangs", Force.FORCE),
    ]


def test_a_hook_answers_with_its_number_in_the_journal(site: Site) -> None:
    site.http.post(f"{VM}/stopping")
    assert site.http.post(f"{VM}/stopped").json() == {"vm_id": "vm-1", "number": 2}
    begun = site.http.post(f"{VM}/operations", json={"kind": "resize", "deadline_s": 1}).json()
    assert begun == {"vm_id": "vm-1", "number": 3, "operation": "resize-0badcafe"}
    assert site.http.post(f"{VM}/recover").json() == {"vm_id": "vm-1", "request_id": REQUEST_ID}


def test_a_vm_and_its_socket_may_be_named(site: Site) -> None:
    body = {"process": {"pid": 1, "socket": "/run/fc.sock"}, "config": {"id": "vm-1", **SPEC}}
    assert site.http.post(f"{VM}/created", json=body).status_code == 202
    assert site.hooks.calls == [("created", "vm-1", VmmProcess(1), {"id": "vm-1", **SPEC}, "/run/fc.sock")]


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("created", None, "config"),
        ("created", {"config": {}, "pid": 1}, "pid"),
        ("created", {"config": {"id": "vm-2"}}, "config.id"),
        ("created", {"config": [], "process": None}, "config"),
        ("created", {"config": {}, "process": {"pid": 0}}, "process.pid"),
        ("created", {"config": {}, "process": {"pid": True}}, "process.pid"),
        ("created", {"config": {}, "process": {"pid": "1"}}, "process.pid"),
        ("started", {"process": {"start_ticks": 1}}, "process.pid"),
        ("stopped", {"force": True}, "force"),
        ("error", {"error": ""}, "error"),
        ("error", {"error": "two\nlines"}, "error"),
        ("error", {"error": "x" * 2001}, "error"),
        ("operations", {"kind": "Snap shot", "deadline_s": 1}, "kind"),
        ("operations", {"kind": "snapshot", "deadline_s": 0}, "deadline_s"),
        ("operations", {"kind": "snapshot", "deadline_s": 86_401}, "deadline_s"),
        ("recover", {"force": "gently"}, "force"),
        ("recover", {"reason": "x" * 201}, "reason"),
    ],
)
def test_a_body_that_is_wrong_is_refused_with_the_field(site: Site, route: str, body: Any, field: str) -> None:
    reply = site.http.post(f"{VM}/{route}", json=body)
    assert error_of(reply) == (400, "bad_request", field)
    assert site.hooks.calls == []


@pytest.mark.parametrize("body", [b"{", b"[]", b"null", b'"x"', b"\xff", b'{"error": NaN}', b"[" * 5000])
def test_a_body_that_is_no_json_object_is_refused(site: Site, body: bytes) -> None:
    reply = site.http.post(f"{VM}/error", content=body)
    assert error_of(reply)[:2] == (400, "bad_request")
    assert site.hooks.calls == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("field process: must be the pid of a process, got 7"), (400, "bad_request", "process")),
        (ValueError("no good"), (400, "bad_request", None)),
        (UnknownVm("vm-1"), (404, "unknown_vm", "vm_id")),
        (UnreadableRecord("vm-1", "field v"), (409, "unreadable_record", "vm_id")),
        (Refused("it serves: leave it alone", "healthy"), (409, "healthy", None)),
        (Held("vm-1", "paused by alice"), (409, "held", "vm_id")),
        (StoreUnavailable("Redis: away"), (503, "store_unavailable", None)),
        (KeyError("a bug"), (500, "internal", None)),
    ],
)
def test_what_a_manager_raises_has_its_status(
    site: Site, error: Exception, expected: tuple[int, str, str | None], lines: io.StringIO
) -> None:
    site.hooks.raises["recover"] = error
    reply = site.http.post(f"{VM}/recover")
    assert error_of(reply) == expected
    assert ("retry-after" in reply.headers) is (expected[0] == 503)
    assert ("hooks api failed" in lines.getvalue()) is (expected[0] == 500)
    assert site.http.get("/v1/healthz").status_code == 200


# Paths


@pytest.mark.parametrize("vm_id", ["vm%2D1", "%76m-1", "vm-1"])
def test_an_id_may_be_percent_encoded(site: Site, vm_id: str) -> None:
    assert site.raw(f"GET /v1/vms/{vm_id}/health HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 ")
    assert site.hooks.calls == [("health", "vm-1")]


@pytest.mark.parametrize(
    "vm_id",
    [
        "",
        ".",
        "..",
        "%2e%2e",
        "%2E",
        "a%2Fb",
        "..%2f..%2fetc",
        "a%00",
        "a%0a",
        "%c3%bc",
        "%ff",
        "%",
        "A",
        "a" * 65,
        "a+b",
    ],
)
def test_an_id_that_is_none_is_refused_however_it_is_written(site: Site, vm_id: str) -> None:
    for method, what in (("GET", "health"), ("POST", "deleted")):
        reply = site.raw(f"{method} /v1/vms/{vm_id}/{what} HTTP/1.0\r\n\r\n".encode())
        assert reply.startswith(b"HTTP/1.1 400 "), reply
        assert b'"field": "vm_id"' in reply
    assert site.hooks.calls == []


@pytest.mark.parametrize("path", ["/", "/v1", "/v1/", "/v2/vms", "/v1/vms/vm-1", "/v1/vms/a/b/health", "/v1/vms/", "*"])
def test_a_path_that_is_none_is_404(site: Site, path: str) -> None:
    reply = site.raw(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    assert reply.startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", f"{VM}/stopped", "POST"),
        ("POST", f"{VM}/health", "GET"),
        ("PUT", "/v1/vms", "GET"),
        ("DELETE", f"{VM}/operations", "POST"),
        ("HEAD", "/v1/healthz", "GET"),
    ],
)
def test_another_method_is_405_and_says_which_there_is(site: Site, method: str, path: str, allow: str) -> None:
    reply = site.http.request(method, path)
    assert (reply.status_code, reply.headers["allow"]) == (405, allow)


# Events


def test_events_come_in_pages_from_the_place_that_is_named(site: Site) -> None:
    for number in range(3):
        site.feed.happen(f"vm-{number}")
    first = site.http.get("/v1/events?after=0&limit=2").json()
    assert ([each["vm_id"] for each in first["events"]], first["next"], first["gap"]) == (
        ["vm-0", "vm-1"],
        "2-0",
        False,
    )
    assert first["events"][0]["change"] == "orphaned"
    second = site.http.get(f"/v1/events?after={first['next']}").json()
    assert ([each["vm_id"] for each in second["events"]], second["next"]) == (["vm-2"], "3-0")


def test_without_a_place_the_end_is_told_at_once(site: Site) -> None:
    site.feed.happen("vm-0")
    assert site.http.get("/v1/events").json() == {"events": [], "next": "1-0", "gap": False}


def test_a_caller_waits_until_something_comes(site: Site) -> None:
    replies: list[Any] = []
    asker = threading.Thread(target=lambda: replies.append(site.http.get("/v1/events?after=0&wait_s=10").json()))
    asker.start()
    wait_until(lambda: site.feed.waiting, what="the caller to wait")
    site.feed.happen("vm-1")
    asker.join(10)
    assert [each["vm_id"] for each in replies[0]["events"]] == ["vm-1"]


def test_who_wants_changes_only_is_not_woken_by_anything_else_and_goes_on_behind_it(site: Site) -> None:
    site.feed.happen("vm-1", State.DEGRADED)
    page = site.http.get("/v1/events?after=0&wait_s=0.1&changes=true").json()
    assert (page["events"], page["next"]) == ([], "1-0")
    site.feed.happen("vm-1", State.HEALTHY, before=State.ORPHANED)
    page = site.http.get("/v1/events?after=0&wait_s=5&changes=true").json()
    assert [each["change"] for each in page["events"]] == ["recovered"]


def test_a_place_that_was_cut_off_is_told_as_a_gap(site: Site) -> None:
    for number in range(3):
        site.feed.happen(f"vm-{number}")
    site.feed.cut_off = 2
    page = site.http.get("/v1/events?after=1-0").json()
    assert ([each["vm_id"] for each in page["events"]], page["gap"]) == (["vm-2"], True)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("after=yesterday", "after"),
        ("after=-1", "after"),
        ("after=1-0-0", "after"),
        ("after=$", "after"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("wait_s=31", "wait_s"),
        ("wait_s=inf", "wait_s"),
        ("wait_s=nan", "wait_s"),
        ("until=1", "until"),
        ("limit=1&limit=2", "limit"),
    ],
)
def test_a_query_that_is_wrong_is_refused_with_the_field(site: Site, query: str, field: str) -> None:
    assert error_of(site.http.get(f"/v1/events?{query}")) == (400, "bad_request", field)


def test_so_many_may_wait_and_the_next_one_is_told_to_come_again_while_hooks_are_served(tmp_path: Path) -> None:
    with serving(tmp_path) as site, ExitStack() as stack:
        for _ in range(16):
            waiting = stack.enter_context(site.connected())
            waiting.sendall(b"GET /v1/events?after=0&wait_s=30 HTTP/1.1\r\n\r\n")
        wait_until(lambda: site.feed.waiting == 16, what="all of them to wait")

        reply = site.http.get("/v1/events?after=0")

        assert error_of(reply) == (503, "busy", None)
        assert reply.headers["retry-after"]
        assert site.http.post(f"{VM}/stopped").status_code == 202
        assert site.http.get("/v1/events?after=0&wait_s=0").status_code == 200


def test_a_caller_that_went_away_waits_no_longer(tmp_path: Path) -> None:
    with serving(tmp_path, connections=1) as site:
        with site.connected() as waiting:
            waiting.sendall(b"GET /v1/events?after=0&wait_s=30 HTTP/1.1\r\n\r\n")
            wait_until(lambda: site.feed.waiting, what="it to wait")
        wait_until(lambda: site.raw(b"GET /v1/healthz HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200"), what="a place")


def test_who_waits_is_answered_when_the_worker_ends(tmp_path: Path) -> None:
    with serving(tmp_path) as site, site.connected() as waiting:
        waiting.sendall(b"GET /v1/events?after=0&wait_s=30 HTTP/1.1\r\n\r\n")
        wait_until(lambda: site.feed.waiting, what="it to wait")
        site.server.stop()
        assert waiting.recv(100).startswith(b"HTTP/1.1 200 ")


def test_an_outage_is_told_to_who_waits(site: Site) -> None:
    site.feed.raises = StoreUnavailable("Redis: away")
    assert error_of(site.http.get("/v1/events?after=0")) == (503, "store_unavailable", None)
