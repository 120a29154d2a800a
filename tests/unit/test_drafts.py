"""Specs drafted from what running VMMs tell: everything a spec can say, and a word about everything it cannot."""

import json
from typing import Any

import pytest

from tests.support.builders import HOST, a_firecracker_spec, a_process, a_spec, a_vm
from workers.domain.draft import Draft, Look
from workers.services.adoption import Candidate, Finding, draft_text, judge
from workers.specfiles import read_specs
from workers.specs import FirecrackerSpec, QemuSpec, VmSpec, spec_from
from workers.vmm.conversation import Conversation, T
from workers.vmm.firecracker import setup_requests
from workers.vmm.firecracker_draft import FirecrackerTold, draft_firecracker, firecracker_tells
from workers.vmm.http1 import BrokenAnswer
from workers.vmm.qemu import QemuDriver, arguments
from workers.vmm.qemu_draft import draft_qemu, draft_qemu_drives, draft_qemu_line, qemu_tells

FULL: dict[str, Any] = {
    "id": "vm-1",
    "host": HOST,
    "vcpus": 2,
    "memory_mib": 256,
    "kernel": "/images/vmlinux",
    "initrd": "/images/initrd",
    "rootfs": "/images/root.ext4",
    "kernel_args": "console=ttyS0 reboot=k",
    "network_interfaces": [{"id": "eth0", "tap": "tap0", "mac": "02:00:00:00:00:01"}],
}
FIRECRACKER = FULL | {
    "driver": "firecracker",
    "smt": True,
    "drives": [{"id": "data", "path": "/images/data.raw", "read_only": True}],
    "vsock_cid": 3,
}
QEMU = FULL | {
    "driver": "qemu",
    "machine": "microvm",
    "drives": [{"id": "data", "path": "/images/data,1.qcow2", "format": "qcow2", "read_only": True}],
}


def a_draft(driver: str = "firecracker", vm_id: str = "vm-1") -> Draft:
    return Draft({"id": vm_id, "driver": driver})


def config_of(spec: VmSpec) -> dict[str, Any]:
    """What `GET /vm/config` tells of a VM that our driver has set up."""
    assert isinstance(spec, FirecrackerSpec)
    config: dict[str, Any] = {"drives": [], "network-interfaces": [], "balloon": None, "pmem": []}
    for path, body in setup_requests(spec):
        section = path.split("/")[1]
        plain = json.loads(json.dumps(body, default=str))
        if isinstance(config.get(section), list):
            config[section].append(plain)
        else:
            config[section] = plain
    return config


def drafted(config: dict[str, Any], state: str = "Running", said: str = "vm-1") -> Draft:
    draft = a_draft()
    draft_firecracker(draft, FirecrackerTold({"id": said, "state": state}, config), "vm-1", "/run/vm-1")
    return draft


def test_the_draft_of_a_firecracker_vm_is_the_spec_it_was_made_from() -> None:
    draft = drafted(config_of(spec_from(FIRECRACKER)))

    assert spec_from(draft.fields | {"host": HOST}) == spec_from(FIRECRACKER)
    assert (draft.guessed, draft.obstacles, draft.unread) == ({}, [], [])
    assert draft.lost == ["vsock uds_path vsock.sock: it becomes vsock.sock in the run directory"]


def test_a_vm_of_defaults_loses_nothing() -> None:
    draft = drafted(config_of(a_firecracker_spec()))

    assert spec_from(draft.fields | {"host": HOST}) == a_firecracker_spec()
    assert draft.lost == []


def test_what_a_spec_cannot_say_of_a_firecracker_vm_is_named() -> None:
    draft = drafted(
        {
            "machine-config": {"vcpu_count": 1, "mem_size_mib": 128, "huge_pages": "2M", "cpu_template": "T2"},
            "boot-source": {"kernel_image_path": "vmlinux"},
            "drives": [
                {"drive_id": "0", "is_root_device": True, "path_on_host": "/i/root", "rate_limiter": {"ops": {}}},
                {"drive_id": "vhost", "is_root_device": False, "socket": "/run/vhost"},
                {"drive_id": "wb", "is_root_device": False, "path_on_host": "/i/wb", "cache_type": "Writeback"},
            ],
            "network-interfaces": [{"iface_id": "1", "host_dev_name": "tap0", "mtu": 1400}],
            "balloon": {"amount_mib": 1},
            "entropy": {},
        }
    )

    assert draft.lost == [
        "machine-config cpu_template T2",
        "machine-config huge_pages 2M",
        "drive 0: rate_limiter",
        "drive wb: cache_type Writeback",
        "network interface eth0: mtu 1400",
        "balloon",
        "entropy",
    ]
    assert draft.obstacles == ["drive vhost: it has no file of this host (vhost-user)"]
    assert draft.fields["kernel"] == "/run/vm-1/vmlinux"
    assert draft.fields["drives"] == [{"id": "disk0", "path": "/i/root", "root": True}, {"id": "wb", "path": "/i/wb"}]
    assert draft.guessed == {
        "kernel": "vmlinux is taken as relative to /run/vm-1",
        "drives": "the id disk0 stands for '0'",
        "network_interfaces": "the id eth0 stands for '1'",
    }


