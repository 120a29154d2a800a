"""`why` for prepared situations, on a real server through the real adapters: each with its words."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import ServerOf
from tests.support.builders import HOST, NOW_MS, a_lost_vm, a_vm, an_episode
from tests.support.scene import KEYS, Scene, a_hold, scene_on
from tests.support.servers import RedisFlavour
from workers.bootstrap import Fleet
from workers.domain.answer import Answer, Known, Who
from workers.domain.audit import Event, EventKind, event
from workers.domain.breaker import calls_of
from workers.domain.errors import StoreUnavailable
from workers.domain.modes import FLEET, Flag, Mode, Switch
from workers.domain.storm import Loss
from workers.domain.vm import Desired, EpisodeEnd, Force, Reason, State
from workers.ports import Change, Halt, Outcome
from workers.services.why import why
from workers.settings import load

IMAGE = "/images/vmlinux"
ENDED = "process_ended: pid 100 ended: signal 9"
BOOM = "vm vm-1: VMM said: no space left on device"


@pytest.fixture
def scene(server_of: ServerOf, tmp_path: Path) -> Iterator[Scene]:
    with scene_on(server_of(RedisFlavour.VALKEY), tmp_path) as made:
        yield made


def healthy(scene: Scene) -> None:
    scene.put(a_vm())
    scene.checked("vm-1")


def degraded(scene: Scene) -> None:
    sick = a_vm(state=State.DEGRADED, since_ms=NOW_MS - 2000, fails=2, doubt=Reason.HEALTH_CHECK_FAILED)
    scene.moved(2, sick, State.HEALTHY, "no_answer: nothing within 5 s")
    scene.put(sick, check_in_ms=2000)
    scene.checked("vm-1")


def waiting_for_backoff(scene: Scene) -> None:
    episode = an_episode(started_ms=NOW_MS - 20_000, attempt=1, next_attempt_ms=NOW_MS + 12_000, error=BOOM)
    lost = a_lost_vm(since_ms=NOW_MS - 5000, episode=episode)
    scene.moved(20, lost, State.HEALTHY, ENDED)
    scene.failed_attempts(lost, 9, error=BOOM)
    scene.put(lost)


def waiting_for_a_slot(scene: Scene) -> None:
    scene.put(*[a_lost_vm(f"vm-{number}") for number in range(1, 7)])
    for number in range(2, 6):
        assert scene.attempt(a_lost_vm(f"vm-{number}"), f"owner-{number}") is Outcome.DONE
    scene.store.write([], enlist=["vm-6", "vm-1"])


def breaker_open(scene: Scene) -> None:
    scene.break_image(IMAGE)
    scene.put(a_lost_vm())
    calls = calls_of("vm-1", host=HOST, image=IMAGE, driver="firecracker@1")
    assert scene.attempt(a_lost_vm(), calls=calls) is Outcome.WAITING


def storm(scene: Scene) -> None:
    names = [f"vm-{number}" for number in range(1, 11)]
    scene.put(*map(a_vm, names))
    found = scene.store.read(names[:6]).found
    changes = [Change(v, found[v].rev, a_lost_vm(v), loss=Loss.UNCERTAIN, enlist=True) for v in reversed(names[:6])]
    scene.store.write(changes)


def paused_twice(scene: Scene) -> None:
    scene.put(a_vm())
    scene.hold(f"host:{HOST}", a_hold(Mode.PAUSED, "kernel upgrade"))
    scene.hold("vm:vm-1", a_hold(Mode.PAUSED, "disk is being copied", ago=60, actor="cli:bob"))


def maintenance_ending(scene: Scene) -> None:
    scene.put(a_lost_vm())
    scene.hold(FLEET, a_hold(Mode.MAINTENANCE, "switch 7", until_ms=NOW_MS + 90_000, settle_ms=30_000))


def settling_after_maintenance(scene: Scene) -> None:
    scene.put(a_lost_vm())
    scene.hold(FLEET, a_hold(Mode.MAINTENANCE, "switch 7", until_ms=NOW_MS - 10_000, settle_ms=30_000))


def observed_only(scene: Scene) -> None:
    lost = a_lost_vm()
    would = Event(
        EventKind.WOULD_HAVE, "vm-1", HOST, "recovery", "would have recovered it: host:host-a is observe-only"
    )
    scene.moved(1, lost, State.HEALTHY, ENDED)
    scene.told(0.5, replace(would, scope="host:host-a"))
    scene.put(lost)
    scene.hold(f"host:{HOST}", a_hold(Mode.OBSERVE_ONLY, "first week"))


def failed(scene: Scene) -> None:
    opened = an_episode(attempt=3, started_ms=NOW_MS - 150_000, error=BOOM)
    lost = a_vm(state=State.FAILED, since_ms=NOW_MS - 26_000, episode=opened)
    scene.moved(150, lost, State.HEALTHY, ENDED)
    scene.failed_attempts(lost, 150, 110, error=BOOM)
    scene.attempt_begun(30, lost, 3)
    scene.moved(26, lost, State.RECOVERING, f"3 of 3 attempts failed; last: {BOOM}", actor="recovery")
    scene.put(replace(lost, episode=replace(opened, end=EpisodeEnd.FAILED, ended_ms=NOW_MS - 26_000)))


def attempt_runs(scene: Scene) -> None:
    scene.put(a_lost_vm())
    assert scene.attempt(a_lost_vm()) is Outcome.DONE


def attempt_abandoned(scene: Scene) -> None:
    episode = an_episode(attempt=1, running=True, attempt_started_ms=NOW_MS - 40_000, started_ms=NOW_MS - 40_000)
    record = a_lost_vm(state=State.RECOVERING, since_ms=NOW_MS - 40_000, episode=episode)
    scene.attempt_begun(40, record, 1)
    scene.put(record)


def stopped(scene: Scene) -> None:
    scene.put(a_vm(state=State.STOPPED, desired=Desired.STOPPED, process=None))


def host_silent(scene: Scene) -> None:
    scene.put(a_vm(state=State.UNKNOWN, since_ms=NOW_MS - 90_000))
    scene.silence(HOST, ago=330)


def kill_switch(scene: Scene) -> None:
    scene.put(a_lost_vm())
    scene.fleet.data.halt(HOST, Halt("the kill switch /state/PAUSE is on: no signal and no spawn on this host"))


def data_frozen(scene: Scene) -> None:
    scene.put(a_lost_vm())
    scene.fleet.data.halt(HOST, Halt("redis holds other data", "epoch-1", frozen=True))


def switched_off(scene: Scene) -> None:
    scene.put(a_lost_vm())
    scene.hold(
        FLEET, switches=(Switch(Flag.RECOVERY, on=True, actor="cli:ann", why="roll-out", since_ms=NOW_MS - 600_000),)
    )
    scene.hold(
        f"host:{HOST}",
        switches=(Switch(Flag.RECOVERY, on=False, actor="cli:bob", why="bad RAM", since_ms=NOW_MS - 60_000),),
    )


def forced(scene: Scene) -> None:
    scene.put(a_lost_vm(episode=an_episode(request_id="r-1", force=Force.FORCE)))
    scene.hold(FLEET, a_hold(Mode.PAUSED, "audit"))


def redis_restarted(scene: Scene) -> None:
    scene.put(a_lost_vm())
    scene.store.tend(HOST)
    scene.subject.restart()
    scene.store.write([], enlist=["vm-1"])


def nobody_checks(scene: Scene) -> None:
    scene.put(a_vm(), check_in_ms=0)
    scene.subject.pass_time(120_000)


def never_started(scene: Scene) -> None:
    scene.put(a_vm(state=State.STARTING, process=None, generation=0, since_ms=NOW_MS - 3000))


def unknown_with_a_close_match(scene: Scene) -> None:
    scene.put(a_vm("vm-10"))


def forgotten(scene: Scene) -> None:
    scene.put(a_vm())
    told = Event(EventKind.FORGOTTEN, "vm-1", HOST, "cli:ann", "record dropped, the VMM runs on")
    scene.change("vm-1", None, events=(told,))
    scene.subject.pass_time(60_000)
    scene.stray("vm-1", HOST, "its record was forgotten, which lets the vm run on")


def unreadable(scene: Scene) -> None:
    scene.put(a_vm())
    scene.client.hset(KEYS.vm("vm-1"), "v", "9")


RUNS = "wanted running; pid 100, generation 7"
SERVED = "worker pid 100 serves host host-a (version 1)"
HEALTHY = "vm-1 is healthy for 60m on host host-a (firecracker)"
ORPHANED = ["vm-1 is orphaned for 1s on host host-a (firecracker)", RUNS]
DUE = "process_dead, began 1s ago: attempt 1 of 3 is due"
LOST = [*ORPHANED, "not checked yet, known reason process_dead", DUE, SERVED]
SEEN_DEAD = f"it was seen: {ENDED} (fail, certain, process_dead); not checked yet"
IN_2S = "in 2s (at 2027-01-15 08:00:02Z)"
IN_30S = "in 30s (at 2027-01-15 08:00:30Z)"
NOT_SOONER = ", not sooner because of what is said above"
AT_ONCE = "next: attempt 1 of 3 now; at the latest the next sweep begins it, within 60s"
BECAUSE_OF_PERSON = "next: nothing until a person acts: "
OBSERVED = "the maintenance is over, and what it would do is only written down for 20s (at 2027-01-15 08:00:20Z)"
TODO = "mend it, then `reliability recover vm-1`, or `reliability reset vm-1`"
OVERRIDDEN = "until it is lifted; the request that is being followed goes before it"
RESTS = "its record was forgotten, which lets the vm run on"
REBUILD = "run a worker of the version that wrote it; a damaged one: `reliability state rebuild`"

SITUATIONS: list[tuple[Callable[[Scene], None], list[str]]] = [
    (
        healthy,
        [
            HEALTHY,
            RUNS,
            "last check 0s ago: nothing counts against it",
            "0 of 3 failures in a row that make it lost; next look in 20s (at 2027-01-15 08:00:20Z)",
            SERVED,
            "next: the next check in 20s (at 2027-01-15 08:00:20Z)",
        ],
    ),
    (
        degraded,
        [
            "vm-1 is degraded for 2s on host host-a (firecracker)",
            RUNS,
            "2s ago it was seen: no_answer: nothing within 5 s (fail, health_check_failed); last check 0s ago",
            f"2 of 3 failures in a row that make it lost (health_check_failed); next look {IN_2S}",
            SERVED,
            f"next: the next check {IN_2S}",
        ],
    ),
    (
        waiting_for_backoff,
        [
            "vm-1 is orphaned for 5s on host host-a (firecracker)",
            RUNS,
            f"20s ago {SEEN_DEAD}",
            "process_dead, began 20s ago: attempt 2 of 3 waits in 12s (at 2027-01-15 08:00:12Z)",
            "attempt 1, begun 9s ago by recovery: failed after 4s: VMM said: no space left on device",
            SERVED,
            "next: attempt 2 of 3 in 12s (at 2027-01-15 08:00:12Z)",
        ],
    ),
    (
        waiting_for_a_slot,
        [
            *LOST,
            "it waits for host:host-a: place 1 of 2 in that line",
            "0s ago it was put off: no free recovery slot of the host (4)",
            "next: attempt 1 of 3 as soon as its turn comes in the line of host:host-a",
        ],
    ),
    (
        breaker_open,
        [
            *LOST,
            f"breaker image:/images/vmlinux@host-a is open: next probe {IN_30S}, 1 waiting",
            "it waits for breaker:image:/images/vmlinux@host-a: place 1 of 1 in that line",
            "0s ago it was put off: breaker image:/images/vmlinux@host-a is open",
            f"next: attempt 1 of 3 {IN_30S}{NOT_SOONER}",
        ],
    ),
    (
        storm,
        [
            *LOST,
            "storm at fleet for 0s: many uncertain losses at once, recovery goes slowly; 0 came back, 0 waiting",
            "storm at host:host-a for 0s: many uncertain losses at once, recovery goes slowly; 0 came back, 5 waiting",
            "a recovery slot is kept for it",
            "next: attempt 1 of 3 now: a slot is kept for it, its host has been told",
        ],
    ),
    (
        paused_twice,
        [
            HEALTHY,
            RUNS,
            "not checked yet: nothing counts against it",
            "0 of 3 failures in a row that make it lost",
            SERVED,
            "host:host-a is paused: kernel upgrade (by cli:ann, 10m ago; until it is lifted)",
            "vm:vm-1 is paused: disk is being copied (by cli:bob, 60s ago; until it is lifted)",
            f"{BECAUSE_OF_PERSON}`reliability resume --host host-a`; `reliability resume vm-1`",
        ],
    ),
    (
        maintenance_ending,
        [
            *LOST,
            "fleet is in maintenance: switch 7 (by cli:ann, 10m ago; until it ends in 90s (at 2027-01-15 08:01:30Z))",
            f"next: attempt 1 of 3 in 2m (at 2027-01-15 08:02:00Z){NOT_SOONER}",
        ],
    ),
    (
        settling_after_maintenance,
        [
            *LOST,
            f"fleet is observe-only: switch 7 (by cli:ann, 10m ago; {OBSERVED})",
            f"next: attempt 1 of 3 in 20s (at 2027-01-15 08:00:20Z){NOT_SOONER}",
        ],
    ),
    (
        observed_only,
        [
            *ORPHANED,
            f"1s ago {SEEN_DEAD}",
            DUE,
            SERVED,
            "host:host-a is observe-only: first week (by cli:ann, 10m ago; until it is lifted)",
            "0s ago observe-only wrote down: would have recovered it: host:host-a is observe-only",
            f"{BECAUSE_OF_PERSON}`reliability resume --host host-a`",
        ],
    ),
    (
        failed,
        [
            "vm-1 is failed for 26s on host host-a (firecracker)",
            RUNS,
            f"2m ago {SEEN_DEAD}",
            "process_dead, began 2m ago: failed 26s ago after 3 attempts: VMM said: no space left on device",
            "attempt 1, begun 2m ago by recovery: failed after 4s: VMM said: no space left on device",
            "attempt 2, begun 110s ago by recovery: failed after 4s: VMM said: no space left on device",
            "attempt 3, begun 30s ago by recovery: failed after 4s: VMM said: no space left on device",
            SERVED,
            f"next: nothing by itself: a person is asked: {TODO}",
        ],
    ),
    (
        attempt_runs,
        [
            "vm-1 is recovering for 0s on host host-a (firecracker)",
            RUNS,
            "not checked yet, known reason process_dead",
            "process_dead, began 1s ago: attempt 1 of 3 runs for 0s",
            "attempt 1, begun 0s ago by recovery: runs",
            f"its lease is held by attempt-1, and ends {IN_30S} unless it is renewed",
            SERVED,
            f"next: attempt 1 ends by itself; should its worker die, the lease ends {IN_30S}",
        ],
    ),
    (
        attempt_abandoned,
        [
            "vm-1 is recovering for 40s on host host-a (firecracker)",
            RUNS,
            "not checked yet, known reason process_dead",
            "process_dead, began 40s ago: attempt 1 of 3 runs for 40s",
            "attempt 1, begun 40s ago by recovery: runs",
            "nobody holds its lease: the worker of this attempt went away",
            SERVED,
            "next: attempt 1 has nobody behind it any more: the next sweep takes it up, within 60s",
        ],
    ),
    (
        stopped,
        [
            "vm-1 is stopped for 60m on host host-a (firecracker)",
            "wanted stopped; no process",
            "not checked yet",
            SERVED,
            "next: nothing: it is to be stopped; apply it with `desired: running` to start it",
        ],
    ),
    (
        host_silent,
        [
            "vm-1 is unknown for 90s on host host-a (firecracker)",
            RUNS,
            "not checked yet",
            "no worker serves host host-a (last seen 5m ago): its VMs are neither looked at nor recovered",
            f"{BECAUSE_OF_PERSON}start `reliability worker` on host host-a",
        ],
    ),
    (
        kill_switch,
        [
            *LOST,
            "host host-a recovers nothing now: the kill switch /state/PAUSE is on: no signal and no spawn on this host",
            f"{BECAUSE_OF_PERSON}remove that file on host host-a",
        ],
    ),
    (
        data_frozen,
        [
            *LOST,
            "host host-a recovers nothing now: redis holds other data",
            f"{BECAUSE_OF_PERSON}look at `reliability state show`",
        ],
    ),
    (
        switched_off,
        [
            *LOST,
            "recovery is switched off for host:host-a: bad RAM (by cli:bob, 60s ago)",
            f"{BECAUSE_OF_PERSON}`reliability flag clear recovery --host host-a`",
        ],
    ),
    (
        forced,
        [
            *LOST[:3],
            f"{DUE}, asked for by request r-1",
            SERVED,
            f"fleet is paused: audit (by cli:ann, 10m ago; {OVERRIDDEN})",
            AT_ONCE,
        ],
    ),
    (
        redis_restarted,
        [
            *LOST,
            "redis was started again, leases may have been lost: no recovery begins before 2027-01-15 08:00:30Z",
            "it waits for host:host-a: place 1 of 1 in that line",
            "0s ago it was put off: redis was started again, leases may have been lost",
            f"next: attempt 1 of 3 {IN_30S}{NOT_SOONER}",
        ],
    ),
    (
        nobody_checks,
        [
            "vm-1 is healthy for 62m on host host-a (firecracker)",
            RUNS,
            "not checked yet: nothing counts against it",
            "0 of 3 failures in a row that make it lost; next look now",
            SERVED,
            "next: a check has been due for 2m, and nobody has sent it: see whether a `reliability beat` runs",
        ],
    ),
    (
        never_started,
        [
            "vm-1 is starting for 3s on host host-a (firecracker)",
            "wanted running; no process",
            "not checked yet",
            SERVED,
            AT_ONCE,
        ],
    ),
    (
        unknown_with_a_close_match,
        [
            "no vm 'vm-1' is registered",
            "nobody has forgotten one of that id within the last 30 days",
            "did you mean vm-10?",
            "next: nothing; apply its spec to register it",
        ],
    ),
    (
        forgotten,
        [
            "no vm 'vm-1' is registered",
            "it was forgotten 60s ago by cli:ann",
            f"pid 4711 on host host-a says it is this vm, and no record names it: {RESTS}",
            "next: nothing: its VMM runs and nobody watches it; apply its spec to have it watched, or end that process",
        ],
    ),
    (
        unreadable,
        [
            "vm-1: its record cannot be read: field v: schema version 9, this program reads 1 and 2",
            "it is left untouched; its host is host-a",
            f"next: nothing: it is neither judged nor recovered; {REBUILD}",
        ],
    ),
]


@pytest.mark.parametrize(("arrange", "words"), SITUATIONS, ids=[arrange.__name__ for arrange, _ in SITUATIONS])
def test_why_says_it_in_words_and_as_a_document(
    scene: Scene, arrange: Callable[[Scene], None], words: list[str]
) -> None:
    arrange(scene)

    answer = why(scene.fleet, "vm-1")

    assert answer.words() == words
    document = json.loads(json.dumps(answer.document()))
    said = [
        document["summary"],
        *(each["words"] for each in document["findings"]),
        f"next: {document['next']['words']}",
    ]
    assert said == words
    assert_documented(answer)


def assert_documented(answer: Answer) -> None:
    """Each kind has just the keys that docs/why.md names."""
    text = (Path(__file__).parents[2] / "docs" / "why.md").read_text()
    keys = {kind: set(names.split()) for kind, names in re.findall(r"^\| `(\w+)` \| ?([\w ]*) \|", text, re.MULTILINE)}
    for finding in answer.findings:
        assert set(finding.fields) == keys[finding.kind], finding.kind


def test_asking_changes_nothing(scene: Scene) -> None:
    breaker_open(scene)
    before = scene.client.info("persistence")["rdb_changes_since_last_save"]

    why(scene.fleet, "vm-1")
    why(scene.fleet, "vm-2")

    assert scene.client.info("persistence")["rdb_changes_since_last_save"] == before


def test_what_is_no_id_is_refused(scene: Scene) -> None:
    with pytest.raises(ValueError, match="must"):
        why(scene.fleet, "../etc")


def test_without_redis_there_is_no_answer(tmp_path: Path) -> None:
    settings = load(
        {"RELIABILITY_REDIS__URL": "redis://127.0.0.1:9/0", "RELIABILITY_STATE_DIR": str(tmp_path)}, tmp_path
    )

    with pytest.raises(StoreUnavailable):
        why(Fleet(settings.settings), "vm-1")


# At an earlier time


@pytest.fixture
def an_hour_ago(scene: Scene) -> Scene:
    """Registered, lost, recovered at the second attempt; a pause that was lifted, and one that was not."""
    lost = a_lost_vm(episode=an_episode(id="vm-1@1"))
    mode = Event(EventKind.MODE, "", HOST, "cli:ann", "paused begins: kernel upgrade", scope=f"host:{HOST}")
    scene.told(3600, Event(EventKind.REGISTERED, "vm-1", HOST, "cli:ann", "applied, running"))
    scene.told(2000, mode)
    scene.moved(1200, lost, State.HEALTHY, ENDED)
    scene.told(1190, replace(mode, why="paused lifted (kernel upgrade)"))
    scene.told(1185, Event(EventKind.MODE, "", "", "cli:bob", "recovery switched on: roll-out", scope=FLEET))
    scene.failed_attempts(lost, 1180, error=BOOM)
    scene.attempt_begun(1100, lost, 2)
    recovered = replace(lost, state=State.HEALTHY)
    scene.told(
        1090, event(EventKind.RECOVERED, recovered, actor="recovery", why="pid 7 serves", before=State.RECOVERING)
    )
    scene.put(a_vm(since_ms=NOW_MS - 1_090_000))
    return scene


def said_at(scene: Scene, ago: int, vm_id: str = "vm-1") -> list[str]:
    answer = why(scene.fleet, vm_id, at_ms=NOW_MS - ago * 1000)
    assert_documented(answer)
    return answer.words()[:-1]


def test_before_it_was_registered_there_was_nothing(an_hour_ago: Scene) -> None:
    assert said_at(an_hour_ago, 3700) == ["vm-1 is not told of by what is kept at 2027-01-15 06:58:20Z"]


def test_it_tells_which_modes_held_then(an_hour_ago: Scene) -> None:
    assert said_at(an_hour_ago, 1900) == [
        "vm-1 was starting on host host-a at 2027-01-15 07:28:20Z",
        "registered 28m ago by cli:ann: applied, running",
        "the last decision, 28m ago: applied, running (registered, by cli:ann)",
        "host:host-a was set to paused 100s ago by cli:ann: kernel upgrade; not lifted, but its time may have ended",
    ]


def test_a_hold_of_today_says_nothing_about_one_of_then(an_hour_ago: Scene) -> None:
    an_hour_ago.hold(f"host:{HOST}", a_hold(Mode.PAUSED, "kernel upgrade", ago=60))

    assert said_at(an_hour_ago, 1900)[-1].startswith(
        "host:host-a was set to paused 100s ago by cli:ann: kernel upgrade"
    )
    assert "paused" not in " ".join(said_at(an_hour_ago, 1150))


def test_it_tells_what_had_been_seen_and_tried_by_then(an_hour_ago: Scene) -> None:
    assert said_at(an_hour_ago, 1150) == [
        "vm-1 was orphaned on host host-a at 2027-01-15 07:40:50Z",
        "registered 40m ago by cli:ann: applied, running",
        "50s ago it had been seen: process_ended: pid 100 ended: signal 9",
        "attempt 1, begun 30s ago by recovery, had failed: VMM said: no space left on device",
        "the last decision, 26s ago: vm vm-1: VMM said: no space left on device (attempt_failed, by recovery)",
        "recovery switched on: roll-out (for fleet, by cli:bob, 35s ago)",
    ]


def test_it_tells_of_an_attempt_that_ran_then(an_hour_ago: Scene) -> None:
    assert "attempt 2, begun 5s ago by recovery, ran" in said_at(an_hour_ago, 1095)
    assert said_at(an_hour_ago, 1000)[0] == "vm-1 was healthy on host host-a at 2027-01-15 07:43:20Z"


def test_a_hold_that_still_stands_is_known_to_the_letter(an_hour_ago: Scene) -> None:
    an_hour_ago.hold("vm:vm-1", a_hold(Mode.MAINTENANCE, "disk", ago=900, until_ms=NOW_MS + 9000))

    assert "vm:vm-1 was in maintenance: disk (by cli:ann, since 100s ago)" in said_at(an_hour_ago, 800)
    assert "maintenance" not in " ".join(said_at(an_hour_ago, 950))


def test_what_is_trimmed_cannot_be_told(an_hour_ago: Scene) -> None:
    an_hour_ago.client.xtrim(KEYS.events, maxlen=3, approximate=False)

    assert (
        said_at(an_hour_ago, 1150)[-1] == "nothing is kept from that time: the oldest event is of 2027-01-15 07:41:40Z"
    )
    assert said_at(an_hour_ago, 1095)[-1].startswith("events from before 2027-01-15 07:41:40Z are not kept any more")


def test_what_has_not_changed_since_is_known_without_its_event(an_hour_ago: Scene) -> None:
    an_hour_ago.client.xtrim(KEYS.events, maxlen=1, approximate=False)

    assert said_at(an_hour_ago, 60)[0] == "vm-1 was healthy on host host-a at 2027-01-15 07:59:00Z"


def test_one_that_was_forgotten_by_then(an_hour_ago: Scene) -> None:
    told = Event(EventKind.FORGOTTEN, "vm-1", HOST, "cli:ann", "record dropped, the VMM runs on")
    an_hour_ago.change("vm-1", None, events=(told,))
    an_hour_ago.subject.pass_time(9_000)

    answer = why(an_hour_ago.fleet, "vm-1", at_ms=NOW_MS + 5000)

    assert answer.headline.startswith("vm-1 was not registered: it had been forgotten by cli:ann")
    assert (answer.known, answer.next_step.who) == (Known.PAST, Who.NOBODY)


def test_a_time_to_come_is_refused(scene: Scene) -> None:
    with pytest.raises(ValueError, match="still to come"):
        why(scene.fleet, "vm-1", at_ms=NOW_MS + 1000)
