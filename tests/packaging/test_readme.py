# SPDX-License-Identifier: Apache-2.0
"""What README, docs/ and CITATION.cff say that can be run or looked up."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch

import softdiff_kernels
from softdiff_kernels import diffusion

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


# The blocks of distributed.md are run in several processes, by test_wrappers.py.
PAGES_WITH_CODE = [
    page
    for page in sorted((ROOT / "docs").glob("*.md"))
    if page.name != "distributed.md" and "```python\n" in page.read_text()
]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_as_printed(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Rule: the python blocks of a page run one after the other, and the page defines every name in them.
    monkeypatch.chdir(tmp_path)  # some write files
    names: dict[str, object] = {"__name__": page.stem}
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(code, page.name, "exec"), names)


def test_the_citation_names_this_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {softdiff_kernels.__version__.split('+')[0]}\n" in citation


def test_every_relative_link_leads_to_a_file():
    # Rule: a link of a page that is not a web address names a file of the repository. `make docs` checks the
    # site's pages in the same way, and the headings that links name.
    for page in (
        *sorted(ROOT.glob("*.md")),
        *sorted((ROOT / "docs").glob("*.md")),
        ROOT / "examples/README.md",
    ):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize(("package", "page"), [(softdiff_kernels, "ops.md"), (diffusion, "diffusion.md")])
def test_every_public_name_is_on_its_page(package: ModuleType, page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    documented = set(re.findall(r"(?m)^::: [\w.]*\.(\w+)$", text)) | set(
        re.findall(r"`(?:sk\.)?(\w+)`", text)
    )
    assert set(package.__all__) - {"__version__"} <= documented
