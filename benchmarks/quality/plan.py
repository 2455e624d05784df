# SPDX-License-Identifier: Apache-2.0
"""What is trained, and what is drawn from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

# All networks are the preset's, trained on the same images in the same order from the same first weights.
PRESET = "mnist"


class Network(NamedTuple):
    """label: in tables and plots. flags: of `softdiff train`, beside the preset's. to_the_end: trained to the
    preset's last step; the others stop at COMPARED_AT. preset: with the same network, images and steps."""

    label: str
    flags: tuple[str, ...] = ()
    to_the_end: bool = False
    preset: str = PRESET


SOFT = ("--loss", "soft")
TRAINED = {
    "soft": Network("Soft Score Matching, Wasserstein schedule", SOFT, True),
    "plain": Network("plain residual loss, Wasserstein schedule (the preset)", (), True),
    "noise": Network("noise only (VE)", (*SOFT, "--corruption", "noise", "--prior", "plain")),
    "linear": Network("Soft Score Matching, linear schedule", (*SOFT, "--schedule", "linear")),
    "geometric": Network("Soft Score Matching, geometric schedule", (*SOFT, "--schedule", "geometric")),
    "plain-linear": Network("plain loss, linear schedule", ("--schedule", "linear"), True),
    "plain-geometric": Network("plain loss, geometric schedule", ("--schedule", "geometric")),
    "increment": Network("increment-weighted loss, Wasserstein schedule", ("--loss", "increment")),
    "noise-plain": Network("noise alone", ("--corruption", "noise"), True),
    "blurring": Network("Blurring Diffusion", (), True, "mnist-blurring"),
    "blurring-residual": Network(
        "Blurring Diffusion, x_0 predicted", ("--prediction", "residual"), True, "mnist-blurring"
    ),
    "ihdm": Network("IHDM", (), True, "mnist-ihdm"),
    "mask": Network("mask", (), True, "mnist-mask"),
}
COMPARED_AT = 1500
"""The step at which networks are compared. Up to there all have the preset's learning rates."""

SEEDS = 3
IMAGES = 300
"""Images per seed: seed k draws the sampler's seeds 300 k to 300 k + 299. So few images make every distance
larger, by the same amount; the distance of as many real images is reported for comparison."""


@dataclass(frozen=True)
class Drawing:
    """One curve: a network's samples by one sampler, at several numbers of steps.

    step: of the weights; None is the last. blurs_of: the network at whose blur levels the steps are taken, if
    not the network itself.
    """

    network: str
    sampler: str
    steps: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    blurs_of: str | None = None

    @property
    def name(self) -> str:
        """The name in the result files."""
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        options += f" blurs_of={self.blurs_of}" if self.blurs_of else ""
        return f"{self.network} {self.sampler}{options}"


LONG = (10, 25, 50, 100, 200)
MIDDLE = (50, 100)
SHORT = (10, 25, 50)


def _compared(*networks: str) -> list[Drawing]:
    return [Drawing(network, "momentum", SHORT, step=COMPARED_AT) for network in networks]


def _crossed(network: str, blurs_of: str | None = None) -> Drawing:
    return Drawing(network, "momentum", SHORT[:2], step=COMPARED_AT, blurs_of=blurs_of)


LINEAR = "plain-linear"
PARTS = {
    "samplers": [Drawing("plain", "momentum", LONG), Drawing("plain", "naive", LONG)],
    "variances": [
        Drawing("soft", "momentum", LONG[:4]),
        Drawing("soft", "naive", LONG[:4]),
        Drawing("soft", "momentum", MIDDLE, {"variance": "small"}),
        Drawing("soft", "ddim", MIDDLE),
    ],
    # VE's ancestral sampler is poor at few steps, so it also gets the deterministic one, its best.
    "networks": [
        *_compared("soft", "plain", "noise", "linear", "geometric"),
        Drawing("noise", "ddim", SHORT, step=COMPARED_AT),
    ],
    "plain": _compared("plain", LINEAR, "plain-geometric", "increment"),
    "linear": [Drawing(LINEAR, "momentum", LONG), Drawing(LINEAR, "naive", LONG)],
    # Whether a schedule matters by where it trains or by where the sampler's steps are.
    # Each process by the sampler that suits it and by the second-order one.
    "corruptions": [
        Drawing(network, sampler, SHORT)
        for network, own in (
            ("plain", "momentum"),
            ("blurring", "ancestral"),
            ("blurring-residual", "ancestral"),
            ("ihdm", "ihdm"),
            ("mask", "momentum"),
            ("noise-plain", "momentum"),
        )
        for sampler in (own, "multistep")
    ],
    "crossed": [_crossed("plain"), _crossed("plain", LINEAR), _crossed(LINEAR), _crossed(LINEAR, "plain")],
}
