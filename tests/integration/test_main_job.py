"""The main job with real parts: worker, beat, server, processes; and the second failure behind each first one."""

import json
import os
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.support.cluster import REPOSITORY, Cluster, cluster, kill, send_by_name
from tests.support.processes import wait_until
from tests.support.servers import start_server
from tests.support.standin import Reply, Standin
from workers import queues
from workers.domain.audit import EventKind
from workers.domain.vm import EpisodeEnd, Reason, State, VmRecord
from workers.embedded import EmbeddedServer


@pytest.fixture
def site(tmp_path: Path, fresh_server: EmbeddedServer) -> Iterator[Cluster]:
    with cluster(tmp_path, fresh_server) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """One worker for all tests that do not end it; each uses VMs of its own, as customers do."""
    server = start_server(tmp_path_factory.mktemp("shared-server"))
    with server, cluster(tmp_path_factory.mktemp("shared"), server) as made:
        made.serve()
        yield made


def call(site: Cluster, record: VmRecord, method: str, path: str, body: object = None, **options: float) -> Reply:
    """Call the API of a VMM, through its folder: test folders can be too long for a socket address."""
    folder = os.open(site.socket(record).parent, os.O_PATH)
    try:
        vm = Standin(None, Path(f"/proc/self/fd/{folder}/api.sock"))  # type: ignore[arg-type] # only its socket is used
        return vm.call(method, path, body, **options)
    finally:
        os.close(folder)


def put_fault(site: Cluster, record: VmRecord, fault: dict[str, object]) -> None:
    assert call(site, record, "PUT", "/faults", fault).status == 204


def reasons(site: Cluster, vm_id: str) -> set[Reason | None]:
    return {entry.event.reason for entry in site.events(vm_id) if entry.event.kind is EventKind.ATTEMPT_STARTED}


def test_each_kind_of_loss_is_found_and_put_right_once(shared: Cluster) -> None:
    before = shared.run_vms("job-dead", "job-hung", "job-cut", "job-other", "job-fine")

    kill(before["job-dead"], signal.SIGKILL)
    kill(before["job-hung"], signal.SIGSTOP)
    shared.socket(before["job-cut"]).unlink()
    put_fault(shared, before["job-other"], {"report_id": "job-99"})

    expected = {
        "job-dead": Reason.PROCESS_DEAD,
        "job-hung": Reason.HEALTH_CHECK_FAILED,
        "job-cut": Reason.SOCKET_UNREACHABLE,
        "job-other": Reason.PROCESS_MISMATCH,
    }
    for vm_id, reason in expected.items():
        after = shared.wait_healthy(vm_id, after=before[vm_id])
        assert after.process is not None
        assert shared.live(vm_id) == [after.process.pid]
        assert after.generation > before[vm_id].generation
        assert reasons(shared, vm_id) == {Reason.NOT_STARTED, reason}
        assert after.episode is not None
        assert (after.episode.attempt, after.episode.end) == (1, EpisodeEnd.RECOVERED)
    assert shared.record("job-fine").process == before["job-fine"].process
    lost = next(e.event for e in shared.events("job-dead") if e.event.after is State.ORPHANED)
    assert "signal 9" in lost.why


def test_a_vm_that_refuses_to_start_is_tried_again_after_its_backoff(shared: Cluster) -> None:
    before = shared.run_vms("job-refuses")["job-refuses"]
    shared.fault("job-refuses", '{"refuse_starts": 2}')
    kill(before, signal.SIGKILL)

    after = shared.wait_healthy("job-refuses", after=before)

    assert after.episode is not None
    assert after.episode.attempt == 3
    starts = [e.at_ms for e in shared.events("job-refuses") if e.event.kind is EventKind.ATTEMPT_STARTED][-3:]
    fails = [e.at_ms for e in shared.events("job-refuses") if e.event.kind is EventKind.ATTEMPT_FAILED]
    assert starts[1] - fails[0] >= 300
    assert starts[2] - fails[1] >= 600


