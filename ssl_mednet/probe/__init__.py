"""Features and labels -> scores: pure functions that know nothing of images, files or backbones."""

from ssl_mednet.probe.intervals import Difference, Interval, bootstrap, paired_bootstrap
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
    "bootstrap",
    "fit_linear",
    "fit_path",
    "knn_scores",
    "paired_bootstrap",
    "per_class_auroc",
    "per_class_recall",
    "select_k",
]
