"""A VM manager tells and asks, on a real server that is there, hangs, goes away and comes back."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.builders import HOST, a_lost_vm, a_spec, a_vm
from tests.support.cluster import Cluster, cluster
from tests.support.managers import CONFIG, manager_with, settings_for
from tests.support.processes import wait_until
from tests.support.standin import command
from workers.bootstrap import Fleet
from workers.domain.audit import EventKind, event
from workers.domain.errors import Refused, StoreUnavailable, UnknownVm
from workers.domain.modes import Mode, vm_scope
from workers.domain.vm import Desired, State, VmRecord
from workers.embedded import EmbeddedServer
from workers.host.identity import incarnation_of, read_vantage
from workers.integration import Hooks, ReliabilityManager, VmmProcess
from workers.integration.changes import Change as SeenChange
from workers.integration.replay import JournalReplay
from workers.integration.subscriptions import Gap
from workers.messages import NoWakeups
from workers.ports import Change
from workers.settings import Settings, load

MINUTE = timedelta(minutes=1)
VMS = 20


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    return settings_for(tmp_path, redis_url)


@pytest.fixture
def fleet(settings: Settings) -> Fleet:
    return Fleet(settings)


@pytest.fixture
def manager(settings: Settings) -> Iterator[ReliabilityManager]:
    with manager_with(settings) as made:
        yield made


@pytest.fixture
def unstarted(settings: Settings) -> Iterator[ReliabilityManager]:
    """A manager that goes away before it has delivered anything."""
    with manager_with(settings, started=False) as made:
        yield made


@pytest.fixture
def vmm() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is no VMM which a driver knows."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def delivered(manager: ReliabilityManager, *, timeout_s: float = 20) -> None:
    wait_until(lambda: manager.undelivered == 0, timeout_s=timeout_s, what="all hooks to be delivered")


def record(fleet: Fleet, vm_id: str = "vm-1") -> VmRecord:
    return fleet.store.read([vm_id]).found[vm_id].record


def whys(fleet: Fleet, vm_id: str = "vm-1") -> list[str]:
    return [entry.event.why for entry in fleet.events.latest(vm_id=vm_id, limit=1000)]


def test_a_created_vm_is_recorded_with_its_process_and_program(
    manager: ReliabilityManager, fleet: Fleet, settings: Settings, vmm: "subprocess.Popen[bytes]"
) -> None:
    manager.on_vm_created("vm-1", vmm, CONFIG, socket="/run/vm-1.sock")
    delivered(manager)

    found = record(fleet)
    assert found.process == incarnation_of(vmm.pid, read_vantage(settings.state_dir))
    assert (found.state, found.socket) == (State.STARTING, "/run/vm-1.sock")
    assert fleet.store.spec("vm-1") == a_spec()
    assert re.fullmatch(rf"on_vm_created: pid {vmm.pid} \(/\S+\)", whys(fleet)[0])


def test_the_life_of_a_vm_leaves_nothing_behind(
    manager: ReliabilityManager, fleet: Fleet, settings: Settings, vmm: "subprocess.Popen[bytes]"
) -> None:
    numbers = [
        manager.on_vm_created("vm-1", vmm.pid, CONFIG, socket="/s"),
        manager.on_vm_error("vm-1", OSError("disk\n is  \x1b[31mred")),
        manager.on_vm_stopping("vm-1"),
    ]
    delivered(manager)
    assert record(fleet).desired is Desired.STOPPED
    assert [hold.mode for hold in fleet.modes.all_modes()[1].scopes["vm:vm-1"].holds] == [Mode.PAUSED]
    vmm.kill()
    vmm.wait()
    numbers += [manager.on_vm_stopped("vm-1"), manager.on_vm_started("vm-1", None)]
    delivered(manager)
    assert record(fleet).desired is Desired.RUNNING
    numbers += [manager.on_vm_deleting("vm-1"), manager.on_vm_deleted("vm-1")]
    delivered(manager)
    assert numbers == sorted(set(numbers))
    assert (fleet.store.ids(), fleet.modes.all_modes()[1].scopes) == ([], {})
    assert "on_vm_error: disk is ?[31mred" in whys(fleet)
    assert [path.name for path in (settings.state_dir / "hooks").iterdir() if not path.name.startswith(".")] == []


def tell(manager: ReliabilityManager, calls: int, *, pause_s: float = 0.0) -> dict[str, str]:
    """Tell some VMs in turn that they were created, stopped, started and so on; returns what was told last of each."""
    last: dict[str, str] = {}
    for call in range(calls):
        vm_id, turn = f"vm-{call % VMS}", call // VMS
        hooks: Mapping[str, Callable[[], int]] = {
            "on_vm_created": lambda vm_id=vm_id: manager.on_vm_created(vm_id, None, CONFIG),  # type: ignore[misc]
            "on_vm_stopped": lambda vm_id=vm_id: manager.on_vm_stopped(vm_id),  # type: ignore[misc]
            "on_vm_started": lambda vm_id=vm_id: manager.on_vm_started(vm_id),  # type: ignore[misc]
            "on_vm_deleted": lambda vm_id=vm_id: manager.on_vm_deleted(vm_id),  # type: ignore[misc]
        }
        # Some end as each: a VM's own offset makes its last call another one.
        last[vm_id] = list(hooks)[(turn + (call % VMS) * bool(turn)) % 4]
        hooks[last[vm_id]]()
        time.sleep(pause_s)
    return last


def check(fleet: Fleet, last: Mapping[str, str]) -> None:
    """Nothing is lost: each VM is what was told last. Nothing is reordered: nor was it something newer before that."""
    found = fleet.store.read(list(last)).found
    for vm_id, hook in last.items():
        stored = found.get(vm_id)
        assert (stored is None) == (hook == "on_vm_deleted"), (vm_id, hook)
        if stored is not None:
            assert (stored.record.desired is Desired.STOPPED) == (hook == "on_vm_stopped"), (vm_id, hook)


def test_every_hook_returns_while_redis_hangs_and_nothing_of_it_is_lost(
    tmp_path: Path, fresh_server: EmbeddedServer, fleet: Fleet
) -> None:
    patient = settings_for(tmp_path, fresh_server.url(0), REDIS__TIMEOUT="30s", REDIS__CONNECT_TIMEOUT="30s")
    with manager_with(patient) as manager:
        manager.on_vm_created("vm-0", None, CONFIG)
        delivered(manager)
        os.kill(fresh_server.pid, signal.SIGSTOP)
        try:
            last = tell(manager, 100)
            with manager.operation("vm-1", "snapshot", MINUTE):
                pass
            assert stat_of(fresh_server.pid) == "T", "every call came back before redis did"
        finally:
            os.kill(fresh_server.pid, signal.SIGCONT)
        delivered(manager)
    check(fleet, last)
    assert fleet.modes.all_modes()[1].scopes == {}


def stat_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_redis_killed_under_200_calls_loses_and_reorders_nothing(
    manager: ReliabilityManager, fresh_server: EmbeddedServer, fleet: Fleet
) -> None:
    last = tell(manager, VMS)
    fresh_server.kill()
    last |= tell(manager, 180)
    fresh_server.start()
    delivered(manager)
    check(fleet, last)


@pytest.mark.timeout(240)
@pytest.mark.full
def test_redis_killed_for_a_minute_under_1000_calls_loses_and_reorders_nothing(
    manager: ReliabilityManager, fresh_server: EmbeddedServer, fleet: Fleet
) -> None:
    fresh_server.kill()
    last = tell(manager, 1000, pause_s=0.06)
    fresh_server.start()
    delivered(manager)
    check(fleet, last)


def test_what_a_manager_that_went_away_has_told_is_delivered_by_the_worker(
    unstarted: ReliabilityManager, settings: Settings, fleet: Fleet
) -> None:
    last = tell(unstarted, 50)
    replay = JournalReplay(settings, fleet, read_vantage(settings.state_dir))
    replay()
    check(fleet, last)
    assert unstarted.undelivered == 0
    replay()


def test_a_delivery_that_ended_before_it_was_noted_does_no_harm(
    unstarted: ReliabilityManager, settings: Settings, fleet: Fleet
) -> None:
    replay = JournalReplay(settings, fleet, read_vantage(settings.state_dir))
    unstarted.on_vm_created("vm-1", None, CONFIG)
    unstarted.on_vm_stopping("vm-1")
    file = settings.state_dir / "hooks" / "vm-1.json"
    text = file.read_bytes()
    replay()
    before = record(fleet)
    (hold,) = fleet.modes.all_modes()[1].scopes["vm:vm-1"].holds

    file.write_bytes(text)
    replay()
    assert record(fleet) == before
    assert fleet.modes.all_modes()[1].scopes["vm:vm-1"].holds == (hold,)

    file.write_bytes(text)
    unstarted.on_vm_started("vm-1")
    replay()
    assert record(fleet).desired is Desired.RUNNING
    assert fleet.modes.all_modes()[1].scopes == {}


def test_a_person_who_declares_a_vm_later_outranks_what_was_told_before(
    unstarted: ReliabilityManager, manager: ReliabilityManager, settings: Settings, fleet: Fleet
) -> None:
    manager.on_vm_created("vm-1", None, CONFIG)
    delivered(manager)
    manager.stop()
    unstarted.on_vm_stopped("vm-1")
    told = json.loads((settings.state_dir / "hooks" / "vm-1.json").read_bytes())["entries"][0]
    wait_until(lambda: fleet.modes.all_modes()[0] > told["at_ms"], what="server time to be surely later")
    fleet.registry(NoWakeups(), actor="alice").apply([a_spec(memory_mib=512)])
    JournalReplay(settings, fleet, read_vantage(settings.state_dir))()
    assert record(fleet).desired is Desired.RUNNING
    assert unstarted.undelivered == 0


def test_a_manager_outranks_what_a_person_declared_before(manager: ReliabilityManager, fleet: Fleet) -> None:
    manager.on_vm_created("vm-1", None, CONFIG)
    delivered(manager)
    fleet.registry(NoWakeups(), actor="alice").apply([a_spec(memory_mib=512)])
    manager.on_vm_stopped("vm-1")
    delivered(manager)
    assert record(fleet).desired is Desired.STOPPED


def test_a_process_that_has_ended_is_not_taken_for_another_with_its_pid(
    manager: ReliabilityManager, fleet: Fleet, vmm: "subprocess.Popen[bytes]"
) -> None:
    """The pid is this live process's; the start time is that of the one before."""
    manager.on_vm_created("vm-1", VmmProcess(vmm.pid, start_ticks=1), CONFIG)
    delivered(manager)
    found = record(fleet).process
    assert found is not None
    assert (found.pid, found.start_ticks) == (vmm.pid, 1)


