"""What duplicates are found by, of every row of a corpus; no pixels are read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.schema import Flag

# Bits of the hash of a picture without contrast are noise, and black frames of two patients are no evidence at all.
_CONTRAST = 0.02  # standard deviation of a picture in [0, 1] below which its hash says nothing


@dataclass(frozen=True)
class Records:
    """Columns of a corpus, in its order.

    Args:
        sha256: of the pixels, ``[N, 32]`` uint8.
        phash: perceptual hashes, ``[N]`` uint64.
        flags: bits of :class:`~ssl_mednet.data.schema.Flag`, ``[N]`` uint32.
        volume: hash of the volume that a row is a slice of, -1 for none, ``[N]`` int64.
        index: which slice, ``[N]`` int32.
        contrast: standard deviation of the pixels in [0, 1], ``[N]`` float32.
    """

    sha256: np.ndarray
    phash: np.ndarray
    flags: np.ndarray
    volume: np.ndarray
    index: np.ndarray
    contrast: np.ndarray

    @property
    def varied(self) -> np.ndarray:
        """Which rows are not of one level: equal pixels are evidence, ``[N]`` bool."""
        return (self.flags & Flag.CONSTANT) == 0

    @property
    def clear(self) -> np.ndarray:
        """Which rows show enough for their perceptual hash to be evidence, ``[N]`` bool."""
        return ~self.empty & (self.contrast >= _CONTRAST)

    @property
    def empty(self) -> np.ndarray:
        """Which rows show nothing or hardly anything, ``[N]`` bool."""
        return (self.flags & (Flag.CONSTANT | Flag.NEARLY_EMPTY)) != 0


def records(corpus: Corpus) -> Records:
    """The records of a corpus."""
    digests = np.frombuffer(b"".join(corpus.column("sha256").to_pylist()), np.uint8).reshape(len(corpus), -1)
    moments = corpus.numbers("moments").reshape(len(corpus), 2, -1)
    contrast = np.sqrt(np.maximum((moments[:, 1] - moments[:, 0] ** 2).mean(axis=1), 0))
    phash, flags, volume, index = map(corpus.numbers, ("phash", "flags", "volume", "index"))
    return Records(digests, phash, flags, volume, index, contrast.astype(np.float32))
