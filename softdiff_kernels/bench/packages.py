# SPDX-License-Identifier: Apache-2.0
"""Transforms and blurs that other packages provide, each imported when it is first used.

scipy, FFTW, DUCC, torch-dct and dctorch (on a GPU CuPy and VkFFT) compute the same transform, so they give
the same ops. The Gaussian blurs of the other packages are convolutions with a sampled, truncated kernel, most
of them with another border: the nearest available function, not the operator of this library. They are timed
beside `blur` and `corrupt` only.

To add a package, write a class here and name it in `PACKAGES`, at the end.
"""

from __future__ import annotations

import contextlib
import importlib
import math
from collections.abc import Callable
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from .forms import DctForm, Form

# Standard deviations from the centre of a kernel to its last tap, where the function leaves the choice: what
# scipy truncates at by default. The tails beyond it weigh 6e-5.
REACH = 4.0
_BORDER = "torch's 'reflect' border, which leaves out the edge pixel"


def _sampled(radius: str) -> str:
    """What convolutions have in common: sampling aliases the spectrum, by 2 exp(-pi^2 / 2) at blur_std 1."""
    return f"sampled Gaussian cut at {radius} (off by over 1 % where blur_std is under 1 px)"


def _orthonormal(height: int, width: int, dtype: torch.dtype) -> Tensor:
    """What makes `4 sum x cos cos` the orthonormal DCT-II, [H, W]: 1 / sqrt(2 n) along an axis, the mean's
    1 / sqrt(4 n)."""
    along_h, along_w = (torch.full((n,), 1 / math.sqrt(2 * n), dtype=dtype) for n in (height, width))
    along_h[0] /= math.sqrt(2)
    along_w[0] /= math.sqrt(2)
    return along_h[:, None] * along_w


class Package(Form):
    """A form that needs a package.

    package: its name on PyPI. module: what to import. pip: extra words for pip. device: the only type of
    device that it runs on, or None. largest: pixels a side beyond which it is not timed, because a call on a
    batch of `cases.batch_of` takes more than a second on one core; None: no bound.
    """

    package = ""
    module = ""
    pip = ""
    device: str | None = None
    largest: int | None = None

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.functions: Any = importlib.import_module(self.module)


def make(
    kind: type[Form], height: int, width: int, dtype: torch.dtype, device: torch.device
) -> tuple[Form | None, str]:
    """A form with its tables on the device; or None, and the reason in words."""
    if not issubclass(kind, Package):
        return kind(height, width, dtype).to(device), ""
    if kind.device not in (None, device.type):
        return None, f"runs on {'the CPU' if kind.device == 'cpu' else 'CUDA GPUs'} alone"
    if kind.largest is not None and max(height, width) > kind.largest:
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


class HostDct(Package, DctForm):
    """A transform of numpy arrays in the CPU's memory, with as many threads as PyTorch has; no autograd."""

    device = "cpu"
    autograd = False

    def inverse_in_place(self, u: Tensor) -> Tensor:
        """`idct2` that may overwrite u."""
        return self.idct2(u)

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        return self.inverse_in_place(self.dct2(x).mul_(self.gain(blur_std)))


class ScipyDct(HostDct):
    """scipy.fft.dctn and idctn."""

    name = "scipy"
    package, module = "scipy", "scipy.fft"
    source = "scipy.fft (pocketfft), norm='ortho', type 2"

    def dct2(self, x: Tensor) -> Tensor:
        return self._call(self.functions.dctn, x, False)

    def idct2(self, u: Tensor) -> Tensor:
        return self._call(self.functions.idctn, u, False)

    def inverse_in_place(self, u: Tensor) -> Tensor:
        return self._call(self.functions.idctn, u, True)

    @staticmethod
    def _call(transform: Callable[..., Any], x: Tensor, overwrite: bool) -> Tensor:
        options = {"axes": (-2, -1), "norm": "ortho", "workers": torch.get_num_threads()}
        return torch.from_numpy(transform(x.numpy(), overwrite_x=overwrite, **options))


class Ducc(HostDct):
    """ducc0.fft.dct, types 2 and 3, orthonormal; results in memory of PyTorch's, which it can reuse."""

    name = "DUCC"
    package, module = "ducc0", "ducc0.fft"
    source = "PyPI ducc0, ducc0.fft.dct, types 2 and 3, inorm=1"

    def _call(self, x: Tensor, kind: int, out: Tensor) -> Tensor:
        threads = torch.get_num_threads()
        self.functions.dct(x.numpy(), kind, axes=(-2, -1), inorm=1, out=out.numpy(), nthreads=threads)
        return out

    def dct2(self, x: Tensor) -> Tensor:
        return self._call(x, 2, torch.empty_like(x))

    def idct2(self, u: Tensor) -> Tensor:
        return self._call(u, 3, torch.empty_like(u))

    def inverse_in_place(self, u: Tensor) -> Tensor:
        return self._call(u, 3, u)


