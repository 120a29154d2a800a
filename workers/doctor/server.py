"""Checks of Redis: does it answer, is it new enough, does it keep what it is told, may we do what we have to."""

import re
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, cast

import redis
from redis.exceptions import AuthenticationError, InvalidResponse, NoPermissionError, RedisError, ResponseError

from workers.doctor.finding import Finding, fine, listed, problem, warning
from workers.doctor.place import Place, endpoint
from workers.redis_url import RedisUrl
from workers.settings import CLOCK_SKEW

OLDEST = (7, 0)
_PINGS = 11
_SLOW_S, _TOO_SLOW_S = 0.010, 0.100
_NEARLY_FULL = 0.9
_SKEW_S = 2.0
_STATE_CONF = "config/redis/state.conf shows how"
_ROLES = "config/redis/roles.acl has users"
_USER = re.compile(r"User (\S+) has no permissions")
Info = Mapping[str, Any]


def reachable(place: Place) -> Iterator[Finding]:
    yield answer("redis", place.redis, place.settings.redis.url, "redis.url", place)


def broker_reachable(place: Place) -> Iterator[Finding]:
    yield answer("broker", place.broker, place.settings.broker.url, "broker.url", place)


def answer(name: str, client: redis.Redis, url: RedisUrl, key: str, place: Place) -> Finding:
    try:
        client.ping()
    except (AuthenticationError, ResponseError) as error:
        return problem(name, f"{url} refuses us: {error}", f"put the right user and password into {key}")
    except InvalidResponse:
        return problem(name, f"{url} is not Redis: it speaks otherwise", f"correct {key} ({place.source(key)})")
    except (RedisError, OSError) as error:
        does = f"start it, or correct {key} ({place.source(key)})"
        return problem(name, f"{url} does not answer: {_short(error)}", does)
    return fine(name, f"{url} answers")


def _short(error: Exception) -> str:
    """Redis-py says where it went once more."""
    text = " ".join(str(error).split()).rstrip(".")
    return text.partition(". ")[2] or text


def version(place: Place) -> Iterator[Finding]:
    yield judge_version(_info(place.redis, "server"))


def judge_version(info: Info) -> Finding:
    is_valkey = "valkey_version" in info
    shown = f"Valkey {info['valkey_version']}" if is_valkey else f"Redis {info.get('redis_version', 'of no version')}"
    numbers = tuple(int(part) for part in re.findall(r"\d+", str(info.get("redis_version", "")))[:2])
    if not is_valkey and numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return problem("redis version", f"{shown} is too old", f"run Redis {oldest} or later, or Valkey")
    return fine("redis version", shown)


def persistence(place: Place) -> Iterator[Finding]:
    yield from judge_persistence(_info(place.redis, "persistence"))


def judge_persistence(info: Info) -> Iterator[Finding]:
    if info.get("loading"):
        yield warning("persistence", "Redis is still loading its data", "wait until it has")
    if not info.get("aof_enabled"):
        says = "appendonly is off: a restart of Redis loses records, and every host freezes then"
        yield problem("persistence", says, f"appendonly yes; {_STATE_CONF}")
    elif info.get("aof_last_write_status", "ok") != "ok":
        yield problem("persistence", "Redis cannot write its append-only file", "look at its disk and its log")
    else:
        yield fine("persistence", "appendonly is on")


def memory(place: Place) -> Iterator[Finding]:
    yield from judge_memory("redis memory", _info(place.redis, "memory"))


def judge_memory(name: str, info: Info) -> Iterator[Finding]:
    policy, most = str(info.get("maxmemory_policy", "noeviction")), int(info.get("maxmemory", 0))
    used = int(info.get("used_memory", 0))
    if policy != "noeviction":
        says = f"maxmemory-policy is {policy}: when memory is short, records or messages vanish"
        limited = problem if most else warning
        yield limited(name, says, f"maxmemory-policy noeviction; {_STATE_CONF}")
    if most and used > _NEARLY_FULL * most:
        says = f"{used * 100 // most} % of maxmemory is used: at 100 % no write is taken any more"
        yield warning(name, says, "raise maxmemory, or lower events.max_length")
    if policy == "noeviction" and not (most and used > _NEARLY_FULL * most):
        yield fine(name, f"noeviction, {used >> 20} MiB used" + (f" of {most >> 20}" if most else ""))


def latency(place: Place) -> Iterator[Finding]:
    yield judge_latency(_median_ping_s(place.redis))


