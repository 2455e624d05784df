# SPDX-License-Identifier: Apache-2.0
"""Transforms and blurs that other packages provide, each imported when it is first used.

scipy, FFTW, DUCC, torch-dct and dctorch (on a GPU CuPy and VkFFT) compute the same transform, so they give
the same ops. The Gaussian blurs of the other packages are convolutions with a sampled, truncated kernel, most
of them with another border: the nearest available function, not the operator of this library. They are timed
beside `blur` and `corrupt` only.

To add a package, write a class here and name it in `PACKAGES`, at the end.
"""

from __future__ import annotations

import importlib
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from .. import _machine
from .forms import DctForm, Form

# Standard deviations from the centre of a kernel to its last tap, where the function leaves the choice: what
# scipy truncates at by default. The tails beyond it weigh 6e-5.
REACH = 4.0
_PADDED = "at most the side less one; torch's 'reflect' border, which leaves out the edge pixel"
_TOGETHER = "one blur_std for each sample in one call"
_LOOP = "one blur_std a call: a loop over the batch"


def _sampled(radius: str) -> str:
    """What convolutions have in common: sampling aliases the spectrum, by 2 exp(-pi^2 / 2) at blur_std 1."""
    return f"sampled Gaussian cut at {radius} (off by over 1 % where blur_std is under 1 px)"


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


class PackageDct(Package, DctForm):
    """A package's pair of transforms.

    pair: the names of its DCT-II and of the inverse. options: what both are called with.
    """

    pair = ("dctn", "idctn")
    options: ClassVar[dict[str, Any]] = {}

    def transform(self, x: Tensor, inverse: bool, reuse: bool = False) -> Tensor:
        """The package's transform as it scales it. reuse: the result may overwrite x."""
        return getattr(self.functions, self.pair[inverse])(x, **self.options)

    def dct2(self, x: Tensor) -> Tensor:
        return self.transform(x, False)

    def idct2(self, u: Tensor) -> Tensor:
        return self.transform(u, True)


class HostDct(PackageDct):
    """A transform of numpy arrays in the CPU's memory, with as many threads as PyTorch has; no autograd."""

    device, autograd = "cpu", False

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        return self.transform(self.dct2(x).mul_(self.gain(blur_std)), True, reuse=True)


class UnscaledDct(PackageDct):
    """A pair that is not orthonormal: `blur` scales with the mask, in one pass.

    inverts: whether the inverse undoes the transform. If not, both together multiply by 2 n on each axis.
    """

    inverts = False

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        # What makes `4 sum x cos cos` the orthonormal DCT-II: 1 / sqrt(2 n) along an axis, the mean's
        # 1 / sqrt(4 n).
        factors = ([(4 * n) ** -0.5] + [(2 * n) ** -0.5] * (n - 1) for n in (height, width))
        along_h, along_w = (torch.tensor(values, dtype=dtype) for values in factors)
        self.scale = along_h[:, None] * along_w
        self.round_trip = 1.0 if self.inverts else 1 / (4 * height * width)
        self.unscale = self.round_trip / self.scale

    def dct2(self, x: Tensor) -> Tensor:
        return self.transform(x, False).mul_(self.scale)

    def idct2(self, u: Tensor) -> Tensor:
        return self.transform(u * self.unscale, True)

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        mask = self.gain(blur_std)
        if not self.inverts:
            mask *= self.round_trip
        return self.transform(self.transform(x, False).mul_(mask), True)


class ScipyDct(HostDct):
    """scipy.fft.dctn and idctn."""

    name = "scipy"
    package, module = "scipy", "scipy.fft"
    source = "scipy.fft (pocketfft), norm='ortho', type 2"
    options: ClassVar = {"axes": (-2, -1), "norm": "ortho"}

    def transform(self, x: Tensor, inverse: bool, reuse: bool = False) -> Tensor:
        function, workers = getattr(self.functions, self.pair[inverse]), torch.get_num_threads()
        return torch.from_numpy(function(x.numpy(), overwrite_x=reuse, workers=workers, **self.options))


