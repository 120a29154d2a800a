"""What is counted, and when: stories played by the real services, and each number they leave on the page."""

import pytest

from tests.support.builders import HOST, NOW_MS, a_lost_vm, a_vm, an_episode, seen
from tests.support.fakes import World
from tests.support.figures import Gauged, Page, labelled
from workers.domain.audit import Deferral, Event, EventKind
from workers.domain.evidence import Evidence, Observation
from workers.domain.recovery import WakeUp
from workers.domain.storm import Loss
from workers.domain.strays import StrayPolicy
from workers.domain.vm import Desired, Reason, State
from workers.ports import Change, Ended, Ignorance, Stored, Take
from workers.services.recovery import RetryIn
from workers.simulator.host import Faults
from workers.telemetry import instruments as m
from workers.telemetry.metrics import OUTCOMES, MetricsTelemetry

FC = "firecracker"


class Site:
    """A host whose services tell their decisions to nobody but the metrics; one clock for all of it."""

    def __init__(self, *, per_vm: bool = False, strays: StrayPolicy = StrayPolicy.REPORT, **limits: int) -> None:
        self.world = World(strays=strays, limits=limits)
        self.clock, self.host = self.world.clock, self.world.host
        self.gauged = Gauged(clock=self.clock)
        self.metrics = self.gauged.telemetry(per_vm=per_vm)
        self.world.telemetry = self.metrics  # type: ignore[assignment] # the services ask for no more than the port
        self.services = self.world.join()

    def check(self, *vm_ids: str, after_ms: int = 0) -> None:
        self.clock.advance(after_ms)
        self.services.checks.check(vm_ids or ["vm-1"])

    def dies(self, vm_id: str = "vm-1", *, told_after_ms: float = 3) -> None:
        """The kernel tells of it, so long after it happened."""
        process = self.world.record(vm_id).process
        assert process is not None
        self.host.kill(vm_id)
        self.services.checks.processes_ended({vm_id: Ended(process, "signal 9", told_after_ms)})

    def recover(self, vm_id: str = "vm-1") -> None:
        """Follow the messages until the episode ends."""
        wake = WakeUp()
        while isinstance(result := self.services.recovery.recover(vm_id, wake), RetryIn):
            self.clock.advance(result.wait_ms)
            wake = result.wake

    def page(self) -> Page:
        return self.gauged.page()


@pytest.fixture
def site() -> Site:
    return Site()


def count(page: Page, metric: m.Metric, **labels: object) -> float | None:
    return page.value(f"{metric.name}_count" if metric.kind is m.Kind.HISTOGRAM else metric.name, **labels)


def seconds(page: Page, metric: m.Metric, **labels: object) -> float | None:
    return page.value(f"{metric.name}_sum", **labels)


def outcomes(page: Page) -> dict[str, float]:
    """Return those that came about."""
    return {dict(known)["outcome"]: value for known, value in page.above_zero(m.OUTCOMES.name).items()}


# Looks


def test_a_batch_is_counted_by_driver_verdict_reason_and_evidence(site: Site) -> None:
    for number in range(5):
        site.world.boot(f"vm-{number}")
    site.host.evidence = {
        "vm-1": Evidence.NO_ANSWER,
        "vm-2": Evidence.BACKLOG_FULL,
        "vm-3": Evidence.DRIFT,
        "vm-4": Evidence.MONITOR_FAULT,
    }

    site.check(*[f"vm-{number}" for number in range(5)])

    page = site.page()
    assert count(page, m.CHECKS, driver=FC, host=HOST) == 5
    assert count(page, m.CHECK_FAILURES, driver=FC, host=HOST) == 1
    assert count(page, m.MONITOR_FAULTS) == 1
    told = {
        (known["verdict"], known["reason"], known["evidence"]): value
        for labels, value in page.above_zero(m.VERDICTS.name).items()
        if (known := dict(labels))
    }
    assert told == {
        ("pass", "none", "answers"): 1,
        ("fail", "health_check_failed", "no_answer"): 1,
        ("inconclusive", "none", "backlog_full"): 1,
        ("pass", "none", "drift"): 1,
        ("inconclusive", "none", "monitor_fault"): 1,
    }


def test_a_vm_that_waits_for_its_first_start_is_not_looked_at(site: Site) -> None:
    site.world.put(a_vm(state=State.STARTING, process=None))
    site.check()
    assert count(site.page(), m.CHECKS) is None
    assert count(site.page(), m.VERDICTS) is None


