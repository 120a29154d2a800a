"""What the server says of its own work: CPU, commands, bytes, which script took how long, and what the keys take."""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, cast

import redis

from tests.benchmarks.measures import cpu_of
from workers.store.client import script

_SLOW_US = 8
_SLOW_ENTRIES = 60_000
_PAGE = 2000
# Commands that only kombu sends; EXEC has what it writes down about a message that was taken.
BROKER = ("brpop", "lpush", "exec", "multi", "publish", "ping")


@dataclass(frozen=True, slots=True)
class Reading:
    """Sums since the server was started."""

    at: float
    cpu_s: float
    commands: int
    bytes_in: int
    bytes_out: int
    usec: Mapping[str, int]
    calls: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Work:
    """What the server did between two readings, per second. `cpu` is a share of one core."""

    cpu: float
    commands: float
    requests: float
    bytes_in: float
    bytes_out: float
    scripts: float
    broker: float


def reading(client: redis.Redis, pid: int) -> Reading:
    info: dict[str, Any] = client.info("everything")
    stats = {name[8:]: each for name, each in info.items() if name.startswith("cmdstat_")}
    return Reading(
        time.monotonic(),
        cpu_of(pid),
        info["total_commands_processed"],
        info["total_net_input_bytes"],
        info["total_net_output_bytes"],
        {name: each["usec"] for name, each in stats.items()},
        {name: each["calls"] for name, each in stats.items()},
    )


def work(before: Reading, after: Reading) -> Work:
    seconds = after.at - before.at

    def usec(*names: str) -> float:
        return sum(after.usec.get(name, 0) - before.usec.get(name, 0) for name in names) / 1e6

    def rate(what: Callable[[Reading], float]) -> float:
        return (what(after) - what(before)) / seconds

    return Work(
        cpu=(after.cpu_s - before.cpu_s) / seconds,
        commands=rate(lambda each: each.commands),
        requests=rate(lambda each: sum(each.calls.get(name, 0) for name in ("evalsha", *BROKER))),
        bytes_in=rate(lambda each: each.bytes_in),
        bytes_out=rate(lambda each: each.bytes_out),
        scripts=usec("evalsha") / seconds,
        broker=usec(*BROKER) / seconds,
    )


@dataclass(frozen=True, slots=True)
class ScriptTime:
    """Per second: how often it was called, and the share of one core it took."""

    calls: float
    share: float


def time_by_script(client: redis.Redis, seconds: float) -> dict[str, ScriptTime]:
    """Watch the slow log for some seconds, set so low that it has nearly every script; costs the server a little."""
    names = {cast("Any", script(client, name)).sha: name for name in _script_names()}
    before = client.info("commandstats")["cmdstat_evalsha"]
    client.config_set("slowlog-max-len", str(_SLOW_ENTRIES))
    client.slowlog_reset()
    client.config_set("slowlog-log-slower-than", str(_SLOW_US))
    began = time.monotonic()
    time.sleep(seconds)
    client.config_set("slowlog-log-slower-than", "-1")
    took, after = time.monotonic() - began, client.info("commandstats")["cmdstat_evalsha"]
    calls, usec = Counter[str](), Counter[str]()
    for entry in client.slowlog_get(_SLOW_ENTRIES):
        word, _, rest = entry["command"].decode(errors="replace").partition(" ")
        if word == "EVALSHA" and (name := names.get(rest[:40])):
            calls[name] += 1
            usec[name] += entry["duration"]
    client.slowlog_reset()
    calls["others, and those too quick to be seen"] = after["calls"] - before["calls"] - calls.total()
    usec["others, and those too quick to be seen"] = after["usec"] - before["usec"] - usec.total()
    return {name: ScriptTime(calls[name] / took, spent / 1e6 / took) for name, spent in usec.most_common()}


def _script_names() -> Iterator[str]:
    for each in files("workers.store").joinpath("scripts").iterdir():
        if each.name.endswith(".lua"):
            yield each.name.removesuffix(".lua")


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. `used` is all the server has allocated; `clients` and `scripts` of it do not belong to the data."""

    used: int
    clients: int
    scripts: int

    @property
    def data(self) -> int:
        return self.used - self.clients - self.scripts


def memory(client: redis.Redis) -> Memory:
    """Statistics are given up first: the server keeps a histogram of some 20 KiB for each command it ever saw."""
    client.config_resetstat()
    info: dict[str, Any] = client.info("everything")
    extra = info["mem_aof_buffer"] + info["used_memory_scripts_eval"]
    return Memory(info["used_memory"], info["mem_clients_normal"], extra)


def memory_by_kind(client: redis.Redis, prefix: str) -> dict[str, int]:
    """Bytes of all keys of a database as MEMORY USAGE has them, by the part of the name behind the prefix."""
    found = Counter[str]()
    cursor = 0
    while True:
        cursor, keys = cast("tuple[int, list[bytes]]", client.scan(cursor, count=_PAGE))
        pipe = client.pipeline(transaction=False)
        for key in keys:
            pipe.memory_usage(key.decode(), samples=0)
        for key, size in zip(keys, pipe.execute(), strict=True):
            found[_kind(key.decode(), prefix)] += size or 0
        if not cursor:
            return dict(found.most_common())


def _kind(key: str, prefix: str) -> str:
    return key.removeprefix(f"{prefix}:").partition(":")[0]
