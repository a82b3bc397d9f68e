"""Images unlike those of the training, by the distance of their features from the classes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.covariance import LedoitWolf

from ssl_mednet.errors import DataError

PERCENTILE = 99.0  # of the distances of held-out images: one in a hundred images like those is flagged too


@dataclass(frozen=True)
class Unlike:
    """Mahalanobis distance to the nearest class mean, of features of unit length.

    One covariance for all classes (Lee et al. 2018, arXiv 1807.03888, equation 2), shrunk so that it serves with fewer
    images than features (Ledoit and Wolf 2004). Unit length, as Sun et al. 2022 (arXiv 2204.06507) use for nearest
    neighbours, takes out the contrast of an image, which would pass for distance.

    Args:
        means: ``[K, D]``.
        precision: ``[D, D]``, the inverse of the covariance.
        threshold: distances above it are flagged; infinite before :meth:`tuned`.
        held_out: how many images the threshold is from.
    """

    means: np.ndarray
    precision: np.ndarray
    threshold: float = float("inf")
    held_out: int = 0

    @classmethod
    def fit(cls, features: np.ndarray, labels: np.ndarray) -> Unlike:
        """From training features ``[N, D]`` and class numbers ``[N]``; several findings ``[N, L]`` are one class.

        Raises:
            DataError: fewer than two images.
        """
        if len(features) < 2:
            raise DataError("what is unlike the training cannot be told from fewer than two images")
        x = _unit(features)
        number = np.zeros(len(x), np.int64) if labels.ndim == 2 else np.unique(labels, return_inverse=True)[1]
        means = np.stack([x[number == c].mean(axis=0) for c in range(number.max() + 1)])
        precision = LedoitWolf(assume_centered=True).fit(x - means[number]).precision_
        return cls(means.astype(np.float32), np.asarray(precision, np.float32))

    def distances(self, features: np.ndarray) -> np.ndarray:
        """``[N]``: squared distance to the nearest class mean, in units of the spread within the classes."""
        x, precision = _unit(features), self.precision.astype(np.float64)
        nearest = np.full(len(x), np.inf)
        for mean in self.means.astype(np.float64):  # products of two, which BLAS computes: of three it would be a loop
            away = x - mean
            nearest = np.minimum(nearest, np.einsum("nd,nd->n", away @ precision, away))
        return nearest

    def tuned(self, held_out: np.ndarray) -> Unlike:
        """With the threshold that flags one in a hundred of these distances ``[M]``."""
        return replace(self, threshold=float(np.percentile(held_out, PERCENTILE)), held_out=len(held_out))

    def arrays(self) -> dict[str, np.ndarray]:
        return {"means": self.means, "precision": self.precision}

    def said(self) -> dict[str, Any]:
        """What goes into ``model.json``."""
        method = "Mahalanobis distance to the nearest class mean, of features of unit length"
        return {
            "method": method,
            "threshold": self.threshold,
            "percentile": PERCENTILE,
            "held_out": self.held_out,
        }

    @classmethod
    def of(cls, arrays: dict[str, np.ndarray], said: dict[str, Any]) -> Unlike:
        return cls(arrays["means"], arrays["precision"], float(said["threshold"]), int(said["held_out"]))


def _unit(features: np.ndarray) -> np.ndarray:
    x = np.asarray(features, np.float64)
    return x / np.linalg.norm(x, axis=1, keepdims=True).clip(min=1e-12)
