# SPDX-License-Identifier: Apache-2.0
"""Compiles the kernels of a part of the benchmark's rows: Triton keeps them on disk for who asks next."""

from __future__ import annotations

import argparse
import sys

import torch

import softdiff_kernels as sk

from . import bench, rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shard", default="0/1", help="the rows I, I + N, I + 2 N ... alone")
    args = parser.parse_args(argv)
    first, step = map(int, args.shard.split("/"))
    device = torch.device("cuda", torch.cuda.current_device())
    # Enough planes to fill the GPU: fewer take other kernels above 64 px.
    batch = torch.cuda.get_device_properties(device).multi_processor_count // 3 + 1
    with sk.use_backend("triton"):
        for op, size, dtype in bench.order()[first::step]:
            rows.ours(op, rows.make(op, size, batch, dtype, device))
    torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
