"""NT-Xent for any size of batch: the matrix of similarities is never held as a whole."""

from __future__ import annotations

from typing import Any

import torch
from lightly.utils import dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

SIMILARITIES_AT_ONCE = 2**20  # 4 MB in float32; larger pieces are not faster on a CPU


class NTXent(nn.Module):
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, arXiv 2002.05709, equation 1).

    The same loss as :class:`lightly.loss.NTXentLoss` with ``gather_distributed=True``: each of the 2 B embeddings of
    this process is told its partner among those of all processes, which are gathered with their gradients. But the
    rows of the matrix of similarities are made some at a time, so that memory grows with the batch and not with its
    square.

    Args:
        temperature: divides the cosine similarities, above 0.
        at_once: similarities that are held at a time.
    """

    def __init__(self, temperature: float, at_once: int = SIMILARITIES_AT_ONCE) -> None:
        super().__init__()
        self.temperature, self.at_once = temperature, at_once

    def forward(self, z0: Tensor, z1: Tensor) -> Tensor:
        """Mean over the 2 B rows of this process; ``z0`` and ``z1`` are ``[B, D]``, views of the same images."""
        own = nn.functional.normalize(torch.cat([z0, z1]), dim=1)  # [2B, D]
        everyone = torch.cat(dist.gather(own)) if dist.world_size() > 1 else own  # [2B * processes, D]
        rows = max(1, self.at_once // len(everyone))
        loss: Tensor = _Compare.apply(own, everyone, dist.rank() * len(own), self.temperature, rows)
        return loss


class _Compare(torch.autograd.Function):
    """The loss of ``own`` among ``everyone``, where it starts at row ``first``.

    Both gradients are made with the loss, while the rows of the matrix are there; nothing is computed twice.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, everyone: Tensor, first: int, temperature: float, rows: int) -> Tensor:
        wide = torch.promote_types(own.dtype, torch.float32)
        place = torch.arange(len(own), device=own.device)
        itself, partner = first + place, first + place.roll(len(own) // 2)
        to_own, to_everyone = own.new_empty(own.shape, dtype=wide), everyone.new_zeros(everyone.shape, dtype=wide)
        total = own.new_zeros((), dtype=wide)
        for part in place.split(rows):
            mine, positive = own[part], partner[part, None]
            logits = ((mine / temperature) @ everyone.T).to(wide)  # [rows, 2B * processes]
            logits.scatter_(1, itself[part, None], float("-inf"))
            normaliser = logits.logsumexp(1, keepdim=True)
            total += (normaliser - logits.gather(1, positive)).sum()
            # The derivative by the logits: softmax less one at the partner.
            slope = logits.sub_(normaliser).exp_()
            slope.scatter_add_(1, positive, slope.new_full(positive.shape, -1.0))
            slope = slope.to(everyone.dtype)
            to_own[part] = (slope @ everyone).to(wide)
            to_everyone += slope.T @ mine
        scale = 1 / (temperature * len(own))
        ctx.save_for_backward(to_own.mul_(scale).to(own.dtype), to_everyone.mul_(scale).to(own.dtype))
        return total / len(own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_own, to_everyone = ctx.saved_tensors
        return gradient.to(to_own.dtype) * to_own, gradient.to(to_own.dtype) * to_everyone, None, None, None
