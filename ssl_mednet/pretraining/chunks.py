"""A batch that is larger than the memory for its activations (Gao et al. 2021, arXiv 2101.06983)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.methods import Batch, Method, StepOutput

Prepare = Callable[[ImageBatch], tuple[list[Tensor], Batch]]


def step_in_chunks(method: Method, images: ImageBatch, size: int, prepare: Prepare, batch: Batch) -> StepOutput:
    """A training step whose net sees one chunk at a time, and whose loss sees the whole batch.

    First the chunks are embedded and their views and activations dropped; the loss of all embeddings gives the
    gradient of each embedding; then, in the backward pass, one chunk after the other is embedded again, with the
    random numbers of the first time, and takes its share of that gradient to the weights. Loss and gradients are those
    of the whole batch in one pass, within rounding. Only BatchNorm makes a difference: it sees the statistics of a
    chunk.

    Args:
        method: one that :meth:`~ssl_mednet.methods.Method.can_split`.
        images: the whole batch, as stored.
        size: images of a chunk; the last one may be smaller.
        prepare: makes the views of a chunk, the same ones every time, and says what is known of it.
        batch: what is known of the whole.
    """

    def embed(pixels: Tensor, rows: Tensor) -> tuple[Tensor, ...]:
        return method.embed(*prepare(images.take(rows)))

    # The pixels are handed over for their device: its generator and its autocast are then as they were, too.
    parts = [
        checkpoint(embed, images.pixels, rows, use_reentrant=False) for rows in torch.arange(len(images)).split(size)
    ]
    return method.compare(tuple(torch.cat(part) for part in zip(*parts, strict=True)), batch)
