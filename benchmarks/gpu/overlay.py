# SPDX-License-Identifier: Apache-2.0
"""The package in a folder of its own, with a CUDA module that nobody has to install."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "softdiff_kernels"
_OWN = ("_cuda.", "__pycache__")  # what is not the sources'


def make(folder: Path, root: Path = ROOT) -> Path:
    """Links to the package's files in folder/softdiff_kernels, where a compiled module may lie beside them.

    Whoever has `folder` first on its path imports this; the sources stay as they are.
    """
    place = folder / PACKAGE
    place.mkdir(parents=True, exist_ok=True)
    for entry in sorted((root / PACKAGE).iterdir()):
        if not entry.name.startswith(_OWN):
            (place / entry.name).symlink_to(entry)
    return place


def built(root: Path = ROOT) -> Path | None:
    """The CUDA module of an editable install, if no source has changed since it was built."""
    modules = sorted((root / PACKAGE).glob("_cuda.*"))
    sources = [p for p in (root / "csrc").rglob("*") if p.is_file()]
    if not modules or not sources:
        return None
    newest = max(p.stat().st_mtime for p in sources)
    return modules[-1] if modules[-1].stat().st_mtime >= newest else None
