"""Callbacks for changes of VMs, on a real server: none is missed, whoever dies in between."""

import io
import json
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from tests.support.builders import HOST
from tests.support.log_lines import logged
from tests.support.processes import start_process, wait_until
from workers.domain.audit import Event, EventKind
from workers.domain.vm import Reason, State
from workers.embedded import EmbeddedServer
from workers.integration.changes import Change, ChangeKind
from workers.integration.subscriptions import Begin, Gap, GapCause, Subscriptions
from workers.settings import Settings
from workers.store.codec import dump_event

STREAM = "rel:events"
GROUP = "manager"

Subscribe = Callable[..., "Heard"]


class Heard:
    """A running subscriber and what it was told; `fails` says how often a VM's callback still raises."""

    def __init__(self, settings: Settings, consumer: str, *, fails: int = 0, **options: Any) -> None:
        self.changes: list[Change] = []
        self.gaps: list[Gap] = []
        self.fails = {"vm-1": fails}
        quick = {"backoff_s": 0.02, "longest_backoff_s": 0.1, "claim_after_s": 0.3} | options
        self.subscription = Subscriptions(settings, GROUP, consumer, **quick)
        for kind in ChangeKind:
            self.subscription.add(kind, self._take)
        self.subscription.on_gap(self.gaps.append)

    def _take(self, change: Change) -> None:
        if self.fails.get(change.vm_id, 0) > 0:
            self.fails[change.vm_id] -= 1
            raise RuntimeError("not now")
        self.changes.append(change)

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(change.vm_id, str(change.kind)) for change in self.changes]


@pytest.fixture
def settings(redis_url: str, broker_url: str, tmp_path: Path) -> Settings:
    return Settings.model_validate(
        {"host": HOST, "state_dir": tmp_path, "redis": {"url": redis_url}, "broker": {"url": broker_url}}
    )


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as made:
        yield made


@pytest.fixture
def subscribe(settings: Settings, client: redis.Redis) -> Iterator[Subscribe]:
    """Start a consumer, and wait until its group is there."""
    with ExitStack() as stack:

        def start(consumer: str = "one", **options: Any) -> Heard:
            heard = Heard(settings, consumer, **options)
            stack.callback(heard.subscription.stop)
            heard.subscription.start()
            wait_until(lambda: groups(client), what="the group")
            return heard

        yield start


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    with logged() as stream:
        yield stream


def groups(client: redis.Redis) -> list[str]:
    """Of groups whose first consumer has been made."""
    try:
        return [each["name"].decode() for each in client.xinfo_groups(STREAM)]
    except redis.ResponseError:
        return []


def pending(client: redis.Redis) -> int:
    return int(client.xpending(STREAM, GROUP)["pending"])


def server_ms(client: redis.Redis) -> int:
    seconds, micros = client.time()
    return seconds * 1000 + micros // 1000


def happen(client: redis.Redis, vm_id: str, after: State = State.ORPHANED, **about: Any) -> str:
    told = Event(
        about.pop("kind", EventKind.TRANSITION),
        vm_id,
        HOST,
        "test",
        about.pop("why", "because"),
        before=about.pop("before", State.HEALTHY),
        after=after,
        reason=about.pop("reason", Reason.PROCESS_DEAD),
        **about,
    )
    return cast("bytes", client.xadd(STREAM, {"e": dump_event(told)})).decode()


def test_each_kind_of_change_is_told_with_all_there_is_to_it(subscribe: Subscribe, client: redis.Redis) -> None:
    heard = subscribe()
    happen(client, "vm-1", State.UNHEALTHY, reason=Reason.HEALTH_CHECK_FAILED)
    first = happen(client, "vm-2", State.ORPHANED)
    happen(client, "vm-2", State.RECOVERING, before=State.ORPHANED, kind=EventKind.ATTEMPT_STARTED, attempt=1)
    happen(client, "vm-2", State.ORPHANED, before=State.RECOVERING, kind=EventKind.ATTEMPT_FAILED, attempt=1)
    happen(client, "vm-2", State.HEALTHY, before=State.RECOVERING, kind=EventKind.RECOVERED, attempt=2)
    happen(client, "vm-3", State.FAILED, before=State.ORPHANED)

    wait_until(lambda: len(heard.changes) == 5, what="five changes")

    assert heard.told == [
        ("vm-1", "unhealthy"),
        ("vm-2", "orphaned"),
        ("vm-2", "orphaned"),
        ("vm-2", "recovered"),
        ("vm-3", "failed"),
    ]
    assert heard.changes[1] == Change(
        ChangeKind.ORPHANED, "vm-2", HOST, int(first.split("-")[0]), Reason.PROCESS_DEAD, None, "because", first
    )
    assert [change.attempt for change in heard.changes] == [None, None, 1, 2, None]
    wait_until(lambda: pending(client) == 0, what="all to be done")


