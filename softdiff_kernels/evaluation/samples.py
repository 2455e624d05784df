# SPDX-License-Identifier: Apache-2.0
"""The images that are measured: read from files, or drawn from weights, with what is known of how they were
made."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..data.choices import class_list, labels_of
from ..data.sample_folder import Load, read_samples
from ..diffusion import check_sampler, time_steps
from ..errors import user_errors
from ..training.weights import LoadedModel

PROVENANCE = ("weights", "weights_digest", "step", "prior", "sampler", "steps", "seeds", "guidance", "class")
"""What may be known of how images were made, in the order of the results."""


@dataclass(frozen=True)
class Samples:
    """Images to measure. shape: (C, H, W); name: what messages call them. pixels(): uint8 [N, C, H, W]; it
    draws those that are still to be drawn. provenance: what is known of PROVENANCE, by name. seeds: of the
    images, in their order; empty if they are not known."""

    count: int
    shape: tuple[int, int, int]
    name: str
    pixels: Callable[[], Tensor]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)

    def first(self, count: int) -> Samples:
        """The first `count` of them, at most all."""
        return replace(self, count=count, pixels=lambda: self.pixels()[:count], seeds=self.seeds[:count])


def saved_samples(source: str, load: Load) -> Samples:
    """The images in a folder or file, read by `load`. UserError, one sentence, for what cannot be read."""
    saved = read_samples(source, load)
    provenance = {name: saved.record[name] for name in PROVENANCE if saved.record.get(name) is not None}
    pixels = saved.images.tensor
    return Samples(len(pixels), saved.images.shape, source, lambda: pixels, provenance, saved.seeds)


def drawn_samples(
    model: LoadedModel,
    seeds: list[int],
    *,
    sampler: str | None,
    steps: int | None,
    batch: int,
    say: Callable[[str], None],
) -> Samples:
    """Images to draw, one for each seed, as `softdiff sample` draws them by default. `pixels` draws, once all
    else has been checked."""
    corruption = model.denoiser.corruption
    steps = model.config.sample_steps if steps is None else steps
    why = ", chosen for this number of steps" if sampler is None else ""
    with user_errors("--sampler: "):
        sampler = check_sampler(corruption, model.shape[0], sampler, time_steps(steps))
    provenance = {
        "weights": os.path.abspath(model.file),
        "weights_digest": model.digest,
        "step": model.step,
        "prior": model.prior.describe(),
        "sampler": sampler,
        "steps": steps,
    }

    def draw() -> Tensor:
        say(f"drawing {len(seeds)} images by the {sampler} sampler in {steps} steps{why}")
        labels = labels_of(seeds, class_list(None, model.classes))
        return model.generate(seeds, sampler=sampler, steps=steps, batch=batch, labels=labels)

    known = {name: value for name, value in provenance.items() if value is not None}
    return Samples(len(seeds), model.shape, model.file, draw, known, seeds)