class Fftw(HostDct):
    """FFTW's REDFT10 and REDFT01, which are not normalised: `blur` does that with the mask, in one pass.

    A plan is made by FFTW_MEASURE at the first call for a shape, a direction and a number of threads, and
    kept; so planning belongs to the warm-up.
    """

    name = "FFTW"
    package, module = "pyfftw", "pyfftw"
    source = "PyPI pyfftw, FFTW 3 REDFT10 and REDFT01, planned by FFTW_MEASURE, plans kept"

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.scale = _orthonormal(height, width, dtype)
        # REDFT01 after REDFT10 multiplies by 2 n on each axis.
        self.round_trip = 1 / (4 * height * width)
        self.unscale = self.round_trip / self.scale
        self._plans: dict[Any, Any] = {}

    def _plan(self, x: Tensor, direction: str) -> Any:
        key = (direction, tuple(x.shape), x.dtype, torch.get_num_threads())
        if key not in self._plans:
            source, target = (
                torch.empty_like(x).numpy(),
                torch.empty_like(x).numpy(),
            )  # overwritten by planning
            self._plans[key] = self.functions.FFTW(
                *(source, target),
                axes=(x.dim() - 2, x.dim() - 1),
                direction=(direction, direction),
                flags=("FFTW_MEASURE",),
                threads=torch.get_num_threads(),
            )
        return self._plans[key]

    def _call(self, x: Tensor, direction: str) -> Tensor:
        x = x.contiguous()
        out = torch.empty_like(x)
        self._plan(x, direction)(x.numpy(), out.numpy(), normalise_idft=False)
        return out

    def dct2(self, x: Tensor) -> Tensor:
        return self._call(x, "FFTW_REDFT10").mul_(self.scale)

    def idct2(self, u: Tensor) -> Tensor:
        return self._call(u * self.unscale, "FFTW_REDFT01")

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        u = self._call(x, "FFTW_REDFT10").mul_(self.gain(blur_std) * self.round_trip)
        return self._call(u, "FFTW_REDFT01")


class CupyDct(Package, DctForm):
    """cupyx.scipy.fft.dctn and idctn on PyTorch's current stream; no autograd. Not yet run on a GPU."""

    name = "CuPy"
    package, module = "cupy", "cupyx.scipy.fft"
    source = "CuPy, cupyx.scipy.fft.dctn and idctn, norm='ortho', by DLPack"
    device = "cuda"
    autograd = False

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.cupy: Any = importlib.import_module("cupy")

    def _on_torchs_stream(self, call: Callable[[Any, int], Any], x: Tensor) -> Tensor:
        """`call` of the CuPy array over x's memory and of the stream's pointer; its result as a tensor."""
        stream = torch.cuda.current_stream(x.device).cuda_stream
        with self.cupy.cuda.ExternalStream(stream):
            return torch.from_dlpack(call(self.cupy.from_dlpack(x.detach().contiguous()), stream))

    def dct2(self, x: Tensor) -> Tensor:
        dctn = self.functions.dctn
        return self._on_torchs_stream(lambda a, _: dctn(a, axes=(-2, -1), norm="ortho"), x)

    def idct2(self, u: Tensor) -> Tensor:
        idctn = self.functions.idctn
        return self._on_torchs_stream(lambda a, _: idctn(a, axes=(-2, -1), norm="ortho"), u)


class VkFft(CupyDct):
    """pyvkfft's dctn and idctn, whose inverse alone is normalised, so a blur needs no scaling.

    Its plans ("apps") are kept by the package. Not yet run on a GPU.
    """

    name = "VkFFT"
    package, module = "pyvkfft", "pyvkfft.fft"
    source = "PyPI pyvkfft, pyvkfft.fft.dctn and idctn, norm=1, by CuPy and DLPack"

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.scale = _orthonormal(height, width, dtype)

    def _raw(self, name: str, x: Tensor) -> Tensor:
        transform = getattr(self.functions, name)
        return self._on_torchs_stream(lambda a, s: transform(a, ndim=2, norm=1, cuda_stream=s), x)

    def dct2(self, x: Tensor) -> Tensor:
        return self._raw("dctn", x).mul_(self.scale)

    def idct2(self, u: Tensor) -> Tensor:
        return self._raw("idctn", u / self.scale)

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        return self._raw("idctn", self._raw("dctn", x).mul_(self.gain(blur_std)))


