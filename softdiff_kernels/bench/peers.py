# SPDX-License-Identifier: Apache-2.0
"""What one would install instead: other packages' transforms and blurs, each imported when it is used.

torch-dct and dctorch have the same transform, so that they give the same ops. The packages' Gaussian blurs
are convolutions with a sampled kernel that is cut somewhere, most with another border: not the operator of
this library, but the nearest thing that one would call. They stand beside `blur` and `corrupt` alone.
"""

from __future__ import annotations

import importlib
import math
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from . import builders
from .builders import Baseline
from .forms import DctForm, Form

# Standard deviations from the middle of a kernel to its last tap, where the function leaves the choice: what
# scipy cuts at by default. The tails beyond weigh 6e-5.
REACH = 4.0
_BORDER = "torch's 'reflect' border, which leaves out the edge pixel"
_NEAREST_OPS = ("blur", "corrupt")


def _sampled(radius: str) -> str:
    """What convolutions have in common: samples fold the spectrum, by 2 exp(-pi^2 / 2) at blur_std 1."""
    return f"sampled Gaussian cut at {radius} (off by over 1 % where blur_std is under 1 px)"


class _Installed:
    """A package that may be there: its name on PyPI, the module to import, and what pip needs besides."""

    package = ""
    module = ""
    pip = ""

    def load(self) -> Any:
        return importlib.import_module(self.module)


class TorchDct(_Installed, DctForm):
    """torch_dct.dct_2d and idct_2d: a complex FFT along each axis, twiddles made at each call."""

    package, module = "torch-dct", "torch_dct"
    group = "fft"
    source = "PyPI torch-dct, torch_dct.dct_2d and idct_2d, norm='ortho'"

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.functions = self.load()

    def dct2(self, x: Tensor) -> Tensor:
        return self.functions.dct_2d(x, norm="ortho")

    def idct2(self, u: Tensor) -> Tensor:
        return self.functions.idct_2d(u, norm="ortho")


class DcTorch(_Installed, DctForm):
    """dctorch.functional.dct2 and idct2: einsum with both axes' dense matrices, kept by the package."""

    package, module = "dctorch", "dctorch.functional"
    pip = "--no-deps "  # 0.1.2 asks for numpy < 2 without a need: pip would exchange the numpy that is there
    source = "PyPI dctorch, dctorch.functional.dct2 and idct2"

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.functions = self.load()

    def dct2(self, x: Tensor) -> Tensor:
        return self.functions.dct2(x)

    def idct2(self, u: Tensor) -> Tensor:
        return self.functions.idct2(u)


class NearestBlur(_Installed, Form):
    """A convolution in space.

    Kernels grow with blur_std up to the image's size: beyond `largest` px a side a call on a batch of
    `cases.batch_of` takes more than a second on one core.
    """

    group = "nearest"
    same = False
    on_gpu = True
    largest = 512

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.functions = self.load()

    def radius(self, std: float) -> int:
        """Pixels to a kernel's last tap. torch's reflect padding has to stay below the image's size."""
        return max(min(math.ceil(REACH * std), min(self.height, self.width) - 1), 0)


class KorniaBlur(NearestBlur):
    """One call for the batch: a sigma for each sample, all with the kernel size of the largest."""

    package, module = "kornia", "kornia.filters"
    source = "PyPI kornia, kornia.filters.gaussian_blur2d, separable"
    difference = (
        f"{_sampled('4 blur_std of the batch largest')}, at most the side less one; {_BORDER}; "
        "one blur_std for each sample in one call"
    )

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        size = 2 * self.radius(float(blur_std.max())) + 1
        sigma = blur_std[:, None].expand(-1, 2)
        return self.functions.gaussian_blur2d(x, (size, size), sigma, border_type="reflect")


class TorchvisionBlur(NearestBlur):
    """A loop over the samples, as one blur_std a call demands, each with a kernel of its own size."""

    package, module = "torchvision", "torchvision.transforms.functional"
    source = "PyPI torchvision, transforms.functional.gaussian_blur"
    difference = (
        f"{_sampled('4 blur_std')}, at most the side less one; {_BORDER}; "
        "one blur_std a call: a loop over the batch"
    )
    largest = (
        128  # a kernel in two dimensions: 0.9 s of one core at 128 px, and its area grows with the image's
    )

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        blurred = [
            self.functions.gaussian_blur(image, [2 * self.radius(std) + 1] * 2, [std, std])
            for image, std in zip(x, blur_std.tolist(), strict=True)
        ]
        return torch.stack(blurred)


