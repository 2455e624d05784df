# SPDX-License-Identifier: Apache-2.0
"""What is trained, and what is drawn from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# All networks are the preset's, trained on the same images in the same order from the same first weights.
PRESET = "mnist"
SOFT = ["--loss", "soft"]
TRAINED: dict[str, list[str]] = {
    "soft": SOFT,
    "plain": [],
    "noise": [*SOFT, "--schedule", "noise", "--prior", "plain"],
    "linear": [*SOFT, "--schedule", "linear"],
    "geometric": [*SOFT, "--schedule", "geometric"],
    "plain-linear": ["--schedule", "linear"],
    "plain-geometric": ["--schedule", "geometric"],
    "increment": [],
}
MODULES = {"increment": "benchmarks.quality.increment"}
"""What is run in place of `softdiff_kernels`."""
WHOLE = ("soft", "plain", "plain-linear")
"""Trained to the preset's end; the others to where all are compared."""
NAMES = {
    "soft": "Soft Score Matching, Wasserstein schedule",
    "plain": "plain residual loss, Wasserstein schedule (the preset)",
    "noise": "noise only (VE)",
    "linear": "Soft Score Matching, linear schedule",
    "geometric": "Soft Score Matching, geometric schedule",
    "plain-linear": "plain loss, linear schedule",
    "plain-geometric": "plain loss, geometric schedule",
    "increment": "increment-weighted loss, Wasserstein schedule",
}
COMPARED_AT = 1500
"""The step at which networks are compared; their learning rate is the preset's up to there."""

SEEDS = 3
IMAGES = 300
"""Drawn for each of the seeds: seed k's are those of the sampler's seeds 300 k to 300 k + 299. That few make
a distance larger, alike for all; what as many real images get stands beside it."""


@dataclass(frozen=True)
class Drawing:
    """One curve: a network's samples by one sampler, at several numbers of steps."""

    network: str
    sampler: str
    steps: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)
    step: int | None = None
    blurs_of: str | None = None
    """The network at whose levels of blur the steps are taken, where it is not the network itself."""

    @property
    def name(self) -> str:
        """As JSON names it."""
        options = "".join(f" {key}={value}" for key, value in self.options.items())
        options += f" blurs_of={self.blurs_of}" if self.blurs_of else ""
        return f"{self.network} {self.sampler}{options}"


LONG = (10, 25, 50, 100, 200)
MIDDLE = (50, 100)
SHORT = (10, 25, 50)

SAMPLERS = [Drawing("plain", "momentum", LONG), Drawing("plain", "naive", LONG)]
VARIANCES = [
    Drawing("soft", "momentum", LONG[:4]),
    Drawing("soft", "naive", LONG[:4]),
    Drawing("soft", "momentum", MIDDLE, {"variance": "small"}),
    Drawing("soft", "ddim", MIDDLE),
]
# VE's ancestral sampler is poor at few steps, so it also gets the deterministic one, its best.
NETWORKS = [
    *(
        Drawing(network, "momentum", SHORT, step=COMPARED_AT)
        for network in ("soft", "plain", "noise", "linear", "geometric")
    ),
    Drawing("noise", "ddim", SHORT, step=COMPARED_AT),
]
PLAIN = [
    Drawing(network, "momentum", SHORT, step=COMPARED_AT)
    for network in ("plain", "plain-linear", "plain-geometric", "increment")
]
LINEAR = [Drawing("plain-linear", "momentum", LONG), Drawing("plain-linear", "naive", LONG)]
# Whether a schedule tells by where it trains or by where the sampler's steps are.
CROSSED = [
    Drawing(network, "momentum", SHORT[:2], step=COMPARED_AT, blurs_of=other)
    for network, other in (
        ("plain", None),
        ("plain", "plain-linear"),
        ("plain-linear", None),
        ("plain-linear", "plain"),
    )
]
PARTS = {
    "samplers": SAMPLERS,
    "variances": VARIANCES,
    "networks": NETWORKS,
    "plain": PLAIN,
    "linear": LINEAR,
    "crossed": CROSSED,
}
