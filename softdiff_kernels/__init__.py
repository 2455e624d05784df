# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for diffusion models that corrupt images by blur and a little noise.

    import softdiff_kernels as sk

    x_t, residual = sk.corrupt(x0, blur_std, noise_std, return_residual=True)
    loss = sk.soft_score_loss(network(x_t, t), residual, blur_std, weight=1 / noise_std**2)
    x_s = sk.momentum_step(x_t, x0_hat, blur_std_t=..., blur_std_s=..., noise_std_t=..., noise_std_s=...)

Images are [B, C, H, W] in [-1, 1]; blur_std is in pixels; coefficients are numbers or tensors [B].
Importing this needs torch and numpy alone: no compiler, no GPU, no Triton, and CUDA is not initialised.
"""

from . import _interrupt as _interrupt  # before all that imports torch
from . import functional, reference
from ._version import __version__
from .backends import backends, use_backend
from .caches import CacheInfo, cache_info, clear_caches, set_cache_limit
from .functional import *  # noqa: F403 (the ops: the names in its __all__)
from .functional import WarmUp, warm_up
from .noise import NoiseKey

# The ops' names are listed once, in functional.py.
__all__ = [
    "CacheInfo",
    "NoiseKey",
    "WarmUp",
    "__version__",
    "backends",
    "cache_info",
    "clear_caches",
    "reference",
    "set_cache_limit",
    "use_backend",
    "warm_up",
]
__all__ += functional.__all__
