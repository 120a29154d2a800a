"""Callbacks for changes of VMs: each group of subscribers is told every change at least once.

What holds:

- A change is done when its callbacks have returned; until then it stays with the group in Redis, and comes again after
  a restart, or to another consumer of the group once this one was silent for `claim_after_s`. So it may come twice.
- With one consumer, the changes of one VM come in their order, and one that has to come again keeps the later ones of
  its VM waiting, and no other VM's. Several consumers share the changes; two changes of one VM may then be told at the
  same time, or, after one failed, the wrong way round: the later one has the greater `event_id`.
- Before anything is told to a new group, and when changes are lost to it (the stream was cut off, Redis lost its data),
  `on_gap` is called: look at all VMs once, and go on from there.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum

import structlog

from workers.bootstrap import Fleet, redis_client
from workers.domain.errors import StoreUnavailable
from workers.integration.changes import Change, ChangeKind, change_of
from workers.integration.group import NOTHING, GroupMember, NoGroup, Pending, before, place
from workers.settings import Settings
from workers.specs import check_vm_id
from workers.store.codec import load_event

_log = structlog.get_logger(component="subscriptions")

_PAGE = 100
# Kept at once for VMs whose earlier change has to come again; beyond, nothing new is taken.
_MOST_HELD = 1000
_BLOCK_MS = 500
_AGAIN_S = 1.0
_LONGEST_OUTAGE_WAIT_S = 4.0


class Begin(StrEnum):
    """Where a new group begins."""

    NOW = "now"
    BEGINNING = "beginning"  # of the stream, as far as it is kept


class GapCause(StrEnum):
    NEW_GROUP = "new_group"
    GROUP_LOST = "group_lost"
    TRIMMED = "trimmed"


@dataclass(frozen=True, slots=True)
class Gap:
    """Changes were, or may have been, missed: look at all VMs once."""

    cause: GapCause
    why: str


OnChange = Callable[[Change], None]
OnGap = Callable[[Gap], None]


@dataclass(slots=True)
class _Held:
    """A change that was given to us. `next` is the first callback that has not returned yet."""

    change: Change
    tries: int
    due: float
    is_new: bool
    next: int = 0


class _Stopped(Exception):
    pass


class Subscriptions:
    """One consumer of a group; `consumer` has to be its own, and the same after a restart.

    Callbacks are called in one thread; each has to end within `claim_after_s`. One that raises is called again after
    `backoff_s`, then ever later up to `longest_backoff_s`; after `tries`, in which it may also have taken the process
    with it, the change is put aside with an error in the log. Raises ValueError for a name that is none.
    """

    def __init__(
        self,
        source: Settings | Fleet,
        group: str,
        consumer: str,
        *,
        tries: int = 10,
        backoff_s: float = 1.0,
        longest_backoff_s: float = 60.0,
        claim_after_s: float = 60.0,
        begin: Begin = Begin.NOW,
    ) -> None:
        settings = source.settings if isinstance(source, Fleet) else source
        self._names = {"group": _name("group", group), "consumer": _name("consumer", consumer)}
        self._member = GroupMember(redis_client(settings), prefix=settings.redis.prefix, **self._names)
        self._block_ms = min(_BLOCK_MS, max(1, int(settings.redis.timeout.total_seconds() * 500)))
        self._most_tries, self._backoff_s, self._longest_backoff_s = tries, backoff_s, longest_backoff_s
        self._claim_after_s, self._begin = claim_after_s, begin
        self._callbacks: dict[ChangeKind, list[OnChange]] = {kind: [] for kind in ChangeKind}
        self._on_gap: list[OnGap] = []
        self._held: dict[str, _Held] = {}
        self._unacked: set[str] = set()
        self._position: str | None = None
        self._has_joined, self._has_lost_group, self._synced = False, False, -math.inf
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"subscription-{group}", daemon=True)

    def add(self, kind: ChangeKind | str, callback: OnChange) -> None:
        """Call it for each change of this kind; callbacks of one kind are called in turn. Raises ValueError."""
        self._callbacks[ChangeKind(kind)].append(callback)

    def on_gap(self, callback: OnGap) -> None:
        self._on_gap.append(callback)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float | None = None) -> None:
        """Let the running callback end, and note what is done; what is left comes after the next start.

        A callback that takes longer than the timeout is left to itself; a callback may call this, too.
        """
        self._stopping.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    # Rounds

    def _run(self) -> None:
        wait_s = 0.0
        while not self._stopping.wait(wait_s):
            try:
                self._round()
                if wait_s:
                    _log.info("subscription goes on", **self._names)
                wait_s = 0.0
            except _Stopped:
                break
            except NoGroup:
                self._has_joined, self._has_lost_group, wait_s = False, True, 0.0
            except StoreUnavailable as error:
                if not wait_s:
                    _log.warning("subscription waits for redis", error=str(error), **self._names)
                # It may have given us entries in an answer that never came: they are older than what comes next.
                self._synced = -math.inf
                wait_s = min(2 * wait_s, _LONGEST_OUTAGE_WAIT_S) or 0.25
            except Exception:  # noqa: BLE001 - a subscriber must not end while its program goes on
                _log.exception("subscription: this round failed, the next one tries again", **self._names)
                wait_s = _AGAIN_S
        self._leave()

    def _leave(self) -> None:
        try:
            self._acknowledge()
        except (NoGroup, StoreUnavailable):
            """Then they come again: at least once, not at most."""
        self._member.close()

    def _round(self) -> None:
        self._acknowledge()
        self._join()
        if time.monotonic() - self._synced > self._claim_after_s / 3:
            self._take_over()
            self._sync()
        if len(self._held) < _MOST_HELD:
            self._take_fresh()
        else:
            self._stopping.wait(self._patience_s())
        self._work()

    def _join(self) -> None:
        standing = self._member.look()
        if standing is None:
            self._make_group()
        elif self._has_lost_group:
            self._tell(Gap(GapCause.GROUP_LOST, "redis has lost this group: another consumer began it again"))
        elif standing.has_missed:
            self._tell(Gap(GapCause.TRIMMED, f"the stream begins after {standing.delivered}, where this group was"))
            self._member.skip_to_first(standing)
        self._has_lost_group = False
        if not self._has_joined:
            self._has_joined = True
            self._position = self._position or (standing.delivered if standing else None)
            self._sync()

    def _make_group(self) -> None:
        """Told first, made then: a program that ends in between is told again."""
        after = self._begins_after()
        if self._position is None:
            self._tell(Gap(GapCause.NEW_GROUP, "this group is new: what happened before is not told"))
        else:
            self._tell(Gap(GapCause.GROUP_LOST, f"redis has lost this group: it begins again after {after}"))
        self._member.create(after)
        self._position = after

    def _begins_after(self) -> str:
        """Where nothing is left out that redis still has and that was not told."""
        if self._position is None and self._begin is Begin.NOW:
            return self._member.last_id()
        undone = min(self._held, default=None, key=place)
        known = undone or self._position
        if known is None or not self._member.holds(known):
            return self._member.beginning()
        return before(known) if undone else known

    def _take_over(self) -> None:
        """What other consumers were given and are not done with, for too long: they are dead."""
        idle_ms = int(self._claim_after_s * 1000)
        ids = [each.id for each in self._member.pending(_PAGE, idle_ms=idle_ms)]
        there = self._member.contents(ids)
        # Told before they are claimed: Redis drops from the group what the stream has no more.
        self._drop_trimmed([each for each in ids if each not in there])
        self._member.claim(list(there), idle_ms=idle_ms, counted=False)

    def _sync(self) -> None:
        """Make what we hold what Redis says that we have, and show that we are alive."""
        ours = [each for each in self._member.pending(2 * _MOST_HELD) if each.id not in self._unacked]
        unknown = [each for each in ours if each.id not in self._held]
        texts = self._member.contents([each.id for each in unknown])
        self._held = {each.id: self._held[each.id] for each in ours if each.id in self._held}
        self._drop_trimmed([each.id for each in unknown if each.id not in texts])
        for each in unknown:
            if each.id in texts:
                self._hold(each, texts[each.id], is_new=False)
        lost = self._held.keys() - set(self._member.claim(list(self._held), counted=False))
        self._forget(sorted(lost, key=place))
        self._synced = time.monotonic()

    def _forget(self, ids: list[str]) -> None:
        """They are another consumer's now, or the stream has them no more."""
        for each in ids:
            self._held.pop(each, None)
        there = self._member.contents(ids)
        self._drop_trimmed([each for each in ids if each not in there])

    def _drop_trimmed(self, ids: list[str]) -> None:
        if ids:
            self._tell(Gap(GapCause.TRIMMED, f"{len(ids)} entries, from {ids[0]}, went before they were done"))
            self._unacked.update(ids)

    def _take_fresh(self) -> None:
        patience_ms = int(self._patience_s() * 1000)
        for event_id, text in self._member.fresh(_PAGE, min(self._block_ms, patience_ms)):
            self._position = max(event_id, self._position or NOTHING, key=place)
            self._hold(Pending(event_id, 1), text, is_new=True)

    def _hold(self, pending: Pending, text: bytes | None, *, is_new: bool) -> None:
        try:
            change = change_of(pending.id, load_event(text or b""))
        except ValueError as error:
            _log.warning("event of another version passed over", event_id=pending.id, error=str(error), **self._names)
            change = None
        if change is None or not self._callbacks[change.kind]:
            self._unacked.add(pending.id)
            return
        # Given out once, and perhaps never begun: no reason to wait.
        wait_s = self._wait_s(pending.tries - 1) if not is_new and pending.tries > 1 else 0.0
        self._held[pending.id] = _Held(change, pending.tries, time.monotonic() + wait_s, is_new)

    # Callbacks

    def _work(self) -> None:
        """Run what is due, until it is time to look at the group again."""
        for event_id, held in self._due():
            self._raise_if_stopping()
            self._run_callbacks(event_id, held)
            self._acknowledge()
            if time.monotonic() - self._synced > self._claim_after_s / 3:
                return

    def _due(self) -> Iterator[tuple[str, _Held]]:
        """Yield what is due in its order; what is still held afterwards keeps back the rest of its VM."""
        blocked: set[str] = set()
        for event_id in sorted(self._held, key=place):
            held = self._held[event_id]
            if held.change.vm_id not in blocked and held.due <= time.monotonic():
                yield event_id, held
            if event_id in self._held:
                blocked.add(held.change.vm_id)

    def _patience_s(self) -> float:
        """How long there is nothing to do but to wait for what is new."""
        first: dict[str, float] = {}
        for event_id in sorted(self._held, key=place):
            held = self._held[event_id]
            first.setdefault(held.change.vm_id, held.due)
        return max(0.0, min(first.values(), default=_AGAIN_S) - time.monotonic())

    def _run_callbacks(self, event_id: str, held: _Held) -> None:
        if not held.is_new:
            if held.tries >= self._most_tries:
                self._put_aside(event_id, held, "it was begun so often and never returned")
                return
            if not self._member.claim([event_id], counted=True):
                self._forget([event_id])
                return
            held.tries += 1
        held.is_new = False
        callbacks = self._callbacks[held.change.kind]
        try:
            while held.next < len(callbacks):
                callbacks[held.next](held.change)
                held.next += 1
        except Exception as error:  # noqa: BLE001 - a subscriber's own code
            self._failed(event_id, held, f"{type(error).__name__}: {error}")
            return
        self._is_done(event_id)

    def _failed(self, event_id: str, held: _Held, error: str) -> None:
        if held.tries >= self._most_tries:
            self._put_aside(event_id, held, error)
            return
        wait_s = self._wait_s(held.tries)
        held.due = time.monotonic() + wait_s
        told = {"vm_id": held.change.vm_id, "event_id": event_id, "tries": held.tries, "wait_s": round(wait_s, 3)}
        _log.warning("callback failed: its change comes again", kind=held.change.kind, error=error, **told)

    def _put_aside(self, event_id: str, held: _Held, error: str) -> None:
        change = held.change
        told = {"vm_id": change.vm_id, "event_id": event_id, "tries": held.tries, "kind": str(change.kind)}
        _log.error("change put aside: its callback failed too often", error=error, **told, **self._names)
        self._is_done(event_id)

    def _is_done(self, event_id: str) -> None:
        del self._held[event_id]
        self._unacked.add(event_id)

    def _acknowledge(self) -> None:
        if self._unacked:
            self._member.done(self._unacked)
            self._unacked.clear()

    def _wait_s(self, tries: int) -> float:
        return float(min(self._longest_backoff_s, self._backoff_s * 2 ** min(tries - 1, 30)))

    def _tell(self, gap: Gap) -> None:
        """Call for a gap until the callbacks have returned, as often as for a change."""
        if gap.cause is GapCause.NEW_GROUP:
            _log.info("subscription begins", why=gap.why, **self._names)
        else:
            _log.warning("subscription missed changes: look at all vms once", why=gap.why, **self._names)
        for callback in self._on_gap:
            for tries in range(1, self._most_tries + 1):
                self._raise_if_stopping()
                try:
                    callback(gap)
                except Exception as error:  # noqa: BLE001 - a subscriber's own code
                    _log.warning("callback for missed changes failed", error=str(error), tries=tries, **self._names)
                    self._stopping.wait(self._wait_s(tries))
                else:
                    break

    def _raise_if_stopping(self) -> None:
        if self._stopping.is_set():
            raise _Stopped


def _name(field: str, value: str) -> str:
    try:
        return check_vm_id(value)
    except ValueError as error:
        raise ValueError(f"{field}: {error}") from None
