"""The Telemetry port as numbers: what is counted, and when, for the metrics of one host."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from workers.domain.audit import Event, EventKind
from workers.domain.evidence import Evidence, Observation, Verdict
from workers.domain.vm import LOSS_REASONS, Episode, EpisodeEnd, Reason, State, VmRecord
from workers.ports import Ignorance, Stored, Work
from workers.telemetry import instruments as m
from workers.telemetry.series import Labels, Series
from workers.telemetry.story import LOST, ends_last_attempt, is_new_loss, is_wanted

SUCCEEDED, ATTEMPT_FAILED, FAILED, WITHDRAWN = "success", "attempt_failed", "failed", "withdrawn"
OUTCOMES = (SUCCEEDED, ATTEMPT_FAILED, FAILED, WITHDRAWN)
_NO_REASON = "none"
_AT_WORK = LOST | {State.RECOVERING, State.FAILED}
# Here no doubt is left.
_SETTLED = frozenset({State.HEALTHY, State.STOPPED})
# A VM that was in doubt and then forgotten leaves an entry behind: beyond so many, the old ones are dropped.
_MOST_DOUBTS, _DOUBT_KEPT_S = 1000, 3600.0

_Counts = dict[tuple[m.Metric, Labels], float]


class MetricsTelemetry:
    """`per_vm`: the metrics in `instruments.PER_VM` get the label vm_id, and lose a series with its VM.

    `check_interval_s` is how often messages that ask for checks may come at the least.
    """

    def __init__(
        self,
        series: Series,
        *,
        per_vm: bool = False,
        check_interval_s: float = 0.0,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._series, self._per_vm, self._monotonic = series, per_vm, monotonic
        self._check_interval_s = check_interval_s
        # When each VM that is in doubt was last known to be well.
        self._well_at: dict[str, float] = {}
        self._drivers: set[str] = set()
        self._passed_at = monotonic()

    @property
    def since_passed_s(self) -> float:
        """How long ago a check passed last, or this began, or there was nothing that should run."""
        return self._monotonic() - self._passed_at

    def nothing_should_run(self) -> None:
        """No check can pass, and none is missed."""
        self._passed_at = self._monotonic()

    # Looks: at every VM, again and again, so this is the only part whose cost matters.

    def looked(self, found: Mapping[str, Stored], looks: Mapping[str, Observation], now_ms: int) -> None:
        counts: dict[tuple[str, Evidence], int] = {}
        took: dict[str, list[float]] = {}
        for vm_id, seen in looks.items():
            stored = found[vm_id]
            driver, evidence = stored.record.driver, seen.evidence
            if evidence is not Evidence.ANSWERS and is_wanted(stored.record, seen):
                continue
            key = (driver, evidence)
            counts[key] = counts.get(key, 0) + 1
            if seen.took_ms:
                if (durations := took.get(driver)) is None:
                    durations = took[driver] = []
                durations.append(seen.took_ms / 1000)
            if evidence is not Evidence.ANSWERS:
                self._doubt(stored, seen, now_ms)
            elif self._well_at:
                self._well_at.pop(vm_id, None)
        self._count_looks(counts)
        if self._per_vm:
            self._count_each(found, looks)
        for driver, durations in took.items():
            self._series.record(m.CHECK_SECONDS, durations, driver)

    def _doubt(self, stored: Stored, seen: Observation, now_ms: int) -> None:
        record = stored.record
        if seen.ruling.verdict is Verdict.PASS:
            self._well_at.pop(record.vm_id, None)
            return
        if seen.ruling.verdict is not Verdict.FAIL or record.state in _AT_WORK or seen.evidence is Evidence.NOT_STARTED:
            return
        if seen.age_ms is not None:
            self._well_at[record.vm_id] = self._monotonic() - seen.age_ms / 1000
        else:
            since_check_ms = now_ms - (stored.checked_ms or now_ms)
            self._well_at.setdefault(record.vm_id, self._monotonic() - since_check_ms / 1000)
        if len(self._well_at) > _MOST_DOUBTS:
            oldest = self._monotonic() - _DOUBT_KEPT_S
            self._well_at = {vm_id: at for vm_id, at in self._well_at.items() if at > oldest}

    def _count_looks(self, looks: Mapping[tuple[str, Evidence], int]) -> None:
        counts: _Counts = {}
        for (driver, evidence), number in looks.items():
            if evidence is Evidence.NOT_STARTED:
                continue
            self._know(driver)
            ruling = Observation(evidence).ruling
            fails, faults = number * (ruling.verdict is Verdict.FAIL), number * ruling.monitor_fault
            if ruling.verdict is Verdict.PASS:
                self._passed_at = self._monotonic()
            if not self._per_vm:
                _add(counts, m.CHECKS, (driver,), number)
                _add(counts, m.CHECK_FAILURES, (driver,), fails)
            verdict = (driver, str(ruling.verdict), str(ruling.reason or _NO_REASON), str(evidence))
            _add(counts, m.VERDICTS, verdict, number)
            _add(counts, m.MONITOR_FAULTS, (), faults)
        self._series.count_all(counts)

    def _count_each(self, found: Mapping[str, Stored], looks: Mapping[str, Observation]) -> None:
        counts: _Counts = {}
        for vm_id, seen in looks.items():
            if seen.evidence is not Evidence.NOT_STARTED and not is_wanted(found[vm_id].record, seen):
                driver = found[vm_id].record.driver
                labels = (driver, vm_id)
                _add(counts, m.CHECKS, labels, 1)
                _add(counts, m.CHECK_FAILURES, labels, seen.ruling.verdict is Verdict.FAIL)
                for metric in (m.ATTEMPTS, m.SUCCESS):
                    _add(counts, metric, labels, 0)
                for reason in LOSS_REASONS:
                    _add(counts, m.LOST, (driver, reason, vm_id), 0)
                    _add(counts, m.ORPHANED, (driver, reason, vm_id), 0)
        self._series.count_all(counts)

    def _know(self, driver: str) -> None:
        """Begin the figures of a driver at 0, so that their first increase is one, and ratios have both sides."""
        if driver in self._drivers:
            return
        self._drivers.add(driver)
        counts: _Counts = {(m.OUTCOMES, (driver, outcome)): 0 for outcome in OUTCOMES}
        if not self._per_vm:
            counts |= {(metric, (driver,)): 0 for metric in (m.CHECKS, m.CHECK_FAILURES, m.ATTEMPTS, m.SUCCESS)}
        for outcome in (SUCCEEDED, ATTEMPT_FAILED):
            self._series.record(m.ATTEMPT_SECONDS, (), driver, outcome)
        for reason in LOSS_REASONS:
            self._series.record(m.DETECTION_SECONDS, (), driver, reason)
            self._series.record(m.RECOVERY_SECONDS, (), driver, reason)
            counts[m.FALSE_POSITIVES, (driver, reason)] = 0
            if not self._per_vm:
                counts |= {(m.LOST, (driver, reason)): 0, (m.ORPHANED, (driver, reason)): 0}
        self._series.count_all(counts)

    # Decisions

    def decided(self, events: Sequence[Event], record: VmRecord | None = None) -> None:
        for event in events:
            match event.kind:
                case EventKind.DEFERRED:
                    self._series.count(m.DEFERRALS, str(event.cause or _NO_REASON))
                case EventKind.STORM_BEGAN:
                    self._series.count(m.STORMS, "host" if event.host else "fleet")
                case EventKind.REAPED:
                    self._series.count(m.REAPED)
                case _ if record is not None:
                    self._decided(event, record)

    def _decided(self, event: Event, record: VmRecord) -> None:
        if event.after in _SETTLED:
            self._well_at.pop(record.vm_id, None)
        if event.reason is Reason.NOT_STARTED:
            self._first_start(event, record)
            return
        match event.kind:
            case EventKind.TRANSITION:
                self._moved(event, record)
            case EventKind.ATTEMPT_STARTED:
                self._know(record.driver)
                self._count(m.ATTEMPTS, record)
            case EventKind.ATTEMPT_FAILED if record.episode is not None:
                self._attempt_ended(record, ATTEMPT_FAILED, record.episode, record.since_ms)
            case EventKind.RECOVERED if record.episode is not None:
                episode = record.episode
                self._attempt_ended(record, SUCCEEDED, episode, episode.ended_ms)
                self._count(m.SUCCESS, record)
                seconds = (episode.ended_ms - episode.started_ms) / 1000
                self._series.record(m.RECOVERY_SECONDS, seconds, record.driver, episode.reason)
            case EventKind.ADOPTED:
                self._mended_itself(event, record)
            case _:
                pass

    def _first_start(self, event: Event, record: VmRecord) -> None:
        outcome = {EventKind.RECOVERED: SUCCEEDED, EventKind.ATTEMPT_FAILED: ATTEMPT_FAILED}.get(event.kind)
        if event.kind is EventKind.TRANSITION and event.after is State.FAILED:
            outcome = FAILED
        if outcome is not None:
            self._series.count(m.STARTS, record.driver, outcome)

    def _moved(self, event: Event, record: VmRecord) -> None:
        reason = str(event.reason or _NO_REASON)
        if is_new_loss(event):
            self._count(m.LOST, record, reason)
            well_at = self._well_at.pop(record.vm_id, None)
            if well_at is not None:
                self._series.record(m.DETECTION_SECONDS, self._monotonic() - well_at, record.driver, reason)
        if event.after is State.ORPHANED:
            self._count(m.ORPHANED, record, reason)
        if event.after is State.HEALTHY:
            self._mended_itself(event, record)
        if event.after is State.STOPPED and _was_withdrawn(record):
            self._series.count(m.OUTCOMES, record.driver, WITHDRAWN)
        if event.after is State.FAILED and record.episode is not None:
            if ends_last_attempt(event):
                self._attempt_ended(record, ATTEMPT_FAILED, record.episode, record.episode.ended_ms)
            self._series.count(m.OUTCOMES, record.driver, FAILED)

    def _mended_itself(self, event: Event, record: VmRecord) -> None:
        """An episode ended without an attempt of ours. A death was real, whoever started the VM again."""
        if event.before not in LOST:
            return
        self._series.count(m.OUTCOMES, record.driver, WITHDRAWN)
        if event.attempt is None and event.reason is not None and event.reason is not Reason.PROCESS_DEAD:
            self._series.count(m.FALSE_POSITIVES, record.driver, event.reason)

    def _attempt_ended(self, record: VmRecord, outcome: str, episode: Episode, ended_ms: int) -> None:
        self._series.count(m.OUTCOMES, record.driver, outcome)
        seconds = (ended_ms - episode.attempt_started_ms) / 1000
        self._series.record(m.ATTEMPT_SECONDS, seconds, record.driver, outcome)

    def _count(self, metric: m.Metric, record: VmRecord, *labels: str) -> None:
        vm = (record.vm_id,) if self._per_vm else ()
        self._series.count(metric, record.driver, *labels, *vm)

    def ignored(self, vm_id: str, why: str, cause: Ignorance) -> None:
        del vm_id, why
        self._series.count(m.IGNORED, cause)
        if cause is Ignorance.LEASE_LOST:
            self._series.count(m.LEASES_LOST)

    def checks_came(self, age_ms: int) -> None:
        self._series.gauge(m.MESSAGE_AGE, max(0, age_ms) / 1000, every_s=self._check_interval_s)

    def span(self, work: Work, record: VmRecord | None = None) -> AbstractContextManager[None]:
        del work, record
        return nullcontext()

    def keep_only(self, vm_ids: Callable[[], Collection[str]]) -> None:
        """Drop the series of VMs that are not on this host any more; who is, is asked only where there are such."""
        if not self._per_vm:
            return
        here = frozenset(vm_ids())
        for metric in m.PER_VM:
            self._series.forget(metric, lambda labels: labels[-1] not in here)


def _was_withdrawn(record: VmRecord) -> bool:
    """Whether the stop that led to this record left its last loss with nothing to mend."""
    episode = record.episode
    if episode is None or episode.reason is Reason.NOT_STARTED:
        return False
    return episode.end is EpisodeEnd.WITHDRAWN and episode.ended_ms == record.since_ms


def _add(counts: _Counts, metric: m.Metric, labels: Labels, number: float) -> None:
    counts[metric, labels] = counts.get((metric, labels), 0) + number