def test_a_new_group_is_told_to_look_once_and_begins_now_or_where_the_stream_begins(
    subscribe: Subscribe, client: redis.Redis
) -> None:
    happen(client, "vm-early")
    heard = subscribe()
    happen(client, "vm-late")
    wait_until(lambda: heard.changes, what="a change")
    assert heard.told == [("vm-late", "orphaned")]
    assert [gap.cause for gap in heard.gaps] == [GapCause.NEW_GROUP]

    heard.subscription.stop()
    client.xgroup_destroy(STREAM, GROUP)
    all_of_it = subscribe(begin=Begin.BEGINNING)
    wait_until(lambda: len(all_of_it.changes) == 2, what="both")


def test_what_happens_while_nobody_listens_is_told_after_the_restart(subscribe: Subscribe, client: redis.Redis) -> None:
    subscribe().subscription.stop()
    happen(client, "vm-1")

    heard = subscribe()

    wait_until(lambda: heard.told == [("vm-1", "orphaned")], what="the change")
    assert heard.gaps == []


def test_a_callback_that_fails_is_called_again_and_only_its_vm_waits_for_it(
    subscribe: Subscribe, client: redis.Redis
) -> None:
    heard = subscribe()
    heard.fails = {"vm-1": 3}
    happen(client, "vm-1")
    happen(client, "vm-2")
    happen(client, "vm-1", State.FAILED, before=State.ORPHANED)

    wait_until(lambda: len(heard.changes) == 3, what="all three")

    assert heard.told == [("vm-2", "orphaned"), ("vm-1", "orphaned"), ("vm-1", "failed")]
    wait_until(lambda: pending(client) == 0, what="all to be done")


def test_the_callbacks_that_returned_are_not_called_again_for_one_that_failed(
    client: redis.Redis, settings: Settings
) -> None:
    calls: list[str] = []
    subscription = Subscriptions(settings, GROUP, "one", backoff_s=0.02)
    subscription.add("orphaned", lambda _: calls.append("first"))

    def second(_: Change) -> None:
        calls.append("second")
        if calls.count("second") < 3:
            raise RuntimeError("not now")

    subscription.add(ChangeKind.ORPHANED, second)
    subscription.start()
    try:
        wait_until(lambda: groups(client), what="the group")
        happen(client, "vm-1")
        wait_until(lambda: calls == ["first", "second", "second", "second"], what="the calls")
    finally:
        subscription.stop()


def test_a_change_whose_callback_never_succeeds_is_put_aside_and_blocks_nothing(
    subscribe: Subscribe, client: redis.Redis, lines: io.StringIO
) -> None:
    heard = subscribe(tries=3)
    heard.fails = {"vm-1": 3}
    poison = happen(client, "vm-1")
    happen(client, "vm-1", State.FAILED, before=State.ORPHANED)

    wait_until(lambda: heard.told == [("vm-1", "failed")], what="the one after it")

    wait_until(lambda: pending(client) == 0, what="both to be done")
    aside = [line for line in lines.getvalue().splitlines() if "put aside" in line]
    assert len(aside) == 1
    assert f"event_id={poison}" in aside[0]
    assert "level=error" in aside[0]
    assert "not now" in aside[0]