def test_the_time_of_each_probe_is_kept_and_a_look_that_took_none_is_left_out(site: Site) -> None:
    looks = {
        "vm-1": Observation(Evidence.ANSWERS, took_ms=2),
        "vm-2": Observation(Evidence.NO_ANSWER, took_ms=5000),
        "vm-3": Observation(Evidence.PROCESS_ENDED),
    }
    site.metrics.looked({vm_id: Stored(a_vm(vm_id), 1) for vm_id in looks}, looks, NOW_MS)

    page = site.page()
    assert count(page, m.CHECK_SECONDS, driver=FC) == 2
    assert seconds(page, m.CHECK_SECONDS) == pytest.approx(5.002)


def test_the_age_of_a_check_message_is_shown_and_is_never_below_zero(site: Site) -> None:
    site.metrics.checks_came(1500)
    assert site.page().value(m.MESSAGE_AGE.name) == 1.5
    site.metrics.checks_came(-20)
    assert site.page().value(m.MESSAGE_AGE.name) == 0


def test_the_age_of_messages_is_shown_for_as_long_as_all_of_them_come_late(site: Site) -> None:
    """They are dropped cheaply, and yet not in silence."""
    site.world.boot()
    for age_s in (31, 61, 91):
        site.clock.advance(30_000)
        sent_ms = site.clock.now_ms - age_s * 1000
        assert site.services.checks.check(["vm-1"], sent_ms + 30_000).late
        assert site.page().value(m.MESSAGE_AGE.name) == age_s


def test_the_age_of_messages_is_shown_until_the_next_one_should_have_come() -> None:
    gauged = Gauged(stale_s=30)
    MetricsTelemetry(gauged.series, check_interval_s=60, monotonic=gauged.clock.monotonic).checks_came(50)
    gauged.clock.advance(119_000)
    assert gauged.page().value(m.MESSAGE_AGE.name) == 0.05
    gauged.clock.advance(2000)
    assert gauged.page().value(m.MESSAGE_AGE.name) is None


def test_the_time_since_a_check_passed_begins_with_the_worker_and_again_with_each_pass(site: Site) -> None:
    site.world.boot()
    site.clock.advance(7000)
    assert site.metrics.since_passed_s == 7
    site.check()
    site.clock.advance(2000)
    assert site.metrics.since_passed_s == 2
    site.host.evidence["vm-1"] = Evidence.NO_ANSWER
    site.check(after_ms=1000)
    assert site.metrics.since_passed_s == 3
    site.metrics.nothing_should_run()
    assert site.metrics.since_passed_s == 0


# Figures that begin


def test_the_figures_of_a_driver_begin_at_zero_with_its_first_look(site: Site) -> None:
    site.world.boot()
    site.check()

    page = site.page()
    assert count(page, m.CHECK_FAILURES, driver=FC) == 0
    for metric in (m.ATTEMPTS, m.SUCCESS):
        assert count(page, metric, driver=FC) == 0
    for outcome in OUTCOMES:
        assert count(page, m.OUTCOMES, driver=FC, outcome=outcome) == 0
    for reason in ("process_dead", "socket_unreachable", "health_check_failed", "process_mismatch"):
        for metric in (m.LOST, m.ORPHANED, m.FALSE_POSITIVES, m.DETECTION_SECONDS, m.RECOVERY_SECONDS):
            found = page.samples[f"{metric.name}_count" if metric.kind is m.Kind.HISTOGRAM else metric.name]
            assert found[labelled(host=HOST, driver=FC, reason=reason)] == 0


@pytest.mark.parametrize("per_vm", [False, True])
def test_both_sides_of_the_two_ratios_have_the_same_labels(per_vm: bool) -> None:  # noqa: FBT001 - a parameter
    """PromQL divides one to one: a series with no partner is left out of the answer."""
    site = Site(per_vm=per_vm)
    for number in range(3):
        site.world.boot(f"vm-{number}", driver="qemu" if number else FC)
    site.check("vm-0", "vm-1", "vm-2")
    site.dies("vm-0")
    site.recover("vm-0")
    site.check("vm-0", "vm-1", "vm-2")

    page = site.page()
    for above, below in ((m.SUCCESS, m.ATTEMPTS), (m.CHECK_FAILURES, m.CHECKS)):
        assert page.samples[above.name].keys() == page.samples[below.name].keys()
        assert len(page.samples[below.name]) == (3 if per_vm else 2)


