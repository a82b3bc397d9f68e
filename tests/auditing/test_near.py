"""Duplicates: what is planted is found, what only looks alike is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audit_helpers import COPIES, picture, real
from PIL import Image

from ssl_mednet.auditing import near
from ssl_mednet.auditing.alike import CORRELATION, confirmed, pictures, similarity
from ssl_mednet.auditing.near import (
    RADIUS,
    Pairs,
    embedding_between,
    embedding_within,
    exact_between,
    exact_within,
    near_between,
    near_within,
)
from ssl_mednet.auditing.records import records

Row = tuple[int, ...]


def hashes(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, dtype=np.uint64)


def planted(of: np.ndarray, bits: int, seed: int) -> np.ndarray:
    """Hashes that differ from ``of`` in so many bits."""
    generator = np.random.default_rng(seed)
    chosen = np.stack([generator.permutation(64)[:bits] for _ in of]).astype(np.uint64)
    return of ^ np.bitwise_or.reduce(np.uint64(1) << chosen, axis=1)


def rows_of(pairs: Pairs) -> list[Row]:
    return [*zip(pairs.left.tolist(), pairs.right.tolist(), strict=True)]


def pairs_of(parts: list[Pairs]) -> set[tuple[int, int, int]]:
    all_pairs = Pairs.joined(parts)
    return set(
        zip(all_pairs.left.tolist(), all_pairs.right.tolist(), all_pairs.distance.astype(int).tolist(), strict=True)
    )


@pytest.mark.parametrize("flat", [10**6, 0], ids=["flat", "tables"])
@pytest.mark.parametrize("radius", [0, 4, 10])
def test_hashes_within_a_radius_are_all_found(flat: int, radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "_FLAT", flat)
    monkeypatch.setattr(near, "_QUERIES", 37)
    left = hashes(500, 0)
    right = np.concatenate([planted(left[:100], bits, bits) for bits in (0, 1, 3, 4, 5, 9, 10, 11)])
    distance = np.bitwise_count(left[:, None] ^ right[None])
    expected = {(int(i), int(j), int(distance[i, j])) for i, j in np.argwhere(distance <= radius)}
    assert len(expected) >= 100
    assert pairs_of(list(near_between(left, right, radius))) == expected


def test_pairs_within_one_corpus_come_once() -> None:
    rows = np.concatenate([hashes(50, 1), planted(hashes(50, 1)[:5], 2, 7)])
    assert pairs_of(list(near_within(rows, 4))) == {(i, 50 + i, 2) for i in range(5)}


def test_equal_digests_are_found_between_and_within() -> None:
    digests = np.random.default_rng(0).integers(0, 256, (6, 32), dtype=np.uint8)
    digests[:, :31] = 7  # they differ in the last byte alone
    digests[4, 31], digests[5, 31] = digests[1, 31], digests[1, 31]
    within = exact_within(digests)
    assert rows_of(within) == [(1, 4), (1, 5)]
    between = exact_between(digests, digests[[3, 1]])
    assert rows_of(between) == [(3, 0), (1, 1), (4, 1), (5, 1)]
    assert len(exact_between(digests[:1], digests[2:3])) == 0


def test_embeddings_above_the_cosine_are_found() -> None:
    left = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    left /= np.linalg.norm(left, axis=1, keepdims=True)
    right = left[:40]
    cosine = left @ right.T
    found = embedding_between(left, right, 0.4)
    assert set(rows_of(found)) == {(int(i), int(j)) for i, j in np.argwhere(cosine >= 0.4)}
    assert np.allclose(found.distance, 1 - cosine[found.left, found.right], atol=1e-5)


@pytest.mark.parametrize("copy", COPIES)
def test_planted_copies_are_found_and_others_are_not(copy: str, make_corpus) -> None:
    modality = {"jpeg": "xray", "half": "ultrasound", "cropped": "mri", "brighter": "xray"}[copy]
    originals = [picture(i, modality, 128) for i in range(24)]
    corpus = make_corpus(originals)
    other = make_corpus(
        [*(COPIES[copy](o) for o in originals[:8]), *(picture(i, modality, 128) for i in range(100, 116))]
    )
    mine, theirs = records(corpus), records(other)
    assert len(exact_between(mine.sha256, theirs.sha256)) == 0
    found = confirmed(near_between(mine.phash, theirs.phash), corpus, other)
    assert {(i, i) for i in range(8)} <= set(rows_of(found))
    assert (found.right < 8).all()


def test_pictures_without_contrast_are_no_evidence(make_corpus) -> None:
    noise = np.where(np.random.default_rng(0).random((2, 96, 96)) < 0.02, 55, 40).astype(np.uint8)
    known = records(make_corpus([Image.new("L", (96, 96), 9), *map(Image.fromarray, noise), picture(0)]))
    assert known.empty.tolist() == [True, False, False, False]
    assert known.clear.tolist() == [False, False, False, True]
    assert known.varied.tolist() == [False, True, True, True]


def test_a_crop_is_undone_and_another_picture_is_not(make_corpus) -> None:
    originals = [picture(i, "mri", 128) for i in range(8)]
    cut = [image.crop((0, 5, 119, 128)) for image in originals]  # 7 % of the width, 4 % of the height, one side each
    corpus = make_corpus([*originals, *cut])
    one, two = pictures(corpus, np.arange(8)), pictures(corpus, np.arange(8, 16))
    assert (similarity(one, two) >= CORRELATION).all()
    assert (similarity(one, one.roll(1, 0)) < CORRELATION).all()


@pytest.mark.data
def test_false_alarms_and_misses_on_real_x_rays(data_root: Path, make_corpus) -> None:
    """Chest X-rays of different children: hashes alone would accuse many, their pixels accuse none."""
    images, groups = real(data_root, "kermany_cxr", 500)
    corpus = make_corpus(images)
    candidates = list(near_within(records(corpus).phash, RADIUS))
    others = [p.of(np.array([groups[i] != groups[j] for i, j in rows_of(p)], bool)) for p in candidates]
    assert sum(map(len, others)) > 40
    assert len(confirmed(iter(others), corpus, corpus)) == 0

    copies = make_corpus([COPIES[name](image) for name in COPIES for image in images[:50]])
    one, two = pictures(corpus, np.tile(np.arange(50), len(COPIES))), pictures(copies, np.arange(len(copies)))
    assert (similarity(one, two) >= CORRELATION).float().mean() == 1
    distance = np.bitwise_count(np.tile(records(corpus).phash[:50], len(COPIES)) ^ records(copies).phash)
    assert (distance <= RADIUS).mean() > 0.97


def clustered(count: int, dimensions: int = 32) -> np.ndarray:
    """Embeddings of length 1 in some clusters; each tenth is nearly the one before it."""
    random = np.random.default_rng(0)
    features = random.normal(size=(40, dimensions))[random.integers(0, 40, count)] + random.normal(
        size=(count, dimensions)
    )
    features[1::10] = features[0::10] + 0.02 * random.normal(size=features[1::10].shape)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float16)


def within(features: np.ndarray, cosine: float) -> list[tuple[int, int]]:
    return [
        pair
        for part in embedding_within(features, cosine)
        for pair in zip(*(v.tolist() for v in (part.left, part.right)), strict=True)
    ]


def test_embeddings_within_a_corpus_are_all_found(monkeypatch: pytest.MonkeyPatch) -> None:
    import SimpleITK  # noqa: F401  its wrapped vectors must not get in the way of those of faiss

    features = clustered(1000)
    wide = features.astype(np.float32)
    expected = {(int(a), int(b)) for a, b in np.argwhere(wide @ wide.T >= 0.95) if a < b}
    assert len(expected) >= 100
    found = within(features, 0.95)
    assert len(found) == len(set(found))
    assert set(found) == expected
    monkeypatch.setattr("ssl_mednet.auditing.near._CELL", 200)  # ten cells
    cells = within(features, 0.95)
    assert len(cells) == len(set(cells)), "no pair comes twice, whichever cell it is found in"
    assert set(cells) <= expected
    assert len(cells) >= 0.97 * len(expected)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_embeddings_have_no_pairs(count: int) -> None:
    assert within(clustered(10)[:count], 0.9) == []
