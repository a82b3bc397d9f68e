"""The corpus: a Lance data set, one row an image, read in any order."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from ssl_mednet.data.schema import FORMAT, HOW, QUARANTINE, RAW, CorpusSpec, decode, is_corpus, read_meta
from ssl_mednet.data.sources import SPLITS, open_sources
from ssl_mednet.errors import DataError
from ssl_mednet.files import cache_folder, check_folder, expanded
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.modality import BY_CODE, CHANNEL_COUNT

__all__ = ["QUARANTINE", "Corpus", "CorpusSpec", "open_corpus"]

_PIXELS = 3  # part of the cache key: raised where readers give other pixels than before
_CACHE_BYTES = 64 * 2**20  # of Lance, for what it knows of its files
_PART = 1024  # rows that Lance reads at a time
_SHARE = 64  # images that a thread decodes before the next share is handed out


class _Process:
    """Lance runs threads of its own, which a forked child does not have: it would hang or crash there."""

    used = False
    forked = False

    @classmethod
    def after_fork(cls) -> None:
        cls.forked = cls.used

    @classmethod
    def check(cls) -> None:
        if cls.forked:
            hint = "read with threads, or start processes by spawn or forkserver and open the corpus in them"
            raise DataError("a corpus cannot be read in a forked process", hint)
        cls.used = True


os.register_at_fork(after_in_child=_Process.after_fork)


class Fetched(NamedTuple):
    """Stored bytes of rows, the rows in ascending order."""

    rows: np.ndarray
    blobs: list[np.ndarray]


class Corpus:
    """Images in a Lance data set: what is small is read whole at opening, pixels are fetched row by row.

    Reading is safe from several threads. A process that was forked after a corpus was opened may not read it; a
    corpus that is pickled opens itself again where it arrives.

    Args:
        folder: of the corpus.

    Attributes:
        split: number of each row's split in ``SPLITS``, -1 where the source has none.
        modality: code of each row's modality.
        classes: names of the classes.
        meta: source, counts, fingerprint.

    Raises:
        DataError: not a corpus, one of another layout, or a process that was forked after a corpus was read.
    """

    def __init__(self, folder: str | Path) -> None:
        import lance

        _Process.check()
        self.folder = Path(folder)
        if not is_corpus(self.folder):
            raise DataError(f"{folder}: is no corpus", HOW)
        self._dataset = lance.dataset(
            str(self.folder), index_cache_size_bytes=_CACHE_BYTES, metadata_cache_size_bytes=_CACHE_BYTES
        )
        self.meta: dict[str, Any] = read_meta(self._dataset.schema, self.folder)
        self.channels: str = self.meta["channels"]
        self.classes: list[str] = self.meta["classes"]
        # One after the other: tables of several columns would be in memory beside what is made of them.
        self._codec, self.modality, self._bits, self.split = map(self.numbers, ("codec", "modality", "bits", "split"))
        self._size = np.stack([self.numbers("height"), self.numbers("width")], axis=1)
        self._window = self.numbers("window")
        self._canvas = tuple(int(side) for side in self._size.max(axis=0))
        self._depth = np.uint8 if (self._bits == 8).all() else np.uint16
        self._alike = bool(
            (self._codec == RAW).all() and (self._size == self._size[0]).all() and (self._bits == self._bits[0]).all()
        )
        self._threads = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="decode")

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path]]:
        return Corpus, (self.folder,)

    def __len__(self) -> int:
        return len(self._codec)

    def column(self, column: str) -> pa.ChunkedArray:
        """A column as it is stored; see :func:`~ssl_mednet.data.schema.schema`."""
        _Process.check()
        return self._dataset.to_table(columns=[column])[column]

    def numbers(self, column: str) -> np.ndarray:
        """A column of numbers ``[N]``, or of lists of one length ``[N, length]``."""
        read = self.column(column)
        length = read.type.list_size if pa.types.is_fixed_size_list(read.type) else 0
        parts = [(chunk.flatten() if length else chunk).to_numpy(zero_copy_only=False) for chunk in read.chunks]
        return np.concatenate(parts).reshape((-1, length) if length else -1)

    @cached_property
    def label(self) -> np.ndarray:
        """Class number of each row (-1: none), or ``[N, L]`` of 0 and 1 where a row may have several findings."""
        return _encode(self.column("label"), self.classes, self.meta["multilabel"])

    @cached_property
    def group(self) -> np.ndarray:
        """Number of each row's group (patient, lesion, slide) in order of appearance, -1 where there is none.

        Stored are keyed hashes; the identifier itself never is.
        """
        return _numbered(self.numbers("group"))

    @cached_property
    def unit(self) -> np.ndarray:
        """As :attr:`group`; rows without a group that are parts of one volume are one unit too.

        Slices of a volume are alike, so no split may part them.
        """
        group = self.numbers("group")
        return _numbered(np.where(group >= 0, group, self.numbers("volume")))

    @cached_property
    def source(self) -> np.ndarray:
        """Number of each row's source, in the order in which they were ingested."""
        encoded = self.column("source").combine_chunks().dictionary_encode()
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)

    def rows(self, split: str = "all") -> np.ndarray:
        """Positions of the rows of a split; all rows where no source has splits.

        Rows without a split are training rows, as in :func:`~ssl_mednet.data.labelled.open_labelled`: a corpus may hold
        labelled sets, which have splits, beside slides and scans, which have none.
        """
        if split == "all" or (self.split < 0).all():
            return np.arange(len(self))
        wanted = self.split == SPLITS.index(split)
        return np.flatnonzero(wanted | (self.split < 0) if split == "train" else wanted)

    def statistics(self, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the pixels of these rows, in [0, 1] units."""
        moments = self.numbers("moments")[rows].mean(axis=0, dtype=np.float64)
        first, second = moments.reshape(2, -1)
        std = np.sqrt(np.maximum(second - first**2, 1e-4))
        return tuple(map(float, first.round(6))), tuple(map(float, std.round(6)))

    def modalities(self, rows: np.ndarray) -> dict[str, int]:
        """How many of these rows each modality has."""
        codes, counts = np.unique(self.modality[rows], return_counts=True)
        return {BY_CODE[int(c)].name: int(n) for c, n in zip(codes, counts, strict=True)}

    def fetch(self, rows: np.ndarray) -> Fetched:
        """The stored bytes of some rows, each once, read in the order of the disk.

        A read costs as much as decoding some hundred small images, so streams fetch several batches at a time.
        """
        _Process.check()
        wanted = np.unique(rows)
        if not len(wanted):
            return Fetched(wanted, [])
        if not 0 <= wanted[0] <= wanted[-1] < len(self):
            raise IndexError(f"rows {wanted[0]} to {wanted[-1]} of a corpus of {len(self)}")
        # Part by part: what Lance holds on the way is several times what it gives.
        parts = np.split(wanted, range(_PART, len(wanted), _PART))
        return Fetched(wanted, [blob for part in parts for blob in _blobs(self._take(part))])

    def _take(self, rows: np.ndarray) -> pa.ChunkedArray:
        return self._dataset.take(rows, columns=["image"])["image"]

    def batch(self, rows: np.ndarray, fetched: Fetched | None = None) -> ImageBatch:
        """These rows, side by side on a canvas that is the same for every batch of the corpus.

        Args:
            rows: positions, in any order, also several times.
            fetched: what :meth:`fetch` read of these and maybe of other rows.
        """
        rows = np.asarray(rows, dtype=np.int64)
        return ImageBatch(
            torch.from_numpy(self._pixels(rows, fetched or self.fetch(rows))),
            torch.from_numpy(self._size[rows].astype(np.int64)),
            torch.from_numpy(self._window[rows]),
            torch.from_numpy(self.modality[rows].astype(np.int64)),
            torch.from_numpy(rows),
        )

    @property
    def canvas_bytes(self) -> int:
        """What an image takes in a batch."""
        return int(np.prod(self._canvas)) * CHANNEL_COUNT[self.channels] * np.dtype(self._depth).itemsize

    def _pixels(self, rows: np.ndarray, fetched: Fetched) -> np.ndarray:
        """``[B, C, H, W]`` of some rows."""
        blobs = [fetched.blobs[place] for place in np.searchsorted(fetched.rows, rows)]
        channels = CHANNEL_COUNT[self.channels]
        if self._alike:
            flat = np.concatenate([*blobs, np.empty(0, np.uint8)]).view(self._depth)
            return np.ascontiguousarray(flat.reshape(len(rows), *self._canvas, channels).transpose(0, 3, 1, 2))
        out = np.empty((len(rows), channels, *self._canvas), dtype=self._depth)
        shares = [slice(start, start + _SHARE) for start in range(0, len(rows), _SHARE)]
        list(self._threads.map(lambda share: self._decode(rows[share], blobs[share], out[share]), shares))
        return out

    def _decode(self, rows: np.ndarray, blobs: list[np.ndarray], out: np.ndarray) -> None:
        for row, blob, canvas in zip(rows, blobs, out, strict=True):
            height, width = self._size[row]
            canvas[:, :height, :width] = decode(blob, self._codec[row], height, width, self._bits[row])
            # The border is repeated, so that averaging over the edge of the image sees no foreign values.
            if height < canvas.shape[1]:
                canvas[:, height:, :width] = canvas[:, height - 1 : height, :width]
            if width < canvas.shape[2]:
                canvas[:, :, width:] = canvas[:, :, width - 1 : width]


def _blobs(column: pa.ChunkedArray) -> Iterator[np.ndarray]:
    """The bytes of each value of a binary column, not copied."""
    for chunk in column.chunks:
        wide = np.int64 if pa.types.is_large_binary(chunk.type) else np.int32
        ends = np.frombuffer(chunk.buffers()[1], wide)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        data = np.frombuffer(chunk.buffers()[2], np.uint8)
        yield from (data[start:end] for start, end in pairwise(ends))


def _numbered(hashes: np.ndarray) -> np.ndarray:
    """Distinct values by the order in which they first appear, -1 where the value is negative."""
    values, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    known = values >= 0
    number = np.full(len(values), -1, np.int32)
    number[np.flatnonzero(known)[np.argsort(first[known])]] = np.arange(known.sum())
    return number[inverse]


def _encode(labels: pa.ChunkedArray, classes: list[str], multilabel: bool) -> np.ndarray:
    """Class numbers ``[N]``; or 0/1 ``[N, L]`` where some row names several findings."""
    encoded = labels.combine_chunks().dictionary_encode()
    encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
    names, codes = encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    number = {name: i for i, name in enumerate(classes)}
    if not multilabel:
        return np.array([*(number[name] for name in names), -1], np.int32)[codes]
    matrix = np.zeros((len(names) + 1, len(classes)), np.int8)
    matrix[-1] = -1  # of rows without a label
    for i, name in enumerate(names):
        matrix[i, [number[part] for part in name.split("|") if part]] = 1
    return matrix[codes]


def open_corpus(source: str | Path, spec: CorpusSpec, quiet: bool = False) -> Corpus:
    """The corpus of a source (or of a glob): itself where it is one, else from the cache, or ingested into it first.

    The cache lies in ``$SSL_MEDNET_CACHE`` (else ``~/.cache/ssl_mednet``), keyed by the spec and the content of the
    source, of a folder by the names, sizes and times of its files. A corpus appears in it whole or not at all; a killed
    run is taken up where it was, and files that could not be opened then are added when they can be.

    Raises:
        DataError: the source does not exist or holds no image that can be used; the message counts and explains.
    """
    if is_corpus(expanded(source)):
        corpus = Corpus(expanded(source))
        if corpus.channels != spec.channels:
            hint = f"data.channels={corpus.channels}, or ingest it with --channels {spec.channels}"
            raise DataError(f"{source}: is a corpus of {corpus.channels} images, {spec.channels} is wanted", hint)
        return corpus
    opened = open_sources(source)
    sides = [one.side for one in opened if one.side is not None]
    if len(sides) == len(opened):  # nothing is larger: pretraining and evaluation share what is decoded
        spec = replace(spec, store_size=min(spec.store_size, max(sides)))
    said = " ".join(one.fingerprint() for one in opened)
    key = hashlib.sha256(f"{FORMAT} {_PIXELS} {said} {spec}".encode()).hexdigest()[:24]
    folder = cache_folder() / "corpora" / key
    if not is_corpus(folder) or _has_passed(folder):
        from ssl_mednet.ingesting.run import ingest_opened

        check_folder(cache_folder(), "set $SSL_MEDNET_CACHE to a folder that can be written")
        ingest_opened(opened, folder, spec, quiet=quiet)
    return Corpus(folder)


def _has_passed(folder: Path) -> bool:
    """Whether a file that a cached corpus lacks could not be opened then and can be now."""
    if not (folder / QUARANTINE).is_file() or not os.access(folder, os.W_OK):  # a shared cache stays
        return False
    from ssl_mednet.ingesting.again import reasons_gone
    from ssl_mednet.ingesting.run import TIMEOUT

    return bool(reasons_gone(folder, TIMEOUT))
