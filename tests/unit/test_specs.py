"""VM specs: what may stand in one, and in which words the rest is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from workers.specs import (
    DRIVERS,
    FirecrackerSpec,
    QemuSpec,
    SpecError,
    VmSpec,
    check_vm_id,
    dump_spec,
    image_paths,
    parse_spec,
    spec_from,
)

KERNEL = "/images/vmlinux"


def described(**fields: Any) -> dict[str, Any]:
    return {"id": "vm-1", "driver": "firecracker", "kernel": KERNEL, **fields}


def a_spec(**fields: Any) -> VmSpec:
    return spec_from(described(**fields))


def complaints(value: object) -> list[str]:
    with pytest.raises(SpecError) as caught:
        spec_from(value)
    return [each.line for each in caught.value.complaints]


FULL: dict[str, dict[str, Any]] = {
    "firecracker": {
        "id": "web-1",
        "host": "node-1",
        "driver": "firecracker",
        "desired": "stopped",
        "labels": {"team": "shop", "example.com/tier": "front end ü"},
        "priority": 9,
        "durability": {"disks": "ephemeral"},
        "vcpus": 2,
        "memory_mib": 256,
        "kernel": KERNEL,
        "initrd": "/images/initrd",
        "kernel_args": "console=ttyS0 panic=1",
        "smt": True,
        "drives": [
            {"id": "root", "path": "/images/root.ext4", "root": True},
            {"id": "data", "path": "/images/a, b.ext4", "read_only": True},
        ],
        "network_interfaces": [{"id": "eth0", "tap": "tap0", "mac": "02:00:00:aa:bb:cc"}],
        "vsock_cid": 3,
    },
    "qemu": {
        "id": "a.b_c",
        "driver": "qemu",
        "kernel": KERNEL,
        "rootfs": "/images/root.raw",
        "machine": "pc",
        "drives": [{"id": "data", "path": "/images/data.qcow2", "format": "qcow2"}],
        "network_interfaces": [{"id": "eth0", "tap": "tap0"}],
    },
}


@pytest.mark.parametrize("driver", list(DRIVERS))
def test_a_full_spec_survives_a_round_trip_through_json(driver: str) -> None:
    spec = spec_from(FULL[driver])

    assert isinstance(spec, DRIVERS[driver])
    assert parse_spec(dump_spec(spec)) == spec
    assert parse_spec(dump_spec(spec).encode()) == spec
    assert json.loads(dump_spec(spec)) == FULL[driver]


def test_json_is_compact_and_equal_for_equal_specs() -> None:
    one = a_spec(labels={"a": "1", "b": "2"}, vcpus=1)
    other = a_spec(labels={"b": "2", "a": "1"}, desired="running")

    assert one == other
    assert dump_spec(one) == dump_spec(other)
    assert dump_spec(a_spec()) == '{"driver":"firecracker","id":"vm-1","kernel":"/images/vmlinux"}'


def test_the_union_can_be_a_field_of_other_models() -> None:
    adapter: TypeAdapter[VmSpec] = TypeAdapter(VmSpec)

    assert isinstance(adapter.validate_python(FULL["qemu"]), QemuSpec)
    assert isinstance(adapter.validate_python(FULL["firecracker"]), FirecrackerSpec)


def test_a_spec_made_in_code_knows_its_driver() -> None:
    spec = QemuSpec(id="vm-1", kernel=Path(KERNEL))

    assert parse_spec(dump_spec(spec)) == spec


def test_a_spec_cannot_be_changed() -> None:
    spec = a_spec()

    with pytest.raises(ValidationError, match="frozen"):
        spec.vcpus = 2  # type: ignore[misc] # that it is refused is the point


@pytest.mark.parametrize("text", ["a", "0", "vm-123", "a.b_c-d", "a" * 64])
def test_an_id_of_the_right_form_is_taken(text: str) -> None:
    assert check_vm_id(text) == text


@pytest.mark.parametrize(
    "text",
    ["", "-a", ".", "..", "_a", "A", "a b", "a/b", "a\n", "a\0", "a" * 65, "ä", "a:b", "a{b}", "a*", "٣", None, 5],
)
def test_an_id_of_another_form_is_refused_with_the_rule(text: object) -> None:
    with pytest.raises(ValueError, match=r"must be 1 to 64 of the characters a-z, 0-9"):
        check_vm_id(text)


@given(st.text(max_size=70))
def test_an_id_that_passes_is_safe_as_key_queue_name_and_path(text: str) -> None:
    try:
        check_vm_id(text)
    except ValueError:
        return

    assert text.isascii()
    assert len(text) <= 64
    assert Path("/runs", text).parent == Path("/runs")
    assert not set(text) & set("*?[]{}:/\\\0 \n\t'\"")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"id": "Web"}, 'id: must be 1 to 64 of the characters a-z, 0-9, ".", "_" and "-"'),
    ({"id": "vm-1\n"}, "id: must be 1 to 64"),
    ({"id": 5}, "id: must be text: put it in quotes (got 5)"),
    ({"id": "a.b"}, 'id: must be of a-z, 0-9 and "-" only: Firecracker takes no "." and "_" (got "a.b")'),
    ({"host": "a b"}, "host: must be 1 to 64"),
    ({"driver": "xen"}, 'driver: must be firecracker or qemu (got "xen")'),
    ({"driver": None}, "driver: must be firecracker or qemu"),
    ({"driver": ["qemu"]}, "driver: must be firecracker or qemu"),
    ({"desired": "paused"}, 'desired: must be running or stopped (got "paused")'),
    ({"priority": 10}, "priority: must be at most 9 (got 10)"),
    ({"priority": "5"}, 'priority: must be a whole number (got "5")'),
    ({"vcpus": 0}, "vcpus: must be at least 1 (got 0)"),
    ({"vcpus": 33}, "vcpus: must be at most 32 (got 33)"),
    ({"vcpus": True}, "vcpus: must be a whole number (got true)"),
    ({"vcpus": 1.5}, "vcpus: must be a whole number (got 1.5)"),
    ({"memory_mib": -5}, "memory_mib: must be at least 16 (got -5)"),
    ({"memory_mib": float("nan")}, "memory_mib: must be a whole number (got NaN)"),
    ({"memory_mib": 10**400}, "memory_mib: must be at most 1048576"),
    ({"memory": 5}, "memory: is unknown; did you mean memory_mib?"),
    ({"command": "rm"}, "command: is unknown; known here: "),
    ({"machine": "q35"}, "machine: is unknown; "),
    ({"smt": "yes"}, 'smt: must be true or false (got "yes")'),
    ({"smt": True, "vcpus": 3}, "smt: needs vcpus to be 1 or even (got true)"),
    ({"vsock_cid": 2}, "vsock_cid: must be at least 3 (got 2)"),
    ({"vsock_cid": 2**32 - 1}, "vsock_cid: must be at most 4294967294"),
    ({"durability": {"disks": "some"}}, 'durability.disks: must be persistent or ephemeral (got "some")'),
    ({"durability": "ephemeral"}, "durability: must be a mapping of names to values"),
    ({"labels": ["a"]}, "labels: must be a mapping of names to values"),
    ({"labels": {"a": 1.1}}, "labels.a: must be text: put it in quotes (got 1.1)"),
    ({"labels": {"a": None}}, "labels.a: must be text"),
    ({"labels": {"-a": "b"}}, "labels: the name '-a' must be like team or example.com/team"),
    ({"labels": {"a/b/c": "b"}}, "labels: the name 'a/b/c' must be like"),
    ({"labels": {"a\n": "b"}}, "labels: the name 'a\\n' must be like"),
    ({"labels": {"a": "b\n"}}, "labels: the value of a must be printable"),
    ({"labels": {"a": "b" * 257}}, "labels: the value of a must be printable and at most 256"),
    ({"labels": {f"k{n}": "" for n in range(33)}}, "labels: must have at most 32 entries"),
    ({"kernel": "vmlinux"}, 'kernel: must be an absolute path (got "vmlinux")'),
    ({"kernel": 5}, "kernel: must be an absolute path (got 5)"),
    ({"kernel": "/images/../etc/shadow"}, 'kernel: must not contain ".."'),
    ({"kernel": "/images/a\nb"}, "kernel: must be printable"),
    ({"kernel": "/images/\0"}, "kernel: must be printable"),
    ({"kernel": "/" + "a" * 4096}, "kernel: must be printable and at most 4096"),
    ({"kernel": "/dev/kvm"}, "kernel: must be a file, and not one below /dev, /proc or /sys"),
    ({"kernel": "//proc/self/mem"}, "kernel: must be a file, and not one below"),
    ({"kernel": "/./sys/x"}, "kernel: must be a file, and not one below"),
    ({"kernel": "/"}, "kernel: must be a file"),
    ({"kernel_args": ""}, "kernel_args: must be one line of at most 2048 printable ASCII characters"),
    ({"kernel_args": "a\nb"}, "kernel_args: must be one line"),
    ({"kernel_args": "quiet\n"}, "kernel_args: must be one line"),
    ({"kernel_args": "ü"}, "kernel_args: must be one line"),
    ({"kernel_args": "a" * 2049}, "kernel_args: must be one line"),
    ({"drives": {}}, "drives: must be a list"),
    ({"drives": [{"id": "a"}]}, "drives[0].path: is required"),
    ({"drives": [{"id": "a", "path": "/x", "pth": 1}]}, "drives[0].pth: is unknown; did you mean path?"),
    ({"drives": [{"id": "a", "path": "/x", "format": "raw"}]}, "drives[0].format: is unknown; "),
    ({"drives": [{"id": "1a", "path": "/x"}]}, "drives[0].id: must be a letter and up to 31 more letters, digits or _"),
    ({"drives": [{"id": "a,b", "path": "/x"}]}, "drives[0].id: must be a letter"),
    ({"drives": [{"id": "a", "path": "/x"}] * 2}, "drives: the id a is used twice"),
    ({"drives": [{"id": f"d{n}", "path": "/x"} for n in range(17)]}, "drives: must have at most 16 entries"),
    ({"rootfs": "/r", "drives": [{"id": "rootfs", "path": "/x"}]}, "drives: the id rootfs is used twice"),
    ({"rootfs": "/r", "drives": [{"id": "a", "path": "/x", "root": True}]}, "drives: only one disk can be the root"),
    ({"drives": [{"id": i, "path": "/x", "root": True} for i in "ab"]}, "drives: only one disk can be the root"),
    ({"network_interfaces": [{"id": "e", "tap": "a" * 16}]}, "network_interfaces[0].tap: must be an interface name of"),
    ({"network_interfaces": [{"id": "e", "tap": "a,script=x"}]}, "network_interfaces[0].tap: must be an interface"),
    ({"network_interfaces": [{"id": "e", "tap": ".."}]}, "network_interfaces[0].tap: must be an interface"),
    (
        {"network_interfaces": [{"id": "e", "tap": "t", "mac": "01:00:00:00:00:00"}]},
        "network_interfaces[0].mac: must be like 02:00:00:12:34:56, and not a multicast",
    ),
    (
        {"network_interfaces": [{"id": "e", "tap": "t", "mac": 7}]},
        "network_interfaces[0].mac: must be text: put it in quotes (got 7)",
    ),
    (
        {"network_interfaces": [{"id": i, "tap": "t"} for i in "ab"]},
        "network_interfaces: the tap t is used twice",
    ),
    (
        {"drives": [{"id": "a", "path": "/x"}], "network_interfaces": [{"id": "a", "tap": "t"}]},
        "network_interfaces: the id a is used twice",
    ),
]


@pytest.mark.parametrize(("fields", "complaint"), REFUSED)
def test_nonsense_is_refused_in_plain_words(fields: dict[str, Any], complaint: str) -> None:
    lines = complaints(described(**fields))

    assert len(lines) == 1
    assert lines[0].startswith(complaint)
    assert "\n" not in lines[0]
    assert "pydantic" not in lines[0].lower()
    assert len(lines[0]) < 400


def test_what_is_missing_is_named_all_at_once() -> None:
    assert complaints({"driver": "qemu"}) == ["id: is required", "kernel: is required"]
    assert complaints({}) == ["driver: must be firecracker or qemu"]
    assert complaints("vm") == ['must be a mapping that describes one VM (got "vm")']


def test_names_that_are_no_text_are_refused() -> None:
    assert len(complaints(described() | {5: 1})) == 1
    assert len(complaints(described(labels={5: "a"}))) == 1


def test_qemu_takes_what_firecracker_does_not() -> None:
    spec = a_spec(driver="qemu", id="a.b_c", vcpus=64, machine="pc")

    assert isinstance(spec, QemuSpec)
    assert spec.machine == "pc"


@pytest.mark.parametrize("text", ["", "{", "[]", "nonsense", b"\xff\xff", "[" * 100_000])
def test_text_that_is_no_spec_is_refused(text: str | bytes) -> None:
    with pytest.raises(SpecError):
        parse_spec(text)


def test_a_mac_address_is_kept_in_one_spelling() -> None:
    spec = a_spec(network_interfaces=[{"id": "eth0", "tap": "t", "mac": "02:AA:00:00:00:01"}])

    assert spec.network_interfaces[0].mac == "02:aa:00:00:00:01"


def test_every_image_of_a_spec_is_named_by_its_field() -> None:
    named = [(field, str(path)) for field, path in image_paths(spec_from(FULL["firecracker"]))]

    assert named == [
        ("kernel", KERNEL),
        ("initrd", "/images/initrd"),
        ("drives[0].path", "/images/root.ext4"),
        ("drives[1].path", "/images/a, b.ext4"),
    ]
    assert ("rootfs", Path("/images/root.raw")) in list(image_paths(spec_from(FULL["qemu"])))
