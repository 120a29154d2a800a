"""Images of a VM spec: only regular files below the allowed folders, links and qcow2 layers followed."""

import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workers.images import ImageMissing, ImageRefused, check_images
from workers.specs import SpecError, VmSpec, spec_from


def a_spec(**fields: Any) -> VmSpec:
    return spec_from({"id": "vm-1", "driver": "firecracker", **fields})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / "vmlinux").write_bytes(b"kernel")
    return folder


def refusal(spec: VmSpec, *roots: Path) -> ImageRefused:
    with pytest.raises(ImageRefused) as caught:
        check_images(spec, roots)
    return caught.value


def test_images_below_a_root_are_allowed(root: Path, tmp_path: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / "a, b.raw").touch()
    (root / "link").symlink_to("sub/a, b.raw")
    spec = a_spec(
        kernel=root / "vmlinux", rootfs=root / "link", drives=[{"id": "a", "path": str(root / "sub" / "a, b.raw")}]
    )

    check_images(spec, [tmp_path / "none", root])


def test_a_root_may_be_a_link_itself(root: Path, tmp_path: Path) -> None:
    (tmp_path / "alias").symlink_to(root)

    check_images(a_spec(kernel=tmp_path / "alias" / "vmlinux"), [root])
    check_images(a_spec(kernel=root / "vmlinux"), [tmp_path / "alias"])


def test_a_missing_image_is_an_error_of_its_own(root: Path) -> None:
    drives = [{"id": "a", "path": str(root / "gone.raw")}]

    error = refusal(a_spec(kernel=root / "vmlinux", drives=drives), root)

    assert isinstance(error, ImageMissing)
    assert (error.field, error.path) == ("drives[0].path", root / "gone.raw")
    assert str(error).startswith(f"drives[0].path: {root / 'gone.raw'} is missing: put the image there")


def test_an_image_outside_of_the_roots_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "images-2").mkdir()
    (tmp_path / "images-2" / "vmlinux").touch()

    error = refusal(a_spec(kernel=tmp_path / "images-2" / "vmlinux"), root)

    assert not isinstance(error, ImageMissing)
    assert "outside of the allowed folders" in error.why


@pytest.mark.parametrize("target", ["/etc/hostname", "../secret", "/proc/self/environ"])
def test_a_link_that_leads_out_of_the_roots_is_refused(root: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").touch()
    (root / "link").symlink_to(target)

    assert "outside of the allowed folders" in refusal(a_spec(kernel=root / "link"), root).why


def test_a_folder_between_that_leads_out_is_refused(root: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "vmlinux").touch()
    (root / "sub").symlink_to(tmp_path / "other")

    assert "outside of the allowed folders" in refusal(a_spec(kernel=root / "sub" / "vmlinux"), root).why


def test_links_in_a_circle_are_refused(root: Path) -> None:
    (root / "a").symlink_to("b")
    (root / "b").symlink_to("a")

    assert "cannot be looked at" in refusal(a_spec(kernel=root / "a"), root).why


def test_what_is_no_regular_file_is_refused(root: Path) -> None:
    (root / "folder").mkdir()
    os.mkfifo(root / "pipe")

    for name in ("folder", "pipe"):
        assert "is not a regular file" in refusal(a_spec(kernel=root / name), root).why


def test_devices_and_proc_are_refused_whatever_the_roots_are(root: Path) -> None:
    (root / "null").symlink_to("/dev/null")
    (root / "environ").symlink_to("/proc/self/environ")

    for name in ("null", "environ"):
        assert "is not a regular file" in refusal(a_spec(kernel=root / name), Path("/")).why


def qcow2(path: Path, backing: str = "", *, version: int = 3, features: int = 0) -> None:
    """Write as much of a qcow2 header as names the image below."""
    offset = 512 if backing else 0
    header = struct.pack(">4sIQI52xQ", b"QFI\xfb", version, offset, len(backing.encode()), features)
    path.write_bytes(header.ljust(512, b"\0") + backing.encode())


def over(path: Path, kernel: Path) -> VmSpec:
    return spec_from(
        {
            "id": "vm-1",
            "driver": "qemu",
            "kernel": str(kernel),
            "drives": [{"id": "a", "path": str(path), "format": "qcow2"}],
        }
    )


def test_an_image_laid_over_others_below_the_roots_is_allowed(root: Path) -> None:
    (root / "base.raw").touch()
    qcow2(root / "middle.qcow2", "base.raw", version=2)
    qcow2(root / "top.qcow2", str(root / "middle.qcow2"))
    qcow2(root / "plain.qcow2")

    for name in ("top.qcow2", "plain.qcow2"):
        check_images(over(root / name, root / "vmlinux"), [root])


@pytest.mark.parametrize(
    ("backing", "why"),
    [
        ("/etc/hostname", "outside of the allowed folders"),
        ("../secret", "outside of the allowed folders"),
        ("gone.raw", "is missing"),
        ("nbd://host/x", "is not a plain file"),
        ('json:{"driver":"file"}', "is not a plain file"),
        ("/dev/null", "is no block device that is allowed"),
        ("a\0b", "cannot be looked at"),
        ("top.qcow2", "laid over more than 16 other images"),
    ],
)
def test_an_image_laid_over_something_else_is_refused(root: Path, tmp_path: Path, backing: str, why: str) -> None:
    (tmp_path / "secret").touch()
    qcow2(root / "middle.qcow2", backing)
    qcow2(root / "top.qcow2", "middle.qcow2")

    error = refusal(over(root / "top.qcow2", root / "vmlinux"), root)

    assert error.field == "drives[0].path"
    assert why in error.why


def test_an_image_that_keeps_its_data_elsewhere_is_refused(root: Path) -> None:
    qcow2(root / "top.qcow2", features=0x4)

    assert "keeps its data in another file" in refusal(over(root / "top.qcow2", root / "vmlinux"), root).why


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"QFI\xfb" + b"\xff" * 76, b"raw" * 100])
def test_a_damaged_qcow2_header_is_survived(root: Path, content: bytes) -> None:
    (root / "top.qcow2").write_bytes(content)
    spec = over(root / "top.qcow2", root / "vmlinux")

    if content.endswith(b"\xff"):
        refusal(spec, root)
    else:
        check_images(spec, [root])


