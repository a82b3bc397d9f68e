"""A batch that is larger than the memory for its activations (Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssl_mednet.methods import Batch, Method, StepOutput


def step_in_chunks(method: Method, chunks: list[tuple[list[Tensor], Batch]], batch: Batch) -> StepOutput:
    """A training step whose net sees one chunk at a time, and whose loss sees the whole batch.

    First the chunks are embedded and their activations dropped; the loss of all embeddings gives the gradient of each
    embedding; then, in the backward pass, one chunk after the other is embedded again, with the random numbers of the
    first time, and takes its share of that gradient to the weights. Loss and gradients are those of the whole batch in
    one pass, within rounding. Only BatchNorm makes a difference: it sees the statistics of a chunk.

    Args:
        method: one that :meth:`~ssl_mednet.methods.Method.can_split`.
        chunks: views of the parts of the batch and what is known of them.
        batch: what is known of the whole.
    """
    parts = [checkpoint(method.embed, views, info, use_reentrant=False) for views, info in chunks]
    return method.compare(tuple(torch.cat(part) for part in zip(*parts, strict=True)), batch)
