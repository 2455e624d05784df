# SPDX-License-Identifier: Apache-2.0
"""Where a network runs, and in which precision."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager, nullcontext

import torch

from ..errors import UserError
from ..memory import is_out_of_memory

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str) -> torch.device:
    """`auto` is a GPU if there is one. UserError for what is not there, or is neither CPU nor CUDA GPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    wanted = "expected auto, cpu, cuda or cuda:N"
    if re.fullmatch(r"cpu|cuda(:\d+)?", name) is None:
        raise UserError(f"--device: {wanted}, got {name!r}; softdiff runs on the CPU and on CUDA GPUs")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        why = str(error).splitlines()[0]
        raise UserError(f"--device: {wanted}, got {name!r}, which is not usable here ({why})") from None
    return device


def set_precision(precision: str) -> None:
    """TF32 products where they are asked for, and nowhere else."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


def autocast(device: torch.device, precision: str) -> AbstractContextManager[object]:
    """In which the network works in bfloat16 or float16, if that is the precision."""
    low = AUTOCAST.get(precision)
    return torch.autocast(device.type, low) if low else nullcontext()