def test_a_real_overlay_made_by_qemu_is_understood(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(b"\0" * 1024)
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", "../secret.raw", str(root / "top.qcow2")]
    try:
        subprocess.run(create, check=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("qemu-img is not installed")

    assert "outside of the allowed folders" in refusal(over(root / "top.qcow2", root / "vmlinux"), root).why
    check_images(over(root / "top.qcow2", root / "vmlinux"), [tmp_path])


def a_device(path: Path, kind: int) -> bool:
    """Make a device file; False where this user may not. Nothing opens it: there need be no such device."""
    try:
        os.mknod(path, kind | 0o600, os.makedev(7, 250))
    except PermissionError:
        return False
    return True


@pytest.fixture
def disk() -> Iterator[Path]:
    """A block device below /dev, by the name that /dev gives it, and by one as LVM makes them."""
    folder = Path("/dev") / f"test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("needs root: this user may make nothing in /dev")
    try:
        if not a_device(folder / "dm-1", stat.S_IFBLK) or not a_device(folder / "char", stat.S_IFCHR):
            pytest.skip("needs root: this user may make no device")
        (folder / "vm-1").symlink_to("dm-1")
        (folder / "out").symlink_to("/etc/hostname")
        (folder / "file").touch()
        yield folder
    finally:
        shutil.rmtree(folder)


def on_device(root: Path, path: Path) -> VmSpec:
    return a_spec(kernel=root / "vmlinux", drives=[{"id": "a", "path": str(path)}])


def test_a_block_device_is_allowed_by_its_name_or_by_what_the_name_leads_to(root: Path, disk: Path) -> None:
    for pattern in (f"{disk}/vm-*", f"{disk}/dm-?", str(disk / "vm-1")):
        check_images(on_device(root, disk / "vm-1"), [root], [f"{disk}/other", pattern])
    check_images(a_spec(kernel=root / "vmlinux", rootfs=disk / "vm-1"), [root], [f"{disk}/vm-*"])


@pytest.mark.parametrize(
    ("name", "patterns"),
    [
        ("vm-1", []),
        ("vm-1", ["/dev/vm-*"]),
        ("vm-1", ["/dev/*/other"]),
        ("char", ["{disk}/*"]),
        ("out", ["{disk}/*"]),
        ("file", ["{disk}/*"]),
    ],
)
def test_no_other_device_is_allowed(root: Path, disk: Path, name: str, patterns: list[str]) -> None:
    wanted = [pattern.format(disk=disk) for pattern in patterns]

    for roots in ([root], [root, Path("/dev")]):
        with pytest.raises(ImageRefused, match="is no block device that is allowed"):
            check_images(on_device(root, disk / name), roots, wanted)


def test_a_link_below_the_roots_to_a_device_that_is_not_allowed_is_refused(root: Path, disk: Path) -> None:
    (root / "link").symlink_to(disk / "vm-1")

    assert "outside of the allowed folders" in refusal(on_device(root, root / "link"), root).why
    check_images(on_device(root, root / "link"), [root], [f"{disk}/dm-1"])


def test_a_star_stays_within_one_name(root: Path, disk: Path) -> None:
    with pytest.raises(ImageRefused):
        check_images(on_device(root, disk / "vm-1"), [root], ["/dev/test*"])


@pytest.mark.parametrize("field", ["kernel", "initrd"])
def test_only_disks_are_devices(field: str) -> None:
    with pytest.raises(SpecError, match=f"{field}: must be a file, and not one below /dev"):
        a_spec(**{"kernel": "/images/vmlinux", field: "/dev/vg0/vm-1"})
