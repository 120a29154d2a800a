"""A fleet that somebody else started is found, described and taken over: nothing is restarted, nothing is signalled."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cli import ME, Ask, asking, cli_site, execute
from tests.support.cluster import Cluster, cluster, kill
from tests.support.guests import guest_spec, require_guest_image, running_guest
from tests.support.processes import wait_until
from tests.support.standin import Standin, command, running_standin
from workers.domain.audit import EventKind
from workers.domain.vm import State
from workers.embedded import EmbeddedServer
from workers.host.identity import read_stat


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cli_site(tmp_path_factory.mktemp("discover")) as made:
        (made.folder / "images" / "root.ext4").write_bytes(b"root")
        (made.folder / "images" / "data.raw").write_bytes(b"data")
        yield made


@pytest.fixture
def ask(site: Cluster, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Ask:
    return asking(site, monkeypatch, capsys)


@contextmanager
def started_by_hand(
    site: Cluster, folder: Path, vm_id: str, *flags: str, kernel: Path | None = None
) -> Iterator[Standin]:
    """A VM of somebody else: in a folder, with a socket and under an id of their own choice."""
    folder.mkdir(exist_ok=True)
    with running_standin(folder, *flags, vm_id=vm_id) as vm:
        vm.put("/machine-config", {"vcpu_count": 2, "mem_size_mib": 256})
        root = {"drive_id": "rootfs", "is_root_device": True, "path_on_host": str(site.folder / "images" / "root.ext4")}
        vm.put("/drives/rootfs", root)
        data = {"drive_id": "data", "is_root_device": False, "path_on_host": str(site.folder / "images" / "data.raw")}
        vm.put("/drives/data", data | {"is_read_only": True})
        vm.put(
            "/network-interfaces/eth0", {"iface_id": "eth0", "host_dev_name": "tap7", "guest_mac": "02:00:00:00:00:07"}
        )
        vm.put("/boot-source", {"kernel_image_path": str(kernel or site.kernel), "boot_args": "console=ttyS0"})
        vm.put("/actions", {"action_type": "InstanceStart"})
        yield vm


def test_a_vmm_that_nobody_registered_is_described_by_a_spec_that_apply_takes(
    site: Cluster, ask: Ask, tmp_path: Path
) -> None:
    vm_id = f"{ME}-found"
    with started_by_hand(site, tmp_path / "theirs", vm_id) as vm:
        answer = ask("discover", "--write", str(tmp_path / "specs"))

        assert answer.status == 0, answer.err
        assert [vm_id, str(vm.pid), "firecracker", "new"] in [line.split() for line in answer.out.splitlines()]
        assert "guessed: durability: that the disks keep what the guest wrote" in answer.out
        assert spec_of(tmp_path / "specs", vm_id) == {
            "id": vm_id,
            "driver": "firecracker",
            "host": site.host,
            "desired": "running",
            "vcpus": 2,
            "memory_mib": 256,
            "kernel": str(site.kernel),
            "kernel_args": "console=ttyS0",
            "rootfs": str(site.folder / "images" / "root.ext4"),
            "drives": [{"id": "data", "path": str(site.folder / "images" / "data.raw"), "read_only": True}],
            "network_interfaces": [{"id": "eth0", "tap": "tap7", "mac": "02:00:00:00:00:07"}],
            "durability": {"disks": "persistent"},
        }
        text = (tmp_path / "specs" / f"{vm_id}.yaml").read_text()
        assert "# guessed: that the disks keep" in text
        assert (
            ask("apply", "-f", str(tmp_path / "specs" / f"{vm_id}.yaml"), "--dry-run", "-o", "name").out == f"{vm_id}\n"
        )
        assert vm.state() == "Running"


def spec_of(folder: Path, vm_id: str) -> dict[str, Any]:
    """What was written for this VM; others may run on this machine too."""
    read: dict[str, Any] = yaml.safe_load((folder / f"{vm_id}.yaml").read_text())
    return read


def test_what_would_keep_a_vm_from_being_taken_over_is_said_and_nothing_that_apply_reads_is_written(
    site: Cluster, ask: Ask, tmp_path: Path
) -> None:
    outside = tmp_path / "kernel"
    outside.write_bytes(b"kernel")
    specs = tmp_path / "specs"
    with ExitStack() as stack:
        elsewhere = stack.enter_context(started_by_hand(site, tmp_path / "a", f"{ME}-else", kernel=outside))
        upper = stack.enter_context(started_by_hand(site, tmp_path / "b", f"{ME}-UPPER"))
        fresh = stack.enter_context(running_standin(site.folder, vm_id=f"{ME}-fresh"))
        nameless = stack.enter_context(no_api(tmp_path / "c", site))
        found = {vm["pid"]: vm for vm in ask("discover", "--write", str(specs), "-o", "json").document["vms"]}

    assert {found[pid]["finding"] for pid in (elsewhere.pid, upper.pid, fresh.pid, nameless)} == {"blocked"}
    assert found[elsewhere.pid]["obstacles"] == [
        f"kernel: {outside} is really {outside}, outside of the allowed folders (image_roots: {site.folder}/images)"
    ]
    assert f'(got "{ME}-UPPER")' in found[upper.pid]["obstacles"][0]
    assert found[upper.pid]["file"] is None, "its id is no name for a file"
    assert "its guest is 'Not started': a VM is taken over while it runs" in found[fresh.pid]["obstacles"]
    assert found[nameless]["obstacles"] == [
        "it has no API socket (--no-api): nobody can ask how it is",
        "it has no id on its command line, by which it could be known again",
    ]
    assert not list(specs.glob(f"{ME}*.yaml"))
    draft = (specs / f"{ME}-else.{elsewhere.pid}.draft").read_text()
    assert f"# in the way: kernel: {outside} is really" in draft


@contextmanager
def no_api(folder: Path, site: Cluster) -> Iterator[int]:
    folder.mkdir()
    config = folder / "vm.json"
    config.write_text(f'{{"boot-source": {{"kernel_image_path": "{site.kernel}"}}}}')
    flags = ["--no-api", "--config-file", str(config)]
    popen = subprocess.Popen(command(*flags), cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        wait_until(
            lambda: (folder.stat(), Path(f"/proc/{popen.pid}/cmdline").read_bytes().count(b"--no-api"))[1], what="exec"
        )
        yield popen.pid
    finally:
        popen.kill()
        popen.wait()


def test_a_file_that_is_there_is_never_written_over(site: Cluster, ask: Ask, tmp_path: Path) -> None:
    vm_id = f"{ME}-twice"
    with started_by_hand(site, tmp_path / "theirs", vm_id):
        (tmp_path / "specs").mkdir()
        mine = tmp_path / "specs" / f"{vm_id}.yaml"
        mine.write_text("mine")

        answer = ask("discover", "--write", str(tmp_path / "specs"))

    assert (answer.status, answer.out) == (1, "")
    assert f"reliability: {mine} is there already and is left alone: move it away" in answer.err
    assert answer.err.endswith("reliability: nothing was written\n")
    assert [path.name for path in (tmp_path / "specs").iterdir()] == [mine.name]
    assert mine.read_text() == "mine"


def test_two_vmms_of_one_name_are_not_taken_over(site: Cluster, ask: Ask, tmp_path: Path) -> None:
    vm_id = f"{ME}-double"
    with started_by_hand(site, tmp_path / "a", vm_id), started_by_hand(site, tmp_path / "b", vm_id):
        found = [vm for vm in ask("discover", "-o", "json").document["vms"] if vm["says_it_is"] == vm_id]
        names = ask("discover", "-o", "name").out.split()

    assert [vm["finding"] for vm in found] == ["blocked", "blocked"]
    assert found[0]["obstacles"] == [f"more than one VMM says that it is {vm_id}"]
    assert vm_id not in names


def test_without_redis_the_error_is_one_line(
    site: Cluster, ask: Ask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RELIABILITY_REDIS__URL", "redis://127.0.0.1:1/0")

    with started_by_hand(site, tmp_path / "theirs", f"{ME}-any"):
        answer = ask("discover")

    assert (answer.status, answer.out) == (3, "")
    assert answer.err.count("\n") == 1


@pytest.mark.full
def test_a_vm_is_taken_over_with_its_process_watched_and_recovered_from_its_draft(
    tmp_path: Path, fresh_server: EmbeddedServer
) -> None:
    with cluster(tmp_path, fresh_server) as site:
        (site.folder / "images" / "root.ext4").write_bytes(b"root")
        (site.folder / "images" / "data.raw").write_bytes(b"data")
        site.serve()
        vm_id = f"{ME}-taken"
        with started_by_hand(site, tmp_path / "theirs", vm_id) as vm:
            take_over(site, vm_id, vm.pid, vm.socket_path)
            document = [each for each in discovered(site) if each["pid"] == vm.pid]
            assert [(each["finding"], each["read"]) for each in document] == [("known", ["/proc"])], "it is not asked"
            assert vm.process.popen.returncode is None

            before = site.record(vm_id)
            kill(before, signal.SIGKILL)
            vm.process.popen.wait()

            after = site.wait_healthy(vm_id, after=before)
            assert after.process is not None
            assert site.live(vm_id) == [after.process.pid], "it runs in our run directory, under our lock"
            assert site.socket(after) == site.state_dir / "runs" / vm_id / str(after.generation) / "api.sock"
            spec = site.fleet.store.spec(vm_id)
            assert (spec.vcpus, spec.memory_mib, spec.network_interfaces[0].tap) == (2, 256, "tap7")


@pytest.mark.full
def test_a_vm_that_was_taken_over_is_recovered_when_it_hangs_and_stopped_when_that_is_wanted(
    tmp_path: Path, fresh_server: EmbeddedServer
) -> None:
    with cluster(tmp_path, fresh_server) as site:
        (site.folder / "images" / "root.ext4").write_bytes(b"root")
        (site.folder / "images" / "data.raw").write_bytes(b"data")
        site.serve()
        hangs, stops = f"{ME}-hangs", f"{ME}-stops"
        with (
            started_by_hand(site, tmp_path / "a", hangs) as hung,
            started_by_hand(site, tmp_path / "b", stops) as wanted,
        ):
            take_over(site, hangs, hung.pid, hung.socket_path)
            shutil.rmtree(site.folder / "specs")
            take_over(site, stops, wanted.pid, wanted.socket_path)

            before = site.record(hangs)
            kill(before, signal.SIGSTOP)
            site.wait_healthy(hangs, after=before)
            assert hung.wait_for_exit() == -signal.SIGKILL, "the hung one was fenced off before another was started"

            site.apply(site.fleet.store.spec(stops).model_copy(update={"desired": "stopped"}))
            site.wait_state(stops, State.STOPPED)
            assert wanted.wait_for_exit() == -signal.SIGTERM


def take_over(site: Cluster, vm_id: str, pid: int, socket: Path) -> None:
    """Discover and apply; the VM is healthy with the process that ran before, which got no signal."""
    born = read_stat(pid)
    assert born is not None
    specs = site.folder / "specs"
    assert execute(site, "discover", "--write", str(specs)).status == 0
    assert execute(site, "apply", "-f", str(specs / f"{vm_id}.yaml")).status == 0

    record = site.wait_healthy(vm_id)

    assert record.process is not None
    assert (record.process.pid, record.process.start_ticks) == (pid, born.start_ticks)
    assert record.socket == str(socket)
    kinds = [entry.event.kind for entry in site.events(vm_id)]
    assert EventKind.ADOPTED in kinds
    assert EventKind.ATTEMPT_STARTED not in kinds
    assert site.live(vm_id) == [], "nothing of ours was started beside it"


def discovered(site: Cluster) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = execute(site, "discover", "-o", "json").document["vms"]
    return found


@pytest.mark.full
def test_a_real_guest_is_taken_over_and_recovered(tmp_path: Path, fresh_server: EmbeddedServer) -> None:
    image = require_guest_image()
    roots = ",".join(str(folder) for folder in {image.kernel.parent, image.initrd.parent})
    slower = {"HEALTH_CHECK__TIMEOUT": "1s", "HEALTH_CHECK__INTERVAL": "1100ms", "DRIVERS__QEMU__ACCEL": "tcg"}
    vm_id = f"{ME}-guest"
    with cluster(tmp_path, fresh_server, IMAGE_ROOTS=roots, **slower) as site:
        site.serve()
        with running_guest(tmp_path / "theirs", guest_spec(image, vm_id)) as guest:
            guest.wait_until_booted()
            take_over(site, vm_id, guest.pid, guest.socket)

            before = site.record(vm_id)
            kill(before, signal.SIGKILL)
            guest.popen.wait()

            after = site.wait_healthy(vm_id, after=before, timeout_s=60)
            assert after.process is not None
            assert site.live(vm_id) == [after.process.pid]
            assert site.fleet.store.spec(vm_id).kernel == image.kernel