def test_an_operation_holds_its_vm_and_lifts_the_hold_also_when_it_fails(
    manager: ReliabilityManager, fleet: Fleet
) -> None:
    def holds() -> list[tuple[Mode, str]]:
        scopes = fleet.modes.all_modes()[1].scopes
        return [(hold.mode, hold.why.partition(" [")[0]) for hold in scopes["vm:vm-1"].holds] if scopes else []

    def fail() -> None:
        with manager.operation("vm-1", "snapshot", MINUTE) as number:
            assert number > 0
            wait_until(lambda: holds() == [(Mode.PAUSED, "operation snapshot")], what="the hold")
            (hold,) = fleet.modes.all_modes()[1].scopes[vm_scope("vm-1")].holds
            assert 0 < hold.until_ms - hold.since_ms <= 60_000
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    wait_until(lambda: holds() == [], what="the hold to be lifted")


def test_an_operation_is_ended_by_name_also_by_a_manager_that_was_started_anew(
    manager: ReliabilityManager, unstarted: ReliabilityManager, fleet: Fleet
) -> None:
    hooks: Hooks = manager
    begun = hooks.begin_operation("vm-1", "resize", MINUTE)
    delivered(manager)
    assert fleet.modes.all_modes()[1].scopes
    assert unstarted.end_operation("vm-1", begun.name) > begun.number
    unstarted.end_operation("vm-1", begun.name)
    delivered(manager)
    assert fleet.modes.all_modes()[1].scopes == {}
    with pytest.raises(ValueError, match="field operation: must be what begin_operation gave, got 'stopping'"):
        manager.end_operation("vm-1", "stopping")


