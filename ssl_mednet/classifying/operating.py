"""The operating point of a classifier: from which probability on it says a class, and how often that is right."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ssl_mednet.classifying.model import decided
from ssl_mednet.probe import METRICS, best_threshold, resample

_NOT_DEFINED = {"value": float("nan"), "low": float("nan"), "high": float("nan")}


def thresholds(classes: list[str], labels: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """From which probability on to say a class: of two classes the second, of several findings each; else empty."""
    if labels.ndim == 1 and (len(classes) != 2 or len(np.unique(labels)) != 2):
        return {}
    if labels.ndim == 1:
        return {classes[1]: best_threshold(labels, scores)}
    found = {}
    for number, name in enumerate(classes):
        truth, said = labels[:, number], np.stack([1 - scores[:, number], scores[:, number]], axis=1)
        found[name] = best_threshold(truth, said) if len(np.unique(truth)) == 2 else 0.5
    return found


def decided_by_others(classes: list[str], labels: np.ndarray, scores: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """``[N, K]``: what is said of the rows of each fold at thresholds that the rows of the other folds chose."""
    said = np.zeros(scores.shape, bool)
    for number in np.unique(fold):
        own = fold == number
        limits = thresholds(classes, labels[~own], scores[~own])
        said[own] = decided(scores[own], classes, limits, labels.ndim == 2)
    return said


def operating_point(
    classes: list[str], labels: np.ndarray, said: np.ndarray, groups: np.ndarray | None, resamples: int, seed: int
) -> dict[str, Any]:
    """How often ``said`` ``[N, K]`` is right, with intervals as everywhere.

    Returns:
        ``metrics`` (accuracy, balanced accuracy), and ``findings``: sensitivity and specificity of each finding, of two
        classes for the second.
    """
    drawn: dict[str, Any] = {"n": resamples, "seed": seed}
    names = ("accuracy", "balanced_accuracy")
    found = resample({name: METRICS[name] for name in names}, labels, said.astype(float), groups, **drawn)

    def share(rows: np.ndarray, truth: np.ndarray, hits: np.ndarray) -> dict[str, Any]:
        if not rows.any():
            return dict(_NOT_DEFINED)
        one_hot, units = np.eye(2)[hits[rows].astype(int)], None if groups is None else groups[rows]
        return asdict(
            resample({"": METRICS["accuracy"]}, truth[rows].astype(int), one_hot, units, **drawn)[""].interval()
        )

    findings = {}
    for number, name in enumerate(classes):
        if labels.ndim == 2 or number == 1:
            truth, hits = (labels[:, number] if labels.ndim == 2 else labels) == 1, said[:, number]
            findings[name] = {"sensitivity": share(truth, truth, hits), "specificity": share(~truth, truth, hits)}
    return {"metrics": {name: asdict(r.interval()) for name, r in found.items()}, "findings": findings}
