# SPDX-License-Identifier: Apache-2.0
"""The reference trainer and sampler, over `softdiff_kernels.diffusion`.

Nothing is imported here: `softdiff doctor` and `softdiff --help` pass through this package and need
neither the trainer's extras nor their import time.
"""