def test_an_operation_that_is_over_before_redis_is_back_never_holds(
    manager: ReliabilityManager, fresh_server: EmbeddedServer, fleet: Fleet
) -> None:
    fresh_server.kill()
    with manager.operation("vm-1", "snapshot", MINUTE):
        pass
    with manager.operation("vm-2", "snapshot", timedelta(milliseconds=1)):
        time.sleep(0.01)
        fresh_server.start()
        delivered(manager)
    assert fleet.modes.all_modes()[1].scopes == {}


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda m, _: m.on_vm_stopped("../x"), r"field vm_id: must be .* got '\.\./x'"),
        (lambda m, _: m.on_vm_stopped(7), r"field vm_id: must be .* got 7"),
        (lambda m, _: m.on_vm_created("vm-1", 0, CONFIG), r"field process: must be the pid of a process, got 0"),
        (lambda m, _: m.on_vm_created("vm-1", bool(1), CONFIG), r"field process: must be a pid, a Popen, .* got True"),
        (lambda m, _: m.on_vm_created("vm-1", "5", CONFIG), r"field process: must be a pid, a Popen, .* got str"),
        (lambda m, pid: m.on_vm_created("vm-1", pid, CONFIG), r"field socket: pid \d+ \(.*\) does not tell its API"),
        (lambda m, pid: m.on_vm_created("vm-1", pid, CONFIG, socket="s"), r"field socket: must be an absolute path"),
        (lambda m, _: m.on_vm_created("vm-1", None, {}), r"driver: must be firecracker or qemu"),
        (lambda m, _: m.on_vm_created("vm-1", None, CONFIG | {"id": "vm-2"}), r"field config: id is 'vm-2'"),
        (lambda m, _: m.on_vm_created("vm-1", None, CONFIG | {"host": "far"}), r"field config: host is 'far'"),
        (lambda m, _: m.begin_operation("vm-1", "a\nb", MINUTE), r"field kind: must be one line"),
        (lambda m, _: m.begin_operation("vm-1", "a", 5), r"field deadline: must be a timedelta"),
        (lambda m, _: m.on_vm_stopping("vm-1", deadline=timedelta(0)), r"field deadline: must be more than nothing"),
    ],
)
def test_what_cannot_be_right_is_refused_at_once_and_nothing_is_kept(
    unstarted: ReliabilityManager, vmm: "subprocess.Popen[bytes]", call: Callable[[Any, int], Any], complaint: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=complaint):
        call(unstarted, vmm.pid)
    assert unstarted.undelivered == 0


