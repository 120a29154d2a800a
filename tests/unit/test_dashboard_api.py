"""The API beside the pages, over HTTP, on a real store: what it answers, what it refuses, and what it does."""

import base64
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.builders import HERE, a_process, a_vm, an_episode
from tests.support.cluster import Cluster, cluster
from tests.support.fleet_pages import ACTS, LOGIN, Sent, served_pages
from tests.support.populace import populate, put
from tests.support.processes import wait_until
from tests.support.servers import start_server
from workers import queues
from workers.domain.audit import EventKind
from workers.domain.modes import Mode
from workers.domain.vm import EpisodeEnd, Reason, State
from workers.embedded import EmbeddedServer
from workers.ports import Change
from workers.store.hosts import HostWorker

MARKUP = "<script>alert('x')</script>"
BIDI = "\u202egnp.exe"


@pytest.fixture
def site(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Cluster]:
    with cluster(tmp_path, fresh_server) as made:
        yield made


@pytest.fixture
def pages(site: Cluster) -> Iterator[tuple[httpx.Client, Sent]]:
    with served_pages(site.fleet) as served:
        yield served


@pytest.fixture
def client(pages: tuple[httpx.Client, Sent]) -> httpx.Client:
    return pages[0]


@pytest.fixture(scope="module")
def idle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, Cluster]]:
    """For tests that change nothing: one healthy VM, vm-1, and a client that is logged in."""
    folder = tmp_path_factory.mktemp("idle")
    with start_server(folder) as server, cluster(folder, server) as made:
        put(made.fleet, [a_vm("vm-1")])
        with served_pages(made.fleet) as (client, _):
            yield client, made


@pytest.fixture
def idle_client(idle: tuple[httpx.Client, Cluster]) -> httpx.Client:
    return idle[0]


def serve(site: Cluster, host: str) -> None:
    site.fleet.hosts.hold(HostWorker("owner", host, a_process(vantage=HERE), 1, "0.1.0"), ttl_ms=60_000)


def act(client: httpx.Client, vm_id: str, action: str, **body: Any) -> httpx.Response:
    return act_with(ACTS, client, vm_id, action, body)


def act_with(
    headers: dict[str, str], client: httpx.Client, vm_id: str, action: str, body: dict[str, Any]
) -> httpx.Response:
    return client.post(f"/api/fleet/vms/{vm_id}/{action}", json={"reason": "a test"} | body, headers=headers)


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["hindrance"]


# --- looking


def test_an_empty_fleet_is_told_as_such(client: httpx.Client) -> None:
    fleet = client.get("/api/fleet").json()

    assert (fleet["vms"]["total"], fleet["hosts"]["total"], fleet["banners"], fleet["error"]) == (0, 0, [], None)
    assert client.get("/api/fleet/vms").json()["vms"] == []
    assert client.get("/api/fleet/events").json() == {"events": [], "last": "0-0"}


def test_ten_thousand_vms_are_answered_in_small_pages(site: Cluster, client: httpx.Client) -> None:
    populate(site.fleet, 10_000)

    fleet, page = client.get("/api/fleet"), client.get("/api/fleet/vms?state=trouble&sort=id&page=2&per_page=100")

    assert fleet.json()["vms"]["total"] == 10_000
    assert len(fleet.content) < 10_000
    assert (page.json()["total"], page.json()["pages"], len(page.json()["vms"])) == (172, 2, 72)
    assert len(page.content) < 30_000


def test_what_has_not_changed_is_not_sent_again(site: Cluster, client: httpx.Client) -> None:
    populate(site.fleet, 3, odd_every=10)
    wait_until(lambda: client.get("/api/fleet").json()["figures"], what="the figures of the last day")

    for path in ("/api/fleet", "/api/fleet/vms?sort=id", "/api/fleet/vms/vm-00001"):
        first = client.get(path)
        again = client.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b""), path


