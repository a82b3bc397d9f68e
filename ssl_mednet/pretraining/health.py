"""What the features of a batch say about a run: how far they spread, how many directions they use."""

from __future__ import annotations

import torch
from torch import Tensor


def feature_std(embedding: Tensor) -> Tensor:
    """Mean deviation of the normalised features times sqrt(D): about 1 when they spread over the sphere, 0 when they
    have collapsed to a point (Chen and He 2021, arXiv 2011.10566, section 4.1)."""
    unit = torch.nn.functional.normalize(embedding.float(), dim=1)
    return unit.std(dim=0).mean() * embedding.shape[1] ** 0.5


def rank_me(embedding: Tensor) -> Tensor:
    """Smooth rank of the features, from 1 to min(B, D): exp of the entropy of the normalised singular values
    (Garrido et al. 2023, arXiv 2210.02885, equation 1)."""
    if not embedding.isfinite().all():
        return embedding.new_tensor(float("nan"))  # such a step is skipped, and its row says why
    values = torch.linalg.svdvals(embedding.float())
    share = values / values.sum().clamp(min=1e-12) + 1e-7
    return torch.exp(-(share * share.log()).sum())
