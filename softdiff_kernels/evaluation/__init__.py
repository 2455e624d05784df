# SPDX-License-Identifier: Apache-2.0
"""How far a set of images is from a reference: what `softdiff evaluate` computes, as functions.

    from softdiff_kernels.evaluation import classifier_frechet, train_classifier

Read in this order: `frechet` (distances between features, and the list METRICS), `classifier` and `inception`
(two networks that give features), `samples` (the images that are measured: read from files, or drawn). These
names need only torch and numpy; keeping a classifier in a file needs the extra `train`, and Inception `fid`.
"""

from .classifier import Classifier, classifier_frechet, load_classifier, train_classifier
from .frechet import METRICS, FeatureStatistics, Metric, frechet_distance, kernel_distance

__all__ = [
    "METRICS",
    "Classifier",
    "FeatureStatistics",
    "Metric",
    "classifier_frechet",
    "frechet_distance",
    "kernel_distance",
    "load_classifier",
    "train_classifier",
]
