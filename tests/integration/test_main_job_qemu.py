"""The main job on real guests: a Debian kernel in QEMU is killed, hung and cut off, and boots again, once."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, cluster, kill
from tests.support.guests import require_guest_image, require_qemu
from tests.support.processes import wait_until
from workers.domain.vm import VmRecord
from workers.embedded import EmbeddedServer
from workers.specs import VmSpec
from workers.vmm.guest_image import BOOT_MARK, KERNEL_ARGS, MACHINE, MEMORY_MIB, GuestImage

# QEMU under emulation needs a few seconds where a stand-in needs milliseconds.
SLOWER = {"HEALTH_CHECK__TIMEOUT": "1s", "HEALTH_CHECK__INTERVAL": "1100ms", "DRIVERS__QEMU__ACCEL": "tcg"}
BOOT_S = 60


@pytest.fixture(scope="module")
def image() -> GuestImage:
    require_qemu()
    return require_guest_image()


@pytest.fixture
def site(tmp_path: Path, fresh_server: EmbeddedServer, image: GuestImage) -> Iterator[Cluster]:
    roots = ",".join(str(folder) for folder in {image.kernel.parent, image.initrd.parent})
    with cluster(tmp_path, fresh_server, IMAGE_ROOTS=roots, **SLOWER) as made:
        yield made


def a_guest(site: Cluster, image: GuestImage) -> VmSpec:
    return site.spec(
        "guest-1",
        driver="qemu",
        machine=MACHINE,
        memory_mib=MEMORY_MIB,
        kernel=str(image.kernel),
        initrd=str(image.initrd),
        kernel_args=KERNEL_ARGS,
    )


def console(site: Cluster, record: VmRecord) -> str:
    path = site.socket(record).with_name("console.log")
    return path.read_text(errors="replace") if path.exists() else ""


def booted(site: Cluster, record: VmRecord) -> None:
    wait_until(lambda: BOOT_MARK in console(site, record), timeout_s=BOOT_S, what="the guest to boot")


@contextmanager
def never_doubled(site: Cluster, vm_id: str) -> Iterator[list[list[int]]]:
    """Look at /proc from outside all the time; a second process must be seen twice, so a hand-over is none."""
    samples: list[list[int]] = []
    done = threading.Event()

    def sample() -> None:
        while not done.is_set():
            first = site.live(vm_id)
            if len(first) > 1:
                samples.append(sorted(set(first) & set(site.live(vm_id))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield samples
    finally:
        done.set()
        sampler.join()
    assert [pids for pids in samples if len(pids) > 1] == []


@pytest.mark.full
def test_a_real_guest_is_recovered_from_each_kind_of_loss_and_never_doubled(site: Cluster, image: GuestImage) -> None:
    site.serve()
    site.apply(a_guest(site, image))
    before = site.wait_healthy("guest-1", timeout_s=BOOT_S)
    booted(site, before)

    with never_doubled(site, "guest-1"):
        for fault in ("SIGKILL", "SIGSTOP", "socket removed"):
            if fault == "socket removed":
                site.socket(before).unlink()
            else:
                kill(before, signal.Signals[fault])
            after = site.wait_healthy("guest-1", after=before, timeout_s=BOOT_S)
            booted(site, after)
            assert after.process != before.process
            assert after.process is not None
            assert site.live("guest-1") == [after.process.pid]
            before = after


@pytest.mark.full
def test_a_real_guest_outlives_its_worker_and_is_taken_over_without_a_restart(site: Cluster, image: GuestImage) -> None:
    worker = site.serve()
    site.apply(a_guest(site, image))
    before = site.wait_healthy("guest-1", timeout_s=BOOT_S)
    booted(site, before)

    worker.popen.kill()
    worker.popen.wait()
    successor = site.start_worker("successor")
    successor.wait_for_log("watching", timeout_s=30)
    checked = site.fleet.store.read(["guest-1"]).found["guest-1"].checked_ms
    wait_until(
        lambda: site.fleet.store.read(["guest-1"]).found["guest-1"].checked_ms != checked,
        timeout_s=30,
        what="the successor to check the guest",
    )

    after = site.record("guest-1")
    assert (after.process, after.generation, after.state) == (before.process, before.generation, before.state)
    assert console(site, after).count(BOOT_MARK) == 1
    kill(after, signal.SIGKILL)
    booted(site, site.wait_healthy("guest-1", after=after, timeout_s=BOOT_S))
