"""Health checks: look at the VMs of this host together, judge each, write all verdicts at once, ask for recovery."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from workers.crashpoints import Point, reach
from workers.domain.evidence import Evidence, Observation, Sockets, Verdict, doubt_the_monitor, doubtful
from workers.domain.health import HealthPolicy, Judgement, is_known_well, judge, weigh
from workers.domain.modes import Flag
from workers.domain.vm import Incarnation, VmRecord
from workers.ports import Change, Clock, Ended, Ignorance, Outcome, Prober, Snapshot, Stored, Telemetry, VmStore, Work
from workers.services.ledger import Ledger

# A sweep of the run directory, or a look from the wrong place, takes many sockets at once: then we doubt ourselves.
_DOUBT_AT_LEAST = 5
_DOUBT_SHARE = 0.5
_WELL = Evidence.ANSWERS
_NOTHING_READ = Snapshot(0, {})

Watch = Callable[[str, Incarnation], None]


@dataclass(slots=True)
class CheckReport:
    checked: int = 0
    verdicts: dict[Verdict, int] = field(default_factory=dict)
    late: bool = False

    def count(self, verdict: Verdict, number: int = 1) -> None:
        self.checked += number
        if number:
            self.verdicts[verdict] = self.verdicts.get(verdict, 0) + number


class _ServerTime:
    """What time it is in Redis, by what it said last and what passed here since."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._ahead_ms: float | None = None

    def heard(self, now_ms: int) -> int:
        self._ahead_ms = now_ms - self._clock.monotonic() * 1000
        return now_ms

    def now_ms(self) -> int | None:
        """None before anything was heard."""
        return None if self._ahead_ms is None else int(self._clock.monotonic() * 1000 + self._ahead_ms)