# Stories


def test_a_death_is_lost_orphaned_attempted_and_recovered_once(site: Site) -> None:
    site.world.boot()
    site.check()
    site.clock.advance(10_000)
    site.dies(told_after_ms=3)
    site.clock.advance(500)
    site.host.during_start = lambda _vm_id: site.clock.advance(2000)
    site.recover()
    site.check()

    page = site.page()
    assert page.above_zero(m.LOST.name) == {labelled(driver=FC, reason="process_dead"): 1}
    assert page.above_zero(m.ORPHANED.name) == {labelled(driver=FC, reason="process_dead"): 1}
    assert count(page, m.CHECKS) == 3
    assert count(page, m.CHECK_FAILURES) == 1
    assert (count(page, m.ATTEMPTS), count(page, m.SUCCESS)) == (1, 1)
    assert outcomes(page) == {"success": 1}
    assert page.total(m.FALSE_POSITIVES.name) == 0
    assert count(page, m.DETECTION_SECONDS, reason="process_dead") == 1
    assert seconds(page, m.DETECTION_SECONDS, reason="process_dead") == pytest.approx(0.003, abs=1e-5)
    assert seconds(page, m.ATTEMPT_SECONDS, outcome="success") == pytest.approx(2.0)
    assert seconds(page, m.RECOVERY_SECONDS, reason="process_dead") == pytest.approx(2.5)
    assert site.page().total(f"{m.RECOVERY_SECONDS.name}_count") == 1


def test_a_hang_is_lost_with_its_third_failing_check_and_known_since_the_last_good_one(site: Site) -> None:
    site.world.boot()
    site.check()
    site.host.alive[site.world.record().process.pid].hung = True  # type: ignore[union-attr] # it was booted
    site.check(after_ms=30_000)
    site.check(after_ms=2000)
    assert site.page().total(m.LOST.name) == 0
    site.check(after_ms=2000)

    page = site.page()
    assert page.above_zero(m.LOST.name) == {labelled(driver=FC, reason="health_check_failed"): 1}
    assert page.total(m.ORPHANED.name) == 0
    assert (count(page, m.CHECKS), count(page, m.CHECK_FAILURES)) == (4, 3)
    assert count(page, m.DETECTION_SECONDS, reason="health_check_failed") == 1
    assert seconds(page, m.DETECTION_SECONDS, reason="health_check_failed") == pytest.approx(34.0)

    site.recover()
    assert outcomes(site.page()) == {"success": 1}


def test_attempts_that_fail_are_counted_each_and_the_time_to_recovery_has_their_waits(site: Site) -> None:
    site.world.boot()
    site.host.faults["vm-1"] = Faults(refuse_starts=2)
    site.check()
    site.dies()
    lost_ms = site.clock.now_ms
    site.recover()

    page = site.page()
    assert (count(page, m.ATTEMPTS), count(page, m.SUCCESS)) == (3, 1)
    assert outcomes(page) == {"attempt_failed": 2, "success": 1}
    assert count(page, m.ATTEMPT_SECONDS, outcome="attempt_failed") == 2
    waited_s = (site.clock.now_ms - lost_ms) / 1000
    assert waited_s >= 90
    assert seconds(page, m.RECOVERY_SECONDS, reason="process_dead") == pytest.approx(waited_s)
    assert page.above_zero(m.ORPHANED.name) == {labelled(driver=FC, reason="process_dead"): 1}, "lost once"


def test_a_vm_that_does_not_stay_up_was_not_down_in_between(site: Site) -> None:
    """It goes on with its episode, and with its count of attempts; the time that it served is no time to recovery."""
    site.world.boot()
    site.check()
    for _ in range(2):
        site.dies()
        site.clock.advance(1000)
        site.recover()
        site.clock.advance(300_000)

    episode = site.world.record().episode
    assert episode is not None
    assert episode.attempt == 2
    page = site.page()
    assert page.above_zero(m.LOST.name) == {labelled(driver=FC, reason="process_dead"): 2}
    assert count(page, m.RECOVERY_SECONDS, reason="process_dead") == 2
    assert seconds(page, m.RECOVERY_SECONDS, reason="process_dead") == pytest.approx(2.0)