class TorchDct(Package, DctForm):
    """torch_dct.dct_2d and idct_2d: a complex FFT along each axis, twiddles computed at each call."""

    name = "torch-dct"
    package, module = name, "torch_dct"
    group = "fft"
    source = "PyPI torch-dct, torch_dct.dct_2d and idct_2d, norm='ortho'"

    def dct2(self, x: Tensor) -> Tensor:
        return self.functions.dct_2d(x, norm="ortho")

    def idct2(self, u: Tensor) -> Tensor:
        return self.functions.idct_2d(u, norm="ortho")


class DcTorch(Package, DctForm):
    """dctorch.functional.dct2 and idct2: einsum with both axes' dense matrices, kept by the package."""

    name = "dctorch"
    package, module = name, "dctorch.functional"
    pip = "--no-deps "  # 0.1.2 requires numpy < 2 without need: pip would replace the numpy that is there
    source = "PyPI dctorch, dctorch.functional.dct2 and idct2"

    def dct2(self, x: Tensor) -> Tensor:
        return self.functions.dct2(x)

    def idct2(self, u: Tensor) -> Tensor:
        return self.functions.idct2(u)


class NearestBlur(Package):
    """A convolution in space, with kernels that grow with blur_std up to the image's size."""

    group = "nearest"
    same = False
    largest = 512

    def radius(self, std: float) -> int:
        """Pixels to a kernel's last tap. torch's reflect padding has to stay below the image's size."""
        return max(min(math.ceil(REACH * std), min(self.height, self.width) - 1), 0)


class KorniaBlur(NearestBlur):
    """One call for the batch: a sigma for each sample, all with the kernel size of the largest."""

    name = "kornia"
    package, module = name, "kornia.filters"
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
    """A loop over the samples, since a call takes one blur_std, each with a kernel of its own size."""

    name = "torchvision"
    package, module = name, "torchvision.transforms.functional"
    source = "PyPI torchvision, transforms.functional.gaussian_blur"
    difference = (
        f"{_sampled('4 blur_std')}, at most the side less one; {_BORDER}; "
        "one blur_std a call: a loop over the batch"
    )
    # A kernel in two dimensions: 0.9 s of one core at 128 px, and its area grows with the image's.
    largest = 128

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        blurred = [
            self.functions.gaussian_blur(image, [2 * self.radius(std) + 1] * 2, [std, std])
            for image, std in zip(x, blur_std.tolist(), strict=True)
        ]
        return torch.stack(blurred)


class ScipyNdimageBlur(NearestBlur):
    """A loop over the samples; the border is ours, so only the kernel differs. On one CPU core."""

    name = "scipy.ndimage"
    package, module = "scipy", name
    source = "PyPI scipy, scipy.ndimage.gaussian_filter, mode='reflect', truncate=4"
    difference = f"{_sampled('4 blur_std')}; the same border; one blur_std a call: a loop over the batch"
    device = "cpu"

    def radius(self, std: float) -> int:
        return int(REACH * std + 0.5)

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        out = torch.empty_like(x)
        for image, std, into in zip(x.numpy(), blur_std.tolist(), out.numpy(), strict=True):
            sigma = (0.0, std, std)
            self.functions.gaussian_filter(image, sigma, output=into, mode="reflect", truncate=REACH)
        return out


class DeepinvBlur(NearestBlur):
    """One call for the batch by FFT, which its documentation recommends for large kernels."""

    name = "deepinv"
    package, module = name, "deepinv.physics"
    source = "PyPI deepinv, physics.Blur(padding='reflect', use_fft=True), physics.functional.gaussian_blur"
    difference = KorniaBlur.difference

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


PACKAGES: tuple[type[Package], ...] = (
    *(ScipyDct, Fftw, Ducc, CupyDct, VkFft, TorchDct, DcTorch),
    *(ScipyNdimageBlur, KorniaBlur, TorchvisionBlur, DeepinvBlur),
)
"""All of them; each takes part where it can be imported and is fast enough."""


def absent(height: int = 1, width: int = 1, device: torch.device | str = "cpu") -> dict[str, str]:
    """The packages that are left out at a size and on a device, each with the reason in words."""
    made = {kind: make(kind, height, width, torch.float32, torch.device(device)) for kind in PACKAGES}
    return {kind.name: reason for kind, (form, reason) in made.items() if form is None}


def versions() -> dict[str, str]:
    """The versions of the packages that are installed."""
    out = {}
    for name in sorted({kind.package for kind in PACKAGES}):
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out
