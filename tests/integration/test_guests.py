"""Real guests under a real QEMU: they boot from the image we make, and QMP says of them what is true."""

import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guests import DRIVER, Guest, guest_spec, require_guest_image, running_guest
from workers.domain.evidence import Evidence
from workers.vmm.guest_image import (
    BOOT_MARK,
    GuestImage,
    build_initramfs,
    default_cache,
    find_busybox,
    find_kernel,
    is_static_program,
)
from workers.vmm.qmp import status_conversation
from workers.vmm.talk import Silence, connect, listener_pid

VM_ID = "guest-1"
MACHINES = ("microvm", "q35", "pc")


@pytest.fixture(scope="module")
def image() -> GuestImage:
    return require_guest_image()


@pytest.fixture(scope="module")
def guest(image: GuestImage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """Give a booted guest that all tests of this module share: look, do not touch."""
    with running_guest(tmp_path_factory.mktemp("guest"), guest_spec(image, VM_ID)) as started:
        started.wait_until_booted()
        yield started


@pytest.fixture
def young_guest(image: GuestImage, tmp_path: Path) -> Iterator[Guest]:
    """Give a guest of this test's own, which QEMU has just begun to run."""
    with running_guest(tmp_path, guest_spec(image, VM_ID)) as started:
        yield started


def test_guest_says_on_its_console_that_it_booted_once(guest: Guest) -> None:
    assert guest.console().count(BOOT_MARK) == 1


def test_qmp_says_which_vm_runs(guest: Guest) -> None:
    status = guest.ask(status_conversation())

    assert (status.name, status.status, status.running) == (VM_ID, "running", True)
    assert all(part.isdigit() for part in status.version.split("."))


def test_monitor_is_free_again_after_each_conversation(guest: Guest) -> None:
    assert {guest.ask(status_conversation()).name for _ in range(5)} == {VM_ID}


def test_socket_belongs_to_the_qemu_process(guest: Guest) -> None:
    with connect(str(guest.socket)) as sock:
        assert listener_pid(sock) == guest.pid


def test_driver_finds_the_guest_running_under_its_own_id_only(guest: Guest) -> None:
    assert guest.ask(DRIVER.probe(VM_ID))[0] is Evidence.ANSWERS
    assert guest.ask(DRIVER.probe("guest-2"))[0] is Evidence.OTHER_VM


def test_driver_knows_the_process_again_by_its_command_line(guest: Guest) -> None:
    argv = Path(f"/proc/{guest.pid}/cmdline").read_text().rstrip("\0").split("\0")

    claim = DRIVER.identify(argv, str(Path(f"/proc/{guest.pid}/exe").readlink()))

    assert claim is not None
    assert (claim.vm_id, claim.socket) == (VM_ID, guest.socket.name)


def test_second_client_of_the_monitor_gets_no_greeting(guest: Guest) -> None:
    with connect(str(guest.socket)), pytest.raises(Silence):
        guest.ask(status_conversation(), timeout_s=0.2)


def test_asked_to_end_qemu_exits_orderly_and_takes_its_socket_away(young_guest: Guest) -> None:
    young_guest.popen.terminate()

    assert young_guest.popen.wait(10) == 0
    assert not young_guest.socket.exists()
    assert "terminating on signal 15" in young_guest.log()


def test_killed_qemu_leaves_its_socket_behind(young_guest: Guest) -> None:
    young_guest.popen.kill()

    assert young_guest.popen.wait(10) == -signal.SIGKILL
    with pytest.raises(ConnectionRefusedError):
        young_guest.ask(status_conversation())


def test_stopped_qemu_is_silent_and_answers_when_continued(young_guest: Guest) -> None:
    young_guest.popen.send_signal(signal.SIGSTOP)
    with pytest.raises(Silence):
        young_guest.ask(status_conversation(), timeout_s=0.2)
    young_guest.popen.send_signal(signal.SIGCONT)

    assert young_guest.ask(status_conversation()).running


@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_takes_its_disks_whatever_their_names(machine: str, image: GuestImage, tmp_path: Path) -> None:
    disk = tmp_path / "a,b=1:c" / "disk,if=none.img"
    disk.parent.mkdir()
    disk.write_bytes(b"\0" * 65536)
    spec = guest_spec(
        image, machine=machine, rootfs=disk, drives=[{"id": "seed", "path": image.initrd, "read_only": True}]
    )

    with running_guest(tmp_path / "run", spec) as started:
        assert started.ask(status_conversation()).running


def test_two_guests_cannot_write_to_one_disk(image: GuestImage, tmp_path: Path) -> None:
    disk = tmp_path / "disk.img"
    disk.write_bytes(b"\0" * 65536)
    with (
        running_guest(tmp_path / "first", guest_spec(image, rootfs=disk)),
        pytest.raises(AssertionError, match="QEMU ended with 1"),
        running_guest(tmp_path / "second", guest_spec(image, rootfs=disk)),
    ):
        pass

    assert 'Failed to get "write" lock' in (tmp_path / "second" / "vmm.log").read_text()


def test_initramfs_is_the_same_each_time_and_nothing_else_is_left(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"program")

    build_initramfs(busybox, tmp_path / "one" / "initramfs.gz")
    build_initramfs(busybox, tmp_path / "two" / "initramfs.gz")

    first, second = (sorted((tmp_path / name).iterdir()) for name in ("one", "two"))
    assert [path.name for path in first] == [path.name for path in second] == ["initramfs.gz"]
    assert first[0].read_bytes() == second[0].read_bytes()


def test_initramfs_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    busybox = tmp_path / "busybox"
    busybox.write_bytes(b"program")
    (tmp_path / "out" / "initramfs.gz").mkdir(parents=True)

    with pytest.raises(IsADirectoryError):
        build_initramfs(busybox, tmp_path / "out" / "initramfs.gz")

    assert [path.name for path in (tmp_path / "out").iterdir()] == ["initramfs.gz"]


def elf(*program_headers: int, machine: int = 62) -> bytes:
    """Give the beginning of an ELF program with program headers of these types."""
    size = 56
    head = struct.pack(
        "<4sBB10xHHIQQQIHHH", b"\x7fELF", 2, 1, 2, machine, 1, 0, 64, 0, 0, 64, size, len(program_headers)
    )
    return head.ljust(64, b"\0") + b"".join(struct.pack("<I", kind).ljust(size, b"\0") for kind in program_headers)


@pytest.mark.parametrize(
    ("content", "static"),
    [
        (elf(1, 1, 4), True),
        (elf(1, 3, 1), False),
        (elf(1, machine=183), False),
        (elf(), False),
        (elf(1, 3)[:70], False),
        (b"#!/bin/sh\n", False),
        (b"", False),
    ],
    ids=["static", "wants an interpreter", "arm", "no headers", "cut off", "script", "empty"],
)
def test_busybox_must_run_without_libraries(content: bytes, *, static: bool, tmp_path: Path) -> None:
    program = tmp_path / "busybox"
    program.write_bytes(content)

    assert is_static_program(program) is static
    assert find_busybox([tmp_path / "absent", tmp_path, program]) == (program if static else None)


def kernel_at(path: Path) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"HdrS".rjust(0x202 + 4, b"\0"))
    return path


