"""What the pages say, as pure values: rows, overview, figures, timeline, progress of a recovery."""

from dataclasses import replace

import pytest

from tests.support.builders import HERE, NOW_MS, a_lost_vm, a_process, a_vm, an_episode
from workers.dashboard.figures import DAY_MS, Figures
from workers.dashboard.overview import Gathered, overview
from workers.dashboard.progress import event_id, progress
from workers.dashboard.reading import to_json
from workers.dashboard.rows import Query, Row, query_of, row_of, select
from workers.dashboard.timeline import timeline
from workers.domain.audit import Event, EventKind
from workers.domain.breaker import BreakerState
from workers.domain.modes import Hold, Mode, Modes, Scope
from workers.domain.storm import Loss
from workers.domain.vm import EpisodeEnd, Reason, State
from workers.ports import Halt, Stored
from workers.store.events import Entry
from workers.store.hosts import HostSeen, HostWorker
from workers.store.weather import BreakerSeen, StormSeen


def a_row(vm_id: str, state: State = State.HEALTHY, *, host: str = "host-a", since_ms: int = 1) -> Row:
    return Row(vm_id, host, "qemu", state, since_ms)


def told(
    at_ms: int,
    kind: EventKind,
    after: State | None = None,
    *,
    vm_id: str = "vm-1",
    attempt: int | None = None,
    reason: Reason | None = None,
) -> Entry:
    return Entry(
        f"{NOW_MS + at_ms}-0", Event(kind, vm_id, "host-a", "test", "because", None, after, reason, 7, attempt)
    )


ROWS = [
    a_row("vm-2", since_ms=5),
    a_row("vm-1", State.FAILED, host="host-b", since_ms=9),
    a_row("vm-3", State.ORPHANED),
    a_row("web-1", State.STOPPED, host="host-b", since_ms=2),
]


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, ["vm-1", "vm-3", "vm-2", "web-1"]),
        ({"sort": "id"}, ["vm-1", "vm-2", "vm-3", "web-1"]),
        ({"sort": "-since"}, ["vm-1", "vm-2", "web-1", "vm-3"]),
        ({"sort": "host"}, ["vm-2", "vm-3", "vm-1", "web-1"]),
        ({"state": "healthy,stopped"}, ["vm-2", "web-1"]),
        ({"state": "trouble"}, ["vm-1", "vm-3"]),
        ({"host": "host-b"}, ["vm-1", "web-1"]),
        ({"q": " WEB "}, ["web-1"]),
        ({"q": "host-b", "state": "failed"}, ["vm-1"]),
        ({"q": "<script>"}, []),
    ],
)
def test_rows_are_filtered_and_sorted_with_trouble_first(asked: dict[str, str], expected: list[str]) -> None:
    page = select(ROWS, query_of(asked))

    assert [row.vm_id for row in page.rows] == expected
    assert page.total == len(expected)


def test_ten_thousand_rows_come_in_pages_and_the_last_one_ends_them() -> None:
    rows = [a_row(f"vm-{number:05d}") for number in range(10_000)]

    page = select(rows, Query(sort="id", page=999))

    assert (page.number, page.of, page.total, len(page.rows)) == (200, 200, 10_000, 50)
    assert page.rows[-1].vm_id == "vm-09999"


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"state": "sick"}, "state"),
        ({"sort": "__class__"}, "sort"),
        ({"page": "0"}, "page"),
        ({"page": "-1"}, "page"),
        ({"page": "1e9"}, "page"),
        ({"page": "٣"}, "page"),
        ({"per_page": "9999"}, "per_page"),
        ({"host": "../etc"}, "host"),
    ],
)
def test_a_wrong_question_is_told_by_its_field(asked: dict[str, str], field: str) -> None:
    with pytest.raises(ValueError, match=f"^field {field}: "):
        query_of(asked)


def test_a_row_tells_the_open_episode_and_not_one_that_went_well() -> None:
    lost = a_lost_vm(episode=an_episode(attempt=2, error="no disk", next_attempt_ms=NOW_MS + 5))
    well = a_vm(episode=an_episode(end=EpisodeEnd.RECOVERED, error="no disk"))

    row = row_of(Stored(lost, 1, waits_for="fleet"))

    assert (row.reason, row.attempt, row.error, row.waits_for) == (Reason.PROCESS_DEAD, 2, "no disk", "fleet")
    assert row_of(Stored(well, 1)).error is None


