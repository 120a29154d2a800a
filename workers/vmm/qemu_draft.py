"""What a running QEMU tells of its VM: its command line and QMP, and the spec that follows from them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.domain.draft import Draft, mapping, mappings, text
from workers.vmm.conversation import Conversation
from workers.vmm.qmp import ask_all

_MIB = 1 << 20
_UNITS = {"": 1, "M": 1, "G": 1 << 10, "T": 1 << 20}  # MiB; a bare number means MiB
_QUESTIONS: Mapping[str, Mapping[str, Any]] = {
    "query-name": {},
    "query-status": {},
    "query-cpus-fast": {},
    "query-memory-size-summary": {},
    "query-block": {},
    "qom-get": {"path": "/machine", "property": "type"},
}
_BARE = frozenset(
    {"nographic", "nodefaults", "no-user-config", "S", "daemonize", "enable-kvm", "no-reboot", "no-shutdown"}
    | {"snapshot", "no-acpi", "no-hpet", "usb", "no-fd-bootchk", "only-migratable", "full-screen"}
)
# What a spec says, and what says nothing about the VM itself.
_SAID = frozenset(
    {"name", "m", "smp", "machine", "M", "kernel", "initrd", "append", "drive", "blockdev", "netdev", "device"}
    | {"accel", "enable-kvm", "chardev", "mon", "qmp", "monitor", "serial", "display", "nographic", "nodefaults"}
    | {"no-user-config", "daemonize", "pidfile", "D", "d", "hda", "S", "no-shutdown", "no-reboot"}
)
_MACHINES = (("microvm", "microvm"), ("q35", "q35"), ("pc", "pc"))  # how a type begins or what it holds -> ours


@dataclass(frozen=True, slots=True)
class Option:
    """One flag of the command line; `parts` are `a=b` of its list, a part without `=` under its own name."""

    flag: str
    value: str

    @property
    def parts(self) -> dict[str, str]:
        split = self.value.replace(",,", "\0").split(",")
        pairs = (part.replace("\0", ",").partition("=") for part in split)
        return {name: value if equals else "" for name, equals, value in pairs}

    @property
    def first(self) -> str:
        """The first part, where it stands there without a name."""
        name, value = next(iter(self.parts.items()), ("", ""))
        return "" if value else name


def options(argv: Sequence[str]) -> Iterator[Option]:
    """Read the flags behind the program's name; QEMU takes them with one dash or two."""
    words = iter(argv[1:])
    for word in words:
        if word.startswith("-") and len(word) > 1:
            flag = word.removeprefix("-").removeprefix("-")
            yield Option(flag, "" if flag in _BARE else next(words, ""))


def qmp_sockets(argv: Sequence[str]) -> Iterator[str]:
    """Give the paths of Unix sockets on which QEMU serves QMP."""
    chardevs: dict[str, str] = {}
    named: list[str] = []
    for option in options(argv):
        parts = option.parts
        match option.flag:
            case "qmp" if option.first.startswith("unix:"):
                yield option.first.removeprefix("unix:")
            case "chardev" if option.first == "socket" and "path" in parts:
                chardevs[parts.get("id", "")] = parts["path"]
            case "mon" if parts.get("mode") == "control":
                named.append(parts.get("chardev") or option.first)
    yield from (chardevs[name] for name in named if name in chardevs)


def qemu_tells() -> Conversation[Mapping[str, Any]]:
    """Return what each question returned; what QEMU refused to say is left out. Raises QmpError."""
    return (yield from ask_all(_QUESTIONS))


def draft_qemu_line(draft: Draft, argv: Sequence[str], cwd: str) -> None:
    """Add what stands on the command line."""
    draft.read.append("the command line")
    nets: dict[str, dict[str, str]] = {}
    macs: dict[str, str] = {}
    for option in options(argv):
        _take_option(draft, option, cwd)
        parts = option.parts
        if option.flag == "netdev":
            nets[parts.get("id", "")] = {"type": option.first} | parts
        elif option.flag == "device" and "netdev" in parts:
            macs[parts["netdev"]] = parts.get("mac", "")
            kind = parts.get("driver") or option.first
            draft.lose(f"-device {kind}: it becomes virtio-net", not kind.startswith("virtio-net"))
        elif option.flag == "device":
            draft.lose(f"-device {option.value}", not (parts.get("driver") or option.first).startswith("virtio-blk"))
    _interfaces(draft, nets, macs)
    draft.fields.setdefault("machine", "pc")
    if "kernel" not in draft.fields:
        draft.unread.append("kernel: there is no -kernel on its command line, and a spec needs one")


def _take_option(draft: Draft, option: Option, cwd: str) -> None:
    match option.flag:
        case "m":
            draft.take("memory_mib", _mebibytes(option.parts.get("size") or option.first))
        case "smp":
            number = option.parts.get("cpus") or option.first
            draft.take("vcpus", int(number) if number.isdigit() else None)
        case "machine" | "M":
            _machine(draft, option.parts.get("type") or option.first)
        case "kernel" | "initrd":
            draft.take(option.flag, draft.path(option.flag, option.value, cwd))
        case "append":
            draft.take("kernel_args", option.value)
        case flag:
            draft.lose(f"-{flag} {option.value}".strip(), flag not in _SAID)


