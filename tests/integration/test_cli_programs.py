"""The long-running programs of `reliability`, and recovery by hand through each of its ways: real worker, real Flower.

The worker recovers nothing by itself here (recovery.enabled = false), so that every recovery is the one asked for.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.cli import ME, PASSWORD, PROGRAM, Ask, asking, cli_site, declare, environment, execute, program
from tests.support.cluster import Cluster, kill
from tests.support.processes import RunningProcess, wait_until
from workers import queues
from workers.app import make_app
from workers.domain.audit import EventKind
from workers.domain.vm import State, VmRecord
from workers.embedded import free_port
from workers.settings import load

_NOTHING_TO_DO = "there is nothing to recover; --kill-healthy ends and starts it all the same"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cli_site(tmp_path_factory.mktemp("cli-programs")) as made:
        yield made


@pytest.fixture(scope="module")
def worker(site: Cluster) -> Iterator[RunningProcess]:
    with program(site, "worker", name="main-worker") as process:
        process.wait_for_log("ready.", timeout_s=20)
        yield process
        assert process.stop(timeout_s=5) == 0


@pytest.fixture
def ask(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(site, monkeypatch, capsys)


def other_databases(site: Cluster) -> dict[str, str]:
    """For workers of other hosts: in the first two they would take messages away from the main one."""
    urls = {"REDIS__URL": site.server.url(2), "BROKER__URL": site.server.url(3)}
    # A host remembers the data of its Redis, and takes no others for them.
    return urls | {"HOST": "host-b", "STATE_DIR": str(site.folder / "state-b")}


def test_impossible_settings_are_refused_on_one_line(site: Cluster) -> None:
    answer = execute(site, "worker", HEALTH_CHECK__TIMEOUT="2s", HEALTH_CHECK__INTERVAL="1s")

    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith("reliability: health_check.timeout: must be less than health_check.interval")


def test_a_state_folder_that_cannot_be_used_is_refused_on_one_line(site: Cluster) -> None:
    answer = execute(site, "worker", STATE_DIR=f"{site.kernel}/state")

    assert (answer.status, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert answer.err.startswith(f"reliability: state_dir: {site.kernel}/state cannot be used: Not a directory")


def test_an_idle_worker_ends_in_good_order_at_ctrl_c(site: Cluster) -> None:
    with program(site, "worker", name="idle", **other_databases(site)) as process:
        process.wait_for_log(" ready.", timeout_s=20)
        process.popen.send_signal(signal.SIGINT)

        assert process.popen.wait(5) == 0
        assert "Traceback" not in process.log()


def test_a_second_worker_of_a_host_is_passive_and_ends_quickly(site: Cluster, worker: RunningProcess) -> None:
    with program(site, "worker", name="second") as second:
        second.wait_for_log("passive: waiting for the host's lease", timeout_s=20)
        assert f"worker pid {worker.pid}" in second.log()

        second.popen.send_signal(signal.SIGTERM)

        assert second.popen.wait(5) == 0


def test_a_worker_that_is_only_just_starting_can_be_ended(site: Cluster) -> None:
    with program(site, "worker", name="early", **other_databases(site)) as process:
        # SIGTERM is caught (bit 14 of the mask) from long before Celery is loaded.
        wait_until(lambda: _caught_signals(process.pid) >> (signal.SIGTERM - 1) & 1, what="a handler for SIGTERM")
        process.popen.send_signal(signal.SIGTERM)

        assert process.popen.wait(10) == 0


def _caught_signals(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return int(line.split()[1], 16)
    return 0


def test_a_beat_ends_in_good_order_and_leaves_nothing_behind(site: Cluster) -> None:
    before = sorted(path.name for path in site.folder.iterdir())
    with program(site, "beat", name="beat", **other_databases(site)) as process:
        process.wait_for_log("beat: Starting", timeout_s=20)

        assert process.stop() == 0
        assert "Traceback" not in process.log()
    assert sorted(path.name for path in site.folder.iterdir()) == before


def test_flower_without_a_password_is_refused_on_an_open_address(site: Cluster) -> None:
    without = {name: value for name, value in environment(site).items() if not name.endswith("BASIC_AUTH")}
    done = subprocess.run(
        [*PROGRAM, "flower", "--address", "0.0.0.0"],  # noqa: S104 - which is what must be refused
        env=os.environ | without,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "flower.address: 0.0.0.0 without a password" in done.stderr


# --- recovery by hand


@contextmanager
def lost_vm(site: Cluster, name: str) -> Iterator[VmRecord]:
    """A VM that ran, and whose VMM was killed."""
    vm_id = declare(site, f"{ME}-{name}")
    assert execute(site, "recover", vm_id, "--wait").status == 0
    yield lose(site, vm_id)


def lose(site: Cluster, vm_id: str) -> VmRecord:
    record = site.wait_healthy(vm_id)
    kill(record, signal.SIGKILL)
    site.wait_state(vm_id, State.ORPHANED)
    return record


@pytest.mark.usefixtures("worker")
def test_a_lost_vm_is_recovered_on_request_and_told_about(site: Cluster, ask: Ask) -> None:
    with lost_vm(site, "r1") as before:
        vm_id = before.vm_id
        status = ask("status", "-o", "json").document
        assert vm_id in [vm["id"] for vm in status["recoveries"]["waiting"]]
        assert [host["live"] for host in status["hosts"] if host["name"] == site.host] == [True]

        answer = execute(site, "recover", vm_id, "--wait", "--reason", "because", "-o", "json")

    assert answer.status == 0
    assert answer.document | {"request_id": ""} == {
        "schema_version": 1,
        "vm_id": vm_id,
        "host": site.host,
        "requested": True,
        "request_id": "",
        "state": "healthy",
        "recovered": True,
    }
    assert "recovery requested: because" in answer.err  # progress, beside the document
    after = site.wait_healthy(vm_id, after=before)
    assert_shown(ask, after)
    assert_logged(ask, vm_id)
    again = ask("recover", vm_id)
    assert (again.status, again.err) == (1, f"reliability: {vm_id} is healthy: {_NOTHING_TO_DO}\n")


def assert_shown(ask: Ask, record: VmRecord) -> None:
    assert record.process is not None
    text = ask("vm", "show", record.vm_id).out
    assert text.startswith(f"{record.vm_id} is healthy for ")
    assert f"pid {record.process.pid}, alive" in text
    document = ask("vm", "show", record.vm_id, "-o", "json").document["vm"]
    assert document["process"]["pid"] == record.process.pid
    assert document["process_alive"] is True
    assert document["run_folder"].endswith(f"/runs/{record.vm_id}/{record.generation}")
    assert document["spec"]["id"] == record.vm_id


def assert_logged(ask: Ask, vm_id: str) -> None:
    assert ask("vm", "logs", vm_id, "--console").out == f"{vm_id} booted\n"
    text = ask("vm", "logs", vm_id).out
    assert ", running\n" in text
    assert "ended: signal 9" in text
    assert ask("vm", "logs", vm_id, "--previous").out.splitlines()[0].endswith("ended: signal 9")
    now, before = ask("vm", "logs", vm_id, "-o", "json").document["incarnations"]
    assert (now["exit_cause"], before["exit_cause"]) == (None, "signal 9")


@pytest.mark.usefixtures("worker")
def test_flower_and_bare_messages_recover_too_and_one_request_acts_once(site: Cluster, ask: Ask) -> None:
    vm_id = declare(site, f"{ME}-r2", kernel=f"{site.folder}/images/late")
    failed = execute(site, "recover", vm_id, "--wait")
    assert (failed.status, failed.out.splitlines()[-1]) == (1, f"{vm_id} is failed")
    needs = ask("status").out.partition("Needs a person")[2]
    assert f"{vm_id} on host {site.host} failed" in needs
    assert "images/late is missing" in needs
    (site.folder / "images" / "late").touch()

    with flower(site) as client:
        by_apply, by_name = f"/async-apply/{queues.RECOVER_VM}", f"/send-task/{queues.RECOVER_VM}"
        assert client.post(by_apply, json={"args": [vm_id]}, auth=("operator", "wrong")).status_code == 401
        assert client.post(by_apply, json={"args": [vm_id]}).status_code == 200
        site.wait_healthy(vm_id)

        before = lose(site, vm_id)
        assert client.post(by_name, json={"args": [vm_id]}).status_code == 200
        site.wait_healthy(vm_id, after=before)

    app = make_app(load(site.environment, site.folder).settings)
    before = lose(site, vm_id)
    app.send_task(queues.RECOVER_VM, args=[vm_id])
    site.wait_healthy(vm_id, after=before)
    assert_acts_once(site, vm_id, lambda request: app.send_task(queues.RECOVER_VM, args=[vm_id], kwargs=request))
    app.close()


def assert_acts_once(site: Cluster, vm_id: str, send: Callable[[dict[str, str]], object]) -> None:
    request = {"request_id": f"{vm_id}-once", "actor": "test"}
    before = lose(site, vm_id)
    send(request)
    site.wait_healthy(vm_id, after=before)
    lose(site, vm_id)

    send(request)

    log = site.folder / "logs" / "main-worker.log"
    refused = f'vm_id={vm_id} why="this request has acted already"'
    wait_until(lambda: refused in log.read_text(), what="the second message to be refused")
    assert site.record(vm_id).state is State.ORPHANED
    acted = [entry for entry in site.events(vm_id) if entry.event.request_id == request["request_id"]]
    assert [entry.event.kind for entry in acted].count(EventKind.ATTEMPT_STARTED) == 1


@pytest.mark.full
@pytest.mark.usefixtures("worker")
def test_the_lost_vms_of_a_host_are_shown_recovered_and_followed_together(site: Cluster, ask: Ask) -> None:
    with lost_vm(site, "h1") as one, lost_vm(site, "h2") as other:
        asked = ("recover", "--host", site.host, "--reason", "the rack is back")
        unasked = execute(site, *asked)
        assert (unasked.status, unasked.err.count("\n")) == (2, 1)
        assert re.search(rf"  {one.vm_id}\s+orphaned\s+process_dead", unasked.out)
        assert "nobody can be asked here" in unasked.err

        answer = execute(site, *asked, "--yes", "--wait")

    assert answer.status == 0, answer.err
    # Other tests may have left lost VMs on this host.
    told = set(re.findall(r"^\S+ is healthy", answer.out, re.MULTILINE))
    assert {f"{vm.vm_id} is healthy" for vm in (one, other)} <= told
    assert re.search(r"^([0-9]+) of \1 VMs healthy\n\Z", answer.out, re.MULTILINE)
    for before in (one, other):
        site.wait_healthy(before.vm_id, after=before)
    again = ask(*asked, "--yes")
    assert (again.status, again.out.splitlines()[0].split()[0]) == (0, "0")


@pytest.mark.full
@pytest.mark.usefixtures("worker")
def test_a_maintenance_refuses_a_plain_request_and_force_goes_before(site: Cluster, ask: Ask) -> None:
    with lost_vm(site, "f1") as before:
        assert ask("maintenance", before.vm_id, "--reason", "cabling", "--for", "1h").status == 0
        refused = ask("recover", before.vm_id)
        assert (refused.status, "is in maintenance: cabling" in refused.err) == (1, True)

        forced = execute(site, "recover", before.vm_id, "--force", "--reason", "now", "--wait")

    assert forced.status == 0, forced.err
    well = site.wait_healthy(before.vm_id, after=before)
    killed = execute(site, "recover", well.vm_id, "--kill-healthy", "--reason", "stuck guest", "--wait", "-o", "json")
    assert (killed.status, killed.document["recovered"]) == (0, True)
    site.wait_healthy(well.vm_id, after=well)


@contextmanager
def flower(site: Cluster) -> Iterator[httpx.Client]:
    port = free_port()
    with program(site, "flower", "--port", str(port), name="flower") as process:
        client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/task", auth=("operator", PASSWORD), timeout=10)
        with client:
            wait_until(lambda: process.is_alive and _answers(client), timeout_s=20, what="Flower to answer")
            assert PASSWORD not in Path(f"/proc/{process.pid}/cmdline").read_text()
            yield client
        assert process.stop() == 0


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/types").status_code == httpx.codes.OK
    except httpx.TransportError:
        return False
