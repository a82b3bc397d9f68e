"""What may be tuned on val for a finished probe: one temperature, and one threshold for two classes."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, log_softmax, softmax
from sklearn.metrics import roc_curve

from ssl_mednet.probe.checks import Array, ArrayLike
from ssl_mednet.probe.metrics import check_pair

_RANGE = (-4.0, 4.0)  # of the logarithm of the temperature
_FLOOR = 1e-12  # a probability of 0 has no logarithm


def fit_temperature(targets: ArrayLike, scores: ArrayLike) -> float:
    """The temperature that minimises the negative log likelihood of these scores (Guo et al. 2017, section 4.2).

    Args:
        targets: ``[N]``, or multi-label ``[N, L]``; rows of val.
        scores: ``[N, C]`` probabilities of them.
    """
    targets, scores = check_pair(targets, scores)
    logits = _logits(scores, targets.ndim == 2)

    def loss(log_t: float) -> float:
        z = logits / np.exp(log_t)
        if targets.ndim == 2:
            return float(np.logaddexp(0.0, np.where(targets == 1, -z, z)).mean())
        return float(-np.take_along_axis(log_softmax(z, axis=1), targets[:, None], axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=_RANGE, method="bounded").x))


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
    clipped = np.clip(scores, _FLOOR, 1.0)
    return np.log(clipped) - np.log(np.clip(1 - scores, _FLOOR, 1.0)) if multilabel else np.log(clipped)
