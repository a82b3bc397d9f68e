"""What a backbone sees of the rows of a corpus: embeddings that are compared with others, or with each other."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ssl_mednet.data.corpus import Corpus
from ssl_mednet.files import cache_folder
from ssl_mednet.probe import unit_rows

ROWS = 65_536  # held at a time


class Embedder:
    """Frozen features of one backbone, kept in the cache.

    Args:
        spec: a run, a backbone folder, or ``random:NAME``.
        channels: of the images.

    Raises:
        ArtifactError: no such weights, or weights for other images.
    """

    def __init__(self, spec: str, channels: str, quiet: bool) -> None:
        import torch

        from ssl_mednet.evaluation.weights import load_weights

        self._weights = next(load_weights([spec], channels, None, 0))
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._quiet = quiet

    def __call__(self, corpus: Corpus, rows: np.ndarray) -> np.ndarray:
        """``[N, D]`` float32."""
        from ssl_mednet.evaluation.features import extract

        return extract(self._weights, corpus, rows, self._device, self._quiet)

    def parts(self, corpus: Corpus, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Which of ``rows``, and their features, a part at a time."""
        for start in range(0, len(rows), ROWS):
            part = slice(start, min(start + ROWS, len(rows)))
            yield part, self(corpus, rows[part])


def unit(features: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Features of length 1, less their mean: what all images share would make all of them alike."""
    return unit_rows(features - mean)


@contextmanager
def on_disk(embedder: Embedder, corpus: Corpus, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Unit features of these rows, ``[N, D]`` float16, in a file that goes afterwards: 1 KB a row of 512 numbers."""
    total = sum(features.sum(axis=0, dtype=np.float64) for _, features in embedder.parts(corpus, rows))
    mean = (total / len(rows)).astype(np.float32)
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=cache_folder()) as file:  # without a name, so a kill leaves nothing
        kept = np.memmap(file, np.float16, "w+", shape=(len(rows), len(mean)))
        for part, features in embedder.parts(corpus, rows):
            kept[part] = unit(features, mean)
        yield kept
