# SPDX-License-Identifier: Apache-2.0
"""The calls that stand for all others where kernels are compiled ahead of time or timed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import configs, ops
from ..launch import Launch, recording

ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")
# One shape for each entry of the table, and more that take other paths through a kernel.
SHAPES = {"256": (16, 16), "512": (16, 32), "1024": (32, 32), "2048": (32, 64), "4096": (64, 64)}
LARGE = (128, 128)
EXTRA_SHAPES = ((8, 8), (28, 28), (30, 34), (33, 63), (96, 160), (256, 256), (512, 512), (100, 70))
# What is tried for an entry: (warps, stages, bk), by the padded pixels of a plane or "staged".
CHOICES = {
    "256": [(1, 2, 0), (2, 2, 0)],
    "512": [(1, 2, 0), (2, 2, 0)],
    "1024": [(1, 2, 0), (2, 2, 0)],
    "2048": [(2, 2, 0), (4, 2, 0)],
    "4096": [(4, 2, 0), (8, 2, 0)],
    "staged": [(4, 2, 32), (4, 3, 32), (4, 2, 64), (8, 2, 32)],
}
# Ops whose products keep all digits whatever the images are, so that the table has one precision of them.
ALWAYS_SPLIT = ("soft_score_loss", "spectral_loss", "dct2", "spectral_mix")


@dataclass(frozen=True)
class Case:
    """One kernel to compile: an op with its options at a shape and dtype, for an architecture.

    extra: it is not what an entry of the table was chosen by, but shares it.
    """

    op: str
    height: int
    width: int
    dtype: str
    arch: str
    option: str = ""
    extra: bool = False


def call(case: Case, x: Tensor, z: Tensor, std: Tensor, mask: Tensor, backend: Any = ops) -> None:
    """Calls a backend's op on images [B, C, H, W], coefficients [B] and a mask [H, W]."""
    key = [1, 2, 3]
    if case.op == "corrupt":
        if case.option == "blur":
            backend.blur(x, std, std, 0.1)
        else:
            backend.corrupt(x, std, std, None, 0.0, key, None, None, case.option == "residual")
    elif case.op == "step":
        backend.step(x, z, std, std, std, std, case.option or "large", 0.0, key, None, None)
    elif case.op == "soft_score_loss":
        backend.soft_score_loss(x, z, std, std, 0.0, 1.0, case.option != "forward")
    elif case.op == "spectral_loss":
        backend.spectral_loss(x, z, mask, std, 1.0, case.option != "forward")
    elif case.op == "dct2":
        backend.dct2(x, case.option == "inverse")
    elif case.op == "spectral_mix":
        backend.spectral_mix([x, z], [mask, mask], mask, key, None, x if case.option == "noise" else None)
    else:
        backend.normal(x.shape, key, None, x.dtype, x.device)


def launches(case: Case) -> list[Launch]:
    """What the case would enqueue on its architecture, for a batch that fills a small GPU."""
    dtype = getattr(torch, case.dtype)
    x = torch.empty(4, 3, case.height, case.width, dtype=torch.uint8 if case.option == "uint8" else dtype)
    z = torch.empty(x.shape, dtype=dtype)
    if case.option == "channels_last":
        x, z = (t.contiguous(memory_format=torch.channels_last) for t in (x, z))
    with recording() as recorded, _pretending(case.arch):
        call(case, x, z, torch.ones(4), torch.empty(case.height, case.width))
    return recorded


def pixels(case: Case) -> int:
    """How many pixels one program of the case's kernel takes at a time."""
    if case.op == "normal":
        return math.prod(ops.NORMALS)
    sizes = configs.sizes_of(case.height, case.width)
    large = max(case.height, case.width) > configs.LARGEST_TILE
    return configs.TILE**2 if large else sizes[2] * sizes[3]


