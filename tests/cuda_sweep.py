# SPDX-License-Identifier: Apache-2.0
"""Every op of an emulated CUDA module held to the accuracy contract, in a process of its own:

    python tests/cuda_sweep.py MODULE.so "3x28x28 2x64x40" [OP ...]

Exits with 0 where all of it is right. For AddressSanitizer's build, and for kernels broken on purpose.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch
from checks import assert_accurate, check, picture
from cuda_emulated import load
from torch import Tensor

import softdiff_kernels as sk

OPS = ("dct2", "idct2", "blur", "corrupt", "reverse_step", "momentum_step")
OPS += ("soft_score_loss", "spectral_loss", "spectral_mix")


def sweep(shapes: list[tuple[int, ...]], ops: tuple[str, ...]) -> None:
    key = sk.NoiseKey(3, 1, 2)
    for shape in shapes:
        batch, _, height, width = shape
        x, y = picture(*shape, seed=1), picture(*shape, seed=2)
        # Rows that begin anywhere, and a stride beyond the width.
        sliced = picture(*shape[:3], width + 3, seed=4)[..., 1 : width + 1]
        few, blurs = torch.linspace(0.3, 0.9, batch), torch.linspace(0.4, 6.0, batch)
        steps = {"blur_std_t": 1.3 * blurs, "blur_std_s": blurs}
        noises = {"noise_std_t": few, "noise_std_s": 0.5 * few}
        masks = [torch.rand(height, width), torch.rand(shape[1], 1, width)]
        calls = {
            "dct2": [((x,), {}), ((sliced,), {})],
            "idct2": [((x,), {})],
            "blur": [((x, blurs), {}), ((sliced, 2.0), {"floor": 0.1, "scale": few})],
            "corrupt": [
                ((sliced, blurs, 0.1), {"key": key, "return_residual": True}),
                ((x, 1.0, few), {"noise": y}),
            ],
            "reverse_step": [((x, y), {**steps, "a": few, "b": 0.1, "key": key})],
            "momentum_step": [
                ((sliced, y), {**steps, **noises, "key": key}),
                ((x, y), {**steps, **noises, "noise": sliced, "floor": 0.2, "variance": "small"}),
            ],
            "soft_score_loss": [
                ((x, y, blurs), {"reduction": "none", "weight": few}),
                ((x, sliced, 0.7), {"floor": 0.2}),
            ],
            # Masks of one plane, of a channel each, and of each image, the last in another order of memory.
            "spectral_loss": [
                ((x, y, masks[0]), {"reduction": "none", "weight": few}),
                ((sliced, x, masks[1].bfloat16()), {}),
                ((x, sliced, torch.rand(batch, 1, width, height).transpose(2, 3)), {}),
            ],
            "spectral_mix": [
                (([x, sliced], masks), {"noise_mask": torch.rand(height, 1), "key": key}),
                (([x, y], masks), {"noise_mask": torch.rand(1, width), "noise": sliced}),
            ],
        }
        for op in ops:
            for arguments, named in calls[op]:
                check(op, *arguments, **named)
        for op, filtered_by in (("soft_score_loss", blurs), ("spectral_loss", masks[1])):
            if op in ops:
                assert_accurate(*(gradient(op, x, y, filtered_by, dtype) for dtype in (None, torch.float64)))


def gradient(op: str, x: Tensor, y: Tensor, filtered_by: Tensor, dtype: torch.dtype | None) -> Tensor:
    """A loss's gradient in x, or (dtype) its eager twin's."""
    prediction = x.to(dtype or x.dtype, copy=True).requires_grad_()
    loss = getattr(sk if dtype is None else sk.reference, op)
    loss(prediction, y.to(prediction.dtype), filtered_by).backward()
    return prediction.grad


def run(module: Path, shapes: str, *ops: str, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The sweep in a process of its own."""
    here = Path(__file__).resolve()
    command = [sys.executable, str(here), str(module), shapes, *ops]
    path = os.pathsep.join([str(here.parents[1]), *sys.path])
    env = {**env, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    env.pop("SOFTDIFF_CUDA_SHIM", None)  # the module is loaded here
    return subprocess.run(command, env=env, capture_output=True, text=True)


def main() -> None:
    torch.set_num_threads(1)
    load(Path(sys.argv[1]))
    with sk.use_backend("cuda"):
        sweep([tuple(map(int, s.split("x"))) for s in sys.argv[2].split()], tuple(sys.argv[3:]) or OPS)
    print("right")


if __name__ == "__main__":
    main()
