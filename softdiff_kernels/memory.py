# SPDX-License-Identifier: Apache-2.0
"""How much memory this process can still use, and which errors mean that memory ran out."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

ROOT = Path("/")
_FILE_PAGES = ("active_file", "inactive_file", "slab_reclaimable")
_TOTAL_FILE_PAGES = ("total_active_file", "total_inactive_file")


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process can still allocate: the minimum of what the machine, the control groups
    (version 1 and 2, and their parents) and the limits of the process allow. None on systems without /proc.

    root: the folder of /proc and /sys.
    """
    try:
        meminfo = _numbers(root / "proc/meminfo")
    except OSError:
        return None
    machine = [meminfo["MemAvailable:"] * 1024] if "MemAvailable:" in meminfo else []
    limits = [*machine, *_groups(root), *_own_limits(root)]
    return max(0, min(limits)) if limits else None


def _numbers(path: Path) -> dict[str, int]:
    """The whole number after each name, in a file of one name per line."""
    lines = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1 and words[1].isdigit()}


def _number(path: Path) -> int | None:
    """The number in a file; None for the word max, or where there is no such file."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _groups(root: Path) -> Iterator[int]:
    """The free bytes of each control group with a limit. Pages of files count as free, because the system
    drops them when memory is short."""
    for folder, limits, usage, reclaimable in _folders(root):
        limit = min((n for name in limits if (n := _number(folder / name)) is not None), default=None)
        used = _number(folder / usage)
        if limit is None or used is None:
            continue
        try:
            stat = _numbers(folder / "memory.stat")
        except OSError:
            stat = {}
        yield limit - max(0, used - sum(stat.get(name, 0) for name in reclaimable))


Files = tuple[Path, tuple[str, ...], str, tuple[str, ...]]
"""The folder of a group, the names of its limits and of its usage, and what memory.stat counts as free."""


def _folders(root: Path) -> Iterator[Files]:
    """The groups of the process and their parents, as far as they are visible."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (root / "proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    paths: dict[str, str] = {}
    for line in groups:
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            paths["cgroup2"] = path
        elif "memory" in controllers.split(","):
            paths["cgroup"] = path
    for line in mounts:
        before, _, after = line.partition(" - ")
        kind, _, options = (after.split(" ", 2) + [""] * 3)[:3]
        top, point = before.split()[3:5]
        if kind not in paths or (kind == "cgroup" and "memory" not in options.split(",")):
            continue
        mounted = root / point.lstrip("/")
        inside = os.path.relpath(paths[kind], top)
        # A group outside of the mount is in another namespace; its files are at the top of the mount.
        group = mounted if inside.startswith("..") else mounted / inside
        for folder in (group, *group.parents):
            if kind == "cgroup2":
                yield folder, ("memory.max", "memory.high"), "memory.current", _FILE_PAGES
            else:
                yield folder, ("memory.limit_in_bytes",), "memory.usage_in_bytes", _TOTAL_FILE_PAGES
            if folder == mounted:
                break


def _own_limits(root: Path) -> Iterator[int]:
    """The free bytes under `ulimit -v` and `ulimit -d`."""
    try:
        resource = importlib.import_module("resource")
        pages = [int(word) for word in (root / "proc/self/statm").read_text(encoding="ascii").split()]
    except (ImportError, OSError):
        return
    for name, used in (("RLIMIT_AS", pages[0]), ("RLIMIT_DATA", pages[5])):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY:
            yield limit - used * resource.getpagesize()


_WORDS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|cannot allocate memory|bad_alloc"
    r"|can't start new thread|CU\w+_ALLOC_FAILED",
    re.IGNORECASE,
)
_ASKED = re.compile(r"(?:tried to|unable to) allocate ([\d.]+ \w+)", re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out. Besides MemoryError and torch.OutOfMemoryError, torch
    raises RuntimeErrors with several texts, and a mapping or a thread may fail."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and _WORDS.search(str(error)) is not None


def out_of_memory(error: BaseException) -> str:
    """The message for such an error."""
    text = str(error)
    gpu = isinstance(error, torch.OutOfMemoryError) or re.search(r"\bCU(DA|BLAS)", text) is not None
    asked = _ASKED.search(text)
    details = [f"{asked[1]} more were requested"] if asked else text.splitlines()[:1]
    with suppress(MemoryError):  # there may be too little to look it up
        if not gpu and (free := available_memory()) is not None:
            details.append(f"{free:,} bytes are free")
    detail = f" ({', '.join(details)})" if details else ""
    kind = "GPU memory" if gpu else "memory"
    return f"out of {kind}{detail}; smaller images or batches, or fewer images, need less"
