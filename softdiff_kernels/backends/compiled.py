# SPDX-License-Identifier: Apache-2.0
"""The ops by a compiled module, of the CPU or of CUDA: allocates the results and passes tensors as addresses.

Both modules have one function for each kernel. It takes where to run, and then what the kernel's `read` in
csrc/args.h says, in that order.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import memory
from .memory import CODES, flat, image
from .memory import key as packed


class CompiledOps(ABC):
    """The ops of `protocol.Backend`. A subclass says how to call its module."""

    @abstractmethod
    def launch(self, kernel: str, x: Tensor, arguments: tuple[object, ...], inputs: int = 1) -> None:
        """Calls the module's function `kernel` where x is; x has the shape of the images.

        arguments: as the kernel's `read` takes them. inputs: images that are transformed, each with a mask.
        """

    def coefficient(self, op: str, name: str, value: Tensor, signed: bool = False) -> Any:
        """A coefficient as the module takes it. If the module does not check its values, this does."""
        return value.data_ptr(), CODES[value.dtype], value.stride(0) if value.numel() > 1 else 0

    def check_order(self, std_t: Tensor, std_s: Tensor, noise_t: Tensor, noise_s: Tensor) -> None:  # noqa: B027
        """Checks the order of momentum_step's coefficients, if the module does not."""

    def dct2(self, x: Tensor, inverse: bool) -> Tensor:
        out = torch.empty_like(x)
        self.launch("dct2", x, (tuple(x.shape), image(x), image(out), inverse))
        return out

    def identity(self, x: Tensor) -> Tensor:
        """template: copy this for a new op. What `launch` passes on is what IdentityArgs::read takes."""
        out = torch.empty_like(x)
        self.launch("identity", x, (tuple(x.shape), image(x), image(out)))
        return out

    def blur(self, x: Tensor, blur_std: Tensor, scale: Tensor | None, floor: float) -> Tensor:
        out = torch.empty_like(x)
        self._corrupt("blur", x, blur_std, None, scale, floor, None, None, out, None)
        return out

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
        out = torch.empty_like(x0, dtype=torch.float32) if x0.dtype == torch.uint8 else torch.empty_like(x0)
        residual = torch.empty_like(out) if return_residual else None
        rows = rows if rows is None else rows.contiguous()
        self._corrupt(
            "corrupt", x0, blur_std, noise_std, scale, floor, packed(key, rows), noise, out, residual
        )
        return out, out.new_empty(0) if residual is None else residual

    def _corrupt(
        self,
        op: str,
        x0: Tensor,
        blur_std: Tensor,
        noise_std: Tensor | None,
        scale: Tensor | None,
        floor: float,
        key: tuple[int, ...] | None,
        noise: Tensor | None,
        out: Tensor,
        residual: Tensor | None,
    ) -> None:
        self.launch(
            "corrupt",
            x0,
            (
                op,
                tuple(x0.shape),
                image(x0),
                self.coefficient(op, "blur_std", blur_std),
                None if noise_std is None else self.coefficient(op, "noise_std", noise_std),
                None if scale is None else self.coefficient(op, "scale", scale, True),
                floor,
                key,
                image(noise),
                image(out),
                image(residual),
            ),
        )

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
        out = torch.empty_like(x0_hat if x_t is None else x_t)
        self._step(x_t, x0_hat, blur_std_t, blur_std_s, first, second, rule, floor, key, rows, noise, out)
        return out

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
        coefficients = (blur_std_t, blur_std_s, first, second)
        arguments = (x_t, x0_hat, *coefficients, rule, floor, key, rows, noise, out)
        memory.step_out(self.step, self._step, arguments)

    def _step(
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
        rows = rows if rows is None else rows.contiguous()
        if rule == "given":
            op, names = "reverse_step", ("a", "b")
        else:
            op, names = "momentum_step", ("noise_std_t", "noise_std_s")
        coefficients = (
            self.coefficient(op, "blur_std_t", blur_std_t),
            self.coefficient(op, "blur_std_s", blur_std_s),
            self.coefficient(op, names[0], first, rule == "given"),
            self.coefficient(op, names[1], second),
        )
        if rule != "given":
            self.check_order(blur_std_t, blur_std_s, first, second)
        self.launch(
            "step",
            out,
            (
                rule,
                tuple(out.shape),
                image(x_t),
                image(x0_hat),
                *coefficients,
                floor,
                packed(key, rows),
                image(noise),
                image(out),
            ),
        )

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
        op = "soft_score_loss"
        std = self.coefficient(op, "blur_std", blur_std)
        return self._loss(op, prediction, target, std, weight, (floor,), gradient_scale, return_gradient)

    def spectral_loss(
        self,
        prediction: Tensor,
        target: Tensor,
        mask: Tensor,
        weight: Tensor | None,
        gradient_scale: float,
        return_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        spread = memory.mask(mask, prediction.shape)
        return self._loss(
            "spectral_loss", prediction, target, spread, weight, (), gradient_scale, return_gradient
        )

    def _loss(
        self,
        op: str,
        prediction: Tensor,
        target: Tensor,
        filtered_by: object,
        weight: Tensor | None,
        options: tuple[object, ...],
        gradient_scale: float,
        return_gradient: bool,
    ) -> tuple[Tensor, Tensor | None]:
        loss = prediction.new_empty(prediction.shape[0], dtype=torch.float32)
        gradient = torch.empty_like(prediction) if return_gradient else None
        self.launch(
            op,
            prediction,
            (
                tuple(prediction.shape),
                image(prediction),
                image(target),
                filtered_by,
                None if weight is None else self.coefficient(op, "weight", weight),
                *options,
                gradient_scale,
                image(gradient),
                loss.data_ptr(),
            ),
        )
        return loss, gradient

    def spectral_mix(
        self,
        inputs: Sequence[Tensor],
        masks: Sequence[Tensor],
        noise_mask: Tensor | None,
        key: Sequence[int],
        rows: Tensor | None,
        noise: Tensor | None,
    ) -> Tensor:
        out = torch.empty_like(inputs[0])
        self._spectral_mix(inputs, masks, noise_mask, key, rows, noise, out)
        return out

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
        arguments = (inputs, masks, noise_mask, key, rows, noise, out)
        memory.spectral_mix_out(self.spectral_mix, self._spectral_mix, arguments)

    def _spectral_mix(
        self,
        inputs: Sequence[Tensor],
        masks: Sequence[Tensor],
        noise_mask: Tensor | None,
        key: Sequence[int],
        rows: Tensor | None,
        noise: Tensor | None,
        out: Tensor,
    ) -> None:
        shape = out.shape
        rows = rows if rows is None else rows.contiguous()
        self.launch(
            "spectral_mix",
            out,
            (
                tuple(shape),
                tuple(image(x) for x in inputs),
                tuple(memory.mask(m, shape) for m in masks),
                memory.mask(noise_mask, shape),
                packed(key, rows),
                image(noise),
                image(out),
            ),
            inputs=len(inputs),
        )

    def normal(
        self,
        shape: Sequence[int],
        key: Sequence[int],
        rows: Tensor | None,
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        out = torch.empty(list(shape), dtype=dtype, device=device)
        if out.numel() == 0:
            return out
        batch = shape[0]
        count = out.numel() // batch
        rows = rows if rows is None else rows.contiguous()
        self.launch("normal", out, (batch, count, packed(key, rows), flat(out, count)))
        return out