class HealthChecks:
    """`watch` is told each process that was seen alive; again is harmless.

    `trouble` says what keeps us ourselves from looking properly, None when nothing does; `sockets` looks at all of
    this host. With `recovers` false VMs are judged, and nothing is asked for.
    """

    def __init__(
        self,
        store: VmStore,
        prober: Prober,
        ledger: Ledger,
        telemetry: Telemetry,
        *,
        host: str,
        policy: HealthPolicy,
        clock: Clock,
        watch: Watch,
        trouble: Callable[[], str | None],
        sockets: Callable[[], Sockets],
        recovers: bool,
    ) -> None:
        self._store, self._prober, self._ledger, self._telemetry = store, prober, ledger, telemetry
        self._host, self._policy, self._clock = host, policy, clock
        self._watch, self._trouble, self._sockets, self._recovers = watch, trouble, sockets, recovers
        self._server_time = _ServerTime(clock)
        # Records, as read, of VMs of this host of which a passing check says nothing new. Each use is confirmed.
        self._known_well: dict[str, Stored] = {}

    def check(self, vm_ids: Collection[str], deadline_ms: int | None = None) -> CheckReport:
        """Check these VMs once. A message past its deadline (server time) is dropped: the next one is on its way.

        Raises StoreUnavailable.
        """
        with self._telemetry.span(Work.HEALTH_CHECK):
            return self._check(vm_ids, deadline_ms)

    def _check(self, vm_ids: Collection[str], deadline_ms: int | None) -> CheckReport:
        report, now_ms = CheckReport(), self._server_time.now_ms()
        if now_ms is None or _is_past(deadline_ms, now_ms):
            # Only Redis knows, and to ask it for the time alone makes catching up with late messages cheap.
            now_ms = self._server_time.heard(self._store.read(()).now_ms)
        if deadline_ms is not None:
            # Messages are good for one interval, beginning when they are sent.
            self._telemetry.checks_came(now_ms - deadline_ms + self._policy.interval_ms)
        report.late = _is_past(deadline_ms, now_ms)
        if not report.late:
            # One look at the table for each: other checks may drop from it meanwhile.
            known = {vm_id: stored for vm_id in vm_ids if (stored := self._known_well.get(vm_id)) is not None}
            self._look(known, self._read([vm_id for vm_id in vm_ids if vm_id not in known]), report)
        return report

    def _read(self, vm_ids: Sequence[str]) -> Snapshot:
        """Read records; without any, nothing is asked."""
        if not vm_ids:
            return _NOTHING_READ
        snapshot = self._store.read(vm_ids)
        self._server_time.heard(snapshot.now_ms)
        reach(Point.RECORDS_READ)
        for vm_id, why in snapshot.unreadable.items():
            self._telemetry.ignored(vm_id, why, Ignorance.UNREADABLE)
        return snapshot

    def _look(self, known: Mapping[str, Stored], snapshot: Snapshot, report: CheckReport) -> None:
        """Look at all together. Who was well and is well is confirmed; of the others the record is judged."""
        read_at = self._clock.monotonic()
        records = [stored.record for stored in known.values()]
        records += [each.record for each in snapshot.found.values() if self._is_to_be_checked(each.record, snapshot)]
        for group in self._prober.probe(records):
            well: dict[str, Observation] = {}
            afresh: dict[str, Observation] = {}
            read: dict[str, Observation] = {}
            for vm_id, seen in group.items():
                (read if vm_id not in known else well if seen.evidence is _WELL else afresh)[vm_id] = seen
            afresh |= {vm_id: well[vm_id] for vm_id in self._confirm(known, well, report)}
            self._take(snapshot, read, snapshot.now_ms + self._ms_since(read_at), report)
            if afresh:
                for vm_id in afresh:
                    self._known_well.pop(vm_id, None)
                now = self._read(list(afresh))
                self._take(now, self._still_about(known, now, afresh), now.now_ms, report)

    def _confirm(
        self, known: Mapping[str, Stored], looks: Mapping[str, Observation], report: CheckReport
    ) -> Collection[str]:
        """Renew the time of the last check, in one round trip; returns those who are not as they were known."""
        if not looks:
            return ()
        confirmed = self._store.confirm(self._host, {vm_id: known[vm_id].rev for vm_id in looks})
        self._server_time.heard(confirmed.now_ms)
        if not confirmed.intact:
            self._known_well.clear()
        done = (
            {vm_id: seen for vm_id, seen in looks.items() if vm_id not in confirmed.left} if confirmed.left else looks
        )
        report.count(Verdict.PASS, len(done))
        self._telemetry.looked(known, done, confirmed.now_ms)
        for vm_id in done:
            if (process := known[vm_id].record.process) is not None:
                self._watch(vm_id, process)
        return confirmed.left

    def _still_about(
        self, known: Mapping[str, Stored], now: Snapshot, looks: Mapping[str, Observation]
    ) -> dict[str, Observation]:
        """The looks that hold for the records as they are now: same process, still ours, still to be checked."""
        return {
            vm_id: looks[vm_id]
            for vm_id, stored in now.found.items()
            if stored.record.process == known[vm_id].record.process and self._is_to_be_checked(stored.record, now)
        }

    def _take(self, snapshot: Snapshot, looks: dict[str, Observation], now_ms: int, report: CheckReport) -> None:
        """Judge these looks on the records that were read, and know from then on who is well."""
        if not looks:
            return
        looks = self._doubt_ourselves(looks) if doubtful(looks) else looks
        looks = {vm_id: weigh(snapshot.found[vm_id].record, seen) for vm_id, seen in looks.items()}
        for seen in looks.values():
            report.count(seen.ruling.verdict)
        self._telemetry.looked(snapshot.found, looks, now_ms)
        self._settle(snapshot, looks, now_ms=now_ms)
        for vm_id, seen in looks.items():
            stored = snapshot.found[vm_id]
            is_calm = is_known_well(stored.record, self._policy) and snapshot.modes.say_nothing_of(
                stored.record, now_ms
            )
            if is_calm and seen.evidence is _WELL:
                self._known_well[vm_id] = stored

    def _ms_since(self, at: float) -> int:
        return int((self._clock.monotonic() - at) * 1000)

    def _is_to_be_checked(self, record: VmRecord, snapshot: Snapshot) -> bool:
        modes = snapshot.modes
        if record.host != self._host or not modes.has_on(Flag.HEALTH_CHECKS, record):
            return False
        return modes.judges(record, snapshot.now_ms)

    def _doubt_ourselves(self, group: dict[str, Observation]) -> dict[str, Observation]:
        # A look at each VM of the host: only where one of these has lost its socket.
        is_cut_off = any(look.evidence is Evidence.SOCKET_MISSING for look in group.values())
        sockets = self._sockets() if is_cut_off else Sockets(0, 0)
        return doubt_the_monitor(group, self._trouble(), sockets, at_least=_DOUBT_AT_LEAST, share=_DOUBT_SHARE)

    def keep_only(self, vm_ids: Collection[str]) -> None:
        """Forget what was known of VMs that this host has no more."""
        for vm_id in self._known_well.keys() - set(vm_ids):
            self._known_well.pop(vm_id, None)

    def processes_ended(self, ended: Mapping[str, Ended]) -> None:
        """The kernel told that these incarnations ended. Raises StoreUnavailable."""
        with self._telemetry.span(Work.DEATHS):
            snapshot = self._store.read(list(ended))
            looks = {
                vm_id: _death(ended[vm_id])
                for vm_id, stored in snapshot.found.items()
                if stored.record.process == ended[vm_id].process
                and snapshot.modes.judges(stored.record, snapshot.now_ms)
            }
            self._telemetry.looked(snapshot.found, looks, snapshot.now_ms)
            self._settle(snapshot, looks, now_ms=snapshot.now_ms)

    def settle(self, snapshot: Snapshot, looks: Mapping[str, Observation]) -> None:
        """Judge and write what somebody else has seen. Raises StoreUnavailable."""
        self._settle(snapshot, looks, now_ms=snapshot.now_ms)

    def _settle(self, snapshot: Snapshot, looks: Mapping[str, Observation], *, now_ms: int) -> None:
        """Write all verdicts at once. Who was changed meanwhile is judged once more on his new record."""
        stale = self._write(snapshot.found, looks, now_ms)
        if stale:
            again = self._store.read(stale)
            same = {
                vm_id: looks[vm_id]
                for vm_id, stored in again.found.items()
                if stored.record.process == snapshot.found[vm_id].record.process
            }
            self._write(again.found, same, again.now_ms)

    def _write(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> list[str]:
        """Return the ids whose record somebody else wrote in between."""
        judged = {vm_id: judge(found[vm_id].record, seen, self._policy, now_ms) for vm_id, seen in looks.items()}
        changes = [
            self._change(found[vm_id], judgement)
            for vm_id, judgement in judged.items()
            if _says_something(found[vm_id].record, judgement)
        ]
        never_started = self._never_started(found, judged)
        if changes or never_started:
            reach(Point.BEFORE_VERDICTS)
        written = self._ledger.write(changes, seen=list(looks), enlist=never_started)
        if changes or never_started:
            reach(Point.AFTER_VERDICTS)
        outcomes = dict(zip((change.vm_id for change in changes), written, strict=True))
        for vm_id, judgement in judged.items():
            if outcomes.get(vm_id, Outcome.DONE) is Outcome.DONE:
                self._follow_up(found[vm_id], looks[vm_id], judgement)
        return [vm_id for vm_id, outcome in outcomes.items() if outcome is Outcome.STALE]

    def _change(self, stored: Stored, judgement: Judgement) -> Change:
        return Change(
            vm_id=stored.record.vm_id,
            rev=stored.rev,
            after=judgement.record,
            events=judgement.events,
            check_in_ms=judgement.look_again_ms,
            enlist=self._recovers and judgement.due_in_ms == 0,
            loss=judgement.loss,
        )

    def _never_started(self, found: Mapping[str, Stored], judged: Mapping[str, Judgement]) -> list[str]:
        """Those that need an attempt without anything new to write down."""
        return [
            vm_id
            for vm_id, judgement in judged.items()
            if self._recovers
            and judgement.due_in_ms == 0
            and not _says_something(found[vm_id].record, judgement)
            and needs_a_place(found[vm_id])
        ]

    def _follow_up(self, stored: Stored, seen: Observation, judgement: Judgement) -> None:
        record = judgement.record
        if seen.ruling.verdict is Verdict.PASS and record.process is not None:
            self._watch(record.vm_id, record.process)
        if self._recovers and judgement.due_in_ms and not stored.leased:
            self._ledger.wake_later(record, judgement.due_in_ms)
        if judgement.stop_due and not stored.leased:
            self._ledger.stop(record)


def _death(ended: Ended) -> Observation:
    detail = f"pid {ended.process.pid} ended: {ended.cause or 'cause unknown'}"
    return Observation(Evidence.PROCESS_ENDED, detail, cause=ended.cause, age_ms=ended.age_ms)


def needs_a_place(stored: Stored) -> bool:
    """Whether a VM that is due has nobody who will see to it: no attempt, no place in a line, no slot kept for it."""
    return not (stored.leased or stored.waits_for or stored.is_called)


def _is_past(deadline_ms: int | None, now_ms: int) -> bool:
    return deadline_ms is not None and now_ms > deadline_ms


def _says_something(before: VmRecord, judgement: Judgement) -> bool:
    return judgement.record != before or bool(judgement.events) or judgement.look_again_ms is not None


def chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