def test_a_vm_that_is_given_up_has_each_failed_attempt_and_one_failed_episode(site: Site) -> None:
    site.world.boot()
    site.host.faults["vm-1"] = Faults(refuse_starts=9)
    site.check()
    site.dies()
    site.recover()

    page = site.page()
    assert site.world.state() is State.FAILED
    assert (count(page, m.ATTEMPTS), count(page, m.SUCCESS)) == (3, 0)
    assert outcomes(page) == {"attempt_failed": 3, "failed": 1}
    assert count(page, m.ATTEMPT_SECONDS, outcome="attempt_failed") == 3
    assert page.total(f"{m.RECOVERY_SECONDS.name}_count") == 0


def test_an_end_that_no_start_can_mend_is_a_failed_episode_without_an_attempt(site: Site) -> None:
    record = site.world.boot()
    assert record.process is not None
    site.host.kill("vm-1")
    site.services.checks.processes_ended({"vm-1": Ended(record.process, "exit 152", 1)})

    page = site.page()
    assert site.world.state() is State.FAILED
    assert page.above_zero(m.LOST.name) == {labelled(driver=FC, reason="process_dead"): 1}
    assert outcomes(page) == {"failed": 1}
    assert (count(page, m.ATTEMPTS), count(page, m.CHECK_FAILURES)) == (0, 1)


def test_an_attempt_whose_worker_went_away_is_a_failed_one(site: Site) -> None:
    episode = an_episode(attempt=1, running=True, attempt_started_ms=NOW_MS - 4000)
    site.world.put(a_vm(state=State.RECOVERING, episode=episode))
    site.services.recovery.recover("vm-1", WakeUp())

    page = site.page()
    assert outcomes(page) == {"attempt_failed": 1}
    assert seconds(page, m.ATTEMPT_SECONDS, outcome="attempt_failed") == pytest.approx(4.0)


def test_a_hang_that_ends_before_any_attempt_was_no_loss(site: Site) -> None:
    site.world.boot()
    site.host.evidence["vm-1"] = Evidence.NO_ANSWER
    for _ in range(3):
        site.check(after_ms=2000)
    del site.host.evidence["vm-1"]
    site.recover()

    page = site.page()
    assert site.world.state() is State.HEALTHY
    assert outcomes(page) == {"withdrawn": 1}
    assert page.above_zero(m.FALSE_POSITIVES.name) == {labelled(driver=FC, reason="health_check_failed"): 1}
    assert (count(page, m.ATTEMPTS), count(page, m.SUCCESS)) == (0, 0)


def test_a_hang_that_checks_see_the_end_of_was_no_loss_either(site: Site) -> None:
    site.world.boot()
    site.host.evidence["vm-1"] = Evidence.NO_ANSWER
    for _ in range(3):
        site.check(after_ms=2000)
    del site.host.evidence["vm-1"]
    site.check(after_ms=2000)
    site.check(after_ms=2000)

    page = site.page()
    assert site.world.state() is State.HEALTHY
    assert outcomes(page) == {"withdrawn": 1}
    assert page.total(m.FALSE_POSITIVES.name) == 1


def test_a_death_that_somebody_else_mended_was_a_loss_all_the_same(site: Site) -> None:
    site.world.boot()
    site.check()
    site.dies()
    site.host.boot("vm-1", generation=9)
    site.recover()

    page = site.page()
    assert site.world.state() is State.HEALTHY
    assert outcomes(page) == {"withdrawn": 1}
    assert page.total(m.FALSE_POSITIVES.name) == 0


def test_a_lost_vm_that_is_not_wanted_any_more_ends_its_episode(site: Site) -> None:
    site.world.boot()
    site.check()
    site.dies()
    site.world.update(desired=Desired.STOPPED)
    site.services.recovery.stop("vm-1")

    assert site.world.state() is State.STOPPED
    assert outcomes(site.page()) == {"withdrawn": 1}
    assert site.page().total(m.FALSE_POSITIVES.name) == 0


def test_a_vm_in_doubt_that_passes_again_was_neither_lost_nor_found(site: Site) -> None:
    site.world.boot()
    site.host.evidence["vm-1"] = Evidence.NO_ANSWER
    site.check(after_ms=2000)
    del site.host.evidence["vm-1"]
    site.check(after_ms=2000)
    site.check(after_ms=2000)

    page = site.page()
    assert page.total(m.LOST.name) == 0
    assert outcomes(page) == {}