def test_a_vm_that_never_starts_ends_failed_and_a_request_by_hand_gets_it_back(shared: Cluster) -> None:
    before = shared.run_vms("job-never")["job-never"]
    shared.fault("job-never", '{"refuse_starts": 3, "exit_code": 1}')
    kill(before, signal.SIGKILL)
    failed = shared.wait_state("job-never", State.FAILED)
    assert failed.episode is not None
    assert failed.episode.attempt == 3
    assert "exit 1" in str(failed.episode.error)

    send_by_name(shared, "job-never")

    shared.wait_healthy("job-never", after=before)
    assert len(shared.live("job-never")) == 1


def test_a_configuration_that_its_vmm_will_never_take_is_not_tried_again(shared: Cluster) -> None:
    before = shared.run_vms("job-wrong")["job-wrong"]
    shared.fault("job-wrong", '{"refuse_starts": 1, "exit_code": 152}')
    kill(before, signal.SIGKILL)
    failed = shared.wait_state("job-wrong", State.FAILED)
    assert failed.episode is not None
    assert failed.episode.attempt == 1
    assert "exit 152: starting it again would end the same way" in str(failed.episode.error)


def test_vms_outlive_their_worker_and_the_next_one_takes_them_over(site: Cluster) -> None:
    worker = site.serve()
    before = site.run_vms("job-1", "job-2")
    worker.popen.kill()
    worker.popen.wait()
    assert site.live("job-1")
    kill(before["job-2"], signal.SIGKILL)

    successor = site.start_worker("successor")

    site.wait_healthy("job-2", after=before["job-2"])
    successor.wait_for_log("watching")
    assert site.record("job-1") == before["job-1"] or site.record("job-1").process == before["job-1"].process
    kill(before["job-1"], signal.SIGKILL)
    after = site.wait_healthy("job-1", after=before["job-1"])
    assert after.process is not None
    assert site.live("job-1") == [after.process.pid]


@pytest.mark.full
def test_a_worker_killed_in_the_middle_of_a_start_is_followed_by_one_vmm(site: Cluster) -> None:
    worker = site.serve()
    before = site.run_vms("job-1")["job-1"]
    site.fault("job-1", '{"boot_delay_ms": 1500}')
    kill(before, signal.SIGKILL)
    (new,) = wait_until(lambda: [pid for pid in site.live("job-1") if pid != _pid(before)], what="the new VMM")
    wait_until(lambda: is_booting(site, "job-1"), what="the guest to be booting")
    worker.popen.kill()
    worker.popen.wait()

    site.start_worker("successor")

    after = site.wait_healthy("job-1", after=before, timeout_s=30)
    assert site.live("job-1") == [_pid(after)]
    assert _pid(after) == new, "what lives and serves is taken over, not started again"


def is_booting(site: Cluster, vm_id: str) -> bool:
    """While a guest boots, the one thread of the API answers nobody."""
    try:
        call(site, site.record(vm_id), "GET", "/", timeout_s=0.2)
    except TimeoutError:
        return True
    except OSError:
        return False
    return False


@pytest.mark.full
def test_a_guest_that_its_killed_worker_never_started_is_started_by_the_next_one(site: Cluster) -> None:
    worker = site.serve()
    before = site.run_vms("job-1")["job-1"]
    site.fault("job-1", '{"slow_ms": 800}')
    kill(before, signal.SIGKILL)
    (half,) = wait_until(lambda: [pid for pid in site.live("job-1") if pid != _pid(before)], what="the new VMM")
    wait_until(lambda: site.socket(site.record("job-1")).exists(), what="its socket")
    worker.popen.kill()
    worker.popen.wait()
    site.fault("job-1", "{}")
    put_fault(site, site.record("job-1"), {})

    site.start_worker("successor")

    after = site.wait_healthy("job-1", after=before, timeout_s=30)
    assert site.live("job-1") == [_pid(after)]
    assert _pid(after) != half, "it answered, but no guest ran in it"
    assert "booted" in site.socket(after).with_name("console.log").read_text()


