# SPDX-License-Identifier: Apache-2.0
"""The experiments: what is trained, and what is drawn from it. Networks and curves that experiments share are
trained and measured once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

TRAININGS = (0, 1, 2)
"""Seeds of training: of the first weights, the order of the images, t and the noise."""
SAMPLINGS = (0, 1, 2)
"""Seeds of sampling: number k draws the images of seeds k n to k n + n - 1. The first is drawn of
every training, the others of an experiment's first training, at the numbers of evaluations in `spread_at`, to
tell their deviation from that between trainings."""
IMAGES = 1000
"""Images a drawing. Fewer make every distance larger; the distance of as many real ones is the floor."""

# The preset's network at half its width, a quarter of its parameters: three trainings of each take hours
# instead of days. Every choice that an experiment varies is given, whatever the preset becomes.
_SMALL = ("--preset", "mnist-paper", "--width", "16")
STEPS = 1500
MIXTURE = "mixture"
"""In place of a network: the exact denoiser of a Gaussian mixture (see `mixture`)."""


class Network(NamedTuple):
    """label: in tables and plots. flags: of `softdiff train`. steps: None is the preset's own."""

    label: str
    flags: tuple[str, ...]
    steps: int | None = STEPS


def _blur(label: str, loss: str, weight: str, *more: str, steps: int = STEPS) -> Network:
    return Network(label, (*_SMALL, "--loss", loss, "--weight", weight, *more), steps)


LABELS = {
    "soft": "Soft Score Matching",
    "plain": "plain",
    "increment": "increment",
    "paper": "weight 1 / noise_std²",
    "uniform": "weight 1",
}
LOSSES = [(loss, weight) for loss in ("soft", "plain", "increment") for weight in ("paper", "uniform")]
BUDGETS = {375: "1/4 of the training", 6000: "4 times the training"}
_NOISE = (*_SMALL, "--corruption", "noise", "--prior", "plain", "--loss", "plain")
_DOUBLED = ("--noise-std-min", "0.02", "--noise-std-max", "0.2")
_EDM = ("--prediction", "edm", "--weight", "edm", "--density", "log_normal")

NETWORKS = {
    **{f"{x}-{w}": _blur(f"{LABELS[x]}, {LABELS[w]}", x, w) for x, w in LOSSES},
    **{
        f"{x}-paper-{n}": _blur(f"{LABELS[x]}, {words}", x, "paper", steps=n)
        for n, words in BUDGETS.items()
        for x in ("soft", "plain")
    },
    "noise-edm": Network("noise alone, EDM", (*_NOISE, *_EDM)),
    "noise-plain": Network("noise alone, residual predicted", (*_NOISE, "--weight", "paper")),
    "linear": _blur("linear schedule", "plain", "paper", "--schedule", "linear"),
    "geometric": _blur("geometric schedule", "plain", "paper", "--schedule", "geometric"),
    "features": _blur("Wasserstein in features", "plain", "paper", "--schedule", "features.json"),
    "doubled": _blur("noise 0.02 to 0.2", "plain", "paper", *_DOUBLED),
    "doubled-linear": _blur(
        "noise 0.02 to 0.2, linear schedule", "plain", "paper", *_DOUBLED, "--schedule", "linear"
    ),
    "preset": Network("--preset mnist", ("--preset", "mnist"), None),
    # Of docs/corruptions.md.
    "corruption-soft": Network("Soft Diffusion", ("--preset", "mnist-paper", "--loss", "plain"), 2500),
    "corruption-blurring": Network("Blurring Diffusion", ("--preset", "mnist-blurring"), 2500),
    "corruption-blurring-residual": Network(
        "Blurring Diffusion, x_0 predicted", ("--preset", "mnist-blurring", "--prediction", "residual"), 2500
    ),
    "corruption-ihdm": Network("IHDM", ("--preset", "mnist-ihdm"), 2500),
    "corruption-mask": Network("mask", ("--preset", "mnist-mask"), 2500),
    "corruption-noise": Network(
        "noise alone", ("--preset", "mnist-paper", "--loss", "plain", "--corruption", "noise"), 2500
    ),
}


