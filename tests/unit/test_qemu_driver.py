"""The QEMU command line from typed fields, and what each run state means."""

import itertools
from typing import Any

import pytest

from tests.support.builders import a_spec
from workers.domain.errors import StartFailed
from workers.domain.evidence import Evidence
from workers.specs import QemuSpec
from workers.vmm.driver import Claim
from workers.vmm.qemu import QemuDriver, _judge_status, arguments
from workers.vmm.qmp import QmpStatus

DRIVER = QemuDriver("qemu-system-x86_64", "tcg", {})


def a_qemu_spec(**fields: Any) -> QemuSpec:
    spec = a_spec(driver="qemu", **fields)
    assert isinstance(spec, QemuSpec)
    return spec


def line(**fields: Any) -> list[str]:
    return list(arguments(a_qemu_spec(**fields), "tcg"))


def value(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_the_monitor_and_the_console_are_ours_and_relative_to_the_run_folder() -> None:
    words = line()
    assert "socket,id=qmp,path=api.sock,server=on,wait=off" in words
    assert "file,id=console,path=console.log,append=on" in words
    assert value(words, "-name") == "vm-1"
    assert {"-nodefaults", "-no-user-config"} <= set(words)


def test_sizes_and_images_come_from_the_spec() -> None:
    words = line(vcpus=2, memory_mib=256, initrd="/images/initrd", kernel_args="console=ttyS0", machine="pc")
    assert [value(words, flag) for flag in ("-smp", "-m", "-machine")] == ["2", "256", "pc"]
    assert [value(words, flag) for flag in ("-kernel", "-initrd", "-append")] == [
        "/images/vmlinux",
        "/images/initrd",
        "console=ttyS0",
    ]


@pytest.mark.parametrize(("machine", "device"), [("microvm", "virtio-blk-device"), ("q35", "virtio-blk-pci")])
def test_devices_fit_the_machine(machine: str, device: str) -> None:
    words = line(
        machine=machine,
        rootfs="/images/root,1.raw",
        drives=[{"id": "data", "path": "/images/d.qcow2", "format": "qcow2", "read_only": True}],
        network_interfaces=[{"id": "eth0", "tap": "tap0", "mac": "02:00:00:00:00:01"}],
    )
    pairs = list(itertools.pairwise(words))
    assert ("-drive", "id=rootfs,file=/images/root,,1.raw,format=raw,read-only=off,if=none") in pairs
    assert ("-drive", "id=data,file=/images/d.qcow2,format=qcow2,read-only=on,if=none") in pairs
    assert ("-device", f"{device},drive=data") in pairs
    assert ("-netdev", "tap,id=eth0,ifname=tap0,script=no,downscript=no") in pairs
    assert any(word.endswith("netdev=eth0,mac=02:00:00:00:00:01") for word in words)


def test_only_one_accelerator_is_asked_for() -> None:
    assert line().count("-accel") == 1


def test_a_spec_of_another_driver_is_refused() -> None:
    with pytest.raises(StartFailed, match="driver firecracker"):
        DRIVER.launch(a_spec())


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("running", Evidence.ANSWERS),
        ("paused", Evidence.DRIFT),
        ("io-error", Evidence.DRIFT),
        ("inmigrate", Evidence.DRIFT),
        ("internal-error", Evidence.GUEST_FAILED),
        ("guest-panicked", Evidence.GUEST_FAILED),
        ("shutdown", Evidence.GUEST_FAILED),
        ("hibernating", Evidence.UNKNOWN_STATE),
    ],
)
def test_each_run_state_is_told_apart(state: str, expected: Evidence) -> None:

    evidence, _ = _judge_status("vm-1", QmpStatus("7.2", "vm-1", state, state == "running"))
    assert evidence is expected


def test_another_name_is_another_vm() -> None:

    assert _judge_status("vm-1", QmpStatus("7.2", "vm-2", "running", True))[0] is Evidence.OTHER_VM  # noqa: FBT003
    assert _judge_status("vm-1", QmpStatus("7.2", None, "running", True))[0] is Evidence.OTHER_VM  # noqa: FBT003


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["qemu-system-x86_64", *line()], Claim("vm-1", "api.sock")),
        (["q", "-name", "guest=vm-1,debug-threads=on"], Claim("vm-1", None)),
        (["q", "-name"], Claim("", None)),
        (["q", "-m", "128"], Claim("", None)),
        (["q", "-name", "vm-1", "-qmp", "unix:/run/vm-1.qmp,server=on,wait=off"], Claim("vm-1", "/run/vm-1.qmp")),
        (
            ["q", "-name", "vm-1", *["-chardev", "socket,id=m,path=/run/m", "-mon", "chardev=m,mode=control"]],
            Claim("vm-1", "/run/m"),
        ),
        (
            ["q", "-name", "vm-1", *["-chardev", "socket,id=m,path=/run/m", "-mon", "chardev=m,mode=readline"]],
            Claim("vm-1", None),
        ),
        (["q", "--name", "vm-1", "-qmp", "unix:/run/other", *line()], Claim("vm-1", "api.sock")),
    ],
)
def test_a_process_is_known_by_its_command_line(argv: list[str], expected: Claim | None) -> None:
    assert DRIVER.identify(argv, "/usr/bin/qemu-system-x86_64") == expected
    assert DRIVER.identify(argv, "/usr/bin/bash") is None