def test_tries_are_counted_across_restarts(subscribe: Subscribe, client: redis.Redis, lines: io.StringIO) -> None:
    first = subscribe(tries=3, backoff_s=30.0, longest_backoff_s=30.0)
    first.fails = {"vm-1": 99}
    happen(client, "vm-1")
    wait_until(lambda: first.fails == {"vm-1": 98}, what="the first try")
    first.subscription.stop()

    second = subscribe(tries=2, fails=99)

    wait_until(lambda: "put aside" in lines.getvalue(), what="it to be put aside")
    assert second.fails == {"vm-1": 98}


def test_an_event_of_another_version_is_passed_over_with_a_line(
    subscribe: Subscribe, client: redis.Redis, lines: io.StringIO
) -> None:
    heard = subscribe()
    client.xadd(STREAM, {"e": json.dumps({"kind": "of tomorrow", "vm_id": "vm-1"})})
    client.xadd(STREAM, {"x": "no event at all"})
    happen(client, "vm-2")

    wait_until(lambda: heard.told == [("vm-2", "orphaned")], what="the change after it")
    wait_until(lambda: pending(client) == 0, what="all to be done")
    assert lines.getvalue().count("event of another version passed over") >= 1


def test_the_end_waits_for_the_running_callback_and_it_is_not_repeated(settings: Settings, client: redis.Redis) -> None:
    entered, released = threading.Event(), threading.Event()
    ended: list[str] = []

    def slow(change: Change) -> None:
        entered.set()
        assert released.wait(10)
        ended.append(change.vm_id)

    subscription = Subscriptions(settings, GROUP, "one", begin=Begin.BEGINNING)
    subscription.add(ChangeKind.ORPHANED, slow)
    happen(client, "vm-1")
    second = happen(client, "vm-2")
    subscription.start()
    assert entered.wait(10)
    stopper = threading.Thread(target=subscription.stop)
    stopper.start()
    released.set()
    stopper.join(10)

    assert ended == ["vm-1"]
    left = cast("list[dict[str, Any]]", client.xpending_range(STREAM, GROUP, "-", "+", 10))
    assert [each["message_id"].decode() for each in left] == [second]


def test_a_callback_may_end_its_subscription(settings: Settings, client: redis.Redis) -> None:
    subscription = Subscriptions(settings, GROUP, "one", begin=Begin.BEGINNING)
    subscription.add(ChangeKind.ORPHANED, lambda _: subscription.stop())
    happen(client, "vm-1")
    happen(client, "vm-2")
    subscription.start()
    wait_until(lambda: GROUP in groups(client) and pending(client) == 1, what="the first to be done, and only that")
    subscription.stop()


def test_the_end_does_not_wait_for_ever_for_a_callback_that_hangs(settings: Settings, client: redis.Redis) -> None:
    entered, released = threading.Event(), threading.Event()
    subscription = Subscriptions(settings, GROUP, "one", begin=Begin.BEGINNING)

    def hang(_: Change) -> None:
        entered.set()
        released.wait(10)

    subscription.add(ChangeKind.ORPHANED, hang)
    happen(client, "vm-1")
    subscription.start()
    assert entered.wait(10)
    subscription.stop(0.01)
    assert pending(client) == 1
    released.set()
    subscription.stop()
    assert pending(client) == 0


def test_two_consumers_share_the_changes(subscribe: Subscribe, client: redis.Redis) -> None:
    one, two = subscribe("one"), subscribe("two")
    for number in range(50):
        happen(client, f"vm-{number}")

    wait_until(lambda: len(one.changes) + len(two.changes) == 50, what="all of them")
    assert {*one.told} | {*two.told} == {(f"vm-{number}", "orphaned") for number in range(50)}


def test_two_groups_are_each_told_everything(subscribe: Subscribe, client: redis.Redis, settings: Settings) -> None:
    heard = subscribe()
    other: list[str] = []
    subscription = Subscriptions(settings, "billing", "one")
    subscription.add(ChangeKind.ORPHANED, lambda change: other.append(change.vm_id))
    subscription.start()
    try:
        wait_until(lambda: "billing" in groups(client), what="the other group")
        happen(client, "vm-1")
        wait_until(lambda: other == ["vm-1"] and heard.told, what="both to be told")
    finally:
        subscription.stop()


