"""Few labels: a linear probe whose strength and scores come from cross-validation, so that no image is set aside."""

from __future__ import annotations

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
        folds: how many.
    """

    probe: LinearProbe
    scores: np.ndarray
    distances: np.ndarray
    folds: int


def cross_validate(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    strengths: tuple[float, ...],
    num_classes: int,
    seed: int = 0,
) -> CrossValidated:
    """Nested cross-validation of a linear probe (Varma and Simon 2006).

    Each fold is scored by a probe fitted on the others, at the strength that did best when each of these in turn was
    left out too. The final probe's strength is that which did best over all folds; see :func:`_cautious`.

    Args:
        features: ``[N, D]``.
        labels: ``[N]``, or ``[N, L]`` of 0 and 1.
        groups: ``[N]``, -1 where a row has none; a group lies in one fold.

    Raises:
        DataError: fewer than three groups or images.
    """
    fold = _folds(labels, groups, seed)
    count, multilabel = int(fold.max()) + 1, labels.ndim == 2

    def fitted(left_out: tuple[int, ...]) -> Path:
        rows = ~np.isin(fold, left_out)
        return fit_path(features[rows], labels[rows], strengths, num_classes, multilabel)

    def judged(path: Path, number: int) -> np.ndarray:
        return path.auroc(features[fold == number], labels[fold == number])

    inner: dict[int, list[np.ndarray]] = {i: [] for i in range(count)}
    for i, j in combinations(range(count), 2):
        path = fitted((i, j))  # serves both: chosen for i by how it does on j, and the other way round
        inner[i].append(judged(path, j))
        inner[j].append(judged(path, i))
    scores, distances, outer = np.zeros((len(fold), num_classes)), np.zeros(len(fold)), []
    for i in range(count):
        path, rows = fitted((i,)), fold == i
        outer.append(judged(path, i))
        scores[rows] = path.probe(path.choose(_cautious(inner[i]), len(fold))[0]).predict_proba(features[rows])
        distances[rows] = Unlike.fit(features[~rows], labels[~rows]).distances(features[rows])
    path = fitted(())
    return CrossValidated(path.probe(*path.choose(_cautious(outer), len(fold))), scores, distances, count)


def _folds(labels: np.ndarray, groups: np.ndarray, seed: int) -> np.ndarray:
    """``[N]``: the fold of each row; classes are spread over the folds, groups are not."""
    units = units_of(len(labels), groups)
    count = min(FOLDS, int(units.max(initial=-1)) + 1)
    if count < 3:
        raise DataError(f"{len(labels)} labelled images of {count} groups are too few", "three groups at least")
    fold = np.zeros(len(labels), np.int64)
    splitter = GroupKFold(count) if labels.ndim == 2 else StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for number, (_, rows) in enumerate(splitter.split(units, None if labels.ndim == 2 else labels, units)):
        fold[rows] = number
    return np.unique(fold, return_inverse=True)[1]


def _cautious(values: list[np.ndarray]) -> np.ndarray:
    """AUROC ``[S]`` over the folds ``[F, S]``, cut off one standard error below the best; NaN where it is in none.

    Choosing by that takes the strongest regularisation that cannot be told from the best (Breiman et al. 1984, section
    3.4.3): folds of a few images each are all but separated at every strength, and the best of them is an accident.
    """
    table = np.stack(values)
    known = ~np.isnan(table)
    count = known.sum(axis=0)
    mean = np.divide(np.where(known, table, 0).sum(axis=0), count, out=np.full(table.shape[1], np.nan), where=count > 0)
    if np.isnan(mean).all():
        return mean
    best = table[:, int(np.nanargmax(mean))]
    best = best[~np.isnan(best)]
    error = best.std(ddof=1) / len(best) ** 0.5 if len(best) > 1 else 0.0
    return np.minimum(mean, best.mean() - error)
