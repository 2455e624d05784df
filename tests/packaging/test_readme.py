# SPDX-License-Identifier: Apache-2.0
"""README's promises that can be run or looked up."""

from __future__ import annotations

import re
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_the_training_loop_runs_as_printed():
    # Rule: the python block of README, as it stands, trains and samples with a network of the reader's own.
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    layer = torch.nn.Conv2d(3, 3, 3, padding=1)
    names = {
        "x0": torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8),
        "blur_std": torch.rand(4) + 0.5,
        "noise_std": torch.rand(4) * 0.1 + 0.01,
        "t": torch.rand(4),
        "network": lambda x, t: layer(x),
    }
    exec(compile(code, "README.md", "exec"), names)
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    assert names["x_s"].shape == names["x0"].shape and torch.isfinite(names["x_s"]).all()


def test_every_relative_link_leads_to_a_file():
    # Rule: a link of README or docs that is not a web address names a file of the repository.
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"
