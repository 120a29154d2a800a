"""The table of VMs: one row per record, filtered, sorted and cut into pages. Values in, values out."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from workers.domain.vm import EpisodeEnd, Reason, State
from workers.ports import Stored
from workers.specs import is_vm_id

PER_PAGE = 50
_MOST_PER_PAGE = 500
_TEXT_MAX = 200
TROUBLE = "trouble"  # a filter: every state in which somebody may want to look
_FIRST = (
    State.FAILED,
    State.ORPHANED,
    State.UNHEALTHY,
    State.RECOVERING,
    State.UNKNOWN,
    State.STARTING,
    State.DEGRADED,
    State.HEALTHY,
    State.STOPPED,
)
_RANK = {state: number for number, state in enumerate(_FIRST)}
_TROUBLED = frozenset(_FIRST[: _FIRST.index(State.HEALTHY)])


@dataclass(frozen=True, slots=True)
class Row:
    """What a list says of one VM. Times are server time in ms; 0 where there is none."""

    vm_id: str
    host: str
    driver: str
    state: State
    since_ms: int
    reason: Reason | None = None
    attempt: int = 0
    running: bool = False
    next_attempt_ms: int = 0
    waits_for: str | None = None
    error: str | None = None


def row_of(stored: Stored) -> Row:
    record = stored.record
    episode = record.episode
    if episode is None or episode.end in (EpisodeEnd.RECOVERED, EpisodeEnd.WITHDRAWN):
        return Row(record.vm_id, record.host, record.driver, record.state, record.since_ms, record.doubt)
    return Row(
        record.vm_id,
        record.host,
        record.driver,
        record.state,
        record.since_ms,
        episode.reason,
        episode.attempt,
        episode.running,
        episode.next_attempt_ms if episode.is_open else 0,
        stored.waits_for,
        episode.error,
    )


def row_document(row: Row) -> dict[str, Any]:
    return {
        "id": row.vm_id,
        "host": row.host,
        "driver": row.driver,
        "state": row.state,
        "since_ms": row.since_ms,
        "reason": row.reason,
        "attempt": row.attempt,
        "running": row.running,
        "next_attempt_ms": row.next_attempt_ms,
        "waits_for": row.waits_for,
        "error": row.error,
    }


_KEYS: Mapping[str, Callable[[Row], Any]] = {
    "id": lambda row: row.vm_id,
    "host": lambda row: (row.host, row.vm_id),
    "state": lambda row: (_RANK[row.state], row.vm_id),
    "since": lambda row: (row.since_ms, row.vm_id),
}


@dataclass(frozen=True, slots=True)
class Query:
    """`text` is looked for in ids and hosts; `sort` is a key of the table, with `-` before it the other way round."""

    states: frozenset[State] = frozenset()
    host: str = ""
    text: str = ""
    sort: str = "state"
    page: int = 1
    per_page: int = PER_PAGE


def query_of(given: Mapping[str, str]) -> Query:
    """Raises ValueError naming the field."""
    sort = given.get("sort") or "state"
    if sort.removeprefix("-") not in _KEYS:
        raise ValueError(f"field sort: must be one of {', '.join(_KEYS)}, or one of them after a minus sign")
    host = given.get("host", "")
    if host and not is_vm_id(host):
        raise ValueError("field host: is no name of a host")
    return Query(
        _states(given.get("state", "")),
        host,
        given.get("q", "").strip().lower()[:_TEXT_MAX],
        sort,
        _whole("page", given.get("page", ""), default=1, most=10**9),
        _whole("per_page", given.get("per_page", ""), default=PER_PAGE, most=_MOST_PER_PAGE),
    )


def _states(text: str) -> frozenset[State]:
    names = [name for name in text.split(",") if name]
    known = set(State) | {TROUBLE}
    if any(name not in known for name in names):
        raise ValueError(f"field state: must be some of {', '.join([*State, TROUBLE])}, with commas between them")
    named = {State(name) for name in names if name != TROUBLE}
    return frozenset(named | _TROUBLED if TROUBLE in names else named)


def _whole(field: str, text: str, *, default: int, most: int) -> int:
    if not text:
        return default
    if not (text.isascii() and text.isdecimal() and len(text) < 12 and 1 <= int(text) <= most):  # noqa: PLR2004 - before int()
        raise ValueError(f"field {field}: must be a whole number from 1 to {most}")
    return int(text)


@dataclass(frozen=True, slots=True)
class Page:
    rows: tuple[Row, ...]
    total: int
    number: int
    of: int


def select(rows: Iterable[Row], query: Query) -> Page:
    """Return one page of the rows that fit; a page beyond the last one is the last."""
    found = sorted(
        (row for row in rows if _fits(row, query)),
        key=_KEYS[query.sort.removeprefix("-")],
        reverse=query.sort.startswith("-"),
    )
    pages = max(1, -(-len(found) // query.per_page))
    number = min(query.page, pages)
    start = (number - 1) * query.per_page
    return Page(tuple(found[start : start + query.per_page]), len(found), number, pages)


def _fits(row: Row, query: Query) -> bool:
    return (
        (not query.states or row.state in query.states)
        and (not query.host or row.host == query.host)
        and (not query.text or query.text in row.vm_id.lower() or query.text in row.host.lower())
    )
