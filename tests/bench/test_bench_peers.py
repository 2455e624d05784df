# SPDX-License-Identifier: Apache-2.0
"""Other packages' transforms and blurs: the operator to rounding, or near it in the way that they say."""

from __future__ import annotations

import contextlib
import importlib
import math
import types

import numpy as np
import pytest
import torch

pytest.importorskip("scipy")

from softdiff_kernels.bench import baselines, cases, packages, timing

SAME = [kind for kind in baselines.PACKAGES if kind.same]
NEAREST = [kind for kind in baselines.PACKAGES if not kind.same]


CPU = torch.device("cpu")


def from_packages(op):
    """The baselines of an op that other packages provide, for images of 8 x 8."""
    return list(baselines._by_forms(op, baselines.PACKAGES, 8, 8, torch.float32, CPU))


def made(kind, height, width, dtype=torch.float64):
    """The package's form; skips the test, with the reason, where the package is not there."""
    form, reason = packages.make(kind, height, width, dtype, CPU)
    if form is None:
        pytest.skip(f"{kind.package}: {reason}")
    return form


@pytest.mark.parametrize("kind", SAME, ids=lambda kind: kind.package)
def test_a_package_with_the_same_transform_gives_the_same_ops(kind):
    # Float64's rounding, 1.1e-16 an operation, over sums of at most 4 x 20 terms: far under 1e-13.
    form = made(kind, 12, 20)
    for op in baselines.OPS[:-1]:
        case = cases.make(op, 12, 20, 3, dtype=torch.float64)
        call = baselines.of(op, form)
        given = {} if case.noise is None else {"noise": case.noise}
        assert call is not None
        result = call(*case.arguments.values(), **given)
        assert cases.relative_error(result, cases.truth(case)) < 1e-13, op


@pytest.mark.parametrize("kind", NEAREST, ids=lambda kind: kind.package)
def test_a_nearest_blur_differs_by_its_cut_and_its_border_alone(kind):
    """Rule: away from the border a package's blur is ours but for the tails that it cuts off.

    The weights beyond radius r of a Gaussian of standard deviation s sum to t < erfc(r / (s sqrt 2)), 6e-5 at
    4 s. To drop them and to divide by the rest moves an axis's kernel by 2 t in all, two axes move it by 4 t;
    so does a value of an image under 1, wherever the kernel stays inside the image. Sampling at s = 2 folds
    the spectrum by 2 exp(-2 pi^2) < 6e-9. In float64 that is all. At the border more is wrong, unless the
    package mirrors the edge pixel, too.
    """
    std, size = 2.0, 40
    form = made(kind, size, size)
    radius = form.radius(std)
    case = cases.make("blur", size, size, 2, dtype=torch.float64)
    x = case.arguments["x"]
    stds = torch.full((2,), std, dtype=torch.float64)
    exact = cases.ours(cases.Case("blur", size, size, {"x": x, "blur_std": stds}, None))
    difference = (form.blur(x, stds) - exact).abs()
    bound = 4 * math.erfc(radius / (std * math.sqrt(2))) + 1e-8
    inside = slice(radius, size - radius)
    assert 8 <= radius < 10 and bound < 3e-4
    assert 1e-7 < float(difference[..., inside, inside].max()) < bound
    symmetric = "the same border" in kind.difference
    assert (float(difference.max()) < bound) == symmetric
    if not symmetric:
        assert float(difference[..., 0, :].max()) > 1e-2


@pytest.mark.parametrize("kind", NEAREST, ids=lambda kind: kind.package)
def test_a_weak_blur_is_another_operator(kind):
    # At 0.3 px the heat gain is exp(-0.09 pi^2 / 2) = 0.64 at the highest frequency; the kernel that is
    # sampled there, 1 : exp(-1 / 0.18) = 0.004, leaves 0.98. White noise shows it: over 10 %.
    form = made(kind, 24, 24)
    x = cases.make("blur", 24, 24, 2, dtype=torch.float64).arguments["x"]
    stds = torch.full((2,), 0.3, dtype=torch.float64)
    exact = cases.ours(cases.Case("blur", 24, 24, {"x": x, "blur_std": stds}, None))
    assert cases.relative_error(form.blur(x, stds), exact) > 0.1