@contextmanager
def _pretending(arch: str) -> Iterator[None]:
    """Inside, every device is of the given architecture."""
    before = configs.architecture, ops.FAST
    ops.FAST = arch != "amd"
    configs.architecture = lambda device: arch  # type: ignore[assignment]
    try:
        yield
    finally:
        configs.architecture, ops.FAST = before


def entry(case: Case) -> str:
    """The case's key in the table."""
    split = case.op in ALWAYS_SPLIT or case.dtype != "bfloat16"
    return configs.entry_name(case.op, split, configs.sizes_of(case.height, case.width))


def choices(case: Case) -> list[configs.Config]:
    """What is tried for a case."""
    form = entry(case).rsplit("/", 1)[1]
    split = "/split/" in entry(case)
    # Split products take no deeper steps: `plane.product` says why.
    candidates = [configs.Config(*choice) for choice in CHOICES[form] if not split or choice[2] <= 32]
    if case.op == "spectral_mix" and form == "4096":
        # Staged: two spectra of 64 x 64 overfill sm_80's registers.
        candidates.append(configs.Config(4, 2, 32))
    return candidates


def table_cases(arch: str) -> Iterator[Case]:
    """One case for each entry of the table."""
    for op in configs.OPS:
        for dtype in ("float32",) if op in ALWAYS_SPLIT else ("float32", "bfloat16"):
            for height, width in (*SHAPES.values(), LARGE):
                yield Case(op, height, width, dtype, arch)


def extra_cases(arch: str) -> Iterator[Case]:
    """Other paths: odd sizes, options, layouts, dtypes."""
    for case in _extra_cases(arch):
        yield replace(case, extra=True)


def _extra_cases(arch: str) -> Iterator[Case]:
    for height, width in EXTRA_SHAPES:
        yield Case("corrupt", height, width, "float32", arch)
        yield Case("step", height, width, "float32", arch)
    for option in ("residual", "uint8", "channels_last", "blur"):
        for size in (32, 64, 128):
            yield Case("corrupt", size, size, "float32", arch, option)
    for size in (32, 64, 128):
        yield Case("corrupt", size, size, "float16", arch)
        yield Case("step", size, size, "float32", arch, "given")
        yield Case("soft_score_loss", size, size, "float32", arch, "forward")
        yield Case("soft_score_loss", size, size, "bfloat16", arch)
        yield Case("spectral_loss", size, size, "float32", arch, "forward")
        yield Case("spectral_mix", size, size, "float32", arch, "noise")
        yield Case("dct2", size, size, "float32", arch, "inverse")
    yield Case("normal", 64, 64, "float32", arch)
    yield Case("normal", 64, 64, "bfloat16", arch)


def subset() -> list[Case]:
    """A few for each architecture, that take every kernel, form and precision between them."""
    cases = []
    for arch in ARCHITECTURES:
        cases += [
            Case("corrupt", 64, 64, "float32", arch),
            Case("step", 32, 32, "float32", arch),
            Case("soft_score_loss", 64, 64, "float32", arch),
            Case("spectral_loss", 64, 64, "float32", arch),
            Case("corrupt", 128, 128, "float32", arch),
        ]
    cases += [
        Case("corrupt", 32, 32, "bfloat16", "sm_80"),
        Case("corrupt", 30, 34, "float16", "sm_90"),
        Case("step", 33, 63, "float32", "sm_90"),
        Case("step", 256, 256, "bfloat16", "sm_80"),
        Case("dct2", 64, 64, "float32", "sm_100"),
        Case("dct2", 512, 512, "float32", "sm_80"),
        Case("spectral_mix", 64, 64, "float32", "sm_80"),
        Case("spectral_mix", 128, 128, "float32", "sm_120"),
        Case("spectral_mix", 32, 32, "float32", "sm_90", "noise"),
        Case("soft_score_loss", 96, 160, "float32", "sm_90"),
        Case("spectral_loss", 96, 160, "bfloat16", "sm_80"),
        Case("corrupt", 64, 64, "float32", "sm_120", "uint8"),
        Case("normal", 64, 64, "float32", "sm_90"),
    ]
    return cases
