"""The encoder as evaluation would see it, in the middle of training and without touching it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import numpy as np
import torch
from torch import nn

from ssl_mednet.augment.views import resize
from ssl_mednet.backbones.artifact import Preprocessing
from ssl_mednet.data.corpus import Corpus

_CHUNK = 256


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; after it every layer has its own mode, every buffer its bits, and torch its random
    state again, whatever a forward pass did to them."""
    modes = [(layer, layer.training) for layer in module.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        with torch.random.fork_rng(), torch.no_grad():
            module.eval()
            yield
    finally:
        for layer, training in modes:
            layer.training = training
        with torch.no_grad():
            for buffer, before in buffers:
                if not torch.equal(buffer, before):
                    buffer.copy_(before)


def frozen_features(
    encoder: nn.Module,
    corpus: Corpus,
    rows: np.ndarray,
    preprocessing: Preprocessing,
    device: torch.device,
    precision: AbstractContextManager[None],
    channels_last: bool = False,
) -> np.ndarray:
    """``[N, D]`` float32 of these rows: the whole image, resized, normalised, no augmentation, as evaluation does it.

    Args:
        precision: context of the forward pass: that of the training, which is the fastest here.
        channels_last: memory layout of the images.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    parts = []
    with frozen(encoder), precision:
        for start in range(0, len(rows), _CHUNK):
            batch = corpus.batch(rows[start : start + _CHUNK]).to(device)
            images = preprocessing.normalise(resize(batch, preprocessing.image_size))
            parts.append(encoder(images.contiguous(memory_format=layout)).float().cpu().numpy())
    return np.concatenate(parts)