# --- overview

WORKER = HostWorker("owner", "host-a", a_process(vantage=HERE), 1, "0.1.0")


def test_the_overview_counts_and_puts_hosts_in_trouble_first() -> None:
    hosts = [HostSeen("host-a", NOW_MS, WORKER), HostSeen("host-b", NOW_MS - 9, None), HostSeen("host-c", 5, WORKER)]

    seen = overview(Gathered(NOW_MS, hosts), ROWS)

    assert seen["vms"]["total"] == 4
    assert seen["vms"]["by_state"]["orphaned"] == 1
    assert [host["name"] for host in seen["hosts"]["shown"]] == ["host-b", "host-a", "host-c"]
    assert (seen["hosts"]["total"], seen["hosts"]["live"]) == (3, 2)
    assert [banner["words"] for banner in seen["banners"]] == [
        "no worker serves host-b: nobody looks after 2 VMs there"
    ]


def test_a_heartbeat_alone_changes_nothing_of_the_overview() -> None:
    def at(ms: int) -> object:
        return overview(Gathered(ms, [HostSeen("host-a", ms, WORKER)]), [a_row("vm-1")])

    assert at(NOW_MS) == at(NOW_MS + 10_000)


def test_banners_tell_what_is_not_as_usual_the_worst_first() -> None:
    pause = Hold("h1", Mode.PAUSED, "cli:root", "power work", NOW_MS - 1)
    over = Hold("h2", Mode.MAINTENANCE, "cli:root", "over", NOW_MS - 9, NOW_MS - 5)
    held = Modes({"host:host-a": Scope((pause,)), "fleet": Scope((over,)), "vm:vm-9": Scope((pause,))})
    seen = Gathered(
        NOW_MS,
        [HostSeen("host-a", NOW_MS, WORKER)],
        {"host-a": Halt("the file PAUSE is there"), "host-z": Halt("another epoch", "e", frozen=True)},
        [BreakerSeen("fleet", BreakerState.OPEN, NOW_MS + 10, 1), BreakerSeen("image:x", BreakerState.OPEN, 1, 0)],
        [StormSeen("host:host-a", Loss.CERTAIN, NOW_MS, 1, 2)],
        held,
        strays=2,
    )

    banners = overview(seen, [])["banners"]

    assert [(each["level"], each["kind"]) for each in banners] == [
        ("bad", "kill_switch"),
        ("bad", "frozen"),
        ("warning", "storm"),
        ("warning", "breaker"),
        ("warning", "breaker"),
        ("calm", "paused"),
        ("calm", "held"),
        ("warning", "strays"),
    ]
    words = [each["words"] for each in banners]
    assert words[3:6] == [
        "breaker fleet is open; 1 VM waiting",
        "breaker image:x is half-open; 0 VMs waiting",
        "host:host-a: paused, by cli:root: power work",
    ]


# --- figures


def test_figures_count_recoveries_of_losses_and_how_long_they_took() -> None:
    figures = Figures(NOW_MS)
    story = [
        told(0, EventKind.TRANSITION, State.UNHEALTHY),
        told(500, EventKind.TRANSITION, State.ORPHANED),
        told(600, EventKind.ATTEMPT_STARTED, State.RECOVERING),
        told(1000, EventKind.RECOVERED, State.HEALTHY),
        told(0, EventKind.TRANSITION, State.ORPHANED, vm_id="vm-2"),
        told(900, EventKind.TRANSITION, State.FAILED, vm_id="vm-2"),
        told(100, EventKind.TRANSITION, State.UNHEALTHY, vm_id="vm-3"),
        told(200, EventKind.TRANSITION, State.HEALTHY, vm_id="vm-3"),
        told(300, EventKind.RECOVERED, State.HEALTHY, vm_id="vm-4", reason=Reason.NOT_STARTED),
        told(300, EventKind.RECOVERED, State.HEALTHY, vm_id="vm-5", reason=Reason.PROCESS_DEAD),
    ]

    for entry in story:
        figures.tell(entry)

    assert figures.document(NOW_MS + 2000) == {
        "from_ms": NOW_MS,
        "recovered": 2,
        "failed": 1,
        "success_rate": 0.6667,
        "mean_ms": 1000,
        "p95_ms": 1000,
    }


