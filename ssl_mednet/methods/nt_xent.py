"""NT-Xent for any size of batch: the matrix of similarities is never held as a whole."""

from __future__ import annotations

import torch
from lightly.utils import dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SIMILARITIES_AT_ONCE = 2**22  # 16 MB in float32, and a few times that while softmax and gradient are made


class NTXent(nn.Module):
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv 2002.05709, equation 1).

    The same loss as :class:`lightly.loss.NTXentLoss` with ``gather_distributed=True``: each of the 2 B embeddings of
    this process is told its partner among those of all processes, which are gathered with their gradients. But the
    rows of the matrix of similarities are made some at a time, and made again in the backward pass, so that memory
    grows with the batch and not with its square.

    Args:
        temperature: divides the cosine similarities, above 0.
        at_once: similarities that may be held at a time; a batch with fewer is compared in one piece, once.
    """

    def __init__(self, temperature: float, at_once: int = SIMILARITIES_AT_ONCE) -> None:
        super().__init__()
        self.temperature, self.at_once = temperature, at_once

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Mean over the 2 B rows of this process; ``z0`` and ``z1`` are ``[B, D]``, views of the same images."""
        count = len(z0)
        own = nn.functional.normalize(torch.cat([z0, z1]), dim=1)  # [2B, D]
        several = dist.world_size() > 1
        everyone = torch.cat(dist.gather(own)) if several else own  # [2B * processes, D], process by process
        place = torch.arange(2 * count, device=own.device)
        first = dist.rank() * 2 * count
        itself, partner = first + place, first + place.roll(count)
        rows = max(1, self.at_once // len(everyone))
        parts = list(zip(own.split(rows), itself.split(rows), partner.split(rows), strict=True))
        if len(parts) == 1:
            return self._sum(*parts[0], everyone) / len(own)
        sums = [checkpoint(self._sum, *part, everyone, use_reentrant=False, preserve_rng_state=False) for part in parts]
        return torch.stack(sums).sum() / len(own)

    def _sum(self, own: Tensor, itself: Tensor, partner: Tensor, everyone: Tensor) -> Tensor:
        logits = (own / self.temperature) @ everyone.T  # [rows, 2B * processes]
        logits = logits.scatter_(1, itself[:, None], float("-inf"))
        return nn.functional.cross_entropy(logits, partner, reduction="sum")
