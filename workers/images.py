"""Which files and devices of a host the VMs of a spec may use: looked up before every start, links and layers followed.

What a spec may say at all is decided in `specs`.
"""

import os
import re
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from workers.specs import VmSpec, image_paths

_DEVICES = "dev"
_NO_IMAGES_IN = frozenset({_DEVICES, "proc", "sys"})
_QCOW2_MAGIC = b"QFI\xfb"
_QCOW2_HEADER = struct.Struct(">4sIQI52xQ")  # magic, version, backing file's offset and length, incompatible features
_QCOW2_EXTERNAL_DATA = 0x4
_QCOW2_NAME_MAX = 1023
_QCOW2_LAYERS_MAX = 16  # deeper chains are a loop or a mistake
_PROTOCOL = re.compile(r"[^/]*:")  # how QEMU tells `nbd:…` and `json:…` from a file name


class ImageRefused(ValueError):
    """An image that may not be used. `field` is its place in the spec."""

    def __init__(self, field: str, path: Path, why: str) -> None:
        super().__init__(f"{field}: {path} {why}")
        self.field, self.path, self.why = field, path, why


class ImageMissing(ImageRefused):
    """There is no such file; all else about the path may be fine."""


@dataclass(frozen=True, slots=True)
class _Allowed:
    roots: Sequence[Path]
    devices: Sequence[str]

    def has_device(self, path: Path, real: Path, mode: int) -> bool:
        """Tell whether this is a block device that is allowed by the name it has in the spec, or by its real one."""
        if not stat.S_ISBLK(mode) or real.parts[1] != _DEVICES:
            return False
        return any(_matches(each, pattern) for each in (path, real) for pattern in self.devices)


def _matches(path: Path, pattern: str) -> bool:
    """Match part by part: a * goes no further than to the next slash."""
    wanted = Path(pattern).parts
    return len(wanted) == len(path.parts) and all(map(fnmatchcase, path.parts, wanted))


def check_images(spec: VmSpec, roots: Sequence[Path], devices: Sequence[str] = ()) -> None:
    """Raise ImageRefused unless every image is a regular file below one of the roots, links followed.

    Disks may also be block devices whose path matches one of the patterns `devices`. This looks at one moment: it holds
    only as long as nobody but the operator can write to the roots.
    """
    allowed = _Allowed([Path(os.path.realpath(root)) for root in roots], devices)
    for field, path in image_paths(spec):
        _check_image(field, path, allowed)
    for index, drive in enumerate(spec.drives):
        if getattr(drive, "format", None) == "qcow2":
            _check_layers(f"drives[{index}].path", drive.path, allowed)


def _check_image(field: str, path: Path, allowed: _Allowed) -> None:
    try:
        real = path.resolve(strict=True)
        mode = real.stat().st_mode
    except FileNotFoundError:
        raise ImageMissing(field, path, "is missing: put the image there or correct the path") from None
    except (OSError, RuntimeError, ValueError) as error:  # also links in a circle, a NUL in a backing file's name
        raise ImageRefused(field, path, f"cannot be looked at: {getattr(error, 'strerror', error)}") from error
    if allowed.has_device(path, real, mode):
        return
    if path.parts[1] == _DEVICES:
        which = _listed("image_devices", allowed.devices)
        raise ImageRefused(field, path, f"is no block device that is allowed ({which})")
    if not any(real.is_relative_to(root) for root in allowed.roots):
        where = _listed("image_roots", allowed.roots)
        raise ImageRefused(field, path, f"is really {real}, outside of the allowed folders ({where})")
    if real.parts[1] in _NO_IMAGES_IN or not stat.S_ISREG(mode):
        raise ImageRefused(field, path, "is not a regular file")


def _listed(setting: str, values: Sequence[object]) -> str:
    return f"{setting}: {', '.join(map(str, values)) or 'none'}"


def _check_layers(field: str, path: Path, allowed: _Allowed) -> None:
    """Follow a qcow2 image to the images it is laid over: they would be read for the guest like any drive."""
    for _ in range(_QCOW2_LAYERS_MAX):
        name = _backing_file(field, path)
        if name is None:
            return
        if _PROTOCOL.match(name):
            raise ImageRefused(field, path, f"is laid over {name!r}, which is not a plain file")
        path = path.parent / name
        _check_image(field, path, allowed)
    raise ImageRefused(field, path, f"is laid over more than {_QCOW2_LAYERS_MAX} other images")


def _backing_file(field: str, path: Path) -> str | None:
    try:
        with path.open("rb") as image:
            header = image.read(_QCOW2_HEADER.size)
            if len(header) < _QCOW2_HEADER.size or not header.startswith(_QCOW2_MAGIC):
                return None  # raw, or nothing QEMU could open
            _, version, offset, length, features = _QCOW2_HEADER.unpack(header)
            image.seek(min(offset, os.fstat(image.fileno()).st_size))
            name = os.fsdecode(image.read(min(length, _QCOW2_NAME_MAX)))
    except OSError as error:
        raise ImageRefused(field, path, f"cannot be read: {error.strerror}") from error
    if version > 2 and features & _QCOW2_EXTERNAL_DATA:  # noqa: PLR2004 - version 2 has no feature bits
        raise ImageRefused(field, path, "keeps its data in another file: convert it with qemu-img convert")
    return name if offset else None
