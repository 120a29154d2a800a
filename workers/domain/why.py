"""Why a VM is as it is: what is known about it, said in plain words and as fields. Pure; facts come from the stores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workers.domain.answer import (
    Answer,
    Finding,
    Known,
    Next,
    Who,
)
from workers.domain.audit import EventKind, trace_id_of
from workers.domain.chronicle import Told, Tried, attempts_of, failures_needed, last_sight, sight_fields, tried_fields
from workers.domain.hindrances import Facts, StrayAt, blocks_of, worker_fields
from workers.domain.outlook import next_step
from workers.domain.recovery import needs_attempt
from workers.domain.vm import Desired, Episode, EpisodeEnd, Reason, State, VmRecord
from workers.domain.words import ago, at_time, counted, iso, lasting

_SHOWN = 10  # attempts, of which the last matter most


@dataclass(frozen=True, slots=True)
class Damaged:
    """A record that cannot be read."""

    vm_id: str
    now_ms: int
    why: str
    host: str | None = None


@dataclass(frozen=True, slots=True)
class Nobody:
    """An id without a record. `forgotten_ms` 0: nobody has forgotten it within what is remembered."""

    vm_id: str
    now_ms: int
    forgotten_ms: int = 0
    forgotten_by: str | None = None
    strays: Sequence[StrayAt] = ()
    close: Sequence[str] = ()
    last: Told | None = None


def explain(facts: Facts | Damaged | Nobody) -> Answer:
    """Say it."""
    match facts:
        case Facts():
            return _of_record(facts)
        case Damaged():
            return _damaged(facts)
        case Nobody():
            return _nobody(facts)


def _of_record(facts: Facts) -> Answer:
    record = facts.record
    blocks = blocks_of(facts)
    findings = [
        _state(facts),
        _evidence(facts),
        *_threshold(facts, is_looked_at=not any(block.looks for block in blocks)),
        *_episode(facts),
        *_lease(facts),
        *_worker(facts),
        *(block.finding for block in blocks),
        *_queue(facts),
        *_last_word(facts),
        *map(_stray, facts.strays),
    ]
    since = f" for {lasting(record.since_ms, facts.now_ms)}" if record.since_ms else ""
    headline = f"{record.vm_id} is {record.state}{since} on host {record.host} ({record.driver})"
    return Answer(
        record.vm_id, Known.RECORD, facts.now_ms, headline, str(record.state), findings, next_step(facts, blocks)
    )


def _state(facts: Facts) -> Finding:
    record = facts.record
    process = f"pid {record.process.pid}, generation {record.generation}" if record.process else "no process"
    return Finding(
        "state",
        f"wanted {record.desired}; {process}",
        {
            "state": str(record.state),
            "since": iso(record.since_ms),
            "desired": str(record.desired),
            "host": record.host,
            "driver": record.driver,
            "generation": record.generation,
            "pid": record.process.pid if record.process else None,
        },
    )


def _evidence(facts: Facts) -> Finding:
    record, now_ms = facts.record, facts.now_ms
    checked = f"last check {ago(facts.checked_ms, now_ms)}" if facts.checked_ms else "not checked yet"
    looked = {"last_check": iso(facts.checked_ms), "last_exit": record.last_exit}
    reason = _reason(record)
    if record.fails == 0 and record.state in (State.HEALTHY, State.DEGRADED):
        return Finding("evidence", f"{checked}: nothing counts against it", sight_fields(None, reason) | looked)
    seen = last_sight(facts.events)
    if seen is None:
        known = f", known reason {reason}" if reason else ""
        return Finding("evidence", f"{checked}{known}", sight_fields(None, reason) | looked)
    ruling = seen.ruling
    worth = ", ".join(
        str(part) for part in (ruling.verdict, "certain" if ruling.certain else None, ruling.reason) if part
    )
    return Finding(
        "evidence",
        f"{ago(seen.at_ms, now_ms)} it was seen: {seen.words} ({worth}); {checked}",
        sight_fields(seen, reason) | looked,
    )


def _reason(record: VmRecord) -> str | None:
    found: Reason | None = record.open_episode.reason if record.open_episode else record.doubt
    return str(found) if found else None


def _threshold(facts: Facts, *, is_looked_at: bool) -> Iterator[Finding]:
    """How far it is from another verdict; a lost VM is far beyond."""
    record, health = facts.record, facts.rules.health
    if record.desired is Desired.STOPPED or record.state in (State.FAILED, State.RECOVERING):
        return
    needed = failures_needed(record.doubt, health.failure_threshold)
    if record.fails and record.state in (State.DEGRADED, State.HEALTHY, State.STARTING, State.UNKNOWN):
        words = f"{record.fails} of {needed} failures in a row that make it lost ({record.doubt})"
    elif record.passes and record.state not in (State.HEALTHY, State.STARTING, State.UNKNOWN):
        words = f"{record.passes} of {health.recovery_threshold} passes in a row that make it healthy again"
    elif record.state is State.HEALTHY:
        words = f"0 of {needed} failures in a row that make it lost"
    else:
        return
    due = f"; next look {at_time(facts.next_check_ms, facts.now_ms)}" if facts.next_check_ms and is_looked_at else ""
    yield Finding(
        "threshold",
        words + due,
        {
            "failures": record.fails,
            "failures_needed": needed,
            "passes": record.passes,
            "passes_needed": health.recovery_threshold,
            "next_check": iso(facts.next_check_ms) if is_looked_at else None,
        },
    )


def _episode(facts: Facts) -> Iterator[Finding]:
    episode, now_ms = facts.record.episode, facts.now_ms
    if episode is None:
        return
    policy = facts.rules.recovery
    yield Finding(
        "episode",
        f"{episode.reason}, began {ago(episode.started_ms, now_ms)}: {_stands(episode, facts)}",
        {
            "id": episode.id,
            "reason": str(episode.reason),
            "started": iso(episode.started_ms),
            "attempt": episode.attempt,
            "attempts_allowed": policy.max_retries,
            "running": episode.running,
            "next_attempt": iso(episode.next_attempt_ms) if episode.is_open and not episode.running else None,
            "error": _error_of(facts.record),
            "request_id": episode.request_id,
            "force": str(episode.force),
            "end": str(episode.end) if episode.end else None,
            "ended": iso(episode.ended_ms),
            "trace_id": trace_id_of(episode),
        },
    )
    tried = attempts_of(facts.events, trace_id_of(episode))
    yield from (_attempt(each, now_ms) for each in tried[-_SHOWN:])
    if (missing := episode.attempt - max((each.number for each in tried), default=0)) > 0 or (
        tried and tried[0].number > 1
    ):
        gone = missing if missing > 0 else tried[0].number - 1
        words = f"{counted(gone, 'attempt')} of it {'is' if gone == 1 else 'are'} not in the event stream any more"
        last = f"; the last error was: {_error_of(facts.record)}" if episode.error and not tried else ""
        yield Finding("trimmed", words + last, {"attempts": gone, "told_since": iso(facts.told_since_ms)})


def _error_of(record: VmRecord) -> str | None:
    """The last error of its episode; errors begin with the VM they are about."""
    error = record.episode.error if record.episode else None
    return error.removeprefix(f"vm {record.vm_id}: ") if error else None


def _stands(episode: Episode, facts: Facts) -> str:
    now_ms, allowed = facts.now_ms, facts.rules.recovery.max_retries
    if episode.end is EpisodeEnd.FAILED:
        error = f": {_error_of(facts.record)}" if episode.error else ""
        return f"failed {ago(episode.ended_ms, now_ms)} after {counted(episode.attempt, 'attempt')}{error}"
    if not episode.is_open:
        return f"{episode.end} {ago(episode.ended_ms, now_ms)} after {counted(episode.attempt, 'attempt')}"
    if episode.running:
        return f"attempt {episode.attempt} of {allowed} runs for {lasting(episode.attempt_started_ms, now_ms)}"
    asked = f", asked for by request {episode.request_id}" if episode.request_id else ""
    if episode.next_attempt_ms > now_ms:
        return f"attempt {episode.attempt + 1} of {allowed} waits {at_time(episode.next_attempt_ms, now_ms)}{asked}"
    return f"attempt {episode.attempt + 1} of {allowed} is due{asked}"


def _attempt(tried: Tried, now_ms: int) -> Finding:
    took = f" after {lasting(tried.started_ms, tried.ended_ms)}" if tried.ended_ms else ""
    outcome = f"{tried.outcome}{took}" + (f": {tried.error}" if tried.error else "")
    return Finding(
        "attempt",
        f"attempt {tried.number}, begun {ago(tried.started_ms, now_ms)} by {tried.actor}: {outcome}",
        tried_fields(tried),
    )


def _lease(facts: Facts) -> Iterator[Finding]:
    if facts.lease_owner is None:
        if facts.record.attempt_running:
            yield Finding(
                "lease", "nobody holds its lease: the worker of this attempt went away", {"owner": None, "until": None}
            )
        return
    until = at_time(facts.lease_until_ms, facts.now_ms)
    words = f"its lease is held by {facts.lease_owner}, and ends {until} unless it is renewed"
    yield Finding("lease", words, {"owner": facts.lease_owner, "until": iso(facts.lease_until_ms)})


def _worker(facts: Facts) -> Iterator[Finding]:
    worker, host = facts.worker, facts.record.host
    if worker.pid is not None:
        words = f"worker pid {worker.pid} serves host {host} (version {worker.version})"
        yield Finding("worker", words, worker_fields(worker, host))


def _queue(facts: Facts) -> Iterator[Finding]:
    if facts.is_called:
        yield Finding("called", "a recovery slot is kept for it", {})
    if facts.queue is not None:
        queue = facts.queue
        place = f"place {queue.position} of {queue.length}" if queue.position else "a place"
        words = f"it waits for {queue.place}: {place} in that line"
        fields = {"waits_for": queue.place, "position": queue.position or None, "length": queue.length}
        yield Finding("line", words, fields)


def _last_word(facts: Facts) -> Iterator[Finding]:
    """What was put off, or would have been done, since the last attempt; while that still matters."""
    if not needs_attempt(facts.record) and facts.record.desired is Desired.RUNNING:
        return
    for each in reversed(facts.events):
        told = each.event
        if told.kind is EventKind.ATTEMPT_STARTED:
            return
        if told.kind in (EventKind.DEFERRED, EventKind.HELD, EventKind.WOULD_HAVE):
            yield Finding(
                str(told.kind),
                f"{ago(each.at_ms, facts.now_ms)} {_PUT_OFF[told.kind]}: {told.why}",
                {
                    "why": told.why,
                    "cause": str(told.cause) if told.cause else None,
                    "scope": told.scope,
                    "at": iso(each.at_ms),
                },
            )
            return


_PUT_OFF = {
    EventKind.DEFERRED: "it was put off",
    EventKind.HELD: "it was held back",
    EventKind.WOULD_HAVE: "observe-only wrote down",
}


def _stray(stray: StrayAt) -> Finding:
    return Finding(
        "stray",
        f"pid {stray.pid} on host {stray.host} says it is this vm, and no record names it: {stray.why}",
        {"host": stray.host, "pid": stray.pid, "age_s": stray.age_s, "why": stray.why},
    )


def _damaged(facts: Damaged) -> Answer:
    where = f"; its host is {facts.host}" if facts.host else ""
    finding = Finding("unreadable", f"it is left untouched{where}", {"why": facts.why, "host": facts.host})
    todo = "run a worker of the version that wrote it; a damaged one: `reliability state rebuild`"
    step = Next("nothing", Who.PERSON, f"nothing: it is neither judged nor recovered; {todo}", do=todo)
    headline = f"{facts.vm_id}: its record cannot be read: {facts.why}"
    return Answer(facts.vm_id, Known.UNREADABLE, facts.now_ms, headline, None, [finding], step)


def _nobody(facts: Nobody) -> Answer:
    findings = [*_forgotten(facts), *map(_stray, facts.strays), *_last_event(facts), *_close(facts)]
    headline = f"no vm {facts.vm_id!r} is registered"
    return Answer(facts.vm_id, Known.NOBODY, facts.now_ms, headline, None, findings, _for_nobody(facts))


def _forgotten(facts: Nobody) -> Iterator[Finding]:
    if not facts.forgotten_ms:
        yield Finding("never_known", "nobody has forgotten one of that id within the last 30 days", {})
        return
    by = f" by {facts.forgotten_by}" if facts.forgotten_by else ", by whom is not in the event stream any more"
    words = f"it was forgotten {ago(facts.forgotten_ms, facts.now_ms)}{by}"
    yield Finding("forgotten", words, {"at": iso(facts.forgotten_ms), "actor": facts.forgotten_by})


def _last_event(facts: Nobody) -> Iterator[Finding]:
    if facts.last is None or facts.last.event.kind is EventKind.FORGOTTEN:
        return
    told = facts.last.event
    words = f"the last event about it, {ago(facts.last.at_ms, facts.now_ms)}: {told.why} (by {told.actor})"
    yield Finding(
        "last_event",
        words,
        {"event": str(told.kind), "why": told.why, "actor": told.actor, "at": iso(facts.last.at_ms)},
    )


def _close(facts: Nobody) -> Iterator[Finding]:
    if facts.close:
        yield Finding("close_match", f"did you mean {' or '.join(facts.close)}?", {"ids": list(facts.close)})


def _for_nobody(facts: Nobody) -> Next:
    if facts.strays:
        todo = "apply its spec to have it watched, or end that process"
        return Next("nothing", Who.PERSON, f"nothing: its VMM runs and nobody watches it; {todo}", do=todo)
    todo = "apply its spec to register it"
    return Next("nothing", Who.NOBODY, f"nothing; {todo}", do=todo)
