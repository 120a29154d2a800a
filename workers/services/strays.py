"""VMMs of this host that no record names: reported, and by policy adopted or reaped."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from workers.domain.audit import Deferral, Event, EventKind, event
from workers.domain.errors import GuardBusy, Held, Paused, StopFailed
from workers.domain.modes import Flag, InForce, Mode, Modes, scopes_of, scopes_of_all
from workers.domain.strays import Stray, StrayPolicy, StrayRules, decide
from workers.domain.vm import Desired, State
from workers.ports import Change, ModeStore, Running, Snapshot, StrayFound, VmHost, VmStore
from workers.services.ledger import Ledger
from workers.services.rebuild import record_of

ACTOR = "reconcile"
# In these states a VMM beside the one of the record means that the record is wrong, or that it is doubled.
_SETTLED = frozenset({State.HEALTHY, State.DEGRADED, State.STOPPED})


class NotAStray(StopFailed):
    """A record names it by now: it is left alone."""


class Strays:
    """`may_destroy` takes one destructive action out of this host's budget, or says no; bookkeeping is free.

    `is_halted`: the data are not trusted, or the kill switch is on; then nothing but reporting is done. One sweep at a
    time: its caller sees to that.
    """

    def __init__(
        self,
        store: VmStore,
        host: VmHost,
        modes: ModeStore,
        ledger: Ledger,
        *,
        host_name: str,
        rules: StrayRules,
        may_destroy: Callable[[], bool],
        is_halted: Callable[[], bool],
        put: Callable[[Sequence[StrayFound]], None],
    ) -> None:
        self._store, self._host, self._modes, self._ledger = store, host, modes, ledger
        self._host_name, self._rules = host_name, rules
        self._may_destroy, self._is_halted, self._put = may_destroy, is_halted, put
        self._sightings: dict[tuple[str, int, int], int] = {}
        self._observed: set[tuple[str, int, int]] = set()

    def sweep(self) -> tuple[int, int]:
        """Look at every VMM; returns how many there are, and how many of them are strays. Raises StoreUnavailable."""
        running = self._host.inventory()
        ids = sorted({each.vm_id for each in running})
        snapshot, forgotten = self._store.read(ids), self._store.forgotten(ids)
        strays = [each for each in running if self._is_stray(each, snapshot)]
        self._sightings = {_key(stray): self._sightings.get(_key(stray), 0) + 1 for stray in strays}
        found = [self._judge(stray, snapshot, is_forgotten=stray.vm_id in forgotten) for stray in strays]
        self._put(found)
        self._observed &= set(self._sightings)
        now_ms, modes = self._modes.modes(self._scopes(strays))
        for each in found:
            if self._sightings[_key(each.running)] == 1:
                self._ledger.note(_told(each, self._host_name, EventKind.STRAY, each.why))
            if self._may_act(each, modes, now_ms):
                self._act(each, snapshot.now_ms)
        return len(running), len(strays)

    def _is_stray(self, running: Running, snapshot: Snapshot) -> bool:
        if running.vm_id in snapshot.unreadable:
            return False
        stored = snapshot.found.get(running.vm_id)
        if stored is None or stored.record.host != self._host_name:
            return True
        settled = stored.record.state in _SETTLED and not stored.leased
        return settled and running.process != stored.record.process

    def _judge(self, running: Running, snapshot: Snapshot, *, is_forgotten: bool) -> StrayFound:
        kept = self._host.kept(running.vm_id)
        stray = Stray(
            guarded=running.guarded,
            age_s=running.age_s,
            sightings=self._sightings[_key(running)],
            has_spec=kept.spec is not None and kept.served and kept.process == running.process,
            beside=running.vm_id in snapshot.found,
            forgotten=is_forgotten or kept.forgotten_ms > 0,
        )
        return StrayFound(running, *decide(stray, self._rules))

    def _scopes(self, strays: Sequence[Running]) -> list[str]:
        return scopes_of_all((stray.vm_id, self._host_name) for stray in strays)

    def _may_act(self, found: StrayFound, modes: Modes, now_ms: int) -> bool:
        vm_id = found.running.vm_id
        if not modes.is_on(Flag.STRAY_REAPING, vm_id=vm_id, host=self._host_name):
            return False
        held = modes.strongest_on(vm_id, self._host_name, now_ms)
        if held is not None and held.mode is Mode.OBSERVE_ONLY:
            self._observe(found, held)
        return held is None

    def _observe(self, found: StrayFound, held: InForce) -> None:
        """Say once what would be done."""
        if found.decision is StrayPolicy.REPORT or _key(found.running) in self._observed:
            return
        self._observed.add(_key(found.running))
        does = "adopted" if found.decision is StrayPolicy.ADOPT else "reaped"
        told = _told(found, self._host_name, EventKind.WOULD_HAVE, f"{found.why}; {held.words}")
        self._ledger.note(replace(told, why=f"would have {does} it: {told.why}", scope=held.scope))

    def _act(self, found: StrayFound, now_ms: int) -> None:
        if found.decision is StrayPolicy.REPORT or self._is_halted():
            return
        if found.decision is StrayPolicy.ADOPT:
            self._adopt(found, now_ms)
        elif self._may_destroy():
            self._reap(found)
        else:
            why = "not reaped: the host's budget of destructive actions for this hour is spent"
            self._ledger.note(_told(found, self._host_name, EventKind.DEFERRED, why, Deferral.BUDGET))

    def _adopt(self, found: StrayFound, now_ms: int) -> None:
        kept = self._host.kept(found.running.vm_id)
        if kept.spec is None:
            return
        record = record_of(kept, kept.spec, host=self._host_name, desired=Desired.RUNNING, now_ms=now_ms)
        told = event(EventKind.ADOPTED, record, actor=ACTOR, why=f"stray adopted: {found.why}")
        self._ledger.write([Change(record.vm_id, 0, record, (told,), check_in_ms=0, spec=kept.spec)])

    def _reap(self, found: StrayFound) -> None:
        running = found.running
        try:
            ended = self._host.fence(running.vm_id, running.process, before_signal=lambda: self._still_unnamed(running))
        except (StopFailed, Paused, Held, GuardBusy) as error:
            cause = Deferral.PAUSED if isinstance(error, Paused | Held) else Deferral.DOUBT
            self._ledger.note(_told(found, self._host_name, EventKind.DEFERRED, f"not reaped: {error}", cause))
            return
        why = f"stray pid {running.process.pid} reaped ({ended}): {found.why}"
        self._ledger.note(_told(found, self._host_name, EventKind.REAPED, why))

    def _still_unnamed(self, running: Running) -> None:
        """Asked right before each signal. Raises NotAStray, Held, StoreUnavailable."""
        snapshot = self._store.read([running.vm_id])
        if self._is_halted() or running.vm_id in snapshot.found or running.vm_id in snapshot.unreadable:
            raise NotAStray(running.vm_id, "there is a record of it now")
        now_ms, modes = self._modes.modes(scopes_of(running.vm_id, self._host_name))
        if (held := modes.strongest_on(running.vm_id, self._host_name, now_ms)) is not None:
            raise Held(running.vm_id, held.words)


def _key(running: Running) -> tuple[str, int, int]:
    return running.vm_id, running.process.pid, running.process.start_ticks


def _told(found: StrayFound, host: str, kind: EventKind, why: str, cause: Deferral | None = None) -> Event:
    running = found.running
    text = f"pid {running.process.pid} says it is {running.vm_id}: {why}"
    return Event(kind, running.vm_id, host, ACTOR, text, cause=cause)