def test_a_vmm_of_another_vm_or_driver_is_refused(tmp_path: Path, redis_url: str) -> None:
    standin = settings_for(tmp_path, redis_url, DRIVERS__FIRECRACKER__BINARY="standin")
    with (
        manager_with(standin, started=False) as manager,
        subprocess.Popen(command("--id", "vm-2", "--api-sock", "a.sock"), cwd=tmp_path) as process,
    ):
        wait_until((tmp_path / "a.sock").exists, what="the stand-in")
        with pytest.raises(ValueError, match="says that it is vm 'vm-2', not 'vm-1'"):
            manager.on_vm_created("vm-1", process, CONFIG)
        with pytest.raises(ValueError, match="is no qemu"):
            manager.on_vm_created("vm-2", process, CONFIG | {"driver": "qemu"})
        manager.on_vm_created("vm-2", process, CONFIG)
        assert manager.undelivered == 1
        process.kill()


def test_questions_are_answered_from_the_records(manager: ReliabilityManager, fleet: Fleet) -> None:
    lost = a_lost_vm("vm-2")
    fleet.store.write([Change(each.vm_id, 0, each, spec=a_spec(each.vm_id)) for each in (a_vm("vm-1"), lost)])
    fleet.store.write([Change("vm-3", 0, a_vm("vm-3", host="elsewhere"), spec=a_spec("vm-3", host="elsewhere"))])

    assert manager.get_vm_health("vm-1").is_healthy
    assert [(each.vm_id, each.state) for each in manager.get_all_vm_health()] == [
        ("vm-1", State.HEALTHY),
        ("vm-2", State.ORPHANED),
    ]
    assert [(each.vm_id, each.reason) for each in manager.get_orphaned_vms()] == [("vm-2", lost.episode.reason)]  # type: ignore[union-attr]
    with pytest.raises(UnknownVm):
        manager.get_vm_health("vm-9")


