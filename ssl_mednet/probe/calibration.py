"""What may be tuned on val for a finished probe: one temperature, and one threshold for two classes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import roc_curve

from ssl_mednet.probe.checks import Array, ArrayLike
from ssl_mednet.probe.metrics import check_pair

_RANGE = (-14.0, 4.0)  # of the logarithm of the temperature; a strongly regularised probe has logits of 1e-5
_FLOOR = 1e-12  # a probability of 0 has no logarithm


def log_loss(targets: ArrayLike, scores: ArrayLike) -> float:
    """Mean negative log likelihood, in nats a row, of multi-label rows a label.

    What a class without a training row has, probability 0, is left out: no strength and no temperature changes it. NaN
    where nothing is left.

    Args:
        targets: ``[N]``, or multi-label ``[N, L]``.
        scores: ``[N, C]`` probabilities.
    """
    targets, scores = check_pair(targets, scores)
    if targets.ndim == 2:
        own = np.where(targets == 1, scores, 1 - scores)[(scores > 0) & (scores < 1)]
    else:
        own = np.take_along_axis(scores, targets[:, None], axis=1)
        own = own[own > 0]
    return float(-np.log(own).mean()) if len(own) else float("nan")


def fit_temperature(targets: ArrayLike, scores: ArrayLike) -> float:
    """The temperature that minimises the negative log likelihood of these scores (Guo et al. 2017, section 4.2).

    By Laplace's rule of succession N rows that are all right say that the next one is with ``(N + 1) / (N + 2)``: so
    much counts as of a row's own class, the rest as of the others. Else all right would mean certain, at temperature 0.

    Args:
        targets: ``[N]``, or multi-label ``[N, L]``; rows of val.
        scores: ``[N, C]`` probabilities of them; see :func:`log_loss` for what is left out. 1 where nothing is left.
    """
    targets, scores = check_pair(targets, scores)
    if targets.ndim == 2:
        known = (scores > 0) & (scores < 1)
        own = (known.sum(axis=0) + 1) / (known.sum(axis=0) + 2)
        z = np.where(targets == 1, 1, -1) * _logits(np.where(known, scores, 0.5), True)
        return _best(lambda t: (own * np.logaddexp(0.0, -z / t) + (1 - own) * np.logaddexp(0.0, z / t))[known])
    seen = np.asarray((scores > 0).any(axis=0))
    rows = np.take_along_axis(scores, targets[:, None], axis=1)[:, 0] > 0
    one_hot, count = np.eye(len(seen))[targets[rows]][:, seen], int(rows.sum())
    wanted = np.where(one_hot == 1, (count + 1) / (count + 2), 1 / (count + 2) / max(int(seen.sum()) - 1, 1))
    logits = _logits(np.clip(scores[rows][:, seen], _FLOOR, 1.0), False)
    return _best(lambda t: -(wanted * log_softmax(logits / t, axis=1)).sum(axis=1))


def _best(losses: Callable[[float], Array]) -> float:
    """The temperature of the lowest mean loss; 1 where there are no losses."""
    if not losses(1.0).size:
        return 1.0
    found = minimize_scalar(lambda log_t: losses(np.exp(log_t)).mean(), bounds=_RANGE, method="bounded")
    return float(np.exp(found.x))


def with_temperature(scores: ArrayLike, temperature: float, multilabel: bool) -> Array:
    """Probabilities ``[N, C]`` as sharp as ``temperature`` makes them; the order of the classes stays."""
    z = _logits(np.asarray(scores, np.float64), multilabel) / temperature
    return np.asarray(expit(z) if multilabel else softmax(z, axis=1))


def best_threshold(targets: ArrayLike, scores: ArrayLike) -> float:
    """The score of class 1 from which on to say 1, for the largest balanced accuracy (Youden 1950) on these rows.

    Args:
        targets: ``[N]`` in {0, 1}, both there.
        scores: ``[N, 2]``.
    """
    targets, scores = check_pair(targets, scores)
    false, true, thresholds = roc_curve(targets, scores[:, 1], drop_intermediate=False)
    best = int(np.argmax(true - false))
    return float(min(thresholds[best], 1.0))


def _logits(scores: Array, multilabel: bool) -> Array:
    """Logarithms (multi-label: of the odds); what is impossible or certain is infinite, and stays so."""
    with np.errstate(divide="ignore"):
        return np.log(scores) - np.log(1 - scores) if multilabel else np.log(scores)