def judge_latency(median_s: float) -> Finding:
    says = f"median of {_PINGS} PINGs: {median_s * 1000:.1f} ms"
    does = "put Redis nearer, or look what keeps it busy: redis-cli --latency, SLOWLOG GET"
    if median_s >= _TOO_SLOW_S:
        return problem("redis latency", says, does)
    return warning("redis latency", says, does) if median_s >= _SLOW_S else fine("redis latency", says)


def _median_ping_s(client: redis.Redis) -> float:
    taken = []
    for _ in range(_PINGS):
        began = time.perf_counter()
        client.ping()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def clock(place: Place) -> Iterator[Finding]:
    before = time.time()
    seconds, micros = place.redis.time()
    yield judge_clock(seconds + micros / 1e6 - (before + time.time()) / 2)


def judge_clock(ahead_s: float) -> Finding:
    """`ahead_s` is what the clock of Redis shows beyond that of this host."""
    off_s, side = abs(ahead_s), "ahead" if ahead_s > 0 else "behind"
    says = f"the clock of Redis is {off_s:.1f} s {side} of that of this host"
    does = "let chrony or systemd-timesyncd set both clocks"
    if off_s >= CLOCK_SKEW.total_seconds():
        return problem("clocks", says, does)
    return warning("clocks", says, does) if off_s >= _SKEW_S else fine("clocks", f"apart by {off_s * 1000:.0f} ms")


@dataclass(frozen=True, slots=True)
class Rights:
    """`refused`: commands of a worker that this user may not; None where it may not ask."""

    user: str
    refused: list[str] | None


def rights(place: Place) -> Iterator[Finding]:
    yield judge_rights(_rights(place))
    has_password = bool(endpoint(place.redis).get("password"))
    if not has_password and not is_near(endpoint(place.redis)):
        says = "Redis asks for no password: whoever reaches it commands every host"
        yield problem("redis password", says, f"give it one, or a user for each role: {_ROLES}")


def is_near(where: Mapping[str, object]) -> bool:
    """Whether a connection stays on this machine."""
    host = str(where.get("host", "localhost"))
    try:
        return "path" in where or host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def judge_rights(found: Rights) -> Finding:
    if found.refused is None:
        return fine("redis rights", f"user {found.user}, who may not ask about rights (as it should be)")
    if found.refused:
        says = f"user {found.user} may not {listed(found.refused)}: enough to look, not for a worker"
        return warning("redis rights", says, f"give workers a user of their own: {_ROLES}")
    return fine("redis rights", f"user {found.user} may do all that a worker does")


def _rights(place: Place) -> Rights:
    client: Any = place.redis
    try:
        user = _text(client.execute_command("ACL WHOAMI"))
        return Rights(user, [" ".join(each[:1]) for each in _work(place) if not _may(client, user, each)])
    except NoPermissionError as error:
        named = _USER.search(str(error))
        return Rights(named[1] if named else "unknown", None)


def _work(place: Place) -> list[tuple[str, ...]]:
    """What a worker has to be allowed, one command of each kind."""
    keys, host = place.keys, place.settings.host
    return [
        ("HSET", keys.vm("doctor"), "field", "value"),
        ("ZADD", keys.due, "1", "doctor"),
        ("SET", keys.host(host), "value"),
        ("XADD", keys.events, "*", "e", "value"),
        ("EVALSHA", "0" * 40, "1", keys.vm("doctor")),
    ]


def _may(client: Any, user: str, command: tuple[str, ...]) -> bool:
    """Ask, which does nothing."""
    return _text(client.execute_command("ACL DRYRUN", user, *command)) == "OK"


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def broker(place: Place) -> Iterator[Finding]:
    """The broker's own: it must not be where the records are, and must not drop messages."""
    records, messages = _info(place.redis, "server"), _info(place.broker, "server")
    same_server = records.get("run_id") == messages.get("run_id")
    yield judge_apart(place, same_server=same_server)
    if not same_server:
        yield from judge_memory("broker memory", _info(place.broker, "memory"))


def judge_apart(place: Place, *, same_server: bool) -> Finding:
    number = endpoint(place.broker).get("db") or 0
    if same_server and number == (endpoint(place.redis).get("db") or 0):
        says = f"records and messages share database {number} of one server: emptying the queues wipes the records"
        return problem("broker database", says, "give broker.url a database of its own, such as /1")
    where = "on the same server" if same_server else "on a server of its own"
    return fine("broker database", f"number {number}, {where}")


def _info(client: redis.Redis, section: str) -> Info:
    return cast("Info", client.info(section))