def test_a_change_shows_in_the_next_reading(site: Cluster, client: httpx.Client) -> None:
    populate(site.fleet, 3, odd_every=10)
    before = client.get("/api/fleet").json()
    put(site.fleet, [a_vm("late", state=State.FAILED)])
    stored = site.fleet.store.read(["vm-00001"]).found["vm-00001"]
    site.fleet.store.write([Change("vm-00001", stored.rev, None)])

    def states() -> dict[str, int]:
        return dict(client.get("/api/fleet").json()["vms"]["by_state"])

    wait_until(lambda: states()["failed"] == before["vms"]["by_state"]["failed"] + 1, what="the new VM")
    wait_until(lambda: states()["healthy"] == 1, what="the forgotten VM to go")


def test_a_vm_is_told_with_its_history_and_why(site: Cluster, client: httpx.Client) -> None:
    lost = a_vm("vm-1", state=State.FAILED, episode=an_episode(error="no disk", end=EpisodeEnd.FAILED))
    put(site.fleet, [lost])

    vm = client.get("/api/fleet/vms/vm-1").json()
    why = client.get("/api/fleet/vms/vm-1/why").json()

    assert (vm["vm"]["state"], vm["vm"]["episode"]["error"], vm["events"][0]["why"]) == (
        "failed",
        "no disk",
        "put there",
    )
    assert any("no disk" in line for line in why["words"])
    assert why["answer"]


def test_events_come_after_the_one_that_was_named(site: Cluster, client: httpx.Client) -> None:
    put(site.fleet, [a_vm("vm-1")])
    first = client.get("/api/fleet/events").json()
    put(site.fleet, [a_vm("vm-2")])

    later = client.get("/api/fleet/events", params={"after": first["last"]}).json()

    assert [each["vm_id"] for each in first["events"]] == ["vm-1"]
    assert [each["vm_id"] for each in later["events"]] == ["vm-2"]


@pytest.mark.parametrize(
    ("path", "status", "hindrance"),
    [
        ("/api/fleet/vms/vm-9", 404, "unknown_vm"),
        ("/api/fleet/vms/%3Cscript%3E", 400, "wrong"),
        ("/api/fleet/vms/..%2F..%2Fetc", 400, "wrong"),
        ("/api/fleet/vms/vm-1%0a", 400, "wrong"),
        ("/api/fleet/vms/VM-1/why", 400, "wrong"),
        ("/api/fleet/vms?page=x", 400, "wrong"),
        ("/api/fleet/vms?state=%3Cscript%3E", 400, "wrong"),
        ("/api/fleet/events?after=0", 400, "wrong"),
        ("/api/fleet/vms/vm-1?after=$", 400, "wrong"),
        ("/api/fleet/nothing", 404, "error"),
        ("/api/fleet/vms/vm-1/explode", 404, "error"),
    ],
)
def test_a_wrong_question_gets_one_line(idle_client: httpx.Client, path: str, status: int, hindrance: str) -> None:
    answer = idle_client.get(path)

    assert refusal(answer) == (status, hindrance)
    assert "\n" not in answer.json()["error"]
    assert "<" not in answer.text


def test_redis_being_away_is_told_and_the_last_figures_stay(
    site: Cluster, client: httpx.Client, fresh_server: EmbeddedServer
) -> None:
    populate(site.fleet, 2, odd_every=10)
    assert client.get("/api/fleet").json()["vms"]["total"] == 2
    fresh_server.stop()

    away = wait_until(lambda: (got := client.get("/api/fleet").json())["error"] and got, what="the loss to be told")

    assert away["vms"]["total"] == 2
    assert refusal(client.get("/api/fleet/vms/vm-00000")) == (503, "no_redis")
    assert refusal(act(client, "vm-00000", "pause")) == (503, "no_redis")


def test_new_events_of_a_vm_are_added_to_those_that_were_read(site: Cluster, client: httpx.Client) -> None:
    put(site.fleet, [a_vm("vm-1"), a_vm("vm-2")])
    before = client.get("/api/fleet/vms/vm-1").json()["events"]

    act(client, "vm-1", "pause", reason="one more")
    act(client, "vm-2", "pause", reason="of another")

    after = client.get("/api/fleet/vms/vm-1").json()["events"]
    assert len(before) == 1
    assert [each["kind"] for each in after] == ["mode", "registered"]


