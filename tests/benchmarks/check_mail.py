"""The messages with which beats ask hosts to check VMs: read from the queues as they come, and what they tell.

Times are the server's, in ms: it runs on this machine.
"""

import base64
import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import redis

from tests.support.processes import RunningProcess, wait_until
from workers.queues import CHECK_VMS

_MOST_AT_ONCE = 100
_WAIT_S = 0.2
_MOST_PAUSE_MS = 30_000


@dataclass(frozen=True, slots=True)
class Letter:
    """One message: `claimed_ms` is when a beat took its VMs, `seen_ms` when it was found in the queue of its host."""

    seen_ms: float
    claimed_ms: int
    vm_ids: Sequence[str]


def opened(text: bytes, seen_ms: float, interval_ms: int) -> Letter | None:
    """Return what a message says; None where it asks for a sweep."""
    message = json.loads(text)
    if message["headers"]["task"] != CHECK_VMS:
        return None
    (vm_ids, deadline_ms), *_ = json.loads(base64.b64decode(message["body"]))
    return Letter(seen_ms, deadline_ms - interval_ms, vm_ids)


def lags(letters: Iterable[Letter], places: Mapping[str, int], interval_ms: int) -> list[float]:
    """Return for each VM in each message how long (ms) after it was due it was in its queue."""
    due = (
        (letter, letter.claimed_ms - (letter.claimed_ms - places[letter.vm_ids[0]]) % interval_ms) for letter in letters
    )
    return [letter.seen_ms - since for letter, since in due for _ in letter.vm_ids]


def turns(letters: Iterable[Letter], places: Mapping[str, int], interval_ms: int) -> dict[str, list[int]]:
    """Return for each VM in which intervals, by number, it was given out; twice in one if it was claimed twice."""
    found: dict[str, list[int]] = {}
    for letter in letters:
        for vm_id in letter.vm_ids:
            found.setdefault(vm_id, []).append((letter.claimed_ms - places[vm_id]) // interval_ms)
    return {vm_id: sorted(numbers) for vm_id, numbers in found.items()}


def doubles(numbers: Iterable[Sequence[int]]) -> int:
    """Return how often a VM was given out once more in an interval."""
    return sum(len(each) - len(set(each)) for each in numbers)


def most_missed(numbers: Iterable[Sequence[int]]) -> int:
    """Return the most intervals in a row in which a VM was not given out, between two in which it was."""
    return max((later - earlier - 1 for each in numbers for earlier, later in pairwise(each)), default=0)


def longest_waits(letters: Iterable[Letter], vm_ids: Iterable[str], since_ms: float, until_ms: float) -> list[float]:
    """Return for each VM the longest time (ms) between these two in which it was in no message."""
    seen: dict[str, list[float]] = {vm_id: [since_ms] for vm_id in vm_ids}
    for letter in letters:
        for vm_id in letter.vm_ids:
            seen[vm_id].append(letter.seen_ms)
    ordered = (pairwise([*sorted(times), until_ms]) for times in seen.values())
    return [max(later - earlier for earlier, later in pairs) for pairs in ordered]


def kill_between_claim_and_message(beat: RunningProcess, broker: redis.Redis, host: str) -> None:
    """Hold up the broker until this beat wants to send what it claimed elsewhere, and kill it then.

    It is the only one of `host` that runs. Raises AssertionError when nothing falls due.
    """
    broker.client_pause(_MOST_PAUSE_MS, all=False)
    try:
        wait_until(lambda: "b" in _flags(broker, host), timeout_s=_MOST_PAUSE_MS / 1000, what="a beat to be held up")
        beat.popen.kill()
        beat.popen.wait()
        wait_until(lambda: "b" not in _flags(broker, host), what="the server to notice")
    finally:
        broker.client_unpause()


def _flags(broker: redis.Redis, host: str) -> str:
    return "".join(each["flags"] for each in broker.client_list() if each["name"] == f"reliability-{host}")


@dataclass(slots=True)
class Mail:
    """Takes every message out of its queue as soon as the broker tells that it came."""

    broker: redis.Redis
    db: int
    interval_ms: int
    letters: list[Letter] = field(default_factory=list)

    @contextmanager
    def read(self) -> Iterator[None]:
        self.broker.config_set("notify-keyspace-events", "Kl")
        heard = self.broker.pubsub()  # type: ignore[no-untyped-call] # redis-py
        heard.psubscribe(f"__keyspace@{self.db}__:checks.*")
        over = threading.Event()
        reader = threading.Thread(target=self._read, args=(heard, over), daemon=True)
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()
            heard.close()
            self.broker.config_set("notify-keyspace-events", "")

    def _read(self, heard: Any, over: threading.Event) -> None:
        while not over.is_set():
            told = heard.get_message(ignore_subscribe_messages=True, timeout=_WAIT_S)
            if told is not None and told["data"] == b"lpush":
                seen_ms = time.time() * 1000
                self._take(told["channel"].decode().partition("__:")[2], seen_ms)

    def _take(self, queue: str, seen_ms: float) -> None:
        texts = cast("list[bytes] | None", self.broker.rpop(queue, _MOST_AT_ONCE))
        found = (opened(text, seen_ms, self.interval_ms) for text in texts or ())
        self.letters += [letter for letter in found if letter is not None]

    def since(self, number: int) -> list[Letter]:
        return self.letters[number:]
