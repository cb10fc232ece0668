"""What pip writes of an installed package, so that its entry points are found in a folder of the path."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def described(folder: Path, package: str, group: str, points: Mapping[str, str], version: str = "1.0") -> Path:
    """Describes `package` in `folder`, with its entry points in `group`. Returns the folder."""
    written = folder / f"{package.replace('-', '_')}-{version}.dist-info"
    written.mkdir(parents=True)
    (written / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (written / "entry_points.txt").write_text("\n".join([f"[{group}]", *map(" = ".join, points.items())]))
    return folder
