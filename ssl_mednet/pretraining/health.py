"""What the features of a batch say about a run: how far they spread, how many directions they use.

An untrained net sees all images alike: its features have a small spread around a large common mean. So the signs are
read over the course of a run, not one by one; see :mod:`ssl_mednet.pretraining.alarm`.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 1024  # features of a batch that the spectra are taken of: more cost time and say nothing new
_HEAD, _TAIL = 0.05, 0.5  # shares of the spectrum between which its slope is fitted


def signs(embedding: Tensor) -> dict[str, float]:
    """All signs of one batch of features ``[B, D]``; NaN where a feature is not finite.

    ``feature_std``, ``rank_me``, ``effective_rank`` and, where the spectrum is long enough to have a slope,
    ``alpha_req``.
    """
    features = embedding[:ROWS].detach().float()
    if features.device.type == "mps":
        features = features.cpu()  # where there is float64
    names = ("feature_std", "rank_me", "effective_rank", "alpha_req")
    if not features.isfinite().all():
        return dict.fromkeys(names[:3], float("nan"))
    centred = torch.linalg.svdvals(features - features.mean(0))
    values = (feature_std(features), rank_me(features), entropy_rank(centred), alpha_req(centred))
    return {name: float(value) for name, value in zip(names, values, strict=True) if value is not None}


def feature_std(embedding: Tensor) -> Tensor:
    """Mean deviation of the normalised features times sqrt(D): about 1 when they spread over the sphere, 0 when they
    have collapsed to a point (Chen and He 2021, arXiv 2011.10566, section 4.1)."""
    unit = torch.nn.functional.normalize(embedding.float(), dim=1)
    return unit.std(dim=0).mean() * embedding.shape[1] ** 0.5


def rank_me(embedding: Tensor) -> Tensor:
    """Smooth rank of the features, from 1 to min(B, D): exp of the entropy of the normalised singular values
    (Garrido et al. 2023, arXiv 2210.02885, equation 1). The mean that all images share counts as a direction. Not a
    number where the features are none: such a step is skipped, and its row says why."""
    if not embedding.isfinite().all():
        return embedding.new_tensor(float("nan"))
    return entropy_rank(torch.linalg.svdvals(embedding.float()))


def effective_rank(embedding: Tensor) -> Tensor:
    """The same of the features without their mean: directions in which images differ, from 1 to min(B - 1, D)
    (Roy and Vetterli 2007, "The effective rank: a measure of effective dimensionality", definition 1).

    It says nothing of how far they differ: of features that have collapsed to a point it measures the rounding.
    """
    return entropy_rank(torch.linalg.svdvals(embedding.float() - embedding.float().mean(0)))


def entropy_rank(singular_values: Tensor) -> Tensor:
    """exp of the entropy of non-negative values ``[K]`` as shares of their sum: K when all are equal, 1 for one."""
    share = singular_values / singular_values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum())


def alpha_req(singular_values: Tensor) -> Tensor | None:
    """Exponent alpha of the power law ``lambda_i ~ i ** -alpha`` that the covariance's eigenvalues follow.

    Near 1 the features are rich and smooth; far above it few directions hold everything, and near 0 it is noise
    (Agrawal, Mondal, Ghosh, Richards 2022, "alpha-ReQ", NeurIPS, section 2). The slope is fitted in logarithms with
    weights 1/i between 5 % and 50 % of the spectrum, whose end is noise of the sample.

    Args:
        singular_values: ``[K]`` of the centred features, falling.

    Returns:
        None where fewer than four eigenvalues are there to fit.
    """
    count = len(singular_values)
    first, last = int(_HEAD * count), int(_TAIL * count)
    eigenvalues = singular_values[first:last].double() ** 2
    if len(eigenvalues) < 4 or eigenvalues[-1] <= 0:
        return None
    index = torch.arange(first + 1, last + 1, dtype=torch.float64, device=eigenvalues.device)
    x, y, weight = index.log(), eigenvalues.log(), 1 / index
    x, y = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
    return -(weight * x * y).sum() / (weight * x * x).sum()
