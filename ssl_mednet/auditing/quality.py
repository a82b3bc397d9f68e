"""What of a corpus to train on: copies, empty frames, redundant slices, test images are marked, and text is flagged."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ssl_mednet.auditing.alike import confirmed, matched
from ssl_mednet.auditing.audit import audit
from ssl_mednet.auditing.embeddings import Embedder, on_disk
from ssl_mednet.auditing.near import Pairs, embedding_within, exact_within, near_within
from ssl_mednet.auditing.records import Records, records
from ssl_mednet.auditing.text import find_text
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.errors import DataError
from ssl_mednet.files import cache_folder, replacing
from ssl_mednet.progress import Dispensable, Progress

MARKS = "quality.parquet"
# Smaller than for an audit: a corpus of a million X-rays has half a thousand million pairs within ten bits.
_RADIUS = 4
# Of embeddings; only candidates, as the pixels decide. Of each image the nearest few are looked at.
COSINE, _CANDIDATES = 0.9, 8
_BATCH, _PART = 256, 8192  # rows that are looked at for text at once, and whose answers are kept together
_FORMAT = 1  # part of the cache's name: text found another way is never read
_META = b"fingerprint"


class Mark(IntFlag):
    """Why a row is not worth training on; TEXT is a warning and costs nothing."""

    EXACT = 1
    NEAR = 2
    EMPTY = 4
    REDUNDANT = 8
    TEXT = 16
    HELD_OUT = 32


DROPPED = Mark.EXACT | Mark.NEAR | Mark.EMPTY | Mark.REDUNDANT | Mark.HELD_OUT


@dataclass(frozen=True)
class Quality:
    """Marks of every row of a corpus, ``[N]`` uint8, bits of :class:`Mark`."""

    marks: np.ndarray

    @property
    def keep(self) -> np.ndarray:
        """Which rows are worth training on, ``[N]`` bool."""
        return (self.marks & DROPPED) == 0

    def counts(self) -> dict[str, int]:
        """How many rows have each mark; a row may have several."""
        return {str(m.name).lower(): int(((self.marks & m) > 0).sum()) for m in Mark}


def curate(
    corpus: str | Path | Corpus,
    keep_ratio: float = 1.0,
    weights: str | None = None,
    quiet: bool = False,
    cosine: float = COSINE,
    against: Sequence[str | Path] = (),
) -> Quality:
    """Mark the rows of a corpus and write the marks beside it, where ``data.keep=good`` of a recipe finds them.

    Marks that were there are not kept: what an earlier run was told (``keep_ratio``, ``against``) is to be said again.

    Rows are looked at in their order, and the first of several copies is the one that stays. Near copies are looked
    for within four bits of the hash and confirmed on the pixels; those of one volume are its neighbouring slices, and
    are left to ``keep_ratio``. With ``weights`` those whose embeddings are near are looked at too (the cosine
    after the mean of the corpus is taken out, the eight nearest of each): they find what changes a hash, as other
    levels and crops do. The pixels decide here as well (see :mod:`ssl_mednet.auditing.alike`), so weights that find
    everything alike cost time but no image.

    Args:
        keep_ratio: share of each volume's slices that stays, in (0, 1]; see :func:`thin`.

        weights: a run, a backbone folder or ``random:NAME``.
        cosine: of embeddings, from where the pixels are looked at.
        against: suites or labelled sets whose test images, as they are or as near copies, are marked, as the
            audit finds them that ``data.held_out`` of a recipe makes.

    Raises:
        DataError: not a corpus, a ratio that is none, or a set of ``against`` that cannot be opened.
        ArtifactError: no such weights.
    """
    if not 0 < keep_ratio <= 1:
        raise DataError(f"keep_ratio is above 0 and at most 1, not {keep_ratio:g}")
    opened = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
    known = records(opened)
    marks = np.zeros(len(opened), np.uint8)
    held_out = _test_images(opened, against, quiet) if against else []  # first, as it may find a set missing
    marks[known.empty] |= np.uint8(Mark.EMPTY)
    marks[exact_within(known.sha256).right] |= np.uint8(Mark.EXACT)
    marks[_copies_by_hash(opened, known, marks == 0, quiet)] |= np.uint8(Mark.NEAR)
    if weights is not None:
        embedder = Embedder(weights, opened.channels, quiet)
        marks[_copies_by_embedding(opened, known, marks == 0, embedder, cosine)] |= np.uint8(Mark.NEAR)
    usable = np.flatnonzero(marks == 0)
    chosen = thin(known.volume[usable], known.index[usable], known.phash[usable], keep_ratio)
    marks[usable[~chosen]] |= np.uint8(Mark.REDUNDANT)
    marks[_with_text(opened, known, quiet)] |= np.uint8(Mark.TEXT)
    marks[held_out] |= np.uint8(Mark.HELD_OUT)
    _write(opened, marks)
    return Quality(marks)


def read_marks(corpus: Corpus) -> Quality:
    """The marks beside a corpus.

    Raises:
        DataError: there are none, or the corpus has changed since.
    """
    path, hint = corpus.folder / MARKS, f"make them with: ssl-mednet curate {corpus.folder}"
    if not path.is_file():
        raise DataError(f"{corpus.folder}: its rows have not been marked", hint)
    table = pq.read_table(path)
    if (table.schema.metadata or {}).get(_META) != corpus.meta["fingerprint"].encode():
        raise DataError(f"{path}: was made for another version of the corpus", hint)
    return Quality(table["marks"].to_numpy())


def thin(volume: np.ndarray, index: np.ndarray, hashes: np.ndarray, keep_ratio: float) -> np.ndarray:
    """Which slices stay, ``[N]`` bool: of each volume those that differ most from what is kept of it.

    The middle slice is kept first, then always the slice whose perceptual hash is furthest from all that are kept
    (farthest-first traversal: Gonzalez, 1985), until ``keep_ratio`` of the volume is kept. Wolf et al. (Less is More,
    2024, arXiv:2410.14524) drop, volume by volume, all slices whose 64-bit hash lies within a fixed distance of one
    that is kept, and found the smaller set to train better; here the distance follows from the ratio, so every volume
    gives the share that was asked for. They hash by differences, we by the cosine transform that the corpus holds.

    Args:
        volume: hashes of volumes, -1 for an image of no volume, which always stays.
        index: number of the slice in its volume.
        hashes: 64-bit perceptual hashes, uint64.
    """
    stays = np.ones(len(volume), bool)
    order = np.lexsort((index, volume))
    starts = np.flatnonzero(np.diff(volume[order], prepend=np.int64(-2)))
    for rows in np.split(order, starts[1:]):
        if len(rows) > 1 and volume[rows[0]] >= 0:
            stays[rows] = False
            stays[rows[_farthest_first(hashes[rows], max(1, round(keep_ratio * len(rows))))]] = True
    return stays


def _farthest_first(hashes: np.ndarray, count: int) -> list[int]:
    if count == len(hashes):
        return list(range(count))
    chosen = [len(hashes) // 2]
    distance = np.bitwise_count(hashes ^ hashes[chosen[0]]).astype(np.int16)
    distance[chosen[0]] = -1
    while len(chosen) < count:
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.bitwise_count(hashes ^ hashes[chosen[-1]]).astype(np.int16))
        distance[chosen[-1]] = -1  # chosen once, also where all hashes are equal
    return chosen


def _test_images(corpus: Corpus, against: Sequence[str | Path], quiet: bool) -> list[int]:
    """Rows that are test images of these sets, or near copies of them."""
    report = audit(corpus, against, quiet=quiet)
    if report.failed:
        raise DataError(f"not all test images are known: {'; '.join(report.failed.values())}")
    return sorted({match.corpus_row for match in report.matches if match.split == "test"})


def _copies_by_hash(corpus: Corpus, known: Records, usable: np.ndarray, quiet: bool) -> np.ndarray:
    """Rows that are near copies of one that stays."""
    rows = np.flatnonzero(usable & known.clear)

    def candidates() -> Iterator[Pairs]:
        with Progress("looking for near copies", len(rows), "img", quiet) as progress:
            for part in near_within(known.phash[rows], _RADIUS):
                yield _across_volumes(part.within(rows, rows), known)
                progress.advance(int(part.right[-1]) + 1 - progress.done if len(part) else 0)
            progress.advance(len(rows) - progress.done)

    return matched(candidates(), corpus, corpus, among_kept=True)


def _copies_by_embedding(
    corpus: Corpus, known: Records, usable: np.ndarray, embedder: Embedder, cosine: float
) -> list[int]:
    """Rows that are near copies of one that stays, looked for among those whose embeddings are nearest."""
    rows = np.flatnonzero(usable & known.clear)
    if len(rows) < 2:
        return []
    with on_disk(embedder, corpus, rows) as features:
        found = (_across_volumes(part.within(rows, rows), known) for part in embedding_within(features, cosine))
        pairs = confirmed((part.nearest(_CANDIDATES) for part in found), corpus, corpus)
    copies: set[int] = set()
    for i in np.lexsort((pairs.left, pairs.right)):
        if int(pairs.left[i]) not in copies:
            copies.add(int(pairs.right[i]))
    return sorted(copies)


def _across_volumes(pairs: Pairs, known: Records) -> Pairs:
    """Without neighbouring slices."""
    left, right = known.volume[pairs.left], known.volume[pairs.right]
    return pairs.of((left != right) | (left < 0))


def _with_text(corpus: Corpus, known: Records, quiet: bool) -> np.ndarray:
    """Rows with burnt-in text, ``[K]``; what is found of a part is kept in the cache, as a row takes milliseconds."""
    windows, codecs = corpus.numbers("window"), corpus.numbers("codec")
    found, kept = [np.empty(0, np.int64)], Dispensable("what was found of text is")
    with (
        Progress("looking for text", len(corpus), "img", quiet) as progress,
        ThreadPoolExecutor(os.cpu_count() or 1) as threads,
    ):
        for start in range(0, len(corpus), _PART):
            rows = np.arange(start, min(start + _PART, len(corpus)))
            seen = b"".join(column[rows].tobytes() for column in (known.sha256, windows, codecs))
            path = cache_folder() / "text" / f"{_FORMAT}-{hashlib.sha256(seen).hexdigest()[:24]}.npy"
            if path.is_file():
                has = np.load(path, allow_pickle=False)
            else:
                batches = np.split(rows, range(_BATCH, len(rows), _BATCH))
                has = np.concatenate([_text_of(corpus, some, threads, progress) for some in batches])
                with kept, replacing(path) as temporary, temporary.open("wb") as file:
                    np.save(file, has)
            found.append(rows[has])
            progress.advance(int(rows[-1]) + 1 - progress.done)
    return np.concatenate(found)


def _text_of(corpus: Corpus, rows: np.ndarray, threads: ThreadPoolExecutor, progress: Progress) -> np.ndarray:
    """Which of these rows have text, mask ``[N]``; threads share the work, and one batch at a time is in memory."""
    batch = corpus.batch(rows)
    grays = batch.unit().mean(dim=1).numpy()
    cut = [gray[:height, :width] for gray, (height, width) in zip(grays, batch.sizes.tolist(), strict=True)]
    has = np.array([bool(boxes) for boxes in threads.map(find_text, cut)])
    progress.advance(len(rows))
    return has


def _write(corpus: Corpus, marks: np.ndarray) -> None:
    table = pa.table({"row": np.arange(len(marks)), "marks": marks})
    table = table.replace_schema_metadata({_META: corpus.meta["fingerprint"].encode()})
    with replacing(corpus.folder / MARKS) as temporary:
        pq.write_table(table, temporary)
