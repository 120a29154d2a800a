"""What a VM is made of: the only description from which a VMM is ever started.

A spec names images, sizes and devices. It holds no command line and no program: those come from the settings
and the drivers, so whoever may write a spec cannot run anything else on a host.
How specs are read from files is in `specfiles`; what is done with them is up to the drivers.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    StrictBool,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from workers.complaints import Complaint, complaints_in

ROOTFS_DRIVE_ID = "rootfs"  # the name drivers give to the drive made from `rootfs`

_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ID_RULE = 'must be 1 to 64 of the characters a-z, 0-9, ".", "_" and "-", beginning with a letter or digit'
# Firecracker refuses to start under any other --id.
_FIRECRACKER_ID = re.compile(r"[a-z0-9-]+")
# Firecracker takes letters, digits and _ for device ids, QEMU wants a letter first: what both accept.
_DEVICE_ID = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,31}")
# The kernel allows more in an interface name; this leaves out what an option parser or a shell would trip over.
_TAP = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,14}")
_MAC = re.compile(r"[0-9a-f][02468ace](:[0-9a-f]{2}){5}")
_LABEL_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_LABEL_KEY = re.compile(rf"([a-z0-9]([a-z0-9.-]{{0,251}}[a-z0-9])?/)?{_LABEL_NAME}")
_KERNEL_ARGS = re.compile(r"[ -~]{1,2048}")  # printable ASCII; 2048 is the kernel's own limit on x86
_IMAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_LABELS_MAX, _LABEL_VALUE_MAX = 32, 256
_PATH_MAX = 4096
_NO_DISKS_IN = frozenset({"proc", "sys"})
_DEVICES = "dev"
_NO_IMAGE = "must be a file, and not one below /dev, /proc or /sys"
_CID_MAX = 2**32 - 2  # the highest number means "any" to vsock


def check_vm_id(text: object) -> str:
    """Return the id if it is one; an id becomes part of keys, queue names and paths, so nothing else may pass."""
    if isinstance(text, str) and _ID.fullmatch(text):
        return text
    raise ValueError(_ID_RULE)


def is_vm_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def matching(pattern: re.Pattern[str], rule: str) -> AfterValidator:
    """Return a check that all of a text matches; `$` would let a trailing newline pass."""

    def check(text: str) -> str:
        if not pattern.fullmatch(text):
            raise ValueError(rule)
        return text

    return AfterValidator(check)


def check_image_path(value: object) -> Path:
    """Return the path if an image may have it. Whether it exists, and where links lead, `images` looks up."""
    path = check_disk_path(value)
    if path.parts[1] == _DEVICES:
        raise ValueError(_NO_IMAGE)
    return path


def check_disk_path(value: object) -> Path:
    """Return the path if a disk may have it: also one below /dev, which `images` holds to the allowed ones."""
    text = str(value) if isinstance(value, Path) else value
    if not isinstance(text, str) or not text.startswith("/"):
        raise ValueError("must be an absolute path")
    if not text.isprintable() or len(text) > _PATH_MAX:
        raise ValueError(f"must be printable and at most {_PATH_MAX} characters long")
    # Two leading slashes are a root of their own to pathlib; they must not hide /dev.
    path = Path("/" + text.lstrip("/"))
    if ".." in path.parts:
        raise ValueError('must not contain ".."')
    if path.parts[1:2] == () or path.parts[1] in _NO_DISKS_IN:
        raise ValueError(_NO_IMAGE)
    return path


def _check_labels(labels: dict[str, str]) -> dict[str, str]:
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise ValueError(f"the name {key!r} must be like team or example.com/team")
        if len(value) > _LABEL_VALUE_MAX or not value.isprintable():
            raise ValueError(f"the value of {key} must be printable and at most {_LABEL_VALUE_MAX} characters long")
    return labels


VmId = Annotated[str, AfterValidator(check_vm_id)]
HostId = VmId
ImagePath = Annotated[Path, BeforeValidator(check_image_path)]
DiskPath = Annotated[Path, BeforeValidator(check_disk_path)]
DeviceId = Annotated[str, matching(_DEVICE_ID, "must be a letter and up to 31 more letters, digits or _")]
TapName = Annotated[str, matching(_TAP, "must be an interface name of at most 15 letters, digits, ., _ or -")]
MacAddress = Annotated[
    str, BeforeValidator(lambda mac: mac.lower() if isinstance(mac, str) else mac),
    matching(_MAC, "must be like 02:00:00:12:34:56, and not a multicast address (second digit even)"),
]  # fmt: skip
Labels = Annotated[dict[str, str], Field(max_length=_LABELS_MAX), AfterValidator(_check_labels)]
ImageName = Annotated[str, matching(_IMAGE_NAME, "must be a digest or name of at most 128 letters, digits and ._:/@+-")]
KernelArgs = Annotated[str, matching(_KERNEL_ARGS, "must be one line of at most 2048 printable ASCII characters")]


class SpecPart(BaseModel):
    """A part of a spec: a name that is not known is refused, and nothing can be changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Durability(SpecPart):
    disks: Literal["persistent", "ephemeral"] = "persistent"