def test_figures_forget_what_is_older_than_a_day() -> None:
    figures = Figures(NOW_MS)
    figures.tell(told(0, EventKind.TRANSITION, State.ORPHANED))
    figures.tell(told(10, EventKind.RECOVERED, State.HEALTHY))

    later = figures.document(NOW_MS + DAY_MS + 11)

    assert (later["recovered"], later["success_rate"], later["mean_ms"]) == (0, None, None)
    assert later["from_ms"] == 0


# --- timeline and progress

STORY = [
    told(0, EventKind.REGISTERED, State.STARTING),
    told(100, EventKind.TRANSITION, State.HEALTHY),
    told(200, EventKind.TRANSITION, State.ORPHANED),
    told(250, EventKind.ATTEMPT_STARTED, State.RECOVERING, attempt=1),
    told(300, EventKind.ATTEMPT_FAILED, State.ORPHANED, attempt=1),
    told(400, EventKind.ATTEMPT_STARTED, State.RECOVERING, attempt=2),
    told(450, EventKind.RECOVERED, State.HEALTHY, attempt=2),
]


def test_the_timeline_has_the_states_and_the_attempts_and_tells_them_in_words() -> None:
    line = timeline(STORY, a_vm(), NOW_MS + 1450)

    assert [(each["state"], each["to_ms"] - each["from_ms"]) for each in line["states"]] == [
        ("starting", 100),
        ("healthy", 100),
        ("orphaned", 50),
        ("recovering", 50),
        ("orphaned", 100),
        ("recovering", 50),
        ("healthy", 1000),
    ]
    assert [(each["number"], each["outcome"]) for each in line["attempts"]] == [(1, "failed"), (2, "recovered")]
    assert line["words"][1] == "recovering for 0s: because; attempt 2: recovered"
    assert (line["from_ms"], line["to_ms"]) == (NOW_MS, NOW_MS + 1450)


def test_the_timeline_of_a_vm_without_events_is_its_record() -> None:
    line = timeline([], a_vm(since_ms=NOW_MS - 50), NOW_MS)

    assert [(each["state"], each["from_ms"]) for each in line["states"]] == [("healthy", NOW_MS - 50)]
    assert timeline([], None, NOW_MS)["words"] == []


def test_an_attempt_that_runs_reaches_until_now() -> None:
    line = timeline(STORY[:6], a_lost_vm(state=State.RECOVERING), NOW_MS + 500)

    assert line["attempts"][-1] == {
        "number": 2,
        "from_ms": NOW_MS + 400,
        "to_ms": NOW_MS + 500,
        "outcome": "running",
        "why": "",
    }


def test_a_recovery_is_followed_to_the_first_end_after_its_request() -> None:
    after = STORY[2].id

    seen = [progress(STORY[:number], a_lost_vm(), after=after, request_id="r")["end"] for number in range(3, 8)]

    assert seen == [None, None, None, None, "healthy"]
    assert progress(STORY, a_vm(), after=after, request_id="r")["count"] == 4
    assert progress(STORY[:3], None, after=after, request_id="r")["end"] == "forgotten"


def test_the_record_ends_what_the_events_do_not() -> None:
    over = an_episode(request_id="r", end=EpisodeEnd.FAILED)
    given_up = a_vm(state=State.FAILED, episode=over)

    assert progress([], given_up, after="1-0", request_id="r")["end"] == "failed"
    assert progress([], given_up, after="1-0", request_id="another")["end"] is None
    assert progress([], replace(given_up, episode=None), after="1-0", request_id="r")["end"] is None


@pytest.mark.parametrize("text", ["", "1", "1-", "-1", "1-0 ", "1-0\n", "$", "+", "9" * 17 + "-0"])
def test_what_is_no_id_of_an_event_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="field after"):
        event_id(text)


def test_no_answer_holds_anything_that_looks_like_markup() -> None:
    assert to_json({"error": "<script>alert('x')</script>&"}) == (
        b'{"error":"\\u003cscript\\u003ealert(\'x\')\\u003c/script\\u003e\\u0026"}'
    )