def test_attempts_are_joined_from_the_audit(manager: ReliabilityManager, fleet: Fleet) -> None:
    begun = replace(a_lost_vm(state=State.RECOVERING), generation=8)
    begun = replace(begun, episode=replace(begun.episode, attempt=1, running=True))  # type: ignore[type-var]
    failed = replace(begun, state=State.ORPHANED)
    second = replace(begun, episode=replace(begun.episode, attempt=2))  # type: ignore[type-var]
    before = State.ORPHANED
    fleet.store.note([event(EventKind.ATTEMPT_STARTED, begun, actor="recovery", why="attempt 1", before=before)])
    fleet.store.note([event(EventKind.ATTEMPT_FAILED, failed, actor="recovery", why="no disk", before=begun.state)])
    fleet.store.note([event(EventKind.ATTEMPT_STARTED, second, actor="recovery", why="attempt 2", before=before)])
    seen = manager.get_recovery_attempts("vm-1")
    assert [(each.number, each.outcome, each.error) for each in seen] == [
        (1, "failed", "no disk"),
        (2, "running", None),
    ]
    assert [bool(each.ended_ms) for each in seen] == [True, False]
    assert manager.get_recovery_attempts("vm-9") == []


def test_without_redis_questions_say_so(manager: ReliabilityManager, fresh_server: EmbeddedServer) -> None:
    fresh_server.kill()
    with pytest.raises(StoreUnavailable):
        manager.get_all_vm_health()


def test_a_recovery_that_nobody_would_follow_is_refused(manager: ReliabilityManager, fleet: Fleet) -> None:
    lost = a_lost_vm()
    fleet.store.write([Change("vm-1", 0, lost, spec=a_spec())])
    with pytest.raises(Refused, match="no worker serves host"):
        manager.trigger_recovery("vm-1", reason="test")


@pytest.mark.parametrize(("group", "hosts"), [(None, {HOST}), ("billing", {HOST, "host-z"})])
def test_callbacks_hear_of_losses_on_this_host_and_with_a_group_of_all(
    settings: Settings, fleet: Fleet, group: str | None, hosts: set[str]
) -> None:
    heard: list[SeenChange] = []
    gaps: list[Gap] = []
    manager = ReliabilityManager(settings, group=group)
    manager.on_orphaned(heard.append)
    manager.on_gap(gaps.append)
    manager.start()
    lost = [a_lost_vm("vm-z", host="host-z"), a_lost_vm("vm-1")]
    told = [event(EventKind.TRANSITION, each, actor="check", why="gone", before=State.HEALTHY) for each in lost]

    def tell_and_look() -> bool:
        fleet.store.note(told)  # the group may only begin after the first ones
        return any(change.host == HOST for change in heard)

    wait_until(tell_and_look, what="the callback")
    manager.stop()
    assert {change.host for change in heard} == hosts
    assert {change.kind for change in heard} == {"orphaned"}
    assert len(gaps) == 1, "what was before the group began"