def test_what_a_dead_consumer_was_given_comes_to_another_one(subscribe: Subscribe, client: redis.Redis) -> None:
    heard = subscribe("one")
    heard.subscription.stop()
    happen(client, "vm-1")
    client.xreadgroup(GROUP, "dead", {STREAM: ">"})

    heard = subscribe("one")

    wait_until(lambda: heard.told == [("vm-1", "orphaned")], what="the dead one's change")


def test_a_stream_that_was_cut_off_beyond_the_group_is_told_as_a_gap(
    subscribe: Subscribe, client: redis.Redis, lines: io.StringIO
) -> None:
    subscribe().subscription.stop()
    for number in range(10):
        happen(client, f"vm-{number}")
    client.xtrim(STREAM, maxlen=3, approximate=False)

    heard = subscribe()

    wait_until(lambda: len(heard.changes) == 3, what="what is left")
    assert [gap.cause for gap in heard.gaps] == [GapCause.TRIMMED]
    assert "subscription missed changes" in lines.getvalue()


def test_a_stream_that_was_emptied_is_one_gap_and_the_next_change_is_told(
    subscribe: Subscribe, client: redis.Redis
) -> None:
    subscribe().subscription.stop()
    happen(client, "vm-1")
    client.xtrim(STREAM, maxlen=0, approximate=False)

    heard = subscribe()
    wait_until(lambda: heard.gaps, what="the gap")
    happen(client, "vm-2")

    wait_until(lambda: heard.told == [("vm-2", "orphaned")], what="the next change")
    assert [gap.cause for gap in heard.gaps] == [GapCause.TRIMMED]


def test_a_change_that_is_cut_off_while_it_waits_for_its_next_try_is_told_as_a_gap(
    subscribe: Subscribe, client: redis.Redis
) -> None:
    heard = subscribe()
    heard.fails = {"vm-1": 99}
    happen(client, "vm-1")
    wait_until(lambda: heard.fails != {"vm-1": 99}, what="the first try")

    client.xtrim(STREAM, maxlen=0, approximate=False)

    wait_until(lambda: GapCause.TRIMMED in [gap.cause for gap in heard.gaps], what="the gap")


def test_a_group_that_redis_lost_begins_again_with_all_that_redis_has(
    subscribe: Subscribe, client: redis.Redis
) -> None:
    heard = subscribe()
    before = happen(client, "vm-1")
    wait_until(lambda: heard.changes, what="a change")
    # Else an event of the new stream could have the very id of one of the old.
    wait_until(lambda: server_ms(client) > int(before.partition("-")[0]), what="the next millisecond")

    client.delete(STREAM)
    happen(client, "vm-2")

    wait_until(lambda: ("vm-2", "orphaned") in heard.told, what="the change after the loss")
    assert [gap.cause for gap in heard.gaps] == [GapCause.NEW_GROUP, GapCause.GROUP_LOST]


def test_a_group_that_was_destroyed_goes_on_with_what_was_not_done(subscribe: Subscribe, client: redis.Redis) -> None:
    heard = subscribe()
    happen(client, "vm-done")
    wait_until(lambda: heard.changes, what="a change")
    heard.fails = {"vm-1": 2}
    happen(client, "vm-1")
    wait_until(lambda: heard.fails != {"vm-1": 2}, what="the first try")

    client.xgroup_destroy(STREAM, GROUP)

    wait_until(lambda: ("vm-1", "orphaned") in heard.told, what="the change that failed before")
    assert heard.told.count(("vm-done", "orphaned")) == 1


def test_a_gap_is_told_until_its_callback_returns(settings: Settings, client: redis.Redis) -> None:
    calls: list[Gap] = []

    def grumpy(gap: Gap) -> None:
        calls.append(gap)
        if len(calls) < 3:
            raise RuntimeError("not now")
        assert groups(client) == [], "the group is made only after it"

    subscription = Subscriptions(settings, GROUP, "one", backoff_s=0.01)
    subscription.on_gap(grumpy)
    subscription.start()
    try:
        wait_until(lambda: groups(client), what="the group")
    finally:
        subscription.stop()
    assert len(calls) == 3


