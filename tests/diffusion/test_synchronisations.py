# SPDX-License-Identifier: Apache-2.0
"""That steps, losses and samplers on a GPU do not make the host wait, seen without one.

Images on torch's meta device stand for images on a GPU: reading a value of theirs is an error there, and a
copy from host memory to them is an operation that can be seen. Tables that are kept for a device are made
once, and copied then."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import softdiff_kernels as sk
from softdiff_kernels import diffusion
from softdiff_kernels.diffusion import (
    BlurCorruption,
    Corruption,
    Guided,
    LinearCorruption,
    MaskCorruption,
    SoftDenoiser,
    SpectralCorruption,
    TrainingLoss,
    power_spectrum,
    time_steps,
)
from softdiff_kernels.diffusion import corruption as corruption_module

SIZE = (16, 16)
KEY = sk.NoiseKey(1)
CORRUPTIONS: dict[str, Callable[[], Corruption]] = {
    "paper": lambda: BlurCorruption.paper(SIZE),
    "blurring": lambda: BlurCorruption.blurring_diffusion(SIZE),
    "noise": lambda: BlurCorruption.noise_only(SIZE, noise_std_max=50.0),
    "equal_snr": lambda: SpectralCorruption.equal_snr(power_spectrum([torch.rand(8, 3, *SIZE)])),
    "anisotropic": lambda: SpectralCorruption.anisotropic(SIZE, 3.0, 1.0),
    "mask": lambda: MaskCorruption(SIZE),
    "motion": lambda: LinearCorruption.motion_blur(SIZE, 5.0),
}


class Waits(TorchDispatchMode):
    """Collects the places that copy from host memory to the meta device."""

    def __init__(self) -> None:
        super().__init__()
        self.places: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        read, made = (
            {x.device.type for x in tree_leaves(values) if isinstance(x, Tensor)}
            for values in ((args, kwargs), out)
        )
        if read == {"cpu"} and made == {"meta"}:
            frames = [f"{f.filename}:{f.lineno} {f.line}" for f in traceback.extract_stack()[:-1]]
            if not any("softdiff_kernels/caches.py" in frame for frame in frames):
                self.places.add(frames[-1])
        return out


def places(function: Callable[[], Any]) -> set[str]:
    with Waits() as waits:
        function()
    return waits.places


def images() -> Tensor:
    return torch.empty(4, 3, *SIZE, device="meta")


def network(x_t: Tensor, t: Tensor, **extra: Any) -> Tensor:
    return x_t * t.reshape(-1, 1, 1, 1)


def test_what_waits_is_seen() -> None:
    """Rule: a copy from host memory is found, and so is the read of a value; work on the device is not."""
    mask = torch.ones(1, 1, *SIZE)
    assert len(places(lambda: images() * mask.to("meta"))) == 1
    assert not places(lambda: torch.full((1,), 2.0, device="meta") * images())
    with pytest.raises(RuntimeError):
        places(lambda: images().sum().item())


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_sampler_waits(name: str) -> None:
    """Rule: a trajectory reads nothing back and copies nothing to the device, but masks that are kept."""
    denoiser = SoftDenoiser(network, CORRUPTIONS[name]())
    guided = Guided(denoiser, torch.zeros(4, dtype=torch.int64, device="meta"), weight=2.0)
    for sampler in diffusion.SAMPLERS:
        if (name, sampler) == ("motion", "ancestral"):  # refused: it needs a gain
            continue
        draw: Any = getattr(diffusion, f"sample_{sampler}")
        for model in (denoiser, guided):
            assert not places(lambda: draw(model, images(), time_steps(4), disable=True, key=KEY)), sampler  # noqa: B023


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_training_step_waits(name: str) -> None:
    """Rule: likewise for corruption and losses, with t on the device, drawn, or a number."""
    corruption = CORRUPTIONS[name]()
    t = torch.empty(4, device="meta")
    losses = ("soft", "plain") if name == "motion" else ("soft", "plain", "increment", "ihdm")
    for loss in losses:
        denoiser = SoftDenoiser(network, corruption, loss=loss)
        for time in (t, 0.5):
            assert not places(lambda: denoiser.loss(images(), time, key=KEY)), loss  # noqa: B023
        assert not places(lambda: TrainingLoss(denoiser)(images())), loss  # noqa: B023
    assert not places(lambda: corruption.corrupt(images(), t, key=KEY, return_residual=True))


def test_masks_are_kept_by_content() -> None:
    """Rule: the same mask is copied to a device once; a changed one is another. What is kept has the mask's
    values. A mask that asks for a derivative is refused as elsewhere, not detached."""
    sk.clear_caches()
    held = lambda: sk.cache_info().held.get("masks of steps", 0)  # noqa: E731
    corruption, x = CORRUPTIONS["equal_snr"](), images()
    mask = torch.rand(1, 3, *SIZE, dtype=torch.float64)

    def step(A: Tensor) -> Tensor:
        return corruption.step(x, x, 0.5, 0.25, A, 0.1, key=KEY)

    step(mask)
    once = held()
    assert once >= mask.nbytes
    step(mask.clone())
    assert held() == once
    step(mask + 1e-9)
    assert held() == 2 * once
    step(mask.expand(4, -1, -1, -1))  # one for each image is not kept
    assert held() == 2 * once
    step(mask[0] + 1)
    assert held() == 3 * once
    content = mask.numpy().tobytes()
    made = corruption_module._make_mask(content, tuple(mask.shape), mask.dtype, torch.device("cpu"))
    assert torch.equal(made, mask)
    with pytest.raises(ValueError, match="requires grad"):
        step(mask.requires_grad_())
    sk.clear_caches()
