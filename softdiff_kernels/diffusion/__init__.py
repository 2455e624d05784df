# SPDX-License-Identifier: Apache-2.0
"""The method of Soft Diffusion over the library's ops: corruptions, schedules, samplers, priors, losses."""

from .corruption import SCHEDULES, Corruption, NamedSchedule, ScheduleOptions
from .denoiser import LOSSES, PREDICTIONS, WEIGHTS, Guided, SoftDenoiser, TrainingLoss
from .priors import PRIORS, BlurredImagesPrior, GaussianDCTPrior, PlainGaussianPrior, Prior, prior_from_state
from .samplers import (
    SAMPLERS,
    SAMPLING_SEED,
    generate,
    sample_ddim,
    sample_momentum,
    sample_naive,
    sample_tacos,
    time_steps,
)
from .schedule import Schedule
from .shortest_path import PowerSpectrum, power_spectrum, shortest_path_schedule, wasserstein_distances

__all__ = [
    "LOSSES",
    "PREDICTIONS",
    "PRIORS",
    "SAMPLERS",
    "SAMPLING_SEED",
    "SCHEDULES",
    "WEIGHTS",
    "BlurredImagesPrior",
    "Corruption",
    "GaussianDCTPrior",
    "Guided",
    "NamedSchedule",
    "PlainGaussianPrior",
    "PowerSpectrum",
    "Prior",
    "Schedule",
    "ScheduleOptions",
    "SoftDenoiser",
    "TrainingLoss",
    "generate",
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