class Drive(SpecPart):
    id: DeviceId
    path: DiskPath
    read_only: StrictBool = False


class FirecrackerDrive(Drive):
    root: StrictBool = False


class QemuDrive(Drive):
    format: Literal["raw", "qcow2"] = "raw"


class NetworkInterface(SpecPart):
    id: DeviceId
    tap: TapName
    mac: MacAddress | None = None


def _refuse_twice(what: str, values: Iterable[str]) -> None:
    seen: set[str] = set()
    for value in values:
        if value in seen:
            raise ValueError(f"{what} {value} is used twice: give each its own")
        seen.add(value)


class _Spec(SpecPart):
    id: VmId
    host: HostId | None = None  # None: the host of the one who applies it
    desired: Literal["running", "stopped"] = "running"
    labels: Labels = Field(default_factory=dict)
    priority: Annotated[int, Field(strict=True, ge=0, le=9)] = 5  # 9 is served first
    durability: Durability = Durability()
    image: ImageName | None = None  # what the VM was made from: VMs of one image share a circuit breaker
    vcpus: Annotated[int, Field(strict=True, ge=1, le=64)] = 1
    memory_mib: Annotated[int, Field(strict=True, ge=16, le=1_048_576)] = 128
    kernel: ImagePath
    initrd: ImagePath | None = None
    rootfs: DiskPath | None = None
    kernel_args: KernelArgs | None = None

    @field_validator("drives", check_fields=False)
    @classmethod
    def _drive_ids_differ(cls, drives: tuple[Drive, ...], info: ValidationInfo) -> tuple[Drive, ...]:
        rootfs = [ROOTFS_DRIVE_ID] if info.data.get("rootfs") else []
        _refuse_twice("the id", [*rootfs, *(drive.id for drive in drives)])
        return drives

    @field_validator("network_interfaces", check_fields=False)
    @classmethod
    def _interfaces_differ(
        cls, interfaces: tuple[NetworkInterface, ...], info: ValidationInfo
    ) -> tuple[NetworkInterface, ...]:
        drive_ids = [drive.id for drive in info.data.get("drives", ())]
        _refuse_twice("the id", [*drive_ids, *(each.id for each in interfaces)])
        _refuse_twice("the tap", [each.tap for each in interfaces])
        _refuse_twice("the mac", [each.mac for each in interfaces if each.mac])
        return interfaces


