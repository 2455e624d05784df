# SPDX-License-Identifier: Apache-2.0
"""`softdiff export`: a trained model as a folder that another library loads, with a model card."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from ..errors import UserError, need, user_errors
from ..files import PARTIAL, PathText, save_text
from ..training.checkpoint import load_meta
from ..training.config import SAMPLER_HELP, SamplerName
from ..training.weights import LoadedModel, load_model

CARD = "README.md"


@dataclass(frozen=True)
class ExportConfig:
    """Write a trained model as a folder for another library."""

    out: PathText
    """Folder to write; it must not exist. Its folder must."""
    weights: PathText | None = None
    """Weights file, or run folder (its newest weights)."""
    format: Literal["diffusers"] = "diffusers"
    """diffusers: a pipeline, for softdiff_kernels.integrations.diffusers and `softdiff sample`."""
    ema: float | None = None
    """Decay of the averaged weights to use, of those in a run folder. Default: the first."""
    sampler: SamplerName | None = field(
        default=None, metadata={"help": f"Of the pipeline's scheduler. {SAMPLER_HELP}"}
    )
    evaluation: PathText | None = None
    """Results of `softdiff evaluate --out`, for the model card."""

    def __post_init__(self) -> None:
        """Raises UserError where there is nothing to export."""
        if self.weights is None:
            raise UserError("--weights: expected a weights file or a run folder, got none")


def run(config: ExportConfig, argv: Sequence[str]) -> int:
    """Writes the folder."""
    for module in ("safetensors", "diffusers"):
        need(module, "softdiff export", "diffusers")
    export(config)
    return 0


def export(config: ExportConfig, say: Callable[[str], None] = print) -> Path:
    """Writes the folder, completely or not at all; returns its path. UserError where it exists."""
    from ..integrations.diffusers import pipeline_of

    assert config.weights is not None
    out = Path(config.out)
    if os.path.lexists(out):
        raise UserError(f"{out} exists already: expected a new folder to write to; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"cannot write {out}: there is no folder {out.parent}")
    results = _results(config.evaluation)
    model = load_model(config.weights, torch.device("cpu"), config.ema)
    for result in results:
        if result.get("weights_digest", model.digest) != model.digest:
            raise UserError(
                f"--evaluation: {config.evaluation}: expected results of {model.file}, got those of other "
                f"weights ({result.get('weights', 'not recorded')}); evaluate these"
            )
    meta = load_meta(Path(model.file), "weights")
    data = str(meta.get("data", {}).get("name", ""))
    with user_errors("--sampler: "):
        pipeline = pipeline_of(model, config.sampler or "auto", data)
    card = model_card(model, meta, pipeline.scheduler.config.rule, results, out.name)
    partial = out.with_name(out.name + PARTIAL)
    with user_errors(f"cannot write {out}: "):
        if partial.exists():
            raise UserError(f"{partial} exists already: of another export, or of one that was killed")
        partial.mkdir()  # fails where another export was faster
        try:
            pipeline.save_pretrained(partial)
            save_text(partial / CARD, card)
            partial.rename(out)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
    say(f"{out}: a pipeline of diffusers, with the weights of step {model.step}")
    return out


def _results(path: str | None) -> list[dict[str, Any]]:
    """The content of a file of `softdiff evaluate --out`."""
    if path is None:
        return []
    with user_errors(f"--evaluation: {path}: "):
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    good = isinstance(content, list) and all(
        isinstance(entry, dict) and {"metric", "value"} <= set(entry) for entry in content
    )
    if not good:
        raise UserError(f"--evaluation: {path}: expected the results of `softdiff evaluate --out`")
    results: list[dict[str, Any]] = content
    return results


def model_card(
    model: LoadedModel, meta: Mapping[str, Any], rule: str, results: Sequence[Mapping[str, Any]], name: str
) -> str:
    """README.md of the folder: front matter, how to draw images, and how the model was made.

    meta: of the weights file; rule: of the scheduler; results: of `softdiff evaluate`; name: of the folder.
    """
    data, config = meta.get("data", {}), model.config
    channels, height, width = model.shape
    corruption = model.denoiser.corruption
    samplers = f"{rule} (that of `softdiff sample` for the number of steps)" if rule == "auto" else rule
    count = data.get("count")
    rows = {
        "data": f"{data.get('name', 'not recorded')}" + (f", {count} images" if count is not None else ""),
        "images": f"{height} x {width}, {channels} channel{'s' * (channels != 1)}",
        "classes": ", ".join(model.classes) or "none",
        "corruption": f"{corruption.name} ({corruption.kind})",
        "preset": config.preset or "none",
        "prediction": config.prediction,
        "loss": config.loss,
        "steps of training": str(model.step),
        "sampler": samplers,
        "prior": model.prior.describe(),
    }
    for result in results:
        unknown = () if "weights_digest" in result else ("not recorded of which weights",)
        notes = "; ".join((*result.get("notes", ()), *unknown))
        rows[str(result["metric"])] = f"{result['value']:.4g}" + (f" ({notes})" if notes else "")
    if not results:
        rows["distance"] = "not evaluated"
    table = "\n".join(f"| {key} | {value} |".replace("\n", " ") for key, value in rows.items())
    return f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
tags:
- diffusers
- softdiff_kernels
- soft-diffusion
---

# {name}

A diffusion model of softdiff_kernels.

```python
from softdiff_kernels.integrations.diffusers import SoftDiffusionPipeline

pipe = SoftDiffusionPipeline.from_pretrained("{name}")  # this folder
images = pipe(batch_size=4).images
```

`softdiff sample --weights {name}` draws from it, too.

| | |
|---|---|
{table}
"""