def test_another_hold_on_a_vm_shows_in_the_table_though_as_many_are_held(site: Cluster, client: httpx.Client) -> None:
    put(site.fleet, [a_vm("vm-1"), a_vm("vm-2")])
    act(client, "vm-1", "pause")
    wait_until(lambda: _held(client) == ["paused (vm:vm-1)", None], what="the first hold")
    tag = client.get("/api/fleet/vms").headers["ETag"]

    act(client, "vm-1", "resume")
    act(client, "vm-2", "pause")

    wait_until(lambda: _held(client) == [None, "paused (vm:vm-2)"], what="the other hold")
    assert client.get("/api/fleet/vms", headers={"If-None-Match": tag}).status_code == 200


def _held(client: httpx.Client) -> list[str | None]:
    return [row["held"] for row in client.get("/api/fleet/vms").json()["vms"]]


def test_what_changed_without_an_event_is_found_in_time(site: Cluster, client: httpx.Client) -> None:
    populate(site.fleet, 3, odd_every=10)
    client.get("/api/fleet")
    stored = site.fleet.store.read(["vm-00002"]).found["vm-00002"]

    site.fleet.store.write([Change("vm-00002", stored.rev, replace(stored.record, state=State.UNKNOWN))])

    wait_until(lambda: client.get("/api/fleet").json()["vms"]["by_state"]["unknown"] == 1, what="the change to be seen")


# --- markup


def test_markup_and_odd_writing_are_only_ever_text(site: Cluster, client: httpx.Client) -> None:
    odd = a_vm(f"vm-{MARKUP}", state=State.FAILED, episode=an_episode(error=MARKUP + BIDI, end=EpisodeEnd.FAILED))
    put(site.fleet, [odd, a_vm("vm-1", host='"><img src=x onerror=alert(1)>')])

    for path in ("/api/fleet", "/api/fleet/vms", "/api/fleet/events"):
        answer = client.get(path)
        assert answer.headers["Content-Type"].startswith("application/json")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert not set("<>&\u202e") & set(answer.text), path
    assert odd.vm_id in [row["id"] for row in client.get("/api/fleet/vms").json()["vms"]]


def test_a_page_for_an_id_that_is_none_says_so_without_its_markup(idle_client: httpx.Client) -> None:
    answer = idle_client.get("/fleet/vm/%3Cscript%3Ealert(1)%3C%2Fscript%3E")

    assert answer.status_code == 404
    assert "<script>alert" not in answer.text
    assert "&lt;script&gt;" in answer.text


@pytest.mark.parametrize("path", ["/fleet", "/fleet/vm/vm-1"])
def test_pages_run_and_load_nothing_that_is_not_ours(idle_client: httpx.Client, path: str) -> None:
    page = idle_client.get(path)

    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert page.status_code == 200
    assert not [mark for mark in ("style=", "onclick=", "http://", "https://", "<style") if mark in page.text]
    for name in page.text.split('src="')[1:]:
        assert idle_client.get(name.partition('"')[0]).status_code == 200


# --- who may


@pytest.mark.parametrize("path", ["/api/fleet", "/api/fleet/vms/vm-1", "/api/fleet/events"])
def test_without_the_password_nothing_is_told(idle_client: httpx.Client, path: str) -> None:
    for login in (None, ("alice", "wrong")):
        answer = httpx.get(str(idle_client.base_url) + path, auth=login)
        assert answer.status_code == 401
        assert "Basic" in answer.headers["WWW-Authenticate"]
    assert httpx.post(str(idle_client.base_url) + "/api/fleet/vms/vm-1/pause", json={}, headers=ACTS).status_code == 401


@pytest.mark.parametrize("path", ["/fleet", "/api/fleet", "/api/fleet/vms/vm-1/why"])
def test_under_a_foreign_name_nothing_is_told(idle_client: httpx.Client, path: str) -> None:
    answer = idle_client.get(path, headers={"Host": "rebound.example"})

    assert answer.status_code == 403
    assert "flower.names" in answer.text