def test_a_first_start_is_no_recovery(site: Site) -> None:
    site.world.put(a_vm(state=State.STARTING, process=None))
    site.host.faults["vm-1"] = Faults(refuse_starts=1)
    site.check()
    site.recover()
    site.check()

    page = site.page()
    assert site.world.state() is State.HEALTHY
    assert page.above_zero(m.STARTS.name) == {
        labelled(driver=FC, outcome="attempt_failed"): 1,
        labelled(driver=FC, outcome="success"): 1,
    }
    for metric in (m.LOST, m.ORPHANED, m.ATTEMPTS, m.SUCCESS, m.OUTCOMES, m.CHECK_FAILURES):
        assert page.total(metric.name) == 0
    for metric in (m.DETECTION_SECONDS, m.ATTEMPT_SECONDS, m.RECOVERY_SECONDS):
        assert page.total(f"{metric.name}_count") == 0


def test_a_vm_that_could_never_be_started_is_a_failed_start(site: Site) -> None:
    site.world.put(a_vm(state=State.STARTING, process=None))
    site.host.faults["vm-1"] = Faults(refuse_starts=9)
    site.check()
    site.recover()

    page = site.page()
    assert site.world.state() is State.FAILED
    assert page.above_zero(m.STARTS.name) == {
        labelled(driver=FC, outcome="attempt_failed"): 2,
        labelled(driver=FC, outcome="failed"): 1,
    }
    assert page.total(m.OUTCOMES.name) == 0


# How late a loss is known


def test_a_death_that_no_kernel_told_is_known_since_the_last_check(site: Site) -> None:
    site.world.boot()
    site.check()
    site.host.kill("vm-1")
    site.check(after_ms=30_000)

    assert seconds(site.page(), m.DETECTION_SECONDS, reason="process_dead") == pytest.approx(30.0)


def test_a_death_soon_after_the_first_start_is_as_old_as_the_kernel_says(site: Site) -> None:
    """That it was looked at while it waited for its start says nothing of when it was well."""
    site.world.put(a_vm(state=State.STARTING, process=None))
    site.check()
    site.clock.advance(20_000)
    site.recover()
    site.clock.advance(5000)
    site.dies(told_after_ms=2)

    assert seconds(site.page(), m.DETECTION_SECONDS, reason="process_dead") == pytest.approx(0.002, abs=1e-5)


def test_a_death_amid_a_hang_is_as_old_as_the_kernel_says(site: Site) -> None:
    site.world.boot()
    site.check()
    site.host.evidence["vm-1"] = Evidence.NO_ANSWER
    site.check(after_ms=30_000)
    site.dies(told_after_ms=2)

    assert seconds(site.page(), m.DETECTION_SECONDS, reason="process_dead") == pytest.approx(0.002, abs=1e-5)


def test_the_wanted_end_of_a_vm_does_not_age_its_next_loss(site: Site) -> None:
    record = site.world.boot(desired=Desired.STOPPED)
    assert record.process is not None
    site.dies()
    site.services.recovery.stop("vm-1")
    assert site.world.state() is State.STOPPED

    site.clock.advance(3_600_000)
    site.world.update(desired=Desired.RUNNING, state=State.STARTING)
    site.recover()
    site.dies(told_after_ms=2)

    assert seconds(site.page(), m.DETECTION_SECONDS, reason="process_dead") == pytest.approx(0.002, abs=1e-5)


def test_a_vm_whose_last_good_check_this_worker_never_saw_is_known_since_its_record_says(site: Site) -> None:
    site.world.boot()
    site.check()
    successor = Gauged(clock=site.clock)
    metrics = successor.telemetry()
    site.clock.advance(12_000)

    stored = site.world.store.read(["vm-1"]).found["vm-1"]
    look = seen(Evidence.PROCESS_ENDED)
    metrics.looked({"vm-1": stored}, {"vm-1": look}, site.clock.now_ms)
    told = Event(
        EventKind.TRANSITION, "vm-1", HOST, "health_check", "died", State.HEALTHY, State.ORPHANED, Reason.PROCESS_DEAD
    )
    metrics.decided([told], a_lost_vm())

    assert seconds(successor.page(), m.DETECTION_SECONDS, reason="process_dead") == pytest.approx(12.0)


