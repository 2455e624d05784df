# SPDX-License-Identifier: Apache-2.0
"""A Triton driver that compiles for a GPU and enqueues nothing: launches are counted and timed without one.

Everything up to the launch is Triton's own: its cache, its compiler, and, for a bare launch, its argument
binding. Only the last call, into the driver's C code, is replaced by one that writes its grid down.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

from softdiff_kernels import _arguments as arguments
from softdiff_kernels.backends import triton as fused
from softdiff_kernels.backends import use_backend


class _Utils:
    def load_binary(self, name: str, *_: Any) -> tuple[Any, ...]:
        return object(), name, 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    def unload_module(self, *_: Any) -> None:
        return None


class StubDriver:
    """Poses as one NVIDIA GPU of compute capability 9.0. `grids`: of each launch, with the kernel's name."""

    def __init__(self) -> None:
        from triton.backends.compiler import GPUTarget

        self.utils = _Utils()
        self.grids: list[tuple[Any, ...]] = []
        self.target = GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source: Any, metadata: Any) -> Any:
        def enqueue(x: int, y: int, z: int, stream: int, function: Any, *_: Any) -> None:
            self.grids.append((function, x, y, z))

        return enqueue

    def get_current_target(self) -> Any:
        return self.target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_empty_cache_for_benchmark(self) -> Any:
        raise NotImplementedError("nothing runs on a stub")


@contextmanager
def stubbed() -> Iterator[StubDriver]:
    """Inside, the Triton backend takes CPU tensors, compiles for sm_90, enqueues into `StubDriver.grids`."""
    import triton as triton_package

    from softdiff_kernels.backends.triton import configs, launch

    driver = StubDriver()
    triton_package.runtime.driver.set_active(driver)
    patches = [
        (fused, "_takes", lambda device: True),
        (fused, "interpreted", lambda: True),
        (fused, "status", lambda: (True, "a stub")),
        (configs, "architecture", lambda device: "sm_90"),
        (launch, "multiprocessors", lambda device: 132),
        # Nothing looks at the values of tensors on a device; these stand for such.
        (arguments, "values", lambda *_, **__: None),
        (arguments, "ordered", lambda *_, **__: None),
    ]
    try:
        with ExitStack() as stack:
            for module, name, replacement in patches:
                stack.enter_context(patch.object(module, name, replacement))
            stack.enter_context(use_backend("triton"))
            yield driver
    finally:
        launch.forget()
        launch._kernels._entries.clear()  # what a pretended capture has pinned launches into this driver
        triton_package.runtime.driver._active = None
