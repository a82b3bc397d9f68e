"""Pairs of images that are one image: by equal pixels, by perceptual hashes, by embeddings.

Only candidates come out of hashes: same views of different patients have near hashes too. Of 1,500 chest X-rays, 42 %
have another image's hash within 10 bits, and 16 % within 8. :mod:`ssl_mednet.auditing.alike` decides by the pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

EXACT, NEAR, EMBEDDING = "exact", "near", "embedding"
# Two hashes with as many ones as zeros differ in an even number of bits. Ten bits hold what JPEG, scaling and
# brightness do to real images of six modalities, and nine in ten crops of 2 pixels in 96 (eight in ten of 2 in 64).
RADIUS = 10
_QUERIES = 512  # of which all that they find is in memory at once: of ten thousand still frames five million pairs
# Comparing with every hash takes n / 8.5e8 s a query, looking up tables for 10 bits 0.7 ms: they meet near 600,000.
_FLAT = 600_000
_TABLES, _TABLE_BITS = 4, 16
_CELL, _NEAREST = 32_768, 3  # embeddings that are compared with each other at once; cells that each is compared with
_ASKING = 256  # embeddings: what they find, in the worst case a whole cell each, is 100 MB


@dataclass(frozen=True)
class Pairs:
    """Rows ``left`` and ``right`` ``[P]`` int64, and how far apart they are ``[P]`` float32.

    Distances are 0 for equal pixels, bits of hashes, or one minus the cosine of embeddings.
    """

    left: np.ndarray
    right: np.ndarray
    distance: np.ndarray

    def __len__(self) -> int:
        return len(self.left)

    def of(self, chosen: np.ndarray) -> Pairs:
        """Some of the pairs, by mask or position."""
        return Pairs(self.left[chosen], self.right[chosen], self.distance[chosen])

    def within(self, left: np.ndarray, right: np.ndarray) -> Pairs:
        """The same pairs where rows were positions in ``left`` and ``right``."""
        return Pairs(left[self.left], right[self.right], self.distance)

    def nearest(self, most: int) -> Pairs:
        """Of each ``right`` the pairs that are nearest."""
        order = np.lexsort((self.distance, self.right))
        return self.of(np.sort(order[_rank(self.right[order]) < most]))

    def first(self, most: int) -> np.ndarray:
        """Which pairs are the first of their ``right``, mask ``[P]``; those of one stand together."""
        return _rank(self.right) < most

    @classmethod
    def joined(cls, parts: list[Pairs]) -> Pairs:
        """All pairs of all parts, in their order."""
        if not parts:
            return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("left", "right", "distance")))


def exact_within(digests: np.ndarray) -> Pairs:
    """Each row of ``digests`` ``[N, 32]`` uint8 that was there before, with the first that equals it as ``left``."""
    _, first, inverse = np.unique(_keys(digests), return_index=True, return_inverse=True)
    repeated = np.flatnonzero(first[inverse] != np.arange(len(digests)))
    return Pairs(first[inverse[repeated]], repeated, np.zeros(len(repeated), np.float32))


def exact_between(left: np.ndarray, right: np.ndarray) -> Pairs:
    """Every pair of equal digests ``[N, 32]`` and ``[M, 32]`` uint8, in the order of ``right``."""
    _, number = np.unique(_keys(np.concatenate([left, right])), return_inverse=True)
    mine, theirs = number[: len(left)], number[len(left) :]
    order = np.argsort(mine, kind="stable")
    start, end = (np.searchsorted(mine[order], theirs, side) for side in ("left", "right"))
    counts = end - start
    rights = np.repeat(np.arange(len(theirs)), counts)
    places = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(start, counts)
    return Pairs(order[places], rights, np.zeros(len(rights), np.float32))


def near_within(hashes: np.ndarray, radius: int = RADIUS) -> Iterator[Pairs]:
    """All pairs ``left < right`` of hashes ``[N]`` uint64 that differ in at most ``radius`` bits, part by part."""
    for part in near_between(hashes, hashes, radius):
        yield part.of(part.left < part.right)


def near_between(left: np.ndarray, right: np.ndarray, radius: int = RADIUS) -> Iterator[Pairs]:
    """All pairs of hashes ``[N]`` and ``[M]`` uint64 that differ in at most ``radius`` bits, part by part.

    Nothing within the radius is missed: where tables are used, four of 16 bits each, one of them differs in at most a
    quarter of the bits, and all such entries are looked up.
    """
    if not len(left) or not len(right):
        return
    index = _index(left, radius)
    for start in range(0, len(right), _QUERIES):
        limits, distance, found = index.range_search(_bytes(right[start : start + _QUERIES]), radius + 1)
        rows = start + _queries(limits)
        order = np.lexsort((found, rows))
        yield Pairs(found[order].astype(np.int64), rows[order], distance[order].astype(np.float32))


def embedding_between(left: np.ndarray, right: np.ndarray, cosine: float) -> Pairs:
    """All pairs of embeddings ``[N, D]`` and ``[M, D]`` float32 of length 1 whose cosine is ``cosine`` or more."""
    import faiss

    if not len(left) or not len(right):
        return Pairs.joined([])
    index = faiss.IndexFlatIP(left.shape[1])
    index.add(np.ascontiguousarray(left))
    limits, similarity, found = index.range_search(np.ascontiguousarray(right), np.nextafter(np.float32(cosine), -1))
    rows = _queries(limits)
    order = np.lexsort((found, rows))
    return Pairs(found[order].astype(np.int64), rows[order], 1 - similarity[order])


def embedding_within(features: np.ndarray, cosine: float) -> Iterator[Pairs]:
    """Pairs ``left < right`` of embeddings ``[N, D]`` of length 1 whose cosine is ``cosine`` or more, part by part.

    Exact for a few. Many are divided into cells (k-means on the sphere), and each is compared with those of the three
    cells that are nearest to it, so that time grows as N and not as its square, and a cell at a time is in memory; a
    pair that lies on either side of more than that is missed. ``features`` may be of 16 bits, and lie on the disk.
    """
    import faiss

    nearest = _cells(features)  # [N, 1] or [N, 3]
    order = np.argsort(nearest[:, 0], kind="stable")
    bounds = np.searchsorted(nearest[order, 0], np.arange(int(nearest.max(initial=-1)) + 2))
    for cell, (start, end) in enumerate(pairwise(bounds)):
        members = order[start:end]
        if not len(members):
            continue
        index = faiss.IndexFlatIP(features.shape[1])
        index.add(features[members].astype(np.float32))
        asking = np.flatnonzero((nearest == cell).any(axis=1))
        for rows in np.split(asking, range(_ASKING, len(asking), _ASKING)):
            limits, similarity, found = index.range_search(features[rows].astype(np.float32), cosine)
            left, right = members[found], rows[_queries(limits)]
            # Where the other one asks, too, the pair is found twice.
            twice = (nearest[left] == nearest[right, :1]).any(axis=1)
            kept = (left < right) | ((left > right) & ~twice)
            left, right = np.minimum(left, right)[kept], np.maximum(left, right)[kept]
            place = np.lexsort((left, right))
            yield Pairs(left[place], right[place], (1 - similarity[kept])[place])


def _cells(features: np.ndarray) -> np.ndarray:
    """The cells that each embedding is compared with, the nearest first."""
    import faiss

    if len(features) <= _CELL:
        return np.zeros((len(features), 1), np.int64)
    count = -(-len(features) // (_CELL // 2))
    sample = features[:: max(1, len(features) // (256 * count))].astype(np.float32)
    # Not faiss.Kmeans, which reads a C++ vector back: in a process that has loaded SimpleITK that one answers for it.
    means = faiss.Clustering(features.shape[1], count)
    means.niter, means.spherical, means.seed = 10, True, 0
    index = faiss.IndexFlatIP(features.shape[1])
    means.train(np.ascontiguousarray(sample), index)  # leaves the means in the index
    parts = [
        index.search(features[start : start + _CELL].astype(np.float32), min(_NEAREST, count))[1]
        for start in range(0, len(features), _CELL)
    ]
    return np.concatenate(parts)


def _index(hashes: np.ndarray, radius: int) -> Any:
    import faiss

    index: Any = faiss.IndexBinaryFlat(64)
    if len(hashes) > _FLAT:
        index = faiss.IndexBinaryMultiHash(64, _TABLES, _TABLE_BITS)
        index.nflip = radius // _TABLES
    index.add(_bytes(hashes))
    return index


def _rank(values: np.ndarray) -> np.ndarray:
    """How many equal values stand before each; equal ones stand together."""
    starts = np.diff(values, prepend=values[:1] - 1) != 0
    places = np.arange(len(values))
    return places - np.maximum.accumulate(np.where(starts, places, 0))


def _queries(limits: np.ndarray) -> np.ndarray:
    """Which query each result belongs to, from where the results of each begin."""
    counts: np.ndarray = limits[1:].astype(np.int64) - limits[:-1].astype(np.int64)
    return np.repeat(np.arange(len(counts)), counts)


def _bytes(hashes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(hashes, np.uint64).view(np.uint8).reshape(-1, 8)


def _keys(digests: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(digests).view(np.dtype((np.void, digests.shape[1]))).ravel()