def test_vms_that_were_in_doubt_and_then_forgotten_do_not_pile_up(site: Site) -> None:
    for batch in range(3):
        ids = [f"vm-{batch}-{number}" for number in range(600)]
        looks = dict.fromkeys(ids, seen(Evidence.NO_ANSWER))
        site.metrics.looked({vm_id: Stored(a_vm(vm_id), 1) for vm_id in ids}, looks, site.clock.now_ms)
        site.clock.advance(3_600_001)
    assert len(site.metrics._well_at) <= 1000


# What keeps recovery back


def test_who_waits_for_a_slot_is_counted_by_what_keeps_it_back() -> None:
    site = Site(per_host=1)
    for number in (1, 2):
        site.world.put(a_lost_vm(f"vm-{number}"))
    first = site.world.store.read(["vm-1"]).found["vm-1"]
    site.world.store.write([Change("vm-1", first.rev, first.record, take=Take("somebody", 30_000, ()))])

    site.services.recovery.recover("vm-2", WakeUp())

    page = site.page()
    assert page.above_zero(m.DEFERRALS.name) == {labelled(cause="slot"): 1}
    assert page.total(m.ATTEMPTS.name) == 0


def test_a_kill_switch_defers_and_is_ignored_messages(site: Site) -> None:
    site.world.put(a_lost_vm())
    site.host.paused = True
    site.services.recovery.recover("vm-1", WakeUp())

    page = site.page()
    assert page.above_zero(m.DEFERRALS.name) == {labelled(cause="paused"): 1}
    assert page.above_zero(m.IGNORED.name) == {labelled(cause="paused"): 1}


@pytest.mark.parametrize("cause", Deferral)
def test_every_cause_of_a_deferral_has_a_series(site: Site, cause: Deferral) -> None:
    for _ in range(2):
        site.metrics.decided([Event(EventKind.DEFERRED, "vm-1", HOST, "recovery", "why", cause=cause)])
    assert site.page().above_zero(m.DEFERRALS.name) == {labelled(cause=cause): 2}


@pytest.mark.parametrize("cause", Ignorance)
def test_every_cause_for_which_a_message_is_ignored_has_a_series(site: Site, cause: Ignorance) -> None:
    site.metrics.ignored("vm-1", "late", cause)
    page = site.page()
    assert page.above_zero(m.IGNORED.name) == {labelled(cause=cause): 1}
    assert (count(page, m.LEASES_LOST) or 0) == (cause is Ignorance.LEASE_LOST)


def test_a_message_for_a_vm_that_nobody_knows_is_ignored(site: Site) -> None:
    site.services.recovery.recover("vm-9", WakeUp())
    assert site.page().above_zero(m.IGNORED.name) == {labelled(cause="unknown_vm"): 1}


def test_an_attempt_that_lost_its_lease_is_neither_a_success_nor_a_failure(site: Site) -> None:
    site.world.put(a_lost_vm())

    def stall(_vm_id: str) -> None:
        site.clock.advance(site.world.policy.lease_ms + 1)
        row = site.world.rows["vm-1"]
        row.owner, row.lease_end_ms, row.token = "successor", site.clock.now_ms + 30_000, 99

    site.host.during_start = stall
    site.services.recovery.recover("vm-1", WakeUp())

    page = site.page()
    assert (count(page, m.ATTEMPTS), count(page, m.SUCCESS), count(page, m.LEASES_LOST)) == (1, 0, 1)
    assert page.above_zero(m.IGNORED.name) == {labelled(cause="lease_lost"): 1}
    assert outcomes(page) == {}


def test_a_storm_is_counted_once_by_where_it_is() -> None:
    site = Site()
    ids = [f"vm-{number}" for number in range(10)]
    for vm_id in ids:
        site.world.boot(vm_id)
    site.check(*ids)
    for vm_id in ids:
        site.dies(vm_id)

    page = site.page()
    assert page.above_zero(m.STORMS.name) == {labelled(kind="host"): 1, labelled(kind="fleet"): 1}
    assert page.above_zero(m.LOST.name) == {labelled(driver=FC, reason="process_dead"): 10}
    assert Loss.CERTAIN in {row.kind for row in site.world.server.contents.storms.values()}


def test_a_stray_that_was_ended_is_counted() -> None:
    site = Site(strays=StrayPolicy.REAP)
    site.host.boot("vm-9")
    site.clock.advance(600_000)
    for _ in range(3):
        site.services.reconciliation.sweep()

    assert not site.host.alive
    assert count(site.page(), m.REAPED) == 1


