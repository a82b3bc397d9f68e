"""Few labels: a linear probe whose strength and scores come from cross-validation, so that no image is set aside."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

from ssl_mednet.classifying.unlike import Unlike
from ssl_mednet.errors import DataError
from ssl_mednet.probe import LinearProbe, fit_path
from ssl_mednet.probe.intervals import units_of
from ssl_mednet.probe.linear import Path

FOLDS = 5


@dataclass(frozen=True)
class CrossValidated:
    """What came of it.

    Args:
        probe: fitted on all rows, its strength chosen by the folds.
        scores: ``[N, K]`` probabilities of each row, by a probe that was fitted and chosen without it and its group.
        distances: ``[N]`` of each row from the classes of the others; see :class:`Unlike`.
        fold: ``[N]``, in which each row was.
    """

    probe: LinearProbe
    scores: np.ndarray
    distances: np.ndarray
    fold: np.ndarray

    @property
    def folds(self) -> int:
        """How many."""
        return int(self.fold.max()) + 1


def cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    strengths: tuple[float, ...],
    classes: Sequence[str],
    seed: int = 0,
) -> CrossValidated:
    """Nested cross-validation of a linear probe (Varma and Simon 2006).

    Each fold is scored by a probe fitted on the others, at the strength that did best when each of these in turn was
    left out too. The final probe's strength is that which did best over all folds. Best is the lowest log loss of the
    images that were left out: folds of a few images are ranked without fault at many strengths, and of those only the
    loss tells which probabilities are right. Two folds without which one class alone is left choose nothing.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``, or ``[N, L]`` of 0 and 1.
        groups: ``[N]``, -1 where a row has none; a group lies in one fold.
        classes: their names, of all that labels may say.

    Raises:
        DataError: fewer than three groups, or three images of a class; or one class alone is left without a fold.
    """
    fold = _folds(labels, groups, seed)
    _check_classes(labels, groups, fold, classes)
    count, num_classes, multilabel = int(fold.max()) + 1, len(classes), labels.ndim == 2

    def fitted(left_out: tuple[int, ...]) -> Path:
        rows = ~np.isin(fold, left_out)
        return fit_path(features[rows], labels[rows], strengths, num_classes, multilabel)

    def judged(path: Path, number: int) -> np.ndarray:
        return path.log_loss(features[fold == number], labels[fold == number])

    inner, outer = np.full((count, count, len(strengths)), np.nan), np.empty((count, len(strengths)))
    for i, j in combinations(range(count), 2):
        if _differ(labels[~np.isin(fold, (i, j))]):
            path = fitted((i, j))  # serves both: chosen for i by how it does on j, and the other way round
            inner[i, j], inner[j, i] = judged(path, j), judged(path, i)
    scores, distances = np.zeros((len(fold), num_classes)), np.zeros(len(fold))
    for i in range(count):
        path, rows = fitted((i,)), fold == i
        outer[i] = judged(path, i)
        found = path.probe(_lowest(inner[i])).predict_proba(features[rows])
        scores[rows] = _at_prior(found, labels[~rows], labels)
        distances[rows] = Unlike.fit(features[~rows], labels[~rows]).distances(features[rows])
    path = fitted(())
    return CrossValidated(path.probe(_lowest(outer)), scores, distances, fold)


def _folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """``[N]``: the fold of each row; classes are spread over the folds, groups are not."""
    units = units_of(len(labels), groups)
    count = min(FOLDS, int(units.max(initial=-1)) + 1)
    if count < 3:
        raise DataError(f"{len(labels)} labelled images of {count} groups are too few", "three groups at least")
    if labels.ndim == 1:
        count = min(count, int(np.bincount(labels).max()))
        if count < 3:
            raise DataError(f"{len(labels)} labelled images, at most {count} of a class, are too few", "label more")
    fold = np.zeros(len(labels), np.int64)
    splitter = GroupKFold(count) if labels.ndim == 2 else StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # it is in some folds only
        for number, (_, rows) in enumerate(splitter.split(units, None if labels.ndim == 2 else labels, units)):
            fold[rows] = number
    return np.unique(fold, return_inverse=True)[1]


def _differ(labels: np.ndarray) -> bool:
    """Whether a probe has something to learn from these: two classes, or a finding that some have and others not."""
    return bool((labels != labels[:1]).any())


def _check_classes(labels: np.ndarray, groups: np.ndarray, fold: np.ndarray, classes: Sequence[str]) -> None:
    """Refuse labels of which one class alone is left where a fold is left out."""
    for number in range(int(fold.max()) + 1):
        rest = labels[fold != number]
        if _differ(rest):
            continue
        if labels.ndim == 2:
            raise DataError(f"{len(labels)} labelled images: without those of one fold no finding varies", "label more")
        units = units_of(len(labels), groups)
        sources = {c: len(np.unique(units[labels == c])) for c in np.setdiff1d(labels, rest)}
        rare = min(sources, key=lambda c: sources[c])
        count = sources[rare]
        told = f"{count} group{'s' if count > 1 else ''} (patients, or images with their copies)"
        raise DataError(f"class {classes[rare]!r} comes from {told}", f"{count + 1} groups of it at least")


def _lowest(losses: np.ndarray) -> int:
    """The strength of the lowest mean loss over the folds ``[F, S]``; the middle one where no fold has a loss."""
    known = ~np.isnan(losses).any(axis=1)
    return int(losses[known].mean(axis=0).argmin()) if known.any() else losses.shape[1] // 2


def _at_prior(scores: np.ndarray, fitted: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Probabilities ``[N, K]`` of a probe, moved from the class frequencies that it was fitted on to those of all rows.

    The classes of a fold of whole groups are not those of the others; the final probe knows the frequencies of all,
    and scores of different folds can only be ranked together at one prior (Saerens et al. 2002, equation 4).
    """
    if labels.ndim == 2:
        before, after = fitted.mean(axis=0), labels.mean(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            odds = scores / (1 - scores) * (after / (1 - after)) / (before / (1 - before))
            moved = odds / (1 + odds)
        return np.where(np.isfinite(moved), moved, scores)
    count = scores.shape[1]
    before, after = (np.bincount(y, minlength=count) / len(y) for y in (fitted, labels))
    moved = scores * np.divide(after, before, out=np.zeros(count), where=before > 0)
    return moved / moved.sum(axis=1, keepdims=True)