@pytest.mark.parametrize("kind", NEAREST, ids=lambda kind: kind.package)
def test_a_nearest_blur_takes_each_samples_own_std(kind):
    # A batch gives what each sample gives alone, but for the kernel's cut: 4 tails of 4 deviations.
    form = made(kind, 24, 30)
    x = cases.make("blur", 24, 30, 2, dtype=torch.float64).arguments["x"]
    stds = torch.tensor([0.7, 2.5], dtype=torch.float64)
    both = form.blur(x, stds)
    assert both.shape == x.shape and both.dtype == x.dtype
    for b in range(2):
        alone = form.blur(x[b : b + 1], stds[b : b + 1])
        assert float((both[b] - alone[0]).abs().max()) < 4 * math.erfc(4 / math.sqrt(2))


@pytest.mark.parametrize("kind", NEAREST, ids=lambda kind: kind.package)
def test_kernels_stay_inside_what_padding_permits(kind):
    # Beyond a quarter of the side the kernel is cut at the image's size, and a tiny std is still a blur.
    form = made(kind, 8, 10, torch.float32)
    x = cases.make("blur", 8, 10, 3).arguments["x"]
    blurred = form.blur(x, torch.tensor([0.01, 3.0, 40.0]))
    assert blurred.isfinite().all()
    assert float((blurred[0] - x[0]).abs().max()) < 1e-2


@pytest.mark.parametrize("kind", [packages.Fftw, packages.Ducc], ids=lambda kind: kind.name)
def test_fftw_and_ducc_follow_the_threads_and_leave_the_input(kind):
    """Rule: at each number of threads the result is the transform, in memory of its own; the input stays."""
    form = made(kind, 12, 20)
    x = cases.make("dct2", 12, 20, 3, dtype=torch.float64).arguments["x"]
    before, exact = x.clone(), cases.truth(cases.Case("dct2", 12, 20, {"x": x}, None))
    for count in (1, 2):
        with timing.threads(count):
            first, second = form.dct2(x), form.dct2(x)
        assert cases.relative_error(first, exact) < 1e-13 and torch.equal(first, second)
        assert len({t.data_ptr() for t in (x, first, second)}) == 3
        u = first.clone()
        assert cases.relative_error(form.idct2(u), before) < 1e-13 and torch.equal(u, first)
    assert torch.equal(x, before)


def test_fftw_keeps_its_plans():
    """Rule: a shape, a direction and a number of threads is planned once, by FFTW_MEASURE."""
    form = made(packages.Fftw, 8, 8, torch.float32)
    planned, real = [], form.functions.FFTW
    form.functions = types.SimpleNamespace(FFTW=lambda *a, **k: planned.append(k["flags"]) or real(*a, **k))
    x, std = torch.rand(2, 3, 8, 8), torch.ones(2)
    for _ in range(3):
        form.blur(x, std)
    assert planned == [("FFTW_MEASURE",)] * 2
    with timing.threads(2):
        form.dct2(x)
    form.dct2(torch.rand(1, 3, 8, 8))
    assert len(planned) == 4


