# SPDX-License-Identifier: Apache-2.0
"""A test's way into a module that `build` made: what was launched, and making the next launch fail."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass


@dataclass(frozen=True)
class Launch:
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int


class Hooks:
    """`Hooks(module.__file__)`; the library is the one that Python has already loaded."""

    def __init__(self, path: str) -> None:
        self._library = ctypes.CDLL(path)

    def fail_next(self, code: int) -> None:
        """The next launch runs nothing and returns this cudaError_t."""
        self._library.softdiff_shim_fail_next(code)

    def set_shared_optin(self, size: int) -> None:
        """cudaDevAttrMaxSharedMemoryPerBlockOptin, in bytes (227 KiB at the start)."""
        self._library.softdiff_shim_set_shared_optin(size)

    def forget_launches(self) -> None:
        self._library.softdiff_shim_forget_launches()

    def launches(self) -> list[Launch]:
        """Every launch that ran since the module was loaded or `forget_launches`, in order."""
        sizes, name = (ctypes.c_longlong * 7)(), ctypes.create_string_buffer(1024)
        result = []
        for i in range(self._library.softdiff_shim_launches()):
            self._library.softdiff_shim_launch(i, sizes, name, len(name))
            a, b, c, d, e, f, shared = sizes
            result.append(Launch(name.value.decode(), (a, b, c), (d, e, f), shared))
        return result
