"""The corpus: every image of a source, decoded once, cached on disk, read in any order."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch

from ssl_mednet.data.sources import SPLITS, Item, Source, open_source
from ssl_mednet.errors import DataError, UnreadableImage
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.image import MedicalImage, collapse_gray
from ssl_mednet.imaging.modality import CHANNEL_COUNT, MODALITIES
from ssl_mednet.progress import Progress

FORMAT = 3  # part of the cache key: a cache written by another layout is never read
PIXELS, INDEX, META, SKIPPED = "pixels.bin", "index.npz", "meta.json", "skipped.csv"
_CHUNK = 64  # items a worker decodes at a time
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True)
class CorpusSpec:
    """What of a source to keep, and how.

    Args:
        channels: ``"gray"`` or ``"color"``; images of the other kind are skipped unless ``convert``.
        store_size: longest side kept, pixels; larger images are averaged down, smaller ones stay.
        modality: for images that do not say their own.
        convert: gray images to three equal channels, color images to their luma.
    """

    channels: str
    store_size: int
    modality: str = ""
    convert: bool = False


class Corpus:
    """Images in a cache folder: pixels in one flat file that is mapped into memory, everything else in an index.

    Attributes:
        label: class number of each row (-1: none), or ``[N, L]`` of 0 and 1 where a row may have several findings.
        split: number of each row's split in ``SPLITS``, -1 where the source has none.
        group: number of each row's group (patient, lesion, slide), -1 where the source has none. Numbers only: the
            identifier itself is never stored.
        classes: names of the classes.
        meta: source, counts, fingerprint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, Any] = json.loads((folder / META).read_text())
        with np.load(folder / INDEX, allow_pickle=False) as index:
            self._offset, self._size, self._bits = index["offset"], index["size"], index["bits"]
            self._window, self._modality = index["window"], index["modality"]
            self._moments = index["moments"]
            self.label, self.split, self.group = index["label"], index["split"], index["group"]
        self.channels: str = self.meta["channels"]
        self.classes: list[str] = self.meta["classes"]
        self._bytes = np.memmap(folder / PIXELS, dtype=np.uint8, mode="r")
        self._canvas = tuple(int(side) for side in self._size.max(axis=0))
        self._depth = np.uint8 if (self._bits == 8).all() else np.uint16
        same = (self._size == self._size[0]).all() and (self._bits == self._bits[0]).all()
        shape = (len(self), CHANNEL_COUNT[self.channels], *self._canvas)
        self._stacked = self._bytes.view(self._depth).reshape(shape) if same else None

    def __len__(self) -> int:
        return len(self._offset)

    def rows(self, split: str = "all") -> np.ndarray:
        """Positions of the rows of a split; all rows where the source has no splits."""
        if split == "all" or (self.split < 0).all():
            return np.arange(len(self))
        return np.flatnonzero(self.split == SPLITS.index(split))

    def statistics(self, rows: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over the pixels of these rows, in [0, 1] units."""
        first, second = self._moments[rows].mean(axis=0)
        std = np.sqrt(np.maximum(second - first**2, 1e-4))
        return tuple(map(float, first.round(6))), tuple(map(float, std.round(6)))

    def modalities(self, rows: np.ndarray) -> dict[str, int]:
        """How many of these rows each modality has."""
        names = {m.code: m.name for m in MODALITIES.values()}
        return {names[c]: n for c, n in sorted(Counter(self._modality[rows].tolist()).items())}

    def batch(self, rows: np.ndarray) -> ImageBatch:
        """These rows, side by side on a canvas that is the same for every batch of the corpus."""
        pixels = self._stacked[rows] if self._stacked is not None else self._on_canvas(rows)
        return ImageBatch(
            torch.from_numpy(pixels),
            torch.from_numpy(self._size[rows].astype(np.int64)),
            torch.from_numpy(self._window[rows]),
            torch.from_numpy(self._modality[rows].astype(np.int64)),
            torch.from_numpy(np.asarray(rows, dtype=np.int64)),
        )

    def _on_canvas(self, rows: np.ndarray) -> np.ndarray:
        channels = CHANNEL_COUNT[self.channels]
        out = np.empty((len(rows), channels, *self._canvas), dtype=self._depth)
        for i, row in enumerate(rows):
            height, width = self._size[row]
            count = channels * height * width * (self._bits[row] // 8)
            raw = self._bytes[self._offset[row] : self._offset[row] + count]
            image = raw.view(np.uint8 if self._bits[row] == 8 else np.uint16).reshape(channels, height, width)
            out[i, :, :height, :width] = image
            # The border is repeated, so that averaging over the edge of the image sees no foreign values.
            out[i, :, height:, :width] = out[i, :, height - 1 : height, :width]
            out[i, :, :, width:] = out[i, :, :, width - 1 : width]
        return out


def open_corpus(source: str | Path, spec: CorpusSpec, quiet: bool = False) -> Corpus:
    """The corpus of a source: from the cache, or decoded into it first.

    The cache lies in ``$SSL_MEDNET_CACHE`` (else ``~/.cache/ssl_mednet``), keyed by the content of the source and the
    spec. A corpus appears in it whole or not at all, so a killed run leaves nothing half-made.

    Raises:
        DataError: the source does not exist or holds no image that can be used; the message counts and explains.
    """
    opened = open_source(source)
    if opened.side is not None:  # nothing is larger: pretraining and evaluation share what is decoded
        spec = replace(spec, store_size=min(spec.store_size, opened.side))
    key = hashlib.sha256(f"{FORMAT} {opened.fingerprint()} {spec}".encode()).hexdigest()[:24]
    folder = cache_folder() / "corpora" / key
    if not (folder / META).is_file():
        opened.prepare(quiet)
        _build(opened, spec, folder, quiet)
    return Corpus(folder)


def cache_folder() -> Path:
    """Where decoded corpora are kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ssl_mednet"
    return Path(os.environ.get("SSL_MEDNET_CACHE") or default).expanduser()


def _build(source: Source, spec: CorpusSpec, folder: Path, quiet: bool) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        writer = _Writer(work, source, spec)
        with Progress(f"reading {source.spec}", source.count(), "img", quiet) as progress:
            for results in _decode_all(source, spec):
                for result in results:
                    writer.add(result)
                progress.advance(_CHUNK, f"{writer.skipped_count} skipped" if writer.skipped_count else "")
        writer.close()
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


@dataclass(frozen=True)
class _Decoded:
    """An image ready to be written, or why there is none."""

    item: Item
    image: MedicalImage | None
    moments: np.ndarray | None = None
    reason: str = ""


def _decode_all(source: Source, spec: CorpusSpec) -> Iterator[list[_Decoded]]:
    items = source.items()
    chunks = iter(lambda: list(islice(items, _CHUNK)), [])
    first = list(islice(chunks, 4))
    # Processes pay off for many items only; decoders of small pictures release the GIL, physics and DICOM do not.
    backend = "threading" if len(first) < 4 else "loky"
    workers = joblib.Parallel(n_jobs=os.cpu_count() or 1, backend=backend, return_as="generator")
    yield from workers(joblib.delayed(_decode)(chunk, spec) for chunk in _chain(first, chunks))


def _chain(first: list[list[Item]], rest: Iterator[list[Item]]) -> Iterator[list[Item]]:
    yield from first
    yield from rest


def _decode(chunk: list[Item], spec: CorpusSpec) -> list[_Decoded]:
    results = []
    for item in chunk:
        light = Item(item.name, b"", item.label, item.split, item.group, item.modality)
        try:
            for image in item.images(spec.modality):
                fitted = _fit(item.name, image, spec)
                unit = fitted.unit().reshape(-1, fitted.channels).astype(np.float64)
                moments = np.stack([unit.mean(axis=0), (unit**2).mean(axis=0)])
                results.append(_Decoded(light, fitted, moments))
        except UnreadableImage as error:
            results.append(_Decoded(light, None, reason=error.reason))
    return results


def _fit(name: str, image: MedicalImage, spec: CorpusSpec) -> MedicalImage:
    """The image in the corpus' channels, at its size, with a modality that has these channels."""
    known, wanted = MODALITIES.get(image.modality), CHANNEL_COUNT[spec.channels]
    # A picture of a color modality is in color even where it happens to show gray only.
    in_color = known is not None and known.channels == "color" and not image.modality.startswith("generic")
    pixels = image.pixels if in_color else collapse_gray(image.pixels)
    if pixels.shape[2] != wanted:
        if not spec.convert:
            kind, other = ("color", "gray") if pixels.shape[2] == 3 else ("gray", "color")
            raise UnreadableImage(name, f"a {kind} image in a {other} corpus (convert=true turns it into {other})")
        pixels = np.rint(pixels @ _LUMA)[..., None].astype(pixels.dtype) if wanted == 1 else pixels.repeat(3, axis=2)
    modality = image.modality if known and known.channels == spec.channels else f"generic_{spec.channels}"
    fitted = MedicalImage(pixels, modality, image.window, image.quantity, image.group, image.index)
    return fitted.shrunk(spec.store_size)


class _Writer:
    """Collects decoded images into the files of a corpus."""

    def __init__(self, folder: Path, source: Source, spec: CorpusSpec) -> None:
        self.folder, self.source, self.spec = folder, source, spec
        self._pixels = (folder / PIXELS).open("wb")
        self._rows: list[tuple[Any, ...]] = []
        self._labels: list[str | None] = []
        self._moments: list[np.ndarray] = []
        self._groups: dict[str, int] = {}
        self._skipped: list[tuple[str, str]] = []
        self._digest = hashlib.sha256()

    @property
    def skipped_count(self) -> int:
        return len(self._skipped)

    def add(self, result: _Decoded) -> None:
        item, image = result.item, result.image
        if image is None:
            self._skipped.append((item.name, result.reason))
            return
        assert result.moments is not None
        data = np.ascontiguousarray(image.pixels.transpose(2, 0, 1)).tobytes()
        offset = self._pixels.tell()
        self._pixels.write(data)
        self._digest.update(f"{image.pixels.shape} {image.window} {image.modality} ".encode() + data)
        group = item.group or image.group
        number = self._groups.setdefault(group, len(self._groups)) if group else -1
        split = SPLITS.index(item.split) if item.split else -1
        code = MODALITIES[image.modality].code
        bits = 8 * image.pixels.dtype.itemsize
        self._rows.append((offset, image.pixels.shape[:2], bits, image.window, code, split, number))
        self._labels.append(item.label)
        self._moments.append(result.moments)

    def close(self) -> None:
        """Write index, meta and the list of skipped files; an empty corpus is an error."""
        self._pixels.close()
        with (self.folder / SKIPPED).open("w", newline="") as file:
            csv.writer(file).writerows([("path", "reason"), *self._skipped])
        if not self._rows:
            raise self._nothing()
        offset, size, bits, window, modality, split, group = zip(*self._rows, strict=True)
        classes, label = _encode(self._labels)
        if self.source.classes:  # the source counts its classes and has names for the numbers
            classes = [self.source.classes[int(number)] for number in classes]
        np.savez(
            self.folder / INDEX,
            offset=np.array(offset, np.int64),
            size=np.array(size, np.int32),
            bits=np.array(bits, np.int32),
            window=np.array(window, np.float32),
            modality=np.array(modality, np.int16),
            split=np.array(split, np.int8),
            group=np.array(group, np.int32),
            label=label,
            moments=np.stack(self._moments).astype(np.float32),
        )
        meta = {
            "source": self.source.spec,
            "channels": self.spec.channels,
            "images": len(self._rows),
            "skipped": len(self._skipped),
            "classes": classes,
            "groups": len(self._groups),
            "licence": self.source.licence,
            "note": self.source.note,
            "fingerprint": self._digest.hexdigest(),
        }
        (self.folder / META).write_text(json.dumps(meta, indent=2) + "\n")

    def _nothing(self) -> DataError:
        if not self._skipped:
            return DataError(f"{self.source.spec}: holds no image", "PNG, JPEG, TIFF, DICOM, NIfTI, npy, npz, zip, tar")
        common = Counter(reason for _, reason in self._skipped).most_common(1)[0]
        path = next(path for path, reason in self._skipped if reason == common[0])
        return DataError(
            f"{self.source.spec}: none of its {len(self._skipped)} files can be used, most often because: {common[0]}",
            f"for example {path}",
        )


def _encode(labels: list[str | None]) -> tuple[list[str], np.ndarray]:
    """Class names in order, and numbers ``[N]``; or 0/1 ``[N, L]`` where some row names several findings."""
    if any(label and "|" in label for label in labels):
        classes = _in_order({part for label in labels if label for part in label.split("|")})
        matrix = np.zeros((len(labels), len(classes)), np.int8)
        for i, label in enumerate(labels):
            for part in (label or "").split("|"):
                if part:
                    matrix[i, classes.index(part)] = 1
        return classes, matrix
    classes = _in_order({label for label in labels if label is not None})
    number = {name: i for i, name in enumerate(classes)}
    return classes, np.array([-1 if label is None else number[label] for label in labels], np.int32)


def _in_order(names: set[str]) -> list[str]:
    """Numbers as numbers, everything else by the alphabet."""
    return sorted(names, key=lambda n: (0, int(n), n) if n.isdigit() else (1, 0, n))
