"""Predictions -> what is drawn of them: ROC, reliability, confusion, the worst mistakes. Pure functions.

Scores are probabilities ``[N, C]``; targets are ``[N]`` class numbers or, for several labels an image, ``[N, L]`` of 0
and 1, as in :mod:`ssl_mednet.probe.metrics`, whose definitions these follow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix, roc_curve

from ssl_mednet.probe.metrics import ECE_BINS

Array = np.ndarray
Curve = tuple[Array, Array]
FEW = 10  # predictions in a bin below which its point is mostly chance


def roc(targets: Array, scores: Array) -> Curve:
    """False and true positive rates: of the second of two classes, else the macro average over classes or labels.

    The average is the mean of the single curves at every false positive rate where one of them bends, so the area
    under it is the mean of their areas. A class without positives or negatives is left out; empty where none is left.
    """
    single = [c for c in roc_by_class(targets, scores) if c is not None]
    if len(single) < 2:
        return single[0] if single else (np.empty(0), np.empty(0))
    grid = np.unique(np.concatenate([fpr for fpr, _ in single]))
    sides = np.mean([_both_sides(fpr, tpr, grid) for fpr, tpr in single], axis=0)
    return np.repeat(grid, 2), sides.ravel()


def roc_by_class(targets: Array, scores: Array) -> list[Curve | None]:
    """One curve a class or label (one in all for two classes, of the second); None where it is not defined."""
    classes = [1] if targets.ndim == 1 and scores.shape[1] == 2 else range(scores.shape[1])
    curves: list[Curve | None] = []
    for c in classes:
        positive = targets[:, c] == 1 if targets.ndim == 2 else targets == c
        defined = 0 < positive.sum() < len(positive)
        curves.append(roc_curve(positive, scores[:, c])[:2] if defined else None)
    return curves


def _both_sides(fpr: Array, tpr: Array, grid: Array) -> Array:
    """The curve's value just left and just right of each point of ``grid``, ``[G, 2]``: ROC curves have jumps."""
    x, first = np.unique(fpr, return_index=True)
    last = np.append(first[1:], len(fpr)) - 1
    after = np.searchsorted(x, grid, side="right") - 1
    at = x[after] == grid
    onward = np.minimum(after + 1, len(x) - 1)
    step = np.where(onward > after, x[onward] - x[after], 1.0)
    between = tpr[last[after]] + (tpr[first[onward]] - tpr[last[after]]) * (grid - x[after]) / step
    return np.stack([np.where(at, tpr[first[after]], between), np.where(at, tpr[last[after]], between)], axis=1)


@dataclass(frozen=True)
class Reliability:
    """Predictions sorted into bins of confidence ``[B]``; NaN in an empty bin.

    Args:
        count: predictions in the bin.
        confidence: their mean probability.
        frequency: the share of them that came true.
    """

    count: Array
    confidence: Array
    frequency: Array

    @property
    def gap(self) -> float:
        """Mean confidence less the share that came true: above 0 the model is too sure of itself."""
        filled = self.count > 0
        weight = self.count[filled] / self.count.sum()
        return float((weight * (self.confidence - self.frequency)[filled]).sum())


def reliability(targets: Array, scores: Array, bins: int = ECE_BINS) -> Reliability:
    """Bins ``(a, b]`` of equal width as in the ECE (Guo et al. 2017, section 2).

    One class an image: the probability of the decided class, and whether it was right. Several labels: the probability
    of each label, and whether it was there, all labels together.
    """
    if targets.ndim == 1:
        confidence, true = scores.max(axis=1), scores.argmax(axis=1) == targets
    else:
        confidence, true = scores.ravel(), targets.ravel() == 1
    cell = np.clip(np.ceil(confidence * bins) - 1, 0, bins - 1).astype(int)
    counts = np.bincount(cell, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(cell, weights=w, minlength=bins) / counts for w in (confidence, true.astype(float))]
    return Reliability(counts, *means)


def describe_reliability(bins: Reliability) -> str:
    """The diagram in words: too sure, too modest, or neither; and whether thin bins want caution."""
    points = 100 * bins.gap
    if abs(points) < 2:
        said = "Mean confidence and the share that came true differ by less than 2 points"
    elif points > 0:
        said = f"On average {points:.0f} points too sure of itself"
    else:
        said = f"On average {-points:.0f} points less sure than it could be"
    thin = int(((bins.count > 0) & (bins.count < FEW)).sum())
    if thin:
        return f"{said}; hollow points stand for fewer than {FEW} predictions."
    return f"{said}."


def confusion(targets: Array, scores: Array) -> Array:
    """Counts ``[C, C]``: rows are the true class, columns the decided one (highest probability)."""
    return confusion_matrix(targets, scores.argmax(axis=1), labels=range(scores.shape[1]))


@dataclass(frozen=True)
class Mistake:
    """Image number ``index`` of the test set, decided wrongly with probability ``confidence``.

    ``said`` and ``true`` are class numbers; for several labels an image ``said`` is the label in question and ``true``
    says whether it was there (1) or not (0), ``confidence`` being that of the wrong answer.
    """

    index: int
    true: int
    said: int
    confidence: float


def worst_mistakes(targets: Array, scores: Array, n: int) -> list[Mistake]:
    """The ``n`` wrong decisions with the highest confidence, the surest first, at most one an image.

    One class an image: the highest probability decides. Several labels: more than 0.5 does, for each label.
    """
    if targets.ndim == 1:
        said = scores.argmax(axis=1)
        sure, wrong, true = scores.max(axis=1), said != targets, targets
    else:
        off = np.abs(scores - targets)
        said = off.argmax(axis=1)
        rows = np.arange(len(scores))
        sure, true = off[rows, said], targets[rows, said]
        wrong = ((scores > 0.5) != (targets == 1))[rows, said]
    order = np.argsort(np.where(wrong, -sure, 1.0), kind="stable")[: min(n, int(wrong.sum()))]
    return [Mistake(int(i), int(true[i]), int(said[i]), float(sure[i])) for i in order]