def test_without_a_password_it_only_shows_and_says_why(site: Cluster) -> None:
    put(site.fleet, [a_vm("vm-1")])
    with served_pages(site.fleet, login=None) as (client, sent):
        assert client.get("/api/fleet").json()["vms"]["total"] == 1
        page = client.get("/fleet/vm/vm-1").text
        refused = [act(client, "vm-1", action) for action in ("recover", "pause", "maintenance", "resume", "reset")]

    assert {refusal(answer) for answer in refused} == {(403, "read_only")}
    assert "flower.basic_auth" in refused[0].json()["error"]
    assert "Nothing can be done here: this dashboard has no password" in page
    assert sent.messages == []
    assert not site.fleet.modes.all_modes()[1].scopes


@pytest.mark.parametrize(
    ("headers", "hindrance"),
    [
        ({}, "csrf"),
        (ACTS | {"Origin": "http://evil.example"}, "csrf"),
        (ACTS | {"Sec-Fetch-Site": "cross-site"}, "csrf"),
        (ACTS | {"Sec-Fetch-Site": "none"}, "csrf"),
        (ACTS | {"Host": "rebound.example"}, "host"),
        (ACTS | {"Content-Type": "text/plain"}, "csrf"),
    ],
)
def test_what_another_site_made_the_browser_send_does_nothing(
    idle: tuple[httpx.Client, Cluster], headers: dict[str, str], hindrance: str
) -> None:
    client, site = idle

    answer = act_with(headers, client, "vm-1", "pause", {})

    assert refusal(answer) == (403, hindrance)
    assert not site.fleet.modes.all_modes()[1].scopes


def test_with_oauth_the_token_of_the_page_is_needed_and_the_address_acts(site: Cluster) -> None:
    put(site.fleet, [a_vm("vm-1")])
    with served_pages(site.fleet, login=None, oauth="bob@example.org") as (client, _):
        page = client.get("/fleet/vm/vm-1")
        token = page.text.partition('name="xsrf" content="')[2].partition('"')[0]

        assert refusal(act(client, "vm-1", "pause")) == (403, "csrf")
        assert act_with(ACTS | {"X-XSRFToken": token}, client, "vm-1", "pause", {}).status_code == 200
        client.cookies.delete("user")
        assert client.get("/api/fleet").status_code == 401
        assert client.get("/fleet").headers["Location"].startswith("/login")

    (hold,) = site.fleet.modes.all_modes()[1].scopes["vm:vm-1"].holds
    assert hold.actor == "flower:bob@example.org"


def test_no_other_site_is_ever_told_that_it_may_ask(idle_client: httpx.Client) -> None:
    asked = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    answer = idle_client.options("/api/fleet/vms/vm-1/pause", headers=asked)

    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]


# --- acting


def test_a_pause_is_put_in_force_and_lifted_by_who_is_logged_in(site: Cluster, client: httpx.Client) -> None:
    put(site.fleet, [a_vm("vm-1")])

    assert act(client, "vm-1", "pause", reason="disk swap", **{"for": "1h"}).status_code == 200
    (hold,) = client.get("/api/fleet/vms/vm-1").json()["held"]
    assert (hold["mode"], hold["scope"], hold["actor"], hold["why"]) == (
        "paused",
        "vm:vm-1",
        "flower:alice",
        "disk swap",
    )
    assert hold["until_ms"] - hold["since_ms"] == 3_600_000
    wait_until(
        lambda: client.get("/api/fleet/vms").json()["vms"][0]["held"] == "paused (vm:vm-1)", what="the mark in the list"
    )

    assert act(client, "vm-1", "resume").json()["lifted"] == [hold["id"]]
    assert client.get("/api/fleet/vms/vm-1").json()["held"] == []
    assert refusal(act(client, "vm-1", "resume")) == (409, "not_held")