def _pid(record: VmRecord) -> int:
    assert record.process is not None
    return record.process.pid


def test_a_second_worker_of_the_host_stays_passive_until_the_first_one_is_gone(site: Cluster) -> None:
    first = site.serve()
    second = site.start_worker("second")
    second.wait_for_log("passive: waiting for the host's lease", timeout_s=20)
    assert f"worker pid {first.pid}" in second.log()
    before = site.run_vms("job-1")["job-1"]

    first.popen.kill()
    first.popen.wait()

    second.wait_for_log("this worker serves the host")
    kill(before, signal.SIGKILL)
    site.wait_healthy("job-1", after=before)


def test_a_passive_worker_ends_when_it_is_asked(site: Cluster) -> None:
    site.serve()
    second = site.start_worker("second")
    second.wait_for_log("passive: waiting for the host's lease", timeout_s=20)
    assert second.stop() == 0


def test_an_idle_worker_ends_cleanly_and_leaves_the_vms_alone(site: Cluster) -> None:
    worker = site.serve()
    before = site.run_vms("job-1")["job-1"]

    assert worker.stop(timeout_s=5) == 0

    assert site.live("job-1") == [_pid(before)]
    assert site.fleet.hosts.all()[1][0].worker is None, "the name is given back"


def test_an_announced_stop_is_carried_out_and_no_orphan(shared: Cluster) -> None:
    before = shared.run_vms("job-stops")["job-stops"]

    shared.apply(shared.spec("job-stops", desired="stopped"))

    shared.wait_state("job-stops", State.STOPPED)
    assert shared.live("job-stops") == []
    assert not [e for e in shared.events("job-stops") if e.event.after is State.ORPHANED]
    shared.apply(shared.spec("job-stops"))
    shared.wait_healthy("job-stops", after=before)


def test_messages_may_all_be_lost_and_the_records_drive_what_is_due(site: Cluster) -> None:
    worker = site.serve()
    before = site.run_vms("job-1")["job-1"]
    worker.popen.send_signal(signal.SIGSTOP)
    kill(before, signal.SIGKILL)
    worker.popen.send_signal(signal.SIGCONT)
    site.fault("job-1", '{"refuse_starts": 1}')
    kill(site.wait_healthy("job-1", after=before), signal.SIGKILL)
    wait_until(
        lambda: [e for e in site.events("job-1") if e.event.kind is EventKind.ATTEMPT_FAILED], what="a failed attempt"
    )
    _flush_broker(site)
    worker.popen.kill()
    worker.popen.wait()
    _flush_broker(site)
    site.start_worker("successor")
    site.wait_healthy("job-1", after=before, timeout_s=30)


def _flush_broker(site: Cluster) -> None:
    client = redis.Redis.from_url(site.server.url(1))
    client.flushdb()
    client.close()


@pytest.mark.full
def test_redis_may_die_and_come_back_and_no_vm_is_touched(site: Cluster) -> None:
    worker = site.serve()
    before = site.run_vms("job-1", "job-2")
    site.server.kill()
    worker.wait_for_log("redis is away")
    kill(before["job-2"], signal.SIGKILL)

    site.server.restart()

    site.wait_healthy("job-2", after=before["job-2"], timeout_s=30)
    assert worker.is_alive
    assert site.record("job-1").process == before["job-1"].process
    assert site.live("job-1") == [_pid(before["job-1"])]


