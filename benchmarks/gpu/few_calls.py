# SPDX-License-Identifier: Apache-2.0
"""A few calls of the ops, for a tool that watches the process.

python -m benchmarks.gpu.few_calls every --backend cuda              every op once, at sizes of each kind
python -m benchmarks.gpu.few_calls corrupt 64 --backend triton cuda  one op on a batch that fills the GPU, a
                                                                     few times, the backends in turn
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import numpy as np
import torch

import softdiff_kernels as sk

from . import rows

# For each form of either backend's kernels; the CUDA ones change at 8, 16, 24, 32, 64, 128 and 256 px.
SIZES = (8, 13, 24, 33, 64, 128, 136, 260)


def _images(side: int, count: int, dtype: torch.dtype, device: torch.device) -> list[torch.Tensor]:
    """From the host, so that the ops' kernels are nearly all that the device runs."""
    generator = np.random.default_rng(side)
    shape = (count, 2, 2, side, side)
    return list(torch.from_numpy(generator.uniform(-1, 1, shape).astype(np.float32)).to(dtype).to(device))


def every(device: torch.device, sizes: tuple[int, ...] = SIZES) -> None:
    """Every op once at each size, in float32, and the filter in bfloat16 and from bytes."""
    key = sk.NoiseKey(1, 2, 3)
    for side in sizes:
        x, y = _images(side, 2, torch.float32, device)
        std, level = torch.tensor([0.7, 3.0]).to(device), torch.tensor([0.2, 0.1]).to(device)
        mask = torch.linspace(1, 0, side * side).view(side, side).to(device)
        sk.dct2(x)
        sk.idct2(x)
        sk.blur(x, std)
        sk.corrupt(x, std, level, key=key, return_residual=True)
        sk.corrupt(((x + 1) * 100).to(torch.uint8), 1.5, 0.1, noise=y)
        steps = {"blur_std_t": std, "blur_std_s": 0.5 * std}
        sk.reverse_step(x, y, **steps, a=0.5, b=0.1, key=key)
        sk.momentum_step(x, y, **steps, noise_std_t=level, noise_std_s=0.5 * level, key=key, out=x.clone())
        sk.soft_score_loss(x.clone().requires_grad_(), y, std, weight=level).backward()
        sk.spectral_mix([x, y], [mask, mask], noise_mask=mask, key=key)
        sk.normal(x.shape, key, device=device)
        sk.corrupt(x.bfloat16().contiguous(memory_format=torch.channels_last), std, level, key=key)


def one(
    op: str, size: int, device: torch.device, backends: Sequence[str], image_bytes: int, calls: int = 3
) -> None:
    """One op on float32 images that fill the GPU, by each backend in turn."""
    batch = rows.full_batch(size, torch.float32, image_bytes)
    case = rows.make(op, size, batch, torch.float32, device)
    for _ in range(calls):
        for backend in backends:
            with sk.use_backend(backend):
                rows.ours(op, case)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op")
    parser.add_argument("size", type=int, nargs="?", default=64)
    parser.add_argument("--backend", nargs="+", default=["auto"])
    parser.add_argument("--dry", action="store_true", help="tiny, on the CPU")
    args = parser.parse_args(argv)
    device = torch.device("cpu") if args.dry else torch.device("cuda", torch.cuda.current_device())
    if args.op == "every":
        for backend in args.backend:
            with sk.use_backend(backend):
                every(device, SIZES[:2] if args.dry else SIZES)
    else:
        size, image_bytes = (8, 2**12) if args.dry else (args.size, 2**28)
        one(args.op, size, device, args.backend, image_bytes)
    if device.type == "cuda":
        torch.cuda.synchronize()
    print("done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
