# SPDX-License-Identifier: Apache-2.0
"""Presets of `softdiff train`: the values that the paper of Soft Diffusion is known to use, and our own.

Sources: "paper" is the paper of the preset's method: Daras et al. 2022 (arXiv 2209.05442), directly or as two
independent implementations quote its appendix; for "-blurring" Hoogeboom & Salimans 2022 (arXiv 2209.05557);
for "-ihdm" Rissanen et al. 2022 (arXiv 2206.13397). "ncsn++" is the default of Song et al. 2021, on whose
network the first of them builds; it is used where the paper's own value is not known. "ours" is none of
these.
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


def _ours(value: Any) -> Setting:
    return Setting(value, "ours")


_SOFT = {
    "corruption": _paper("soft"),
    "prediction": _paper("residual"),
    "loss": _paper("soft"),
    "schedule": _paper("wasserstein"),
    "nodes": _paper(32),
    "noise_std_min": _paper(0.01),
    "sampler": _paper("momentum"),
    "prior": _ours("gaussian"),
}

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
    "steps": _ours(2500),
    "batch": _ours(64),
    "lr": _ours(1.5e-3),
    "warmup": _ours(150),
    "sample_every": _ours(500),
    "save_every": _ours(500),
}

PRESETS: dict[str, dict[str, Setting]] = {
    "digits": {
        **_SOFT,
        **_SMALL,
        "data": _ours("digits"),
        # As for mnist below; here half the distance.
        "loss": _ours("plain"),
        "channels": _ours(1),
        "steps": _ours(1800),
        "batch": _ours(128),
        "lr": _ours(1.5e-3),
        "warmup": _ours(100),
        # The paper's 0.10 is for 64 px. At 8 px fewer pixels average the noise, so less is used.
        "noise_std_min": _ours(0.003),
        "noise_std_max": _ours(0.03),
        "log_every": _ours(100),
        "sample_every": _ours(600),
        "save_every": _ours(600),
    },
    "mnist": {
        **_SOFT,
        **_MNIST,
        # After so little training, errors at frequencies that the blur removes, which the soft loss does not
        # see, harm the sampler's next steps: three times the distance (docs/experiments.md).
        "loss": _ours("plain"),
    },
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
        "sampler": _paper("momentum"),
        "prior": _ours("gaussian"),
    },
    "cifar10": {**_SOFT, **_LARGE, "image_size": _paper((32,))},
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
    "celeba64": {**_SOFT, **_LARGE, "image_size": _paper((64,)), "blur_std_max": _paper(23.0)},
}
