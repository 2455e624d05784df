# SPDX-License-Identifier: Apache-2.0
"""The method of Soft Diffusion over the library's ops: corruptions, schedules, samplers, priors, losses."""

from .blur import BlurCorruption
from .corruption import BEST_SAMPLERS, Corruption, register
from .denoiser import LOSSES, PREDICTIONS, WEIGHTS, Guided, SoftDenoiser, TrainingLoss
from .generate import SAMPLING_SEED, STEPS, check_sampler, generate
from .linear import LinearCorruption
from .mask import MaskCorruption
from .named import CORRUPTIONS, SCHEDULES, CorruptionOptions, Named
from .priors import PRIORS, BlurredImagesPrior, GaussianDCTPrior, PlainGaussianPrior, Prior, prior_from_state
from .restore import blur_gain, inpaint, restore, start_time, wiener
from .rules import DDIM, IHDM, Ancestral, Langevin, Momentum, Naive, Rule, TACoS
from .samplers import (
    SAMPLERS,
    sample,
    sample_ancestral,
    sample_ddim,
    sample_heun,
    sample_ihdm,
    sample_langevin,
    sample_momentum,
    sample_multistep,
    sample_naive,
    sample_tacos,
)
from .schedule import Schedule
from .shortest_path import (
    FeatureDistance,
    PowerSpectrum,
    power_spectrum,
    shortest_path_schedule,
    wasserstein_distances,
)
from .spectral import SpectralCorruption
from .times import SPACINGS, time_steps, time_warp

__all__ = [
    "BEST_SAMPLERS",
    "CORRUPTIONS",
    "DDIM",
    "IHDM",
    "LOSSES",
    "PREDICTIONS",
    "PRIORS",
    "SAMPLERS",
    "SAMPLING_SEED",
    "SCHEDULES",
    "SPACINGS",
    "STEPS",
    "WEIGHTS",
    "Ancestral",
    "BlurCorruption",
    "BlurredImagesPrior",
    "Corruption",
    "CorruptionOptions",
    "FeatureDistance",
    "GaussianDCTPrior",
    "Guided",
    "Langevin",
    "LinearCorruption",
    "MaskCorruption",
    "Momentum",
    "Naive",
    "Named",
    "PlainGaussianPrior",
    "PowerSpectrum",
    "Prior",
    "Rule",
    "Schedule",
    "SoftDenoiser",
    "SpectralCorruption",
    "TACoS",
    "TrainingLoss",
    "blur_gain",
    "check_sampler",
    "generate",
    "inpaint",
    "power_spectrum",
    "prior_from_state",
    "register",
    "restore",
    "sample",
    "sample_ancestral",
    "sample_ddim",
    "sample_heun",
    "sample_ihdm",
    "sample_langevin",
    "sample_momentum",
    "sample_multistep",
    "sample_naive",
    "sample_tacos",
    "shortest_path_schedule",
    "start_time",
    "time_steps",
    "time_warp",
    "wasserstein_distances",
    "wiener",
]
