"""Features and labels -> scores: pure functions that know nothing of images, files or backbones."""

from ssl_mednet.probe.calibration import best_threshold, fit_temperature, with_temperature
from ssl_mednet.probe.checks import unit_rows
from ssl_mednet.probe.intervals import (
    Difference,
    Interval,
    Resampled,
    bootstrap,
    difference,
    paired_bootstrap,
    resample,
)
from ssl_mednet.probe.knn import DEFAULT_KS, NeighbourChoice, knn_scores, select_k
from ssl_mednet.probe.linear import DEFAULT_STRENGTHS, LinearProbe, Path, fit_linear, fit_path
from ssl_mednet.probe.metrics import METRICS, Metric, per_class_auroc, per_class_recall

__all__ = [
    "DEFAULT_KS",
    "DEFAULT_STRENGTHS",
    "METRICS",
    "Difference",
    "Interval",
    "LinearProbe",
    "Metric",
    "NeighbourChoice",
    "Path",
    "Resampled",
    "best_threshold",
    "bootstrap",
    "difference",
    "fit_linear",
    "fit_path",
    "fit_temperature",
    "knn_scores",
    "paired_bootstrap",
    "per_class_auroc",
    "per_class_recall",
    "resample",
    "select_k",
    "unit_rows",
    "with_temperature",
]
