# SPDX-License-Identifier: Apache-2.0
"""How much memory this process may still use, and errors that mean that there was none."""

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
    """Bytes that this process can still take: the least of what the machine, its control groups (version 1
    and 2, with those above them) and its own limits leave. None where there is no /proc to ask.

    root: where /proc and /sys are.
    """
    try:
        meminfo = _numbers(root / "proc/meminfo")
    except OSError:
        return None
    machine = [meminfo["MemAvailable:"] * 1024] if "MemAvailable:" in meminfo else []
    left = [*machine, *_groups(root), *_own_limits(root)]
    return max(0, min(left)) if left else None


def _numbers(path: Path) -> dict[str, int]:
    """Lines of a name and a whole number."""
    found = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return {words[0]: int(words[1]) for words in found if len(words) > 1 and words[1].isdigit()}


def _number(path: Path) -> int | None:
    """A file's one number; None for the word max, or where there is no such file."""
    try:
        return int(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _groups(root: Path) -> Iterator[int]:
    """What each limited control group leaves. Pages of files count as free: they give way when memory is
    short."""
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
"""A group's folder, the names of its limits and of its usage, and what counts as free in memory.stat."""


def _folders(root: Path) -> Iterator[Files]:
    """The process's groups and those above, as far as they can be seen."""
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
        # A group outside of what is mounted is seen from a namespace of its own: its files are at the top.
        group = mounted if inside.startswith("..") else mounted / inside
        for folder in (group, *group.parents):
            if kind == "cgroup2":
                yield folder, ("memory.max", "memory.high"), "memory.current", _FILE_PAGES
            else:
                yield folder, ("memory.limit_in_bytes",), "memory.usage_in_bytes", _TOTAL_FILE_PAGES
            if folder == mounted:
                break


def _own_limits(root: Path) -> Iterator[int]:
    """What `ulimit -v` and `ulimit -d` leave."""
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
    """Whether an error means that memory ran out: torch has RuntimeErrors of several texts beside
    MemoryError and torch.OutOfMemoryError, and a failed mapping or thread is one too."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, (RuntimeError, OSError)) and _WORDS.search(str(error)) is not None


def out_of_memory(error: BaseException) -> str:
    """The sentence for such an error."""
    text = str(error)
    gpu = isinstance(error, torch.OutOfMemoryError) or re.search(r"\bCU(DA|BLAS)", text) is not None
    asked = _ASKED.search(text)
    told = [f"{asked[1]} more were asked for"] if asked else text.splitlines()[:1]
    with suppress(MemoryError):  # there may be none to ask with
        if not gpu and (room := available_memory()) is not None:
            told.append(f"{room:,} bytes are free")
    more = f" ({', '.join(told)})" if told else ""
    whose = "GPU memory" if gpu else "memory"
    return f"out of {whose}{more}; smaller images or batches, or fewer images, need less"