@pytest.mark.parametrize("config", [{}, {"drives": 7, "boot-source": [], "machine-config": "x"}])
def test_an_api_that_tells_nothing_or_nonsense_leaves_a_draft_that_says_so(config: dict[str, Any]) -> None:
    draft = drafted(config, state="Paused", said="vm-2")

    assert draft.fields == {"id": "vm-1", "driver": "firecracker"}
    assert draft.unread == ["kernel: GET /vm/config names none, as after a snapshot was loaded"]
    assert draft.obstacles == [
        "its API says that it is 'vm-2'",
        "its guest is 'Paused': a VM is taken over while it runs",
    ]


def ask(conversation: Conversation[T], *answers: bytes) -> T:
    next(conversation)
    try:
        for answer in answers:
            conversation.send(answer)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return] # a generator's result reaches us untyped
    raise AssertionError("it wants to hear more")


def http(body: bytes, status: int = 200) -> bytes:
    return b"HTTP/1.1 %d x\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


def test_firecracker_is_asked_on_one_connection() -> None:
    told = ask(firecracker_tells(), http(b'{"id": "vm-1"}'), http(b'{"drives": []}'))
    assert (told.status, told.config) == ({"id": "vm-1"}, {"drives": []})


@pytest.mark.parametrize("answer", [http(b"[]"), http(b"{}", 503), http(b"{"), b""])
def test_an_answer_that_is_none_is_refused(answer: bytes) -> None:
    with pytest.raises(BrokenAnswer):
        ask(firecracker_tells(), answer)


def test_qemu_is_asked_all_at_once_and_what_it_refuses_is_left_out() -> None:
    greeting = b'{"QMP": {"version": {"qemu": {"major": 8, "minor": 2, "micro": 1}}}}\r\n'
    event = b'{"event": "RESUME", "data": {}}\r\n'
    refused = b'{"error": {"class": "CommandNotFound", "desc": "no"}}\r\n'
    answers = [b'{"return": {}}\r\n', b'{"return": {"name": "vm-1"}}\r\n', event, refused, b'{"return": []}\r\n']
    answers += [refused, refused, b'{"return": "pc-q35-8.2-machine"}\r\n']

    told = ask(qemu_tells(), greeting, b"".join(answers))

    assert told == {"query-name": {"name": "vm-1"}, "query-cpus-fast": [], "qom-get": "pc-q35-8.2-machine"}


def qemu_line(spec: VmSpec) -> list[str]:
    assert isinstance(spec, QemuSpec)
    return ["/usr/bin/qemu-system-x86_64", *arguments(spec, "tcg")]


def test_the_draft_of_a_qemu_vm_is_the_spec_it_was_made_from() -> None:
    spec = spec_from(QEMU)
    draft = a_draft("qemu")

    draft_qemu_line(draft, qemu_line(spec), "/run/vm-1")
    draft_qemu_drives(draft, qemu_line(spec), "/run/vm-1")

    assert spec_from(draft.fields | {"host": HOST}) == spec
    assert (draft.guessed, draft.obstacles, draft.lost, draft.unread) == ({}, [], [], [])


def test_what_qmp_tells_goes_over_the_command_line() -> None:
    draft = a_draft("qemu")
    draft_qemu_line(draft, ["q", "-m", "size=64M", "-smp", "1", "-M", "pc", "-kernel", "/k"], "/run")

    drives = [
        {"device": "data", "qdev": "x/virtio-backend", "inserted": {"file": "d.img", "drv": "raw", "ro": True}},
        {"device": "cd0", "qdev": "ide"},
        {"device": "", "qdev": "/ide", "inserted": {"file": "nbd://host/x", "drv": "nbd", "node-name": "#b1"}},
    ]
    told = {
        "query-name": {"name": "vm-1"},
        "query-status": {"status": "running"},
        "query-cpus-fast": [{}, {}, {}, {}],
        "query-memory-size-summary": {"base-memory": 512 << 20},
        "query-block": drives,
        "qom-get": "pc-q35-7.2-machine",
    }
    draft_qemu(draft, told, "vm-1", "/run")

    assert draft.fields == {
        "id": "vm-1",
        "driver": "qemu",
        "vcpus": 4,
        "memory_mib": 512,
        "machine": "q35",
        "kernel": "/k",
        "drives": [
            {"id": "data", "path": "/run/d.img", "read_only": True},
            {"id": "disk2", "path": "/run/nbd:/host/x"},
        ],
    }
    assert draft.obstacles == ["drive disk2: 'nbd://host/x' is no plain file"]
    assert "drive disk2: it becomes a virtio disk" in draft.lost
    assert "their order, by which the guest names them" in draft.guessed["drives"]


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        (["-cpu", "host"], "-cpu host"),
        (["-snapshot"], "-snapshot"),
        (["-device", "e1000,netdev=n0", "-netdev", "tap,id=n0,ifname=t0"], "-device e1000: it becomes virtio-net"),
        (["-netdev", "user,id=n0"], "-netdev user,id=n0: only taps with a name can stand in a spec"),
        (["--device", "virtio-rng-pci"], "-device virtio-rng-pci"),
    ],
)
def test_what_a_spec_cannot_say_of_a_qemu_vm_is_named(words: list[str], lost: str) -> None:
    draft = a_draft("qemu")
    draft_qemu_line(draft, ["q", "-kernel", "/k", *words], "/run")
    assert draft.lost == [lost]


