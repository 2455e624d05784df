# SPDX-License-Identifier: Apache-2.0
"""The method of Soft Diffusion over the library's ops: corruptions, schedule, samplers, priors, loss."""

from .corruption import Corruption
from .denoiser import SoftDenoiser
from .guidance import Guided
from .power_spectrum import PowerSpectrum, power_spectrum
from .priors import PRIORS, BlurredImagesPrior, GaussianDCTPrior, PlainGaussianPrior, Prior, prior_from_state
from .samplers import SAMPLERS, sample_ddim, sample_momentum, sample_naive, sample_tacos, time_steps
from .schedule import Schedule, shortest_path_schedule
from .training_loss import TrainingLoss
from .wasserstein import wasserstein_distances

__all__ = [
    "PRIORS",
    "SAMPLERS",
    "BlurredImagesPrior",
    "Corruption",
    "GaussianDCTPrior",
    "Guided",
    "PlainGaussianPrior",
    "PowerSpectrum",
    "Prior",
    "Schedule",
    "SoftDenoiser",
    "TrainingLoss",
    "power_spectrum",
    "prior_from_state",
    "sample_ddim",
    "sample_momentum",
    "sample_naive",
    "sample_tacos",
    "shortest_path_schedule",
    "time_steps",
    "wasserstein_distances",
]