class ScipyNdimageBlur(NearestBlur):
    """A loop over the samples; the border is ours, so that only the kernel differs. On one CPU core."""

    package, module = "scipy", "scipy.ndimage"
    source = "PyPI scipy, scipy.ndimage.gaussian_filter, mode='reflect', truncate=4"
    difference = f"{_sampled('4 blur_std')}; the same border; one blur_std a call: a loop over the batch"
    on_gpu = False

    def radius(self, std: float) -> int:
        return int(REACH * std + 0.5)

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for image, std, into in zip(x.numpy(), blur_std.tolist(), out.numpy(), strict=True):
            self.functions.gaussian_filter(
                image, sigma=(0.0, std, std), output=into, mode="reflect", truncate=REACH
            )
        return out


class DeepinvBlur(NearestBlur):
    """One call for the batch by FFT, which its documentation names for large kernels."""

    package, module = "deepinv", "deepinv.physics"
    source = "PyPI deepinv, physics.Blur(padding='reflect', use_fft=True), physics.functional.gaussian_blur"
    difference = (
        f"{_sampled('4 blur_std of the batch largest')}, at most the side less one; {_BORDER}; "
        "one blur_std for each sample in one call"
    )

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.physics = self.functions.Blur(padding="reflect", use_fft=True)

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        size = 2 * self.radius(float(blur_std.max())) + 1
        kernels = self.functions.functional.gaussian_blur(
            psf_size=(size, size),
            sigma=blur_std[:, None].expand(-1, 2),
            device=str(x.device),
            dtype=x.dtype,
        )
        return self.physics.A(x, filter=kernels)


PEERS: tuple[type[Any], ...] = (TorchDct, DcTorch, ScipyNdimageBlur, KorniaBlur, TorchvisionBlur, DeepinvBlur)


def _made(
    kind: type[Any], height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Form | None, str]:
    """A package's form, or None and the reason in words."""
    if device.type != "cpu" and not getattr(kind, "on_gpu", True):
        return None, "runs on the CPU alone"
    if max(height, width) > getattr(kind, "largest", max(height, width)):
        return None, f"not timed beyond {kind.largest} px: a call on a batch takes more than a second"
    try:
        return kind(height, width, dtype).to(device), ""
    except ModuleNotFoundError as error:
        if error.name is not None and kind.module.split(".")[0] == error.name.split(".")[0]:
            return None, f"not installed: pip install {kind.pip}{kind.package}"
        return None, f"does not import: {error}"
    # A package that was built for another torch fails in its own way: torchvision by a RuntimeError.
    except Exception as error:
        return None, f"does not import: {type(error).__name__}: {error}".splitlines()[0][:200]


def _name(kind: type[Any]) -> str:
    """The package with its version, and the function where the package is also there for another."""
    what = "scipy.ndimage" if kind is ScipyNdimageBlur else kind.package
    try:
        return f"{what} {metadata.version(kind.package)}"
    except metadata.PackageNotFoundError:
        return what


def peers(
    op: str,
    height: int,
    width: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> list[Baseline]:
    """The baselines of an op from the packages that are installed, for images of one size."""
    half = dtype in builders.HALVES
    found = []
    for kind in PEERS:
        if op not in _NEAREST_OPS and not kind.same:
            continue
        form, _ = _made(kind, height, width, torch.float32 if half else dtype, torch.device(device))
        call = None if form is None else builders.of(op, form)
        if form is not None and call is not None:
            made = builders.widened(call) if half else call
            found.append(Baseline(_name(kind), form.group, form.source, made, form.same, form.difference))
    return found


def absent(height: int = 1, width: int = 1, device: torch.device | str = "cpu") -> dict[str, str]:
    """The packages that `peers` leaves out at a size and on a device, each with the reason in words."""
    reasons = {}
    for kind in PEERS:
        form, reason = _made(kind, height, width, torch.float32, torch.device(device))
        if form is None:
            reasons["scipy.ndimage" if kind is ScipyNdimageBlur else kind.package] = reason
    return reasons
