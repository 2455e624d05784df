# SPDX-License-Identifier: Apache-2.0
"""What `softdiff_kernels.data` and `softdiff_kernels.evaluation` export, and what that needs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

EXTRAS = ("safetensors", "PIL", "diffusers", "tyro", "sklearn", "datasets", "torch_fidelity", "yaml", "tqdm")


def test_the_names_need_no_extra_and_the_package_does_not_import_them(tmp_path: Path) -> None:
    """Rule: with torch and numpy alone, distances and data sets in arrays work; `import softdiff_kernels`
    reads neither of the two."""
    program = f"""
import sys
for name in {EXTRAS}:
    sys.modules[name] = None
import softdiff_kernels
assert not any(name.startswith(("softdiff_kernels.data", "softdiff_kernels.eval")) for name in sys.modules)
import softdiff_kernels.data as data, softdiff_kernels.evaluation as evaluation
for module in (data, evaluation):
    for name in module.__all__:
        assert getattr(module, name).__doc__, name
import numpy as np, torch
images = np.random.default_rng(0).integers(0, 256, (240, 8, 8), dtype=np.uint8)
np.savez(sys.argv[1], images=images, labels=np.arange(240) % 3)
loaded = data.load_images(sys.argv[1], need_labels=True)
classifier = evaluation.train_classifier(loaded.pixels, loaded.labels, epochs=1, say=lambda line: None)
features = classifier.features(loaded.pixels)
assert evaluation.kernel_distance(features, features, subsets=2)[1] >= 0
"""
    path = str(tmp_path / "set.npz")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