class Ducc(HostDct):
    """ducc0.fft.dct, types 2 and 3, orthonormal; results in memory of PyTorch's, which it can reuse."""

    name = "DUCC"
    package, module = "ducc0", "ducc0.fft"
    source = "PyPI ducc0, ducc0.fft.dct, types 2 and 3, inorm=1"
    options: ClassVar = {"axes": (-2, -1), "inorm": 1}

    def transform(self, x: Tensor, inverse: bool, reuse: bool = False) -> Tensor:
        out, threads = x if reuse else torch.empty_like(x), torch.get_num_threads()
        self.functions.dct(x.numpy(), 2 + inverse, out=out.numpy(), nthreads=threads, **self.options)
        return out


class Fftw(UnscaledDct, HostDct):
    """FFTW's REDFT10 and REDFT01, which are not normalised.

    A plan is made by FFTW_MEASURE at the first call for a shape, a direction and a number of threads, and
    kept; so planning belongs to the warm-up.
    """

    name = "FFTW"
    package, module = "pyfftw", "pyfftw"
    source = "PyPI pyfftw, FFTW 3 REDFT10 and REDFT01, planned by FFTW_MEASURE, plans kept"
    pair = ("FFTW_REDFT10", "FFTW_REDFT01")
    options: ClassVar = {"axes": (-2, -1), "flags": ("FFTW_MEASURE",)}

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self._plans: dict[Any, Any] = {}

    def transform(self, x: Tensor, inverse: bool, reuse: bool = False) -> Tensor:
        x, threads = x.contiguous(), torch.get_num_threads()
        out = torch.empty_like(x)
        key = (inverse, tuple(x.shape), x.dtype, threads)
        if key not in self._plans:
            # Planning overwrites both arrays.
            arrays = (torch.empty_like(x).numpy(), torch.empty_like(x).numpy())
            directions = (self.pair[inverse],) * 2
            self._plans[key] = self.functions.FFTW(
                *arrays, direction=directions, threads=threads, **self.options
            )
        self._plans[key](x.numpy(), out.numpy(), normalise_idft=False)
        return out


