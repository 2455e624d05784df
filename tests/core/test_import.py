# SPDX-License-Identifier: Apache-2.0
"""What `import softdiff_kernels` does and does not do, and that it works where nothing optional is present.

Each test runs a fresh interpreter, since an import happens once in a process.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HIDE = """
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if any(name == hidden or name.startswith(hidden + ".") for hidden in {hidden!r}):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""

RUN_EVERY_OP = """
import json, torch
import softdiff_kernels as sk

image = torch.linspace(-1, 1, 2 * 3 * 8 * 6).reshape(2, 3, 8, 6)
key = sk.NoiseKey(7)
results = {
    "dct2": sk.dct2(image),
    "idct2": sk.idct2(image),
    "blur": sk.blur(image, 1.5),
    "corrupt": sk.corrupt(image, 1.5, 0.1, key=key),
    "reverse_step": sk.reverse_step(image, image, blur_std_t=2.0, blur_std_s=1.0, a=0.9, b=0.1, key=key),
    "momentum_step": sk.momentum_step(
        image, image, blur_std_t=2.0, blur_std_s=1.0, noise_std_t=0.2, noise_std_s=0.1, key=key),
    "soft_score_loss": sk.soft_score_loss(image, 0.5 * image, 1.0),
    "spectral_loss": sk.spectral_loss(image, 0.5 * image, torch.ones(8, 6)),
    "spectral_mix": sk.spectral_mix([image], [torch.ones(8, 6)]),
    "normal": sk.normal((2, 3, 8, 6), key),
}
twins = {
    "blur": sk.reference.blur(image, 1.5),
    "corrupt": sk.reference.corrupt(image, 1.5, 0.1, key=key),
}
print(json.dumps({
    "finite": sorted(name for name, value in results.items() if bool(value.isfinite().all())),
    "names": sorted(results),
    "error": max(float((results[name] - twins[name]).norm() / twins[name].norm()) for name in twins),
    "backends": {name: [entry.usable, entry.reason] for name, entry in sk.backends().items()},
}))
"""


def fresh(code: str, **variables: str) -> str:
    """Run the code in a new interpreter that sees the same package as this one; its standard output."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SOFTDIFF_")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "PYTHONPATH": path, **variables},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_does_not_initialise_cuda() -> None:
    """Rule: importing costs no CUDA context, which would take memory on every GPU and break fork."""
    code = "import softdiff_kernels, torch; print(torch.cuda.is_initialized())"
    assert fresh(code).strip() == "False"


def test_import_brings_in_nothing_optional() -> None:
    """Rule: beyond what torch and numpy import themselves, the import adds none of the optional packages."""
    optional = ["triton", "scipy", "diffusers", "matplotlib", "tyro", "sklearn", "safetensors", "PIL", "tqdm"]
    code = (
        "import json, sys, numpy, torch\n"
        "before = set(sys.modules)\n"
        "import softdiff_kernels\n"
        "added = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(json.dumps(sorted(added)))"
    )
    added = set(json.loads(fresh(code)))
    assert "softdiff_kernels" in added
    assert added.isdisjoint(optional)


def test_import_prints_nothing() -> None:
    assert fresh("import softdiff_kernels") == ""


def test_version_is_the_packaged_one() -> None:
    code = "import softdiff_kernels; print(softdiff_kernels.__version__)"
    public = fresh(code).strip()
    (packaged,) = re.findall(r'__version__ = "(.*)"', (ROOT / "softdiff_kernels" / "_version.py").read_text())
    assert public == packaged


@pytest.mark.parametrize(
    "hidden",
    [
        ("softdiff_kernels._native",),
        ("triton",),
        ("softdiff_kernels._native", "triton", "scipy", "diffusers", "matplotlib", "tyro", "sklearn"),
    ],
    ids=["no compiled module", "no triton", "torch and numpy alone"],
)
def test_every_op_runs_with_parts_missing(hidden: tuple[str, ...]) -> None:
    """Rule: without the compiled module and without Triton every op still gives the reference's values.

    The bound covers two orders of summing at most 8 + 6 float32 terms, each within 14 * 2^-24 = 8e-7 of the
    exact sum; a result that is off by 0.1 % exceeds it a hundredfold.
    """
    seen = json.loads(fresh(HIDE.format(hidden=hidden) + RUN_EVERY_OP))
    assert seen["finite"] == seen["names"]
    assert seen["error"] < 1e-5


def test_backends_gives_a_reason_for_each_that_is_missing() -> None:
    """Rule: the reference is always usable; a backend that is not says why in words."""
    hidden = ("softdiff_kernels._native", "triton")
    backends = json.loads(fresh(HIDE.format(hidden=hidden) + RUN_EVERY_OP))["backends"]
    assert backends["reference"][0] is True
    assert backends["native"][0] is False and backends["triton"][0] is False
    for name, (usable, reason) in backends.items():
        assert usable or len(reason.split()) >= 3, f"{name}: {reason!r}"
