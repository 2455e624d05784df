# SPDX-License-Identifier: Apache-2.0
"""What a backend is: `Backend`, which reference, native, triton and cuda meet, and mypy checks that they do.

A backend is a module or an object with two functions that say what it takes, and with the ops. Their
arguments are those of the schemas in `_ops.py`, checked before: images [B, C, H, W]; coefficients float32 or
float64, [1] or [B], of which a single number may be in host memory whatever the device; a key as three host
integers, or none, or int64 `rows` [1, 3] or [B, 3] on the device (`noise.pack_key`).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor


class Backend(Protocol):
    def status(self) -> tuple[bool, str]:
        """Whether the backend works on this machine, and the reason in words.

        Raises ValueError where an environment variable has a value that is no good.
        """

    def covers(self, op: str, device: torch.device, arguments: Sequence[Any]) -> bool:
        """Whether the backend takes a call. Images are not float64: those go to the reference."""

    def dct2(self, x: Tensor, inverse: bool) -> Tensor: ...

    def identity(self, x: Tensor) -> Tensor: ...  # template: copy this for a new op

    def blur(self, x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor: ...

    def corrupt(
        self,
        x0: Tensor,
        blur_std: Tensor,
        noise_std: Tensor,
        scale: Tensor | None,
        floor: float,
        key: Sequence[int],
        rows: Tensor | None,
        noise: Tensor | None,
        return_residual: bool,
    ) -> tuple[Tensor, Tensor]:
        """(x_t, x0 - x_t); the second is empty without return_residual."""

    def step(
        self,
        x_t: Tensor | None,
        x0_hat: Tensor,
        blur_std_t: Tensor,
        blur_std_s: Tensor,
        first: Tensor,
        second: Tensor,
        rule: str,
        floor: float,
        key: Sequence[int],
        rows: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        """rule "given": reverse_step with first = a, second = b. rule "large" or "small": momentum_step with
        that variance, first = noise_std_t, second = noise_std_s.
        """

    def step_out(
        self,
        x_t: Tensor | None,
        x0_hat: Tensor,
        blur_std_t: Tensor,
        blur_std_s: Tensor,
        first: Tensor,
        second: Tensor,
        rule: str,
        floor: float,
        key: Sequence[int],
        rows: Tensor | None,
        noise: Tensor | None,
        out: Tensor,
    ) -> None:
        """`step` into `out`, which may share memory with the images."""

    def soft_score_loss(
        self,
        prediction: Tensor,
        target: Tensor,
        blur_std: Tensor,
        weight: Tensor | None,
        floor: float,
        gradient_scale: float,
        return_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """(each image's loss [B], gradient_scale times the gradient of their sum, or None)."""

    def spectral_loss(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        weight: Tensor | None,
        gradient_scale: float,
        return_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """As `soft_score_loss`. A mask, here and below, broadcasts to [B, C, H, W]: a backend reads it by the
        strides of `mask.expand`, and never expands it in memory."""

    def spectral_mix(
        self,
        inputs: Sequence[Tensor],
        masks: Sequence[Tensor],
        noise_mask: Tensor | None,
        key: Sequence[int],
        rows: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        """With noise_mask: noise, or else what the key names, or else nothing, over the frequencies."""

    def spectral_mix_out(
        self,
        inputs: Sequence[Tensor],
        masks: Sequence[Tensor],
        noise_mask: Tensor | None,
        key: Sequence[int],
        rows: Tensor | None,
        noise: Tensor | None,
        out: Tensor,
    ) -> None:
        """`spectral_mix` into `out`, which may share memory with the images and the masks."""

    def normal(
        self,
        shape: Sequence[int],
        key: Sequence[int],
        rows: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor: ...


_warned: set[str] = set()
_lock = threading.Lock()


def warn_once(reason: str) -> None:
    """A RuntimeWarning that calls take another backend, for this reason. The same reason is given once."""
    with _lock:
        if reason in _warned:
            return
        _warned.add(reason)
    warnings.warn(f"softdiff_kernels: {reason}", RuntimeWarning, stacklevel=2)
