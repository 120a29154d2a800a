"""The smallest guest that is a real one: a kernel found on this machine, and an initramfs made around busybox.

For the demo and for tests. It says on its console that it booted and then sleeps. Nothing is downloaded or installed
here; what is missing is named together with the command that brings it. Starting the guest is the QEMU driver's work.
"""

import gzip
import os
import shlex
import struct
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

KERNEL_VARIABLE = "RELIABILITY_GUEST_KERNEL"
KERNEL_ARGS = "console=ttyS0 panic=-1 reboot=t quiet"
# Under tcg, microvm guests often hang at boot: without HPET or ACPI timer Linux depends on the emulated PIT, which
# loses ticks on a busy host. q35 has all three.
MACHINE = "q35"
# A Debian kernel does not boot in 64 MiB, and only sometimes in 72.
MEMORY_MIB = 96
BOOT_MARK = "guest booted"

_BUSYBOX_PLACES = (Path("/bin/busybox"), Path("/usr/bin/busybox"))
_INIT = f"""#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
read boot_id </proc/sys/kernel/random/boot_id
echo "{BOOT_MARK} $boot_id"
exec /bin/busybox sleep 2147483647
"""

_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"
_ELF_HEADER = struct.Struct("<6s10xHHIQQQIHHH")  # elf(5), Elf64_Ehdr up to e_phnum
_EM_X86_64 = 62
_PT_INTERP = 3
_MAX_PROGRAM_HEADERS = 1 << 16

_BOOT_MAGIC_AT, _BOOT_MAGIC = 0x202, b"HdrS"  # the kernel's x86 boot protocol

_DIRECTORY, _PROGRAM, _CONSOLE = 0o040755, 0o100755, 0o020600
_CONSOLE_DEVICE = (5, 1)


@dataclass(frozen=True, slots=True)
class GuestImage:
    kernel: Path
    initrd: Path


@dataclass(frozen=True, slots=True)
class Missing:
    """What is not on this machine, and the command that brings it."""

    what: str
    install_hint: str


def default_cache(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_CACHE_HOME", "")
    if not base.startswith("/"):  # the specification says to ignore a relative one
        base = str(Path(environ.get("HOME") or Path.home()) / ".cache")
    return Path(base) / "metald-reliability" / "guest"


def find_guest_image(cache: Path) -> GuestImage | Missing:
    """Return kernel and initramfs, which is made anew in the cache folder. Raises OSError if that cannot be written."""
    busybox = find_busybox(_BUSYBOX_PLACES)
    if busybox is None:
        return Missing("a static busybox for x86-64", "apt-get install busybox-static")
    chosen = os.environ.get(KERNEL_VARIABLE)
    kernel = find_kernel([Path(chosen)] if chosen else [Path("/boot"), cache])
    if kernel is None:
        return Missing("a kernel for guests", _kernel_hint(chosen, cache))
    initrd = cache / "initramfs.gz"
    build_initramfs(busybox, initrd)
    return GuestImage(kernel.absolute(), initrd.absolute())


def find_kernel(search: Sequence[Path]) -> Path | None:
    """Return the first x86 kernel that can be read; each place is a kernel or a folder with `vmlinuz-*` files."""
    for place in search:
        found = sorted(place.glob("vmlinuz-*"), key=_preference, reverse=True) if place.is_dir() else [place]
        for kernel in found:
            if _is_x86_kernel(kernel):
                return kernel
    return None


def find_busybox(places: Iterable[Path]) -> Path | None:
    return next((place for place in places if is_static_program(place)), None)


def is_static_program(path: Path) -> bool:
    """Whether this runs in a guest without any library: ELF for x86-64 that asks for no interpreter."""
    try:
        with path.open("rb") as file:
            header = file.read(_ELF_HEADER.size)
            magic, _, machine, _, _, table, _, _, _, size, count = _ELF_HEADER.unpack(header)
            file.seek(table)
            headers = file.read(min(size * count, _MAX_PROGRAM_HEADERS))
            kinds = [struct.unpack_from("<I", headers, at)[0] for at in range(0, len(headers), size)]
    except (OSError, OverflowError, ValueError, struct.error):
        return False
    fits = magic == _ELF64_LITTLE_ENDIAN and machine == _EM_X86_64
    return fits and 0 < count == len(kinds) and _PT_INTERP not in kinds


def build_initramfs(busybox: Path, out: Path) -> None:
    """Write the initramfs; the same busybox gives the same bytes. A guest that starts meanwhile sees old or new."""
    archive = gzip.compress(b"".join(_archive(busybox.read_bytes())), mtime=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(archive)
            os.fchmod(file.fileno(), 0o644)
        Path(temporary).replace(out)
    except BaseException:
        Path(temporary).unlink()
        raise


def _kernel_hint(chosen: str | None, cache: Path) -> str:
    if chosen:
        return f"{KERNEL_VARIABLE} names {chosen}, which is no x86 bzImage that can be read"
    folder = shlex.quote(str(cache))
    return (
        f"mkdir -p {folder} && cd {folder} && "
        "apt-get download $(apt-cache depends linux-image-cloud-amd64 | awk '/Depends:/ {print $2}') && "
        "dpkg-deb --fsys-tarfile linux-image-*.deb | tar -x --strip-components=2 --wildcards './boot/vmlinuz-*'"
        f" (or set {KERNEL_VARIABLE} to the bzImage of any Linux)"
    )


def _preference(kernel: Path) -> tuple[bool, str]:
    """Cloud kernels most: Debian packs them with LZ4, which boots sooner than the XZ of the others."""
    return "cloud" in kernel.name, kernel.name


def _is_x86_kernel(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(_BOOT_MAGIC_AT)
            return file.read(len(_BOOT_MAGIC)) == _BOOT_MAGIC
    except OSError:
        return False


def _archive(busybox: bytes) -> Iterator[bytes]:
    for folder in ("dev", "proc", "bin"):
        yield _entry(folder, _DIRECTORY)
    yield _entry("dev/console", _CONSOLE, device=_CONSOLE_DEVICE)
    yield _entry("bin/busybox", _PROGRAM, busybox)
    yield _entry("init", _PROGRAM, _INIT.encode())
    yield _entry("TRAILER!!!", 0)


def _entry(name: str, mode: int, content: bytes = b"", device: tuple[int, int] = (0, 0)) -> bytes:
    """Return one file in the "newc" form of cpio, as the kernel's early userspace document describes it."""
    named = name.encode() + b"\0"
    # Inode 0 may stand for all of them: only hard links are told apart by it, and with one link there are none.
    inode = owner = group = when = 0
    links = 1
    fields = (inode, mode, owner, group, links, when, len(content), 0, 0, *device, len(named), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(head + named) + _padded(content)


def _padded(block: bytes) -> bytes:
    return block + b"\0" * (-len(block) % 4)