@pytest.mark.parametrize("kind", [packages.CupyDct, packages.VkFft], ids=lambda kind: kind.name)
def test_gpu_packages_by_stand_ins(kind, monkeypatch):
    """Rule: with scipy in the place of the GPU's transform, normalised as the package documents it, every op
    equals the specification; each call is on PyTorch's current stream. Not a test of the packages."""
    streams, fft = [], importlib.import_module("scipy.fft")
    stream = contextlib.contextmanager(lambda pointer: (yield streams.append(pointer)))
    cupy = types.SimpleNamespace(
        from_dlpack=np.from_dlpack, cuda=types.SimpleNamespace(ExternalStream=stream)
    )

    def vkfft(name):
        def transform(a, ndim, norm, cuda_stream):
            assert (ndim, norm, cuda_stream) == (2, 1, 7)
            return getattr(fft, name)(a, axes=(-2, -1))

        return transform

    pyvkfft = types.SimpleNamespace(dctn=vkfft("dctn"), idctn=vkfft("idctn"))
    modules = {"cupy": cupy, "cupyx.scipy.fft": fft, "pyvkfft.fft": pyvkfft}
    monkeypatch.setattr(importlib, "import_module", modules.__getitem__)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=7))
    form = kind(12, 20, torch.float64)
    for op in baselines.OPS[:-1]:
        case = cases.make(op, 12, 20, 3, dtype=torch.float64)
        (baseline,) = baselines._by_form(op, form)
        given = {} if case.noise is None else {"noise": case.noise}
        result = baseline.call(*case.arguments.values(), **given)
        assert cases.relative_error(result, cases.truth(case)) < 1e-13, op
        assert baseline.group == ("extra" if op in cases.LOSSES else "main") and baseline.same
    assert set(streams) == {7}


def test_each_says_what_it_is():
    for kind in baselines.PACKAGES:
        assert kind.package in kind.source and kind.group == ("nearest" if not kind.same else kind.group)
        assert bool(kind.difference) != kind.same
        if not kind.same:
            assert "sampled Gaussian cut at" in kind.difference and "border" in kind.difference
            assert len(kind.difference.split()) > 10 and "  " not in kind.difference


def test_nearest_blurs_stand_beside_blur_and_corrupt_alone():
    for op in baselines.OPS:
        listed = [] if op == "normal" else from_packages(op)
        assert any(not one.same for one in listed) == (op in ("blur", "corrupt")), op
        assert all(one.group == "nearest" for one in listed if not one.same)
        names = [one.name for one in baselines.baselines(op, 8, 8)]
        assert names[-len(listed) or 99 :] == [one.name for one in listed]


def test_missing_and_broken_packages_are_named_with_the_reason(monkeypatch):
    """Rule: whatever keeps a package from being used becomes a reason in words, and the others stay."""
    real = importlib.import_module

    def load(name, package=None):
        if name == "pyfftw":
            raise ModuleNotFoundError("No module named 'pyfftw'", name="pyfftw")
        if name == "ducc0.fft":
            raise ImportError("libm.so: cannot open shared object file")
        if name == "torch_dct":
            raise ModuleNotFoundError("No module named 'torch_dct'", name="torch_dct")
        if name == "dctorch.functional":
            raise ModuleNotFoundError("No module named 'scipy.fft'", name="scipy.fft")
        if name == "torchvision.transforms.functional":
            raise RuntimeError("operator torchvision::nms does not exist\nand a trace")
        if name == "kornia.filters":
            raise OSError("libsomething.so: cannot open shared object file")
        if name == "deepinv.physics":
            raise ImportError("deepinv needs Python 4")
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", load)
    reasons = packages.absent(8, 8)
    assert reasons["torch-dct"] == "not installed: pip install torch-dct"
    assert reasons["dctorch"] == "does not import: No module named 'scipy.fft'"
    assert reasons["torchvision"] == (
        "does not import: RuntimeError: operator torchvision::nms does not exist"
    )
    assert reasons["kornia"].startswith("does not import: OSError: libsomething.so")
    assert reasons["deepinv"] == "does not import: ImportError: deepinv needs Python 4"
    assert "scipy.ndimage" not in reasons
    assert reasons["FFTW"] == "not installed: pip install pyfftw"
    assert reasons["DUCC"].startswith("does not import: ImportError")
    assert reasons["CuPy"] == reasons["VkFFT"] == "runs on CUDA GPUs alone"
    assert [one.name.split()[0] for one in from_packages("blur")] == ["scipy", "scipy.ndimage"]
    assert [one.name for one in from_packages("dct2")] == ["scipy"]


def test_what_is_too_slow_or_on_the_wrong_device_is_named():
    assert "512 px" in packages.absent(1024, 1024)["scipy.ndimage"]
    assert packages.absent(8, 8, "meta")["scipy.ndimage"] == "runs on the CPU alone"