def test_nobody_acts_without_a_name(site: Cluster, client: httpx.Client) -> None:
    put(site.fleet, [a_vm("vm-1")])
    login = base64.b64encode(":".join(LOGIN).encode()).decode()
    odd = f"{login[:4]}*{login[4:]}"  # what Flower passes over

    with httpx.Client(base_url=client.base_url) as bare:
        answer = act_with(ACTS | {"Authorization": f"Basic {odd}"}, bare, "vm-1", "pause", {})

    assert answer.status_code == 200
    (hold,) = site.fleet.modes.all_modes()[1].scopes["vm:vm-1"].holds
    assert hold.actor == "flower:alice"


def test_a_maintenance_is_followed_by_a_detection_interval_of_observing(site: Cluster, client: httpx.Client) -> None:
    put(site.fleet, [a_vm("vm-1")])

    assert act(client, "vm-1", "maintenance", **{"for": "30m"}).status_code == 200

    (hold,) = site.fleet.modes.all_modes()[1].scopes["vm:vm-1"].holds
    assert (hold.mode, hold.settle_ms) == (Mode.MAINTENANCE, 2000)


def test_a_recovery_is_asked_for_in_the_name_of_who_is_logged_in(
    site: Cluster, pages: tuple[httpx.Client, Sent]
) -> None:
    client, sent = pages
    put(site.fleet, [a_vm("vm-1", state=State.FAILED, episode=an_episode(end=EpisodeEnd.FAILED))])
    assert refusal(act(client, "vm-1", "recover")) == (409, "no_worker")
    serve(site, "host-a")

    answer = act(client, "vm-1", "recover", reason="disk is back", force="force", confirm="vm-1")

    asked = answer.json()
    assert (answer.status_code, asked["sent"]) == (202, True)
    ((task, vm_id, arguments),) = sent.messages
    assert (task, vm_id) == (queues.RECOVER_VM, "vm-1")
    assert arguments == {"request_id": asked["request_id"], "actor": "flower:alice", "force": "force"}
    (told,) = [each.event for each in site.events("vm-1") if each.event.kind is EventKind.OVERRIDE]
    assert (told.actor, told.request_id) == ("flower:alice", asked["request_id"])
    assert "disk is back" in told.why


def test_force_is_confirmed_by_the_id_and_a_well_vm_is_left_alone(
    site: Cluster, pages: tuple[httpx.Client, Sent]
) -> None:
    client, sent = pages
    put(site.fleet, [a_vm("vm-1")])
    serve(site, "host-a")

    assert refusal(act(client, "vm-1", "recover", force="kill-healthy")) == (400, "wrong")
    assert refusal(act(client, "vm-1", "recover", force="kill-healthy", confirm="vm-2")) == (400, "wrong")
    assert refusal(act(client, "vm-1", "recover"))[0] == 409
    assert sent.messages == []
    assert act(client, "vm-1", "recover", force="kill-healthy", confirm="vm-1").status_code == 202
    assert [arguments["force"] for _, _, arguments in sent.messages] == ["kill-healthy"]


def test_a_finished_episode_is_reset_once(site: Cluster, client: httpx.Client) -> None:
    over = an_episode(attempt=3, end=EpisodeEnd.FAILED, reason=Reason.PROCESS_DEAD)
    put(site.fleet, [a_vm("vm-1", state=State.FAILED, episode=over)])

    assert act(client, "vm-1", "reset").status_code == 200
    assert site.record("vm-1").state is not State.FAILED
    assert refusal(act(client, "vm-1", "reset"))[0] == 409
    assert refusal(act(client, "vm-9", "reset")) == (404, "unknown_vm")


def test_too_long_a_body_is_refused(idle_client: httpx.Client) -> None:
    assert refusal(act(idle_client, "vm-1", "pause", reason="x" * 20_000)) == (400, "wrong")


def test_the_password_does_not_stand_in_any_answer(idle_client: httpx.Client) -> None:
    answers = [
        idle_client.get(path).text for path in ("/fleet", "/fleet/vm/vm-1", "/api/fleet", "/api/fleet/vms/vm-1/why")
    ]

    assert not [text for text in answers if LOGIN[1] in text]