DISABLED = """
    import sys
    from pathlib import Path
    from workers.settings import load
    from workers.integration import ReliabilityManager

    settings = load({{"RELIABILITY_ENABLED": "false", "RELIABILITY_STATE_DIR": {state!r}}}, Path("/")).settings
    manager = ReliabilityManager(settings)
    manager.start()
    manager.on_failed(print)
    assert manager.on_vm_created("vm-1", 1, {{}}) == manager.on_vm_deleted("vm-1") == manager.undelivered == 0
    with manager.operation("vm-1", "snapshot", None):
        pass
    assert manager.get_all_vm_health() == manager.get_orphaned_vms() == manager.get_recovery_attempts("vm-1") == []
    manager.stop()
    heavy = {{"redis", "celery", "kombu", "opentelemetry", "workers.bootstrap"}} & set(sys.modules)
    assert not heavy, heavy
    assert not Path({state!r}).exists()
"""


def test_switched_off_nothing_is_done_loaded_or_written(tmp_path: Path) -> None:
    text = textwrap.dedent(DISABLED).format(state=str(tmp_path / "state"))
    subprocess.run([sys.executable, "-c", text], check=True)


def test_the_example_of_the_documentation_works(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).parents[2] / "docs" / "integration.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    vmm = ", ".join(map(repr, command("--id", "vm-1", "--api-sock", str(tmp_path / "a.sock"))))
    example, replaced = re.subn(r'\["firecracker".*?\]', lambda _: f"[{vmm}]", example)
    settings = {
        "STATE_DIR": str(tmp_path / "state"),
        "REDIS__URL": redis_url,
        "DRIVERS__FIRECRACKER__BINARY": "standin",
    }
    for name, value in settings.items():
        monkeypatch.setenv(f"RELIABILITY_{name}", value)
    found: dict[str, Any] = {}
    try:
        exec(example, found)  # noqa: S102 - our own
    finally:
        structlog.reset_defaults()
    assert replaced == 1
    assert found["manager"].undelivered == 0
    fleet = Fleet(load(os.environ, tmp_path).settings)
    assert (fleet.store.ids(), fleet.modes.all_modes()[1].scopes) == ([], {})
    kinds = [entry.event.kind for entry in fleet.events.latest(vm_id="vm-1", limit=50)]
    assert kinds == [] or kinds[-1] in (EventKind.FORGOTTEN, EventKind.MODE)


@pytest.fixture
def site(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Cluster]:
    with cluster(tmp_path, fresh_server) as made:
        yield made


@pytest.mark.full
def test_a_vm_of_the_manager_is_watched_recovered_and_not_started_again_once_it_was_stopped(
    site: Cluster, fresh_server: EmbeddedServer, tmp_path: Path
) -> None:
    site.serve()
    own = tmp_path / "own"
    own.mkdir()
    with (
        manager_with(site.fleet.settings) as manager,
        subprocess.Popen(command("--id", "vm-1", "--api-sock", "api.sock"), cwd=own) as vmm,
    ):
        wait_until((own / "api.sock").exists, what="the stand-in")
        manager.on_vm_created("vm-1", vmm, CONFIG | {"kernel": str(site.kernel)})
        wait_until(lambda: manager.undelivered == 0, what="the record")
        first = site.record("vm-1")
        assert first.process is not None
        assert first.process.pid == vmm.pid
        vmm.kill()
        vmm.wait()
        again = site.wait_healthy("vm-1", after=first)
        fresh_server.kill()
        manager.on_vm_stopped("vm-1")
        assert again.process is not None
        os.kill(again.process.pid, signal.SIGKILL)
        fresh_server.start()
        site.wait_state("vm-1", State.STOPPED, timeout_s=30)
    starts = [entry for entry in site.events("vm-1") if entry.event.kind is EventKind.ATTEMPT_STARTED]
    assert len(starts) == 1
    assert site.live("vm-1") == []
