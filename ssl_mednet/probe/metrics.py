"""Labels and scores -> figures of merit, each for one sample or for many bootstrap resamples of it at once.

Everywhere: targets are multi-class ``[N]`` int or multi-label ``[N, L]`` in {0, 1}; scores are probabilities ``[N, C]``
(multi-label ``[N, L]``). A metric is called as ``auroc(targets, scores) -> float``. ``auroc.prepare(targets, scores)``
sorts and counts once and gives a function from row weights ``[N, B]`` (how often each resample drew each row) to
values ``[B]``, which is what makes a thousand resamples cheap.

A class that is absent from a sample (or covers all of it) has no AUROC: it is left out of the macro mean, in a resample
as in the whole; :func:`per_class_auroc` shows which (NaN). A metric with nothing left to average is NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from ssl_mednet.errors import DataError
from ssl_mednet.probe.checks import Array, ArrayLike, check_targets, to_numpy

Weighted = Callable[[Array], Array]
ECE_BINS = 15  # Guo et al. 2017, section 2


@dataclass(frozen=True)
class Metric:
    """One figure of merit; see the module for shapes. Raises :class:`DataError` where they do not fit."""

    name: str
    build: Callable[[Array, Array], Weighted]
    higher_is_better: bool = True

    def prepare(self, targets: ArrayLike, scores: ArrayLike) -> Weighted:
        """The metric as a function of row weights: ``[N, B]`` -> ``[B]``."""
        return self.build(*check_pair(targets, scores))

    def __call__(self, targets: ArrayLike, scores: ArrayLike) -> float:
        return float(self.prepare(targets, scores)(np.ones((len(targets), 1)))[0])


def check_pair(targets: ArrayLike, scores: ArrayLike) -> tuple[Array, Array]:
    """Targets as int64, scores as float64 ``[N, C]``.

    Raises:
        DataError: they do not fit each other, are empty, or the scores are not finite.
    """
    scores = to_numpy(scores).astype(np.float64)
    if scores.ndim != 2 or not len(scores):
        raise DataError(f"scores have shape {list(scores.shape)}, wanted [N, C] with N of at least 1")
    if not np.isfinite(scores).all():
        raise DataError("scores hold NaN or infinity")
    return check_targets(targets, scores.shape[1], "scored", rows=len(scores)), scores


def _ratio(top: Array, bottom: Array) -> Array:
    """``top / bottom``, NaN where ``bottom`` is 0: "not defined" travels as NaN."""
    return np.divide(top, bottom, out=np.full(np.broadcast_shapes(top.shape, bottom.shape), np.nan), where=bottom != 0)


def mean_of_defined(values: Array) -> Array:
    """Mean over the first axis of what is defined; NaN where nothing is."""
    defined = ~np.isnan(values)
    return _ratio(np.where(defined, values, 0.0).sum(axis=0), defined.sum(axis=0))


# --- ranking --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ranking:
    """Rows by rising score, and for each positive row the run of equal scores ``first : last`` that it lies in."""

    order: Array
    positive: Array
    first: Array
    last: Array

    @classmethod
    def of(cls, is_positive: Array, score: Array) -> _Ranking:
        order = np.argsort(score, kind="stable")
        ranked, positive = score[order], is_positive[order]
        where = np.flatnonzero(positive)
        first = np.searchsorted(ranked, ranked[where], side="left")
        return cls(order, positive, first, np.searchsorted(ranked, ranked[where], side="right"))

    def auroc(self, weights: Array) -> Array:
        """Mann-Whitney: the share of (positive, negative) pairs in order, ties a half (Hanley, McNeil 1982)."""
        ranked = weights[self.order]
        own = ranked[self.positive]  # [P, B]
        ranked[self.positive] = 0.0
        negatives = _running_sum(ranked)
        below = 0.5 * (negatives[self.first] + negatives[self.last])
        return _ratio((own * below).sum(axis=0), own.sum(axis=0) * negatives[-1])

    def average_precision(self, weights: Array) -> Array:
        """Mean over positives of the precision at their own score, ties sharing one threshold."""
        ranked = weights[self.order]
        own, totals = ranked[self.positive], _running_sum(ranked)
        ranked[~self.positive] = 0.0
        positives = _running_sum(ranked)
        hits, drawn = positives[-1] - positives[self.first], totals[-1] - totals[self.first]
        return _ratio((own * hits / np.maximum(drawn, 1.0)).sum(axis=0), positives[-1])


def _running_sum(ranked: Array) -> Array:
    """``[N, B]`` to ``[N + 1, B]``: row i is the sum of the first i rows."""
    sums = np.zeros((len(ranked) + 1, ranked.shape[1]))
    np.cumsum(ranked, axis=0, out=sums[1:])
    return sums


def _rankings(targets: Array, scores: Array) -> list[_Ranking]:
    """One against the rest for each class or label; of two classes only the second, whose scores say it all."""
    classes = [1] if targets.ndim == 1 and scores.shape[1] == 2 else range(scores.shape[1])
    is_class = [(targets == c) if targets.ndim == 1 else targets[:, c] == 1 for c in classes]
    return [_Ranking.of(positive, scores[:, c]) for c, positive in zip(classes, is_class, strict=True)]


def _auroc(targets: Array, scores: Array) -> Weighted:
    rankings = _rankings(targets, scores)
    return lambda weights: mean_of_defined(np.stack([r.auroc(weights) for r in rankings]))


def _average_precision(targets: Array, scores: Array) -> Weighted:
    rankings = _rankings(targets, scores)
    return lambda weights: mean_of_defined(np.stack([r.average_precision(weights) for r in rankings]))


def per_class_auroc(targets: ArrayLike, scores: ArrayLike) -> Array:
    """``[C]`` (one value for two classes): one against the rest, NaN for a class that the macro mean leaves out."""
    targets, scores = check_pair(targets, scores)
    return np.concatenate([r.auroc(np.ones((len(scores), 1))) for r in _rankings(targets, scores)])


# --- decisions ------------------------------------------------------------------------------------------------------


def _confusion(targets: Array, scores: Array) -> Weighted:
    """Weights ``[N, B]`` -> counts ``[P, K, K, B]`` (truth, decision).

    Multi-class is P = 1 problem of K = C classes decided by argmax; multi-label is P = L problems of K = 2, decided
    by score > 0.5. Both are MedMNIST's ACC rule (Yang et al. 2023), and agree for two classes.
    """
    n, c = scores.shape
    if targets.ndim == 1:
        problems, k, cell = 1, c, targets * c + scores.argmax(axis=1)
        rows = np.arange(n)
    else:
        problems, k = c, 2
        cell = (np.arange(c) * 4 + targets * 2 + (scores > 0.5)).ravel()
        rows = np.repeat(np.arange(n), c)
    member = csr_matrix((np.ones(len(cell)), (cell, rows)), shape=(problems * k * k, n))
    return lambda weights: (member @ weights).reshape(problems, k, k, -1)


def _decided(figure: Callable[[Array, bool], Array]) -> Callable[[Array, Array], Weighted]:
    """A metric out of a figure of the confusion counts; the figure is also told whether this is multi-label."""

    def build(targets: Array, scores: Array) -> Weighted:
        count = _confusion(targets, scores)
        return lambda weights: figure(count(weights), targets.ndim == 2)

    return build


def _hits(counts: Array) -> Array:
    """The diagonal of ``[P, K, K, B]`` as ``[P, K, B]``."""
    return np.einsum("pkkb->pkb", counts)


def _accuracy(counts: Array, multilabel: bool) -> Array:
    return mean_of_defined(_ratio(_hits(counts).sum(axis=1), counts.sum(axis=(1, 2))))


def _balanced_accuracy(counts: Array, multilabel: bool) -> Array:
    recall = _ratio(_hits(counts), counts.sum(axis=2))
    return mean_of_defined(mean_of_defined(recall.swapaxes(0, 1)))


def _macro_f1(counts: Array, multilabel: bool) -> Array:
    """2 TP / (2 TP + FP + FN) over classes that occur as truth or decision; for multi-label of the positive side."""
    f1 = _ratio(2 * _hits(counts), counts.sum(axis=2) + counts.sum(axis=1))
    return mean_of_defined(f1[:, 1] if multilabel else f1[0])


def _quadratic_kappa(counts: Array, multilabel: bool) -> Array:
    """1 - sum(w O) / sum(w E) with w = (i - j)^2 (Cohen 1968), E from the margins."""
    if multilabel:
        raise DataError("quadratic kappa is for ordered classes, and these are labels")
    observed = counts[0]
    distance = np.subtract.outer(np.arange(len(observed)), np.arange(len(observed))) ** 2.0
    expected = np.einsum("ib,jb->ijb", observed.sum(axis=1), observed.sum(axis=0)) / observed.sum(axis=(0, 1))
    return 1.0 - _ratio(np.einsum("ij,ijb->b", distance, observed), np.einsum("ij,ijb->b", distance, expected))


def per_class_recall(targets: ArrayLike, scores: ArrayLike) -> Array:
    """``[C]``: the share of each class that is decided right (multi-label: sensitivity at > 0.5); NaN where absent."""
    targets, scores = check_pair(targets, scores)
    counts = _confusion(targets, scores)(np.ones((len(scores), 1)))
    recall = _ratio(_hits(counts), counts.sum(axis=2))[..., 0]
    return recall[0] if targets.ndim == 1 else recall[:, 1]


# --- calibration ----------------------------------------------------------------------------------------------------


def _ece(targets: Array, scores: Array) -> Weighted:
    """Sum over 15 bins (a, b] of |mean confidence - share right| times the bin's share (Guo et al. 2017, equation 3).

    Multi-class: confidence of the decided class. Multi-label: for each label its probability against its frequency,
    then the mean over labels.
    """
    n = len(scores)
    if targets.ndim == 1:
        confidence, right = scores.max(axis=1, keepdims=True), (scores.argmax(axis=1) == targets)[:, None]
    else:
        confidence, right = scores, targets == 1
    problems = confidence.shape[1]
    cell = np.clip(np.ceil(confidence * ECE_BINS) - 1, 0, ECE_BINS - 1).astype(int) + ECE_BINS * np.arange(problems)
    rows = np.repeat(np.arange(n), problems)
    gaps = csr_matrix(((confidence - right).ravel(), (cell.ravel(), rows)), shape=(problems * ECE_BINS, n))
    return lambda weights: _ratio(np.abs(gaps @ weights).sum(axis=0), problems * weights.sum(axis=0))


auroc = Metric("auroc", _auroc)
average_precision = Metric("average_precision", _average_precision)
accuracy = Metric("accuracy", _decided(_accuracy))
balanced_accuracy = Metric("balanced_accuracy", _decided(_balanced_accuracy))
macro_f1 = Metric("macro_f1", _decided(_macro_f1))
quadratic_kappa = Metric("quadratic_kappa", _decided(_quadratic_kappa))
ece = Metric("ece", _ece, higher_is_better=False)

METRICS = {m.name: m for m in (auroc, average_precision, accuracy, balanced_accuracy, macro_f1, quadratic_kappa, ece)}