@pytest.mark.parametrize("words", [[], ["-m"], ["-m", "much", "-smp", "x"], ["-name", ",,,"], ["-", "--"]])
def test_odd_command_lines_are_read_as_far_as_they_go(words: list[str]) -> None:
    draft = a_draft("qemu")
    draft_qemu_line(draft, ["q", *words], "/run")
    draft_qemu_drives(draft, ["q", *words], "/run")
    assert "memory_mib" not in draft.fields
    assert QemuDriver("q", "tcg", {}).identify(["q", *words], "/usr/bin/q") is not None


def a_look(vm_id: str = "vm-1", pid: int = 100, **fields: object) -> Look:
    draft = a_draft(vm_id=vm_id)
    draft.fields |= {"kernel": "/images/vmlinux"} | fields
    return Look(vm_id, "firecracker", a_process(pid), "/run/api.sock", guarded=False, draft=draft)


def judged(*looks: Look, records: Any = None, unreadable: Any = None, refused: str | None = None) -> list[Candidate]:
    return judge(looks, records or {}, unreadable or {}, host=HOST, images_refused=lambda _spec: refused)


def test_a_vmm_without_a_record_is_new_and_its_draft_is_a_spec() -> None:
    (found,) = judged(a_look(rootfs="/images/root"))

    assert (found.finding, found.file_name) == (Finding.NEW, "vm-1.yaml")
    assert found.spec == a_spec(rootfs="/images/root")


def test_a_vmm_of_the_record_is_known_and_another_one_of_it_is_in_the_way() -> None:
    records = {"vm-1": a_vm("vm-1", process=a_process(100))}

    (known,) = judged(a_look(), records=records)
    (other,) = judged(a_look(pid=101), records=records)

    assert (known.finding, known.file_name, known.note) == (Finding.KNOWN, None, f"record: healthy on host {HOST}")
    assert other.finding is Finding.BLOCKED
    assert other.draft.obstacles == ["a record of this id names pid 100: it is recovered under that record"]


def test_a_vm_that_was_applied_waits_for_its_worker() -> None:
    (found,) = judged(a_look(), records={"vm-1": a_vm("vm-1", process=None)})
    assert (found.finding, found.file_name) == (Finding.REGISTERED, None)


@pytest.mark.parametrize(
    ("look", "more", "obstacle"),
    [
        (a_look("UPPER"), {}, "id: must be 1 to 64"),
        (a_look("../etc"), {}, "id: must be 1 to 64"),
        (a_look(""), {}, "it has no id on its command line"),
        (a_look("vm-a"), {"records": {"vm-a": a_vm("vm-a", host="host-z", process=None)}}, "is of host host-z"),
        (a_look("vm-b"), {"unreadable": {"vm-b": "of version 9"}}, "its record cannot be read: of version 9"),
        (a_look("vm-c"), {"refused": "kernel: /k is missing"}, "kernel: /k is missing"),
    ],
)
def test_what_is_in_the_way_is_said(look: Look, more: Any, obstacle: str) -> None:
    (found,) = judged(look, **more)

    assert found.finding is Finding.BLOCKED
    assert obstacle in found.draft.obstacles[0]
    assert found.file_name in (None, f"{look.vm_id}.100.draft")
    assert (found.file_name is None) == (look.vm_id in ("UPPER", "../etc", ""))


def test_the_text_is_read_as_the_spec_it_shows_whatever_a_vmm_calls_itself(tmp_path: Any) -> None:
    look = a_look(kernel_args='quiet "a": #b\tc', rootfs="/images/ä #1: x")
    look.draft.guessed["rootfs"] = "a\nkernel: /etc/shadow"
    look.draft.lost.append("b\u2028kernel: /etc/shadow")
    look.draft.fields["kernel_args"] = 'quiet "a": #b'
    (found,) = judged(look)
    file = tmp_path / "vm-1.yaml"
    file.write_text(draft_text(found), encoding="utf-8")

    assert read_specs(str(file), stdin=None, default_host="other") == [found.spec]  # type: ignore[arg-type] # not read
    assert "# guessed: a kernel: /etc/shadow" in file.read_text(encoding="utf-8")