class FirecrackerSpec(_Spec):
    driver: Literal["firecracker"] = "firecracker"
    vcpus: Annotated[int, Field(strict=True, ge=1, le=32)] = 1  # Firecracker's own limit
    smt: StrictBool = False
    drives: Annotated[tuple[FirecrackerDrive, ...], Field(max_length=16)] = ()
    network_interfaces: Annotated[tuple[NetworkInterface, ...], Field(max_length=8)] = ()
    vsock_cid: Annotated[int, Field(strict=True, ge=3, le=_CID_MAX)] | None = None

    @field_validator("id")
    @classmethod
    def _id_suits_firecracker(cls, vm_id: str) -> str:
        if not _FIRECRACKER_ID.fullmatch(vm_id):
            raise ValueError('must be of a-z, 0-9 and "-" only: Firecracker takes no "." and "_"')
        return vm_id

    @field_validator("smt")
    @classmethod
    def _smt_has_pairs(cls, smt: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's signature
        vcpus = info.data.get("vcpus", 1)
        if smt and vcpus > 1 and vcpus % 2:
            raise ValueError("needs vcpus to be 1 or even")
        return smt

    @field_validator("drives")
    @classmethod
    def _one_root(cls, drives: tuple[FirecrackerDrive, ...], info: ValidationInfo) -> tuple[FirecrackerDrive, ...]:
        roots = [drive.id for drive in drives if drive.root]
        if len(roots) + bool(info.data.get("rootfs")) > 1:
            raise ValueError("only one disk can be the root: keep rootfs, or root: true on a single drive")
        return drives


class QemuSpec(_Spec):
    driver: Literal["qemu"] = "qemu"
    machine: Literal["microvm", "q35", "pc"] = "q35"  # microvm hangs at boot now and then without KVM
    drives: Annotated[tuple[QemuDrive, ...], Field(max_length=16)] = ()
    network_interfaces: Annotated[tuple[NetworkInterface, ...], Field(max_length=8)] = ()


class ThirdPartySpec(_Spec):
    """What the spec of a driver of another package derives from, with `driver: Literal["<its name>"] = "<its name>"`.

    Fields that name files of the host are of type ImagePath: then they are held to `image_roots` like ours.
    """

    driver: str
    drives: Annotated[tuple[Drive, ...], Field(max_length=16)] = ()
    network_interfaces: Annotated[tuple[NetworkInterface, ...], Field(max_length=8)] = ()


VmSpec = Annotated[FirecrackerSpec | QemuSpec | ThirdPartySpec, PlainValidator(lambda value: as_spec(value))]  # noqa: PLW0108 - it comes below
DRIVERS: dict[str, type[FirecrackerSpec | QemuSpec]] = {"firecracker": FirecrackerSpec, "qemu": QemuSpec}


class SpecError(ValueError):
    """A spec that cannot be taken; `complaints` say where and why."""

    def __init__(self, complaints: Sequence[Complaint]) -> None:
        super().__init__("\n".join(each.line for each in complaints))
        self.complaints = tuple(complaints)


def spec_from(value: object) -> VmSpec:
    """Build a spec from a mapping as YAML or JSON gives it; raises SpecError."""
    if not isinstance(value, dict):
        raise SpecError([Complaint((), "must be a mapping that describes one VM", value)])
    driver = value.get("driver")
    spec_class = DRIVERS.get(driver) if isinstance(driver, str) else None
    if spec_class is None:
        return _third_party_spec(value)
    try:
        return spec_class.model_validate(value)
    except ValidationError as error:
        raise SpecError(complaints_in(error, spec_class)) from error


def _third_party_spec(value: dict[str, Any]) -> ThirdPartySpec:
    from workers.vmm.plugins import plugins  # noqa: PLC0415 - few have any, and looking for them takes time

    driver, others = value.get("driver"), plugins().drivers
    if not isinstance(driver, str) or driver not in others:
        raise SpecError([Complaint(("driver",), f"must be {' or '.join([*DRIVERS, *others])}", driver)])
    spec_class = others[driver].spec_class
    try:
        return spec_class.model_validate(value)
    except ValidationError as error:
        raise SpecError(complaints_in(error, spec_class)) from error
    except Exception as error:
        # A bug of another package is wrong with this spec alone, not with all that are read beside it.
        raise SpecError([Complaint((), f"driver {driver} cannot read it: {error!r}")]) from error


def as_spec(value: object) -> VmSpec:
    """Return a spec that is one already, else build it; raises SpecError."""
    return value if isinstance(value, FirecrackerSpec | QemuSpec | ThirdPartySpec) else spec_from(value)


def parse_spec(text: str | bytes) -> VmSpec:
    """Read what `dump_spec` wrote; raises SpecError."""
    try:
        return spec_from(json.loads(text))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError([Complaint((), f"is not JSON: {error}")]) from error


def dump_spec(spec: VmSpec) -> str:
    """Write a spec as compact JSON without what is default anyway; equal specs give equal text."""
    fields = {"driver": spec.driver, **spec.model_dump(mode="json", exclude_defaults=True)}
    return json.dumps(fields, ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def image_paths(spec: VmSpec) -> Iterator[tuple[str, Path]]:
    """Give each image of a spec with the name of its field."""
    return _paths_in(spec, "")


def _paths_in(value: object, place: str) -> Iterator[tuple[str, Path]]:
    match value:
        case Path():
            yield place, value
        case BaseModel():
            for name, each in value:
                yield from _paths_in(each, f"{place}.{name}" if place else name)
        case tuple() | list():
            for index, each in enumerate(value):
                yield from _paths_in(each, f"{place}[{index}]")
        case dict():
            for key, each in value.items():
                yield from _paths_in(each, f"{place}.{key}")


def image_of(spec: VmSpec) -> str:
    """Name what the VM was made from: the field `image`, else the path of what it boots from."""
    if spec.image:
        return spec.image
    roots = [drive.path for drive in spec.drives if getattr(drive, "root", False)]
    return str(next(path for path in (spec.rootfs, *roots, spec.initrd, spec.kernel) if path is not None))