@dataclass(frozen=True)
class Curve:
    """A network's samples by one sampler, at several numbers of evaluations of the network."""

    network: str
    sampler: str
    evaluations: tuple[int, ...]
    spacing: str = "t"

    @property
    def name(self) -> str:
        """The name in the lines of results."""
        return f"{self.network} {self.sampler}{self.spaced}"

    @property
    def spaced(self) -> str:
        """The spacing where it is not even in t."""
        return "" if self.spacing == "t" else f", steps even in {self.spacing}"

    def steps(self, evaluations: int) -> int:
        """Steps of the sampler. Heun's evaluates twice in all but the last."""
        return (evaluations + 1) // 2 if self.sampler == "heun" else evaluations


class Experiment(NamedTuple):
    """question: what a reader asks. curves: what answers it. The rest: as above."""

    question: str
    curves: list[Curve]
    trainings: tuple[int, ...] = TRAININGS
    images: int = IMAGES
    spread_at: tuple[int, ...] = (10,)

    def drawings(self, training: int) -> Iterator[tuple[int, Curve, int]]:
        """(evaluations, curve, sampling) of one training, fewer evaluations first."""
        plan = sorted(((n, curve) for curve in self.curves for n in curve.evaluations), key=lambda x: x[0])
        for n, curve in plan:
            spread = training == self.trainings[0] and n in self.spread_at
            for sampling in SAMPLINGS if spread else SAMPLINGS[:1]:
                yield n, curve, sampling


FEW = (5, 10, 25, 50)
LONG = (5, 10, 25, 50, 100, 200)
BOTH = ("momentum", "multistep")
_RULES = ("naive", "langevin", "ihdm", "momentum", "ddim", "multistep")
_OF_CORRUPTIONS = {
    "soft": "momentum",
    "blurring": "ancestral",
    "blurring-residual": "ancestral",
    "ihdm": "ihdm",
    "mask": "momentum",
    "noise": "momentum",
}


def _by_both(*networks: str, evaluations: tuple[int, ...] = FEW) -> list[Curve]:
    return [Curve(network, sampler, evaluations) for network in networks for sampler in BOTH]


EXPERIMENTS = {
    "E1": Experiment("Which loss, with which weight?", _by_both(*(f"{x}-{w}" for x, w in LOSSES))),
    "E2": Experiment(
        "Does Soft Score Matching catch up with longer training?",
        _by_both(
            *(f"{x}-paper{n}" for n in ("-375", "", "-6000") for x in ("soft", "plain")),
            evaluations=(10, 25),
        ),
    ),
    "E3": Experiment(
        "Which sampler, on a trained network?",
        [Curve("plain-paper", name, LONG) for name in _RULES],
        TRAININGS[:1],
    ),
    "E3-exact": Experiment(
        "... and without a network's errors?",
        [Curve(MIXTURE, name, LONG) for name in _RULES],
        TRAININGS[:1],
    ),
    "E4": Experiment(
        "Does blur pay, against noise alone?",
        [
            *_by_both("plain-paper"),
            *(
                Curve("noise-edm", sampler, FEW, spacing="karras")
                for sampler in ("heun", "multistep", "ddim", "momentum")
            ),
            *_by_both("noise-plain"),
        ],
    ),
    "E5": Experiment(
        "Which schedule, and does it matter by where it trains or by where the steps are?",
        [
            *_by_both("plain-paper", "linear", "geometric", "features"),
            Curve("plain-paper", "multistep", FEW, spacing="blur_std"),
            Curve("linear", "multistep", FEW, spacing="w2"),
        ],
    ),
    "E6": Experiment(
        "Is the paper's noise meant for images in [0, 1]?",
        _by_both("plain-paper", "doubled", "linear", "doubled-linear"),
    ),
    "presets": Experiment(
        "What does the preset give?",
        [*_by_both("preset"), Curve("preset", "naive", FEW)],
        TRAININGS[:1],
    ),
    "corruptions": Experiment(
        "Corruptions, each by its own sampler and by the second-order one",
        [
            Curve(f"corruption-{name}", sampler, (10, 25, 50))
            for name, own in _OF_CORRUPTIONS.items()
            for sampler in (own, "multistep")
        ],
        TRAININGS[:1],
        300,
        (10, 25, 50),
    ),
}
