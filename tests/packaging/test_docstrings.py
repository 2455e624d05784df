# SPDX-License-Identifier: Apache-2.0
"""Every public function and class has an example in its docstring, and the examples give what they say."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest
import torch

import softdiff_kernels as sk
from softdiff_kernels import diffusion

# All but values, such as SAMPLERS, and modules, such as reference.
PUBLIC = [
    pytest.param(package, name, id=f"{package.__name__}.{name}")
    for package in (sk, diffusion)
    for name in package.__all__
    if callable(getattr(package, name))
]
NEED_SCIPY = {"Schedule", "shortest_path_schedule"}
PUBLIC.append(pytest.param(sk.functional, "identity", id="the template of an op"))


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_the_example_of_a_public_name(package: ModuleType, name: str) -> None:
    if name in NEED_SCIPY:
        pytest.importorskip("scipy")
    # Rule: a public name has an example, a class one in its own docstring or in those of its methods.
    names = {"sk": sk, "torch": torch, **{n: getattr(diffusion, n) for n in diffusion.__all__}}
    tests = doctest.DocTestFinder().find(getattr(package, name), name, globs=names)
    assert any(test.examples for test in tests), f"{name} has no example in its docstring"
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    output: list[str] = []
    for test in tests:
        runner.run(test, out=output.append)
    assert runner.failures == 0, "".join(output)
