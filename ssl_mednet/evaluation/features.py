"""Frozen features of the rows of a corpus, computed once: kept on disk by what they depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ssl_mednet.augment.corruptions import corrupt
from ssl_mednet.augment.views import resize, squashed
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.errors import ArtifactError
from ssl_mednet.evaluation.names import short_name
from ssl_mednet.evaluation.weights import Weights, identity, state_hash
from ssl_mednet.files import cache_folder, replacing
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.progress import Progress

FORMAT = 2  # part of the cache key: features computed another way are never read
# Images a forward pass. On a CPU the activations of 256 come as fresh pages for every layer: 32 take 0.65 of the time
# with EfficientNet-Lite0 at 96 px, 0.84 with ResNet-10t.
_BATCH, _BATCH_CPU = 256, 32
_CHUNK = 4096  # rows a file of the cache holds: what a killed run loses at most
Corruption = tuple[str, int]  # name and severity


def extract(
    weights: Weights,
    corpus: Corpus,
    rows: np.ndarray,
    device: torch.device,
    quiet: bool,
    corruption: Corruption | None = None,
    title: str = "",
) -> np.ndarray:
    """Features of these rows, ``[N, D]`` float32: the whole image, resized, normalised, no augmentation.

    They are kept in the cache, keyed by the weights, their preprocessing, the content of the corpus and the rows, so
    nothing is computed twice whatever suite asks for it.

    Args:
        corruption: name and severity of what is done to every image first; see :mod:`ssl_mednet.augment.corruptions`.
        title: of the progress bar.

    Raises:
        ArtifactError: the backbone changed while it was only to be looked at, or gave features that are not finite.
    """
    chunks = [rows[start : start + _CHUNK] for start in range(0, len(rows), _CHUNK)]
    paths = [_path(weights, corpus, chunk, corruption) for chunk in chunks]
    missing = [(c, p) for c, p in zip(chunks, paths, strict=True) if not p.is_file()]
    if missing:
        _compute(weights, corpus, missing, device, quiet, corruption, title or f"features {short_name(weights.name)}")
    return np.concatenate([np.load(path, allow_pickle=False) for path in paths])


def forward_batch(device: torch.device) -> int:
    """How many images are best shown to a net at once where no gradients are wanted."""
    return _BATCH_CPU if device.type == "cpu" else _BATCH


@torch.inference_mode()
def _compute(
    weights: Weights,
    corpus: Corpus,
    missing: list[tuple[np.ndarray, Path]],
    device: torch.device,
    quiet: bool,
    corruption: Corruption | None,
    title: str,
) -> None:
    model = weights.model.to(device).eval()
    before, size = state_hash(model), forward_batch(device)
    with Progress(title, sum(len(chunk) for chunk, _ in missing), "img", quiet) as progress:
        for chunk, path in missing:
            features = []
            for start in range(0, len(chunk), size):
                batch = corpus.batch(chunk[start : start + size]).to(device)
                images = weights.preprocessing.normalise(_seen(batch, weights.preprocessing.image_size, corruption))
                features.append(model(images).float().cpu().numpy())
                progress.advance(len(batch))
            result = np.concatenate(features)
            if not np.isfinite(result).all():
                hint = "did its pretraining diverge?"
                raise ArtifactError(f"{weights.name}: gives features that are not finite", hint)
            if state_hash(model) != before:
                raise ArtifactError(f"{weights.name}: the frozen backbone changed during evaluation")
            with replacing(path) as temporary, temporary.open("wb") as file:
                np.save(file, result)


def _seen(batch: ImageBatch, size: int, corruption: Corruption | None) -> Tensor:
    """What a backbone is shown of a batch, before normalisation; corruptions are chosen by the caller's modality."""
    if corruption is None:
        return resize(batch, size)
    return squashed(corrupt(batch, *corruption), batch.sizes, size)


def _path(weights: Weights, corpus: Corpus, rows: np.ndarray, corruption: Corruption | None) -> Path:
    said = f"{FORMAT} {identity(weights)} {corpus.meta['fingerprint']} {corruption}".encode()
    digest = hashlib.sha256(said + np.ascontiguousarray(rows, np.int64).tobytes()).hexdigest()
    return cache_folder() / "features" / digest[:2] / f"{digest[2:26]}.npy"