def test_kernel_is_found_in_the_first_place_that_has_one(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    first = kernel_at(tmp_path / "first" / "vmlinuz-6.1.0-9-amd64")
    kernel_at(tmp_path / "second" / "vmlinuz-6.1.0-9-cloud-amd64")

    assert find_kernel([tmp_path / "absent", tmp_path / "empty", first.parent, tmp_path / "second"]) == first


def test_kernel_may_be_named_itself(tmp_path: Path) -> None:
    named = kernel_at(tmp_path / "boot" / "bzImage")

    assert find_kernel([named]) == named


def test_cloud_kernels_are_preferred(tmp_path: Path) -> None:
    for name in ("vmlinuz-5.10.0-9-cloud-amd64", "vmlinuz-6.1.0-9-cloud-amd64", "vmlinuz-6.12.0-1-amd64"):
        kernel_at(tmp_path / "boot" / name)

    found = find_kernel([tmp_path / "boot"])

    assert found is not None
    assert found.name == "vmlinuz-6.1.0-9-cloud-amd64"


def test_what_is_no_x86_kernel_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz-arm64").write_bytes(b"MZ" * 4096)
    (tmp_path / "vmlinuz-gone").symlink_to(tmp_path / "gone")

    assert find_kernel([tmp_path]) is None


def test_cache_follows_the_base_directory_specification() -> None:
    assert default_cache({"XDG_CACHE_HOME": "/c", "HOME": "/h"}) == Path("/c/metald-reliability/guest")
    assert default_cache({"XDG_CACHE_HOME": "c", "HOME": "/h"}) == Path("/h/.cache/metald-reliability/guest")
