"""What was known of a VM at an earlier time, as far as the event stream still tells. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workers.domain.answer import (
    Answer,
    Finding,
    Known,
    Next,
    Who,
)
from workers.domain.audit import Event, EventKind
from workers.domain.chronicle import Told, Tried, attempts_of, last_sight, sight_fields, tried_fields
from workers.domain.hindrances import hold_fields
from workers.domain.modes import NO_MODES, Hold, Mode, Modes, Scope, scopes_of
from workers.domain.vm import State, VmRecord
from workers.domain.words import ago, clock, iso

_BEGINS = " begins: "


@dataclass(frozen=True, slots=True)
class Then:
    """`events` are those of the VM, and of modes, up to `asked_ms`; older than `told_since_ms` are not kept.

    `record` and `modes` are as they are now: they tell of the past what has not changed since.
    """

    vm_id: str
    asked_ms: int
    now_ms: int
    events: Sequence[Told] = ()
    told_since_ms: int = 0
    record: VmRecord | None = None
    modes: Modes = NO_MODES

    @property
    def own(self) -> list[Told]:
        return [
            each for each in self.events if each.event.vm_id == self.vm_id and each.event.kind is not EventKind.MODE
        ]

    @property
    def host(self) -> str | None:
        """Where it was: on the host of its last event, else where it is now."""
        named = next((each.event.host for each in reversed(self.own) if each.event.host), None)
        return named or (self.record.host if self.record else None)


def recall(then: Then) -> Answer:
    """Say what was known at that time, and what cannot be told any more."""
    state, words = _state(then)
    findings = [
        *_registration(then),
        *_evidence(then),
        *(_attempt(each, then.asked_ms) for each in _attempts(then)),
        *_last_decision(then),
        *_modes(then),
        *_trimmed(then, state),
    ]
    step = _what_came(then)
    headline = f"{then.vm_id} {words} at {clock(then.asked_ms)}"
    return Answer(then.vm_id, Known.PAST, then.now_ms, headline, state, findings, step, asked_ms=then.asked_ms)


def _state(then: Then) -> tuple[str | None, str]:
    for each in reversed(then.own):
        told = each.event
        if told.kind is EventKind.FORGOTTEN:
            return None, f"was not registered: it had been forgotten by {told.actor}"
        if told.after is not None:
            return _was(told.after, then)
        if told.kind is EventKind.REGISTERED:
            return _was(State.STOPPED if told.why.endswith("stopped") else State.STARTING, then)
    record = then.record
    if record is not None and record.since_ms and record.since_ms <= then.asked_ms:
        return _was(record.state, then)
    if record is not None and record.created_ms > then.asked_ms:
        return None, "was not registered yet"
    return None, "is not told of by what is kept"


def _was(state: State, then: Then) -> tuple[str, str]:
    return str(state), f"was {state}" + (f" on host {then.host}" if then.host else "")


def _registration(then: Then) -> Iterator[Finding]:
    for each in reversed(then.own):
        told = each.event
        if told.kind in (EventKind.REGISTERED, EventKind.CHANGED, EventKind.FORGOTTEN):
            words = f"{told.kind} {ago(each.at_ms, then.asked_ms)} by {told.actor}: {told.why}"
            yield Finding(str(told.kind), words, {"at": iso(each.at_ms), "actor": told.actor, "why": told.why})
            return


def _evidence(then: Then) -> Iterator[Finding]:
    if (seen := last_sight(then.own)) is None:
        return
    looked = {"last_check": None, "last_exit": None}
    words = f"{ago(seen.at_ms, then.asked_ms)} it had been seen: {seen.words}"
    yield Finding("evidence", words, sight_fields(seen, None) | looked)


def _attempts(then: Then) -> list[Tried]:
    """Those of the episode that was open, or the last one, at that time."""
    trace = next((each.event.trace_id for each in reversed(then.own) if each.event.trace_id), None)
    return attempts_of(then.own, trace) if trace else []


def _attempt(tried: Tried, asked_ms: int) -> Finding:
    outcome = "ran" if tried.outcome == "runs" else f"had {tried.outcome}" + (f": {tried.error}" if tried.error else "")
    return Finding(
        "attempt",
        f"attempt {tried.number}, begun {ago(tried.started_ms, asked_ms)} by {tried.actor}, {outcome}",
        tried_fields(tried),
    )


def _last_decision(then: Then) -> Iterator[Finding]:
    if then.own:
        last = then.own[-1]
        told = last.event
        words = f"the last decision, {ago(last.at_ms, then.asked_ms)}: {told.why} ({told.kind}, by {told.actor})"
        fields = {"event": str(told.kind), "why": told.why, "actor": told.actor, "at": iso(last.at_ms)}
        yield Finding("last_event", words, fields)


def _modes(then: Then) -> Iterator[Finding]:
    """What still holds is known to the letter; of what was lifted meanwhile only its event is left."""
    scopes = scopes_of(then.vm_id, then.host or "")
    known: set[tuple[str, str, str]] = set()
    for name in scopes:
        for hold in then.modes.scopes.get(name, Scope()).holds:
            if hold.since_ms > then.asked_ms:
                continue
            known.add((name, str(hold.mode), hold.why))
            if mode := hold.mode_at(then.asked_ms):
                yield _held(name, mode, hold, then.asked_ms)
    for name in scopes:
        told = [each for each in then.events if each.event.kind is EventKind.MODE and each.event.scope == name]
        for each in _open(told):
            set_as, _, why = each.event.why.partition(_BEGINS)
            if (name, set_as, why) not in known:
                yield _may_have_held(name, set_as, why, each, then.asked_ms)
        yield from (_switched(name, each, then.asked_ms) for each in _switches(told))


def _held(scope: str, mode: Mode, hold: Hold, asked_ms: int) -> Finding:
    words = f"{scope} was {'in ' if mode is Mode.MAINTENANCE else ''}{mode}: {hold.why}"
    return Finding(
        "mode", f"{words} (by {hold.actor}, since {ago(hold.since_ms, asked_ms)})", hold_fields(mode, scope, hold)
    )


def _open(told: Sequence[Told]) -> list[Told]:
    """The beginnings that no later event lifts."""
    found: list[Told] = []
    for each in told:
        if _BEGINS in each.event.why and each.event.why.partition(_BEGINS)[0] in _MODES:
            found.append(each)
        else:
            found = [begun for begun in found if not _lifts(each.event, begun.event)]
    return found


def _lifts(later: Event, begun: Event) -> bool:
    mode, _, why = begun.why.partition(_BEGINS)
    return f"{mode} lifted ({why})" in later.why


def _may_have_held(scope: str, mode: str, why: str, begun: Told, asked_ms: int) -> Finding:
    """A hold that ended by its time has no event of its end."""
    since = ago(begun.at_ms, asked_ms)
    words = f"{scope} was set to {mode} {since} by {begun.event.actor}: {why}; not lifted, but its time may have ended"
    return Finding(
        "mode",
        words,
        {
            "mode": mode,
            "scope": scope,
            "hold_id": None,
            "set_as": mode,
            "actor": begun.event.actor,
            "why": why,
            "since": iso(begun.at_ms),
            "until": None,
            "observed_until": None,
            "certain": False,
        },
    )


def _switches(told: Sequence[Told]) -> list[Told]:
    """The last word on each flag, where it was not taken back."""
    last: dict[str, Told] = {}
    for each in told:
        flag = each.event.why.partition(" ")[0]
        if " switched " in each.event.why:
            last[flag] = each
        elif each.event.why.endswith("is not set here any more"):
            last.pop(flag, None)
    return list(last.values())


def _switched(scope: str, each: Told, asked_ms: int) -> Finding:
    told = each.event
    flag, _, rest = told.why.partition(" switched ")
    words = f"{told.why} (for {scope}, by {told.actor}, {ago(each.at_ms, asked_ms)})"
    on, _, why = rest.partition(": ")
    fields = {"flag": flag, "on": on == "on", "scope": scope, "actor": told.actor, "why": why, "since": iso(each.at_ms)}
    return Finding("flag", words, fields)


def _trimmed(then: Then, state: str | None) -> Iterator[Finding]:
    if not then.told_since_ms:
        return
    since = clock(then.told_since_ms)
    words = f"events from before {since} are not kept any more: what was decided then cannot be told"
    if then.told_since_ms > then.asked_ms and state is None:
        words = f"nothing is kept from that time: the oldest event is of {since}"
    yield Finding("trimmed", words, {"attempts": None, "told_since": iso(then.told_since_ms)})


def _what_came(then: Then) -> Next:
    words = f"see `reliability events --vm {then.vm_id}` for what came of it"
    return Next("past", Who.NOBODY, words, do=f"reliability events --vm {then.vm_id}")


_MODES = frozenset(map(str, Mode))