# Labels


def a_busy_day(site: Site) -> None:
    """Bring about every series there is, with VMs whose ids are easy to find."""
    for number in range(3):
        site.world.boot(f"tell-tale-{number}")
    ids = ["tell-tale-0", "tell-tale-1", "tell-tale-2"]
    site.check(*ids)
    site.dies("tell-tale-0")
    site.host.faults["tell-tale-0"] = Faults(refuse_starts=1)
    site.recover("tell-tale-0")
    site.host.evidence["tell-tale-1"] = Evidence.NO_ANSWER
    for _ in range(3):
        site.check(*ids, after_ms=2000)
    site.recover("tell-tale-1")
    for cause in Ignorance:
        site.metrics.ignored("tell-tale-2", "tell-tale-2 is late", cause)
    for kind in EventKind:
        told = Event(kind, "tell-tale-2", HOST, "recovery", "tell-tale-2", State.HEALTHY, State.ORPHANED)
        site.metrics.decided([told], a_lost_vm("tell-tale-2"))
        site.metrics.decided([told])
    looks = {"tell-tale-2": Observation(Evidence.ANSWERS, "tell-tale-2", took_ms=1)}
    site.metrics.looked({"tell-tale-2": Stored(a_vm("tell-tale-2"), 1)}, looks, site.clock.now_ms)


def test_no_label_names_a_vm_unless_it_is_asked_for(site: Site) -> None:
    a_busy_day(site)

    page = site.page()
    assert page.total(m.CHECKS.name) > 0
    values = {value for series in page.samples.values() for labels in series for _, value in labels}
    names = {name for series in page.samples.values() for labels in series for name, _ in labels}
    assert not [value for value in values if "tell-tale" in value]
    assert names == {"host", "driver", "reason", "outcome", "verdict", "evidence", "cause", "kind", "le"}


def test_asked_for_the_vm_stands_beside_the_other_labels_and_only_where_it_is_said_to() -> None:
    site = Site(per_vm=True)
    a_busy_day(site)

    page = site.page()
    named = {name for name, series in page.samples.items() for labels in series if "vm_id" in dict(labels)}
    assert named == {metric.name for metric in m.PER_VM}
    for metric in m.PER_VM:
        assert page.labels(metric.name) == {*metric.labels, "vm_id"}
        assert all("vm_id" in dict(labels) for labels in page.samples[metric.name])
    assert page.value(m.ATTEMPTS.name, vm_id="tell-tale-0") == 2
    assert page.value(m.SUCCESS.name, vm_id="tell-tale-0") == 1
    assert page.value(m.SUCCESS.name, vm_id="tell-tale-1") == 1


def test_the_sums_over_vms_are_what_is_counted_without_them() -> None:
    apart, together = Site(per_vm=True), Site()
    for site in (apart, together):
        a_busy_day(site)
    for metric in m.PER_VM:
        assert apart.page().total(metric.name) == together.page().total(metric.name)


def test_the_series_of_a_vm_are_gone_with_it() -> None:
    site = Site(per_vm=True)
    a_busy_day(site)
    site.metrics.keep_only(lambda: ["tell-tale-1"])

    page = site.page()
    ids = {dict(labels).get("vm_id") for series in page.samples.values() for labels in series}
    assert ids == {None, "tell-tale-1"}
    assert page.total(m.OUTCOMES.name) > 0


def test_who_is_on_this_host_is_asked_only_where_series_name_vms(site: Site) -> None:
    def ask() -> list[str]:
        raise AssertionError("a read of Redis for nothing")

    site.world.boot()
    site.check()
    site.metrics.keep_only(ask)
    assert count(site.page(), m.CHECKS) == 1


@pytest.mark.parametrize("kind", EventKind)
def test_what_the_store_itself_decided_comes_without_a_record(kind: EventKind) -> None:
    gauged = Gauged()
    gauged.telemetry().decided([Event(kind, "", "", "recovery", "why", scope="fleet")])

    counted = {name for name in gauged.page().samples if gauged.page().total(name)}
    by_kind = {
        EventKind.DEFERRED: {m.DEFERRALS.name},
        EventKind.STORM_BEGAN: {m.STORMS.name},
        EventKind.REAPED: {m.REAPED.name},
    }
    assert counted == by_kind.get(kind, set())