def test_an_outage_of_redis_is_waited_for(
    subscribe: Subscribe, fresh_server: EmbeddedServer, lines: io.StringIO, redis_url: str
) -> None:
    heard = subscribe()
    fresh_server.kill()
    wait_until(lambda: "subscription waits for redis" in lines.getvalue(), what="it to be noticed")

    fresh_server.start()

    with redis.Redis.from_url(redis_url) as client:
        happen(client, "vm-1")
    wait_until(lambda: heard.told == [("vm-1", "orphaned")], what="the change")
    assert "subscription goes on" in lines.getvalue()


_KILLED = """
import json, os, signal, sys, time
from pathlib import Path
from workers.integration.subscriptions import Subscriptions
from workers.settings import Settings

settings = Settings.model_validate(json.loads(sys.argv[1]))
told = Path(sys.argv[2])

def take(change):
    with told.open("a") as file:
        file.write(change.event_id + "\\n")
    if sys.argv[3] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)

subscription = Subscriptions(settings, "manager", sys.argv[4], claim_after_s=2.0)
subscription.add("orphaned", take)
subscription.start()
time.sleep(60)
"""


def program(settings: Settings, told: Path, how: str, consumer: str = "one") -> list[str]:
    """Return a subscriber that writes down what it is told; one that `dies` is killed after its first change."""
    given = {
        "host": HOST,
        "state_dir": str(settings.state_dir),
        "redis": {"url": settings.redis.url.get_secret_value()},
        "broker": {"url": settings.broker.url.get_secret_value()},
    }
    return [sys.executable, "-c", _KILLED, json.dumps(given), str(told), how, consumer]


def has_grown(file: Path, beyond: int) -> bool:
    return file.stat().st_size > beyond


@pytest.mark.full
def test_consumers_that_are_killed_all_the_time_miss_nothing(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    ids = {happen(client, f"vm-{number % 40}") for number in range(400)}
    told, log = tmp_path / "told", tmp_path / "log"
    told.touch()
    for consumer in ("one", "two", "gone", "one", "two"):
        told_before = told.stat().st_size
        with start_process(program(settings, told, "lives", consumer), log_path=log) as process:
            ids |= {happen(client, f"vm-{consumer}") for _ in range(20)}
            wait_until(partial(has_grown, told, told_before), what="it to be told something")
            process.popen.kill()
    with ExitStack() as stack:
        for consumer in ("one", "two"):
            stack.enter_context(start_process(program(settings, told, "lives", consumer), log_path=log))
        wait_until(lambda: {*told.read_text().split()} == ids, timeout_s=30, what="all changes to be told")
        wait_until(lambda: pending(client) == 0, what="all to be done")


def test_a_subscriber_that_is_killed_between_callback_and_acknowledgement_is_told_again(
    settings: Settings, client: redis.Redis, tmp_path: Path
) -> None:
    client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    first, second = happen(client, "vm-1"), happen(client, "vm-2")
    told = tmp_path / "told"

    with start_process(program(settings, told, "dies"), log_path=tmp_path / "log") as process:
        wait_until(lambda: not process.is_alive, what="it to be killed")
        assert process.popen.returncode == -signal.SIGKILL
    assert told.read_text().split() == [first]
    assert pending(client) == 2

    with start_process(program(settings, told, "lives"), log_path=tmp_path / "log"):
        wait_until(lambda: told.read_text().split() == [first, first, second], what="both changes")
        wait_until(lambda: pending(client) == 0, what="both to be done")


@pytest.mark.parametrize("name", ["", "Group", "a b", "a/b", "x" * 65])
def test_a_name_that_is_none_is_refused_with_its_field(settings: Settings, name: str) -> None:
    with pytest.raises(ValueError, match="group: must be"):
        Subscriptions(settings, name, "one")
    with pytest.raises(ValueError, match="consumer: must be"):
        Subscriptions(settings, GROUP, name)


def test_an_unknown_kind_is_refused(settings: Settings) -> None:
    with pytest.raises(ValueError, match="is not a valid ChangeKind"):
        Subscriptions(settings, GROUP, "one").add("sleepy", lambda _: None)
