# SPDX-License-Identifier: Apache-2.0
"""The order of the package's parts: a file imports from its own part and those before it, never in a circle.

The size limits are those that the layout was made for; a part that outgrows one wants another cut, not a
larger number.
"""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "softdiff_kernels"
# From the ground up. A part is a file or a folder; - is the package's own __init__, which exports the ops.
_ORDER = """
_version _interrupt errors files memory progress _numbers caches _arguments images noise spectrum reference
backends _autograd _ops functional - diffusion data training evaluation integrations _machine bench
commands cli __main__
"""
PARTS = _ORDER.split()
MOST_IMPORTS = 470  # 410 before the diffusers and k-diffusion adapters, packed data and reports had theirs
MOST_SMALL_FILES, SMALL = 22, 75
MOST_BENCHMARK_LINES = 6000  # 5700 before experiments had three trainings and an exact denoiser


@lru_cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    names = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


@lru_cache
def imports() -> dict[str, set[str]]:
    """The modules that each file imports anywhere in it: inside functions and for types alone, too."""
    known = modules()
    graph: dict[str, set[str]] = {name: set() for name in known}
    for name, file in known.items():
        package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                parent = package[: len(package) - node.level + 1] if node.level else []
                base = ".".join([*parent, *([node.module] if node.module else [])])
                inner = [f"{base}.{alias.name}" for alias in node.names]
                targets = [name if name in known else base for name in inner]
            else:
                continue
            graph[name] |= {target for target in targets if target in known and target != name}
    return graph


def part(module: str) -> str:
    return module.partition(".")[2].partition(".")[0] or "-"


def test_every_part_has_a_place_in_the_order():
    assert {part(module) for module in modules()} <= set(PARTS)


def test_imports_run_downwards():
    upwards = [
        f"{module} imports {target}"
        for module, targets in imports().items()
        for target in sorted(targets)
        if PARTS.index(part(target)) > PARTS.index(part(module))
    ]
    assert not upwards, "\n".join(upwards)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of circles, and between them: what is left when modules that import nothing of the rest, or
    that nothing of the rest imports, are taken away one after the other."""
    left = set(graph)
    while True:
        imported = set().union(*(graph[name] & left for name in left))
        inside = {name for name in left & imported if graph[name] & left}
        if inside == left:
            return sorted(left)
        left = inside


def test_no_circle():
    assert circle(imports()) == []


def test_a_circle_is_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c"]


def test_few_imports_between_files():
    count = sum(map(len, imports().values()))
    assert count <= MOST_IMPORTS, f"{count} file-to-file imports"


def test_few_small_files():
    small = [n for n, f in modules().items() if len(f.read_text(encoding="utf-8").splitlines()) <= SMALL]
    assert len(small) <= MOST_SMALL_FILES, small


def test_the_benchmarks_stay_smaller_than_what_they_measure():
    files = [*(PACKAGE / "bench").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    count = sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)
    if not (ROOT / "benchmarks").is_dir():
        pytest.skip("an installed package has no benchmarks beside it")
    assert count <= MOST_BENCHMARK_LINES, f"{count} lines"
