# SPDX-License-Identifier: Apache-2.0
"""These tests share `checks` with those of the folder above, and the core pass with `benchmarks.gpu`."""

import sys
from pathlib import Path

sys.path[:0] = [str(folder) for folder in Path(__file__).resolve().parents[1:3]]