class CupyDct(PackageDct):
    """cupyx.scipy.fft.dctn and idctn on PyTorch's current stream; no autograd. Not yet run on a GPU."""

    name = "CuPy"
    package, module = "cupy", "cupyx.scipy.fft"
    source = "CuPy, cupyx.scipy.fft.dctn and idctn, norm='ortho', by DLPack"
    device, autograd = "cuda", False
    options: ClassVar = {"axes": (-2, -1), "norm": "ortho"}
    # The name of the option that takes the stream's pointer, for a package that does not use CuPy's stream.
    stream_option = ""

    def __init__(self, height: int, width: int, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(height, width, dtype)
        self.cupy: Any = importlib.import_module("cupy")

    def transform(self, x: Tensor, inverse: bool, reuse: bool = False) -> Tensor:
        stream = torch.cuda.current_stream(x.device).cuda_stream
        options = {**self.options, self.stream_option: stream} if self.stream_option else self.options
        with self.cupy.cuda.ExternalStream(stream):
            array = self.cupy.from_dlpack(x.detach().contiguous())
            return torch.from_dlpack(getattr(self.functions, self.pair[inverse])(array, **options))


class VkFft(UnscaledDct, CupyDct):
    """pyvkfft's dctn and idctn, whose inverse alone is normalised, so a blur needs no scaling.

    Its plans ("apps") are kept by the package. Not yet run on a GPU.
    """

    name = "VkFFT"
    package, module = "pyvkfft", "pyvkfft.fft"
    source = "PyPI pyvkfft, pyvkfft.fft.dctn and idctn, norm=1, by CuPy and DLPack"
    options: ClassVar = {"ndim": 2, "norm": 1}
    stream_option = "cuda_stream"
    inverts = True


class TorchDct(PackageDct):
    """torch_dct.dct_2d and idct_2d: a complex FFT along each axis, twiddles computed at each call."""

    name = "torch-dct"
    package, module = name, "torch_dct"
    group = "fft"
    source = "PyPI torch-dct, torch_dct.dct_2d and idct_2d, norm='ortho'"
    pair = ("dct_2d", "idct_2d")
    options: ClassVar = {"norm": "ortho"}


class DcTorch(PackageDct):
    """dctorch.functional.dct2 and idct2: einsum with both axes' dense matrices, kept by the package."""

    name = "dctorch"
    package, module = name, "dctorch.functional"
    pip = "--no-deps "  # 0.1.2 requires numpy < 2 without need: pip would replace the numpy that is there
    source = "PyPI dctorch, dctorch.functional.dct2 and idct2"
    pair = ("dct2", "idct2")


class NearestBlur(Package):
    """A convolution in space, with kernels that grow with blur_std up to the image's size.

    The package takes one blur_std a call, or the class has a `blur` of its own.
    """

    group = "nearest"
    same = False
    largest = 512

    def radius(self, std: float) -> int:
        """Pixels to a kernel's last tap. torch's reflect padding has to stay below the image's size."""
        return max(min(math.ceil(REACH * std), min(self.height, self.width) - 1), 0)

    def sizes(self, std: float) -> tuple[int, int]:
        """A kernel's size along both axes."""
        return (2 * self.radius(std) + 1,) * 2

    def write_one(self, image: Tensor, std: float, out: Tensor) -> None:
        """Writes the blurred image [C, H, W] into `out`."""
        raise NotImplementedError

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        blurred = torch.empty_like(x)
        for image, std, out in zip(x, blur_std.tolist(), blurred, strict=True):
            self.write_one(image, std, out)
        return blurred


class KorniaBlur(NearestBlur):
    """One call for the batch: a sigma for each sample, all with the kernel size of the largest."""

    name = "kornia"
    package, module = name, "kornia.filters"
    source = "PyPI kornia, kornia.filters.gaussian_blur2d, separable"
    difference = f"{_sampled('4 blur_std of the batch largest')}, {_PADDED}; {_TOGETHER}"

    def blur(self, x: Tensor, blur_std: Tensor) -> Tensor:
        size, sigma = self.sizes(float(blur_std.max())), blur_std[:, None].expand(-1, 2)
        return self.functions.gaussian_blur2d(x, size, sigma, border_type="reflect")


class TorchvisionBlur(NearestBlur):
    """A loop over the samples, each with a kernel of its own size."""

    name = "torchvision"
    package, module = name, "torchvision.transforms.functional"
    source = "PyPI torchvision, transforms.functional.gaussian_blur"
    difference = f"{_sampled('4 blur_std')}, {_PADDED}; {_LOOP}"
    # A kernel in two dimensions: 0.9 s of one core at 128 px, and its area grows with the image's.
    largest = 128

    def write_one(self, image: Tensor, std: float, out: Tensor) -> None:
        out.copy_(self.functions.gaussian_blur(image, list(self.sizes(std)), [std, std]))


class ScipyNdimageBlur(NearestBlur):
    """A loop over the samples; the border is ours, so only the kernel differs. On one CPU core."""

    name = "scipy.ndimage"
    package, module = "scipy", name
    source = "PyPI scipy, scipy.ndimage.gaussian_filter, mode='reflect', truncate=4"
    difference = f"{_sampled('4 blur_std')}; the same border; {_LOOP}"
    device = "cpu"

    def radius(self, std: float) -> int:
        return int(REACH * std + 0.5)

    def write_one(self, image: Tensor, std: float, out: Tensor) -> None:
        options = {"output": out.numpy(), "mode": "reflect", "truncate": REACH}
        self.functions.gaussian_filter(image.numpy(), (0.0, std, std), **options)


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
        size, sigma = self.sizes(float(blur_std.max())), blur_std[:, None].expand(-1, 2)
        options = {"device": str(x.device), "dtype": x.dtype}
        kernels = self.functions.functional.gaussian_blur(psf_size=size, sigma=sigma, **options)
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
    return _machine.package_versions(sorted({kind.package for kind in PACKAGES}))