def _machine(draft: Draft, kind: str) -> None:
    known = next((ours for part, ours in _MACHINES if part in kind.split("-") or kind == part), None)
    if known is None:
        draft.obstacles.append(f"its machine {kind!r} is none that a spec can have")
    elif known == kind.removesuffix("-machine"):
        draft.take("machine", known)
    else:
        draft.guess("machine", known, f"it runs as {kind}; the next start takes this QEMU's own version of it")


def _mebibytes(size: str) -> int | None:
    number = size.rstrip("MmGgTt")
    unit = size[len(number) :].upper()
    return int(number) * _UNITS[unit] if number.isdigit() and unit in _UNITS else None


def _interfaces(draft: Draft, nets: Mapping[str, Mapping[str, str]], macs: Mapping[str, str]) -> None:
    found = []
    for number, (name, net) in enumerate(nets.items()):
        if net["type"] != "tap" or "ifname" not in net:
            draft.lost.append(f"-netdev {net['type']},id={name}: only taps with a name can stand in a spec")
            continue
        plain = {"id": draft.device_id("network_interfaces", name, f"eth{number}"), "tap": net["ifname"]}
        found.append(plain | ({"mac": macs[name]} if macs.get(name) else {}))
    draft.take("network_interfaces", found)


def draft_qemu_drives(draft: Draft, argv: Sequence[str], cwd: str) -> None:
    """Add the drives of the command line, where QMP could not be asked."""
    found = [parts for option in options(argv) if option.flag == "drive" and "file" in (parts := option.parts)]
    drives = [
        {
            "device": parts.get("id"),
            "qdev": "virtio" if parts.get("if", "") in ("none", "virtio") else "",
            "inserted": {
                "file": parts["file"],
                "drv": parts.get("format"),
                "ro": "on" in (parts.get("read-only"), parts.get("readonly")),
            },
        }
        for parts in found
    ]
    _drives(draft, drives, cwd)


def draft_qemu(draft: Draft, told: Mapping[str, Any], vm_id: str, cwd: str) -> None:
    """Add what QMP told: it goes over the command line."""
    draft.read.append(f"QMP: {', '.join(name for name in _QUESTIONS if name in told)}")
    draft.unread += [f"QMP: {name} was refused" for name in _QUESTIONS if name not in told]
    said, status = text(mapping(told.get("query-name")), "name"), text(mapping(told.get("query-status")), "status")
    if said != vm_id:
        draft.obstacles.append(f"QMP says that it is {str(said)[:64]!r}")
    if status != "running":
        draft.obstacles.append(f"its guest is {str(status)[:64]!r}: a VM is taken over while it runs")
    if isinstance(kind := told.get("qom-get"), str):
        _machine(draft, kind)
    draft.take("vcpus", len(mappings(told.get("query-cpus-fast"))) or None)
    base = mapping(told.get("query-memory-size-summary")).get("base-memory")
    draft.take("memory_mib", base // _MIB if isinstance(base, int) else None)
    if "query-block" in told:
        _drives(draft, mappings(told["query-block"]), cwd)


def _drives(draft: Draft, drives: Sequence[Mapping[str, Any]], cwd: str) -> None:
    found: list[dict[str, Any]] = []
    for number, drive in enumerate(drives):
        inserted = mapping(drive.get("inserted"))
        if not inserted:
            continue  # an empty CD drive
        given = text(drive, "device") or text(inserted, "node-name")
        name = draft.device_id("drives", given, f"disk{number}")
        draft.lose(f"drive {name}: it becomes a virtio disk", "virtio" not in str(drive.get("qdev")))
        plain = _drive(draft, name, inserted, cwd)
        if name == "rootfs" and not found and plain.keys() == {"id", "path"}:
            draft.take("rootfs", plain["path"])
        else:
            found.append(plain)
    draft.take("drives", found)
    if len(found) > 1:
        draft.note_guess("drives", "their order, by which the guest names them")


def _drive(draft: Draft, name: str, inserted: Mapping[str, Any], cwd: str) -> dict[str, Any]:
    file, kind = text(inserted, "file") or "", text(inserted, "drv")
    if ":" in file.partition("/")[0]:
        draft.obstacles.append(f"drive {name}: {file[:64]!r} is no plain file")
    if kind not in ("raw", "qcow2"):
        draft.note_guess("drives", f"{name} is raw; its format {kind or 'is not said'}")
    plain: dict[str, Any] = {"id": name, "path": draft.path("rootfs" if name == "rootfs" else "drives", file, cwd)}
    if kind == "qcow2":
        plain["format"] = kind
    if inserted.get("ro"):
        plain["read_only"] = True
    return plain
