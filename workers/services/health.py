"""Health checks: look at the VMs of this host together, judge each, write all verdicts at once, ask for recovery."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from workers.crashpoints import Point, reach
from workers.domain.evidence import Evidence, Observation, Sockets, Verdict, doubt_the_monitor, doubtful
from workers.domain.health import HealthPolicy, Judgement, judge, weigh
from workers.domain.modes import Flag
from workers.domain.vm import Incarnation, VmRecord
from workers.ports import Change, Clock, Ended, Ignorance, Outcome, Prober, Snapshot, Stored, Telemetry, VmStore, Work
from workers.services.ledger import Ledger

# A sweep of the run directory, or a look from the wrong place, takes many sockets at once: then we doubt ourselves.
_DOUBT_AT_LEAST = 5
_DOUBT_SHARE = 0.5

Watch = Callable[[str, Incarnation], None]


@dataclass(slots=True)
class CheckReport:
    checked: int = 0
    verdicts: dict[Verdict, int] = field(default_factory=dict)
    late: bool = False

    def count(self, seen: Observation) -> None:
        self.checked += 1
        verdict = seen.ruling.verdict
        self.verdicts[verdict] = self.verdicts.get(verdict, 0) + 1


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
        self._behind = False

    def check(self, vm_ids: Collection[str], deadline_ms: int | None = None) -> CheckReport:
        """Check these VMs once. A message past its deadline (server time) is dropped: the next one is on its way.

        Raises StoreUnavailable.
        """
        with self._telemetry.span(Work.HEALTH_CHECK):
            return self._check(vm_ids, deadline_ms)

    def _check(self, vm_ids: Collection[str], deadline_ms: int | None) -> CheckReport:
        # After a late message the next ones may be late too: then only the time is read, so that catching up is cheap.
        if self._behind and _is_late(now := self._store.read(()), deadline_ms):
            self._tell_age(now, deadline_ms)
            return CheckReport(late=True)
        report = CheckReport()
        snapshot = self._store.read(vm_ids)
        reach(Point.RECORDS_READ)
        for vm_id, why in snapshot.unreadable.items():
            self._telemetry.ignored(vm_id, why, Ignorance.UNREADABLE)
        self._tell_age(snapshot, deadline_ms)
        self._behind = report.late = _is_late(snapshot, deadline_ms)
        if report.late:
            return report
        read_at = self._clock.monotonic()
        ours = [stored.record for stored in snapshot.found.values() if self._is_to_be_checked(stored.record, snapshot)]
        for group in self._prober.probe(ours):
            looks = self._doubt_ourselves(group) if doubtful(group) else group
            looks = {vm_id: weigh(snapshot.found[vm_id].record, seen) for vm_id, seen in looks.items()}
            for seen in looks.values():
                report.count(seen)
            now_ms = snapshot.now_ms + int((self._clock.monotonic() - read_at) * 1000)
            self._telemetry.looked(snapshot.found, looks, now_ms)
            self._settle(snapshot, looks, now_ms=now_ms)
        return report

    def _is_to_be_checked(self, record: VmRecord, snapshot: Snapshot) -> bool:
        modes = snapshot.modes
        if record.host != self._host or not modes.has_on(Flag.HEALTH_CHECKS, record):
            return False
        return modes.judges(record, snapshot.now_ms)

    def _tell_age(self, snapshot: Snapshot, deadline_ms: int | None) -> None:
        """Messages are good for one interval, beginning when they are sent."""
        if deadline_ms is not None:
            self._telemetry.checks_came(snapshot.now_ms - deadline_ms + self._policy.interval_ms)

    def _doubt_ourselves(self, group: dict[str, Observation]) -> dict[str, Observation]:
        # A look at each VM of the host: only where one of these has lost its socket.
        is_cut_off = any(look.evidence is Evidence.SOCKET_MISSING for look in group.values())
        sockets = self._sockets() if is_cut_off else Sockets(0, 0)
        return doubt_the_monitor(group, self._trouble(), sockets, at_least=_DOUBT_AT_LEAST, share=_DOUBT_SHARE)

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


def _is_late(snapshot: Snapshot, deadline_ms: int | None) -> bool:
    return deadline_ms is not None and snapshot.now_ms > deadline_ms


def _says_something(before: VmRecord, judgement: Judgement) -> bool:
    return judgement.record != before or bool(judgement.events) or judgement.look_again_ms is not None


def chunks(items: Sequence[str], size: int) -> list[Sequence[str]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
