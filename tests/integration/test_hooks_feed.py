"""The event stream in pages, on a real server."""

from collections.abc import Iterator
from typing import cast

import pytest
import redis

from tests.support.builders import HOST
from workers.domain.audit import Event, EventKind
from workers.domain.errors import StoreUnavailable
from workers.embedded import EmbeddedServer
from workers.integration.feed import RedisFeed
from workers.store.client import connect
from workers.store.codec import dump_event

STREAM = "rel:events"


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with connect(redis_url, timeout_s=1, connect_timeout_s=1) as made:
        yield made


@pytest.fixture
def feed(client: redis.Redis) -> RedisFeed:
    return RedisFeed(client, prefix="rel", timeout_s=1)


def happen(client: redis.Redis, vm_id: str) -> str:
    told = Event(EventKind.REGISTERED, vm_id, HOST, "test", "because")
    return cast("bytes", client.xadd(STREAM, {"e": dump_event(told)})).decode()


def vms(feed: RedisFeed, after: str, limit: int = 10) -> list[str]:
    return [event.vm_id for _, event in feed.page(after, limit).events]


def test_a_stream_that_is_not_there_is_empty(feed: RedisFeed) -> None:
    for after in (None, "0"):
        page = feed.page(after, 10)
        assert (page.events, page.has_gap) == ([] if after else (), False)
    assert feed.page(None, 10).next == "0-0"


def test_pages_follow_on_each_other(feed: RedisFeed, client: redis.Redis) -> None:
    ids = [happen(client, f"vm-{number}") for number in range(3)]
    first = feed.page("0", 2)
    assert ([event.vm_id for _, event in first.events], first.next) == (["vm-0", "vm-1"], ids[1])
    assert vms(feed, first.next) == ["vm-2"]
    assert feed.page(ids[2], 10).next == ids[2] == feed.page(None, 10).next


def test_what_this_program_cannot_read_is_passed_over(feed: RedisFeed, client: redis.Redis) -> None:
    client.xadd(STREAM, {"e": '{"kind": "of tomorrow"}'})
    last = cast("bytes", client.xadd(STREAM, {"x": "y"})).decode()
    page = feed.page("0", 10)
    assert (list(page.events), page.next, page.has_gap) == ([], last, False)


def test_events_that_were_cut_off_are_a_gap_once(feed: RedisFeed, client: redis.Redis) -> None:
    ids = [happen(client, f"vm-{number}") for number in range(4)]
    client.xtrim(STREAM, maxlen=2, approximate=False)
    page = feed.page(ids[0], 10)
    assert (page.has_gap, [event.vm_id for _, event in page.events]) == (True, ["vm-2", "vm-3"])
    assert not feed.page(page.next, 10).has_gap
    client.xtrim(STREAM, maxlen=0, approximate=False)
    emptied = feed.page(ids[2], 10)
    assert (emptied.has_gap, emptied.next) == (True, ids[3])
    assert not feed.page(emptied.next, 10).has_gap


def test_data_that_redis_lost_are_a_gap_and_what_is_there_comes_then(feed: RedisFeed, client: redis.Redis) -> None:
    happen(client, "vm-1")
    page = feed.page("9999999999999-0", 10)
    assert (page.has_gap, page.next) == (True, "0-0")
    assert vms(feed, page.next) == ["vm-1"]


def test_waiting_ends_when_something_comes_or_after_a_moment(feed: RedisFeed, client: redis.Redis) -> None:
    feed.wait("0-0")
    happen(client, "vm-1")
    feed.wait("0-0")
    assert vms(feed, "0") == ["vm-1"]


def test_an_outage_is_said(feed: RedisFeed, fresh_server: EmbeddedServer) -> None:
    fresh_server.kill()
    with pytest.raises(StoreUnavailable):
        feed.page("0", 10)
