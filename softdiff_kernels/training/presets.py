# SPDX-License-Identifier: Apache-2.0
"""Presets of `softdiff train`: what is the best known, and, as "-paper", what the paper of Soft Diffusion is
known to use.

Sources: "paper" is the paper of the preset's method: Daras et al. 2022 (arXiv 2209.05442), directly or as two
independent implementations quote its appendix; for "-blurring" Hoogeboom & Salimans 2022 (arXiv 2209.05557);
for "-ihdm" Rissanen et al. 2022 (arXiv 2206.13397). "ncsn++" is the default of Song et al. 2021, on whose
network the first of them builds; it is used where the paper's own value is not known. "measured: E1" is what
experiment E1 of docs/experiments.md shows to be the best. "ours" is none of these.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Setting(NamedTuple):
    """The value of an option, and its source."""

    value: Any
    source: str


def _paper(value: Any) -> Setting:
    return Setting(value, "paper")


def _song(value: Any) -> Setting:
    return Setting(value, "ncsn++")


def _measured(value: Any, experiment: str) -> Setting:
    return Setting(value, f"measured: {experiment}")


def _ours(value: Any) -> Setting:
    return Setting(value, "ours")


_SOFT = {
    "corruption": _paper("soft"),
    "prediction": _paper("residual"),
    "loss": _paper("soft"),
    "density": _paper("t"),
    "schedule": _paper("wasserstein"),
    "nodes": _paper(32),
    # For images in [-1, 1]. The paper does not say; if it means [0, 1], as score_sde's VE models and IHDM do,
    # its noise is twice this.
    "noise_std_min": _paper(0.01),
    "sampler": _paper("momentum"),
    "prior": _ours("gaussian"),
}

BEST = {
    "loss": _measured("plain", "E1"),
    # The loss's own, here 1 / noise_std^2; so another --loss has its own, too.
    "weight": _measured(None, "E1"),
    "schedule": _measured("linear", "E5"),
    # The best for the number of steps.
    "sampler": _measured(None, "E3"),
    "sample_steps": _measured(25, "E3"),
}
"""The best known in place of the paper's: without a preset, and in those of Soft Diffusion but "-paper"."""

_BLURRING = {
    "corruption": _paper("blurring"),
    "prediction": _paper("noise"),
    # Of the noise, with the weight 1 / noise_std^2: its plain squared error.
    "loss": _paper("soft"),
    "blur_std_max": _paper(20.0),
    "floor": _paper(0.001),
    "logsnr_min": _paper(-10.0),
    "logsnr_max": _paper(10.0),
    "sampler": _paper("ancestral"),
    "prior": _ours("gaussian"),
}

_LARGE = {
    "channels": _ours(3),
    "network": _song("ncsnpp"),
    "width": _song(128),
    "multipliers": _song((1, 2, 2, 2)),
    "blocks": _song(4),
    "dropout": _song(0.1),
    "batch": _song(128),
    "lr": _paper(2e-4),
    "beta2": _paper(0.999),
    "warmup": _paper(5000),
    "decay": _song("none"),
    "grad_clip": _song(1.0),
    "ema": _song((0.999,)),
    "steps": _song(1_300_000),
    "flip": _song(True),
    "sample_steps": _paper(280),
    "log_every": _ours(100),
    "sample_every": _ours(5_000),
    "save_every": _ours(10_000),
}

_SMALL = {
    "multipliers": _ours((1, 2)),
    "blocks": _ours(1),
    "width": _ours(32),
    "decay": _ours("cosine"),
    "ema": _ours((0.998,)),
}

_MNIST = {
    **_SMALL,
    "channels": _ours(1),
    "image_size": _ours((28,)),
    "patch": _ours(2),
    "steps": _ours(3400),
    "batch": _ours(64),
    "lr": _ours(1.5e-3),
    "warmup": _ours(150),
    "sample_every": _ours(500),
    "save_every": _ours(500),
}

_PAPER = {
    "digits": {
        **_SOFT,
        **_SMALL,
        "data": _ours("digits"),
        "channels": _ours(1),
        "width": _ours(16),
        # Two CPU cores train so narrow a network on 1.4 times as many images a second as in batches of 64.
        "steps": _ours(1250),
        "batch": _ours(128),
        "lr": _ours(4e-3),
        "warmup": _ours(100),
        "log_every": _ours(100),
        "sample_every": _ours(600),
        "save_every": _ours(600),
    },
    "mnist": {**_SOFT, **_MNIST},
    "cifar10": {**_SOFT, **_LARGE, "image_size": _paper((32,))},
    "celeba64": {**_SOFT, **_LARGE, "image_size": _paper((64,)), "blur_std_max": _paper(23.0)},
}

PRESETS: dict[str, dict[str, Setting]] = {
    **{name: {**settings, **BEST} for name, settings in _PAPER.items()},
    **{f"{name}-paper": settings for name, settings in _PAPER.items()},
    "mnist-blurring": {**_BLURRING, **_MNIST, "blur_std_max": _ours(20.0)},
    "mnist-ihdm": {
        **_MNIST,
        "corruption": _paper("ihdm"),
        "prediction": _ours("residual"),
        "loss": _paper("ihdm"),
        "blur_std_max": _paper(20.0),
        "noise_std_max": _paper(0.02),
        "sampler": _paper("ihdm"),
        "sample_steps": _paper(100),
        "prior": _paper("blurred"),
    },
    "mnist-mask": {
        **_MNIST,
        "corruption": _ours("mask"),
        "softness": _ours(0.25),
        "prediction": _paper("residual"),
        "loss": _ours("plain"),
        "noise_std_min": _paper(0.01),
        "noise_std_max": _paper(0.1),
        "prior": _ours("gaussian"),
    },
    "cifar10-blurring": {
        **_LARGE,
        **_BLURRING,
        "image_size": _paper((32,)),
        "dropout": _paper(0.2),
        "ema": _paper((0.9999,)),
        # Soft Diffusion's.
        "lr": _ours(2e-4),
        "beta2": _ours(0.999),
        "warmup": _ours(5000),
        "sample_steps": _paper(1000),
    },
}
