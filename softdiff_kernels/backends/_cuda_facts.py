# SPDX-License-Identifier: Apache-2.0
"""What _cuda_diagnosis.py judges, asked of the machine: build record, module, torch and driver."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch

from . import _build_record
from ._cuda_diagnosis import Facts


def load() -> tuple[Any, str]:
    """(the compiled module, "") or (None, why it does not import). Loading it calls nothing of CUDA's."""
    try:
        return import_module("softdiff_kernels._cuda"), ""
    except (ImportError, OSError) as error:
        return None, str(error) or type(error).__name__


def gather() -> Facts:
    """The facts here. Asks the driver for its GPUs only where torch sees one, and makes no context."""
    module, error = load()
    known: dict[str, Any] = {
        "record": _build_record.read(),
        "import_error": error,
        "torch_version": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "torch_hip": torch.version.hip,
    }
    if module is None:
        return Facts(**known)
    sees = torch.version.cuda is not None and torch.cuda.is_available()
    return Facts(
        **known,
        torch_sees_gpu=sees,
        devices=tuple(tuple(pair) for pair in module.devices()) if sees else (),
        architectures=tuple(module.architectures()),
        ptx=module.ptx_architecture(),
        runtime=module.runtime_version(),
        driver=module.driver_version(),
        emulated=module.emulated(),
    )