def test_a_repeated_request_by_hand_acts_once(shared: Cluster) -> None:
    before = shared.run_vms("job-asked")["job-asked"]
    shared.fault("job-asked", '{"refuse_starts": 3}')
    kill(before, signal.SIGKILL)
    shared.wait_state("job-asked", State.FAILED)
    count = len(shared.events("job-asked"))

    for _ in range(2):
        send_by_name(shared, "job-asked", request_id="request-1")
    shared.wait_healthy("job-asked", after=before)

    started = [e for e in shared.events("job-asked")[count:] if e.event.kind is EventKind.ATTEMPT_STARTED]
    assert len(started) == 1
    assert started[0].event.request_id == "request-1"


def test_a_wrong_argument_is_refused_clearly_and_never_retried(shared: Cluster) -> None:
    assert shared.worker is not None
    wrong = ["../etc", "UPPER", "", "a" * 65]
    for argument in wrong:
        send_by_name(shared, argument)
    shared.worker.wait_for_log("task refused", times=len(wrong))
    send_by_name(shared, "job-unknown")
    shared.worker.wait_for_log("vm_id=job-unknown")
    assert shared.worker.log().count("task refused") == len(wrong)
    assert 'argument=vm_id why="must be 1 to 64' in shared.worker.log()


def test_a_forking_pool_is_refused_with_the_reason(site: Cluster) -> None:
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker", "-P", "processes", "-c", "1"]
    done = subprocess.run(
        command,
        env={**os.environ, **site.environment, "C_FORCE_ROOT": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode != 0
    assert "only `--pool threads`" in done.stdout + done.stderr


def test_a_record_of_a_newer_version_is_left_untouched(shared: Cluster) -> None:
    before = shared.run_vms("job-newer")["job-newer"]
    client = shared.fleet.store._client
    client.hset("rel:vm:job-newer", "v", "99")
    stored = client.hgetall("rel:vm:job-newer")

    kill(before, signal.SIGKILL)

    assert shared.worker is not None
    shared.worker.wait_for_log("schema version 99")
    assert client.hgetall("rel:vm:job-newer") == stored
    assert shared.live("job-newer") == []
    assert shared.fleet.store.read(["job-newer"]).unreadable["job-newer"].startswith("field v")


def test_a_vmm_nobody_registered_is_reported_and_left_alone(shared: Cluster, tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    from workers.vmm.firecracker import program  # noqa: PLC0415 - only here the program itself is needed

    command = [*program("standin").words, "--api-sock", "api.sock", "--id", "job-stray"]
    stray = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL)
    try:

        def found() -> bool:
            strays = shared.fleet.hosts.strays([shared.host]).get(shared.host, [])
            return ("job-stray", stray.pid) in [(each["vm_id"], each["process"]["pid"]) for each in strays]

        wait_until(found, what="the stray to be reported")
        assert stray.poll() is None
    finally:
        stray.kill()
        stray.wait()


def test_a_message_that_is_none_is_dropped_with_a_word_and_ends_no_worker(shared: Cluster) -> None:
    """Each of these ends a plain Celery worker; the last one would come again, and end the next one too."""
    worker = shared.worker
    assert worker is not None
    about = {"delivery_info": {"exchange": "", "routing_key": "control"}, "body_encoding": "base64"}
    no_task = {
        "body": b64encode(b"7").decode(),
        "headers": {"task": queues.STOP_VM, "id": "1", "lang": "py"},
        "properties": about | {"delivery_tag": "tag-1"},
        "content-type": "application/json",
        "content-encoding": "utf-8",
    }
    client = redis.Redis.from_url(shared.server.url(1))
    for text in ("[1] and more", "[1]", "\xff", json.dumps(no_task)):
        client.lpush("control", text.encode("latin-1"))
    worker.wait_for_log("message dropped", times=3)
    worker.wait_for_log("its message cannot be read")
    send_by_name(shared, "job-after-garbage")
    worker.wait_for_log("vm_id=job-after-garbage")
    assert worker.is_alive
    wait_until(
        lambda: (client.llen("control"), client.hlen(f"unacked:{shared.host}")) == (0, 0), what="all to be acknowledged"
    )
    client.close()
