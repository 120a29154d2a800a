"""Packages as importlib.metadata sees them, without an installer: a folder with the metadata of one."""

from collections.abc import Mapping
from pathlib import Path

from workers.vmm.plugins import GROUP


def install(folder: Path, name: str, points: Mapping[str, str]) -> None:
    """Write the metadata of a package with these drivers into a folder, which then has to be on sys.path."""
    info = folder / f"{name.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
    lines = [f"[{GROUP}]", *(f"{point} = {value}" for point, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
