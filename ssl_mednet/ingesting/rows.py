"""What a worker does: items in, rows of a fragment on the disk out, and why some items gave none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_mednet.data.schema import CorpusSpec, encode, schema
from ssl_mednet.data.sources import SPLITS, Item, PhantomIndex
from ssl_mednet.data.sources.base import named
from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import MedicalImage, collapse_gray
from ssl_mednet.imaging.modality import CHANNEL_COUNT, MODALITIES
from ssl_mednet.imaging.readers import ReadContext, format_of
from ssl_mednet.ingesting.chunks import Chunk, Job, Origin
from ssl_mednet.ingesting.hashes import LUMA, flags, keyed_hash, moments, perceptual_hash, pixel_hash
from ssl_mednet.ingesting.names import utf8

_BATCH_ROWS, _BATCH_BYTES = 1024, 16 * 2**20  # what a worker holds before it writes
_HEAD = 4096

Rejected = tuple[str, str, str]
Beat = Callable[[int], None]


@dataclass(frozen=True)
class Record:
    """What became of a chunk.

    Args:
        number: of the chunk.
        items: how many it had.
        rows: how many images they gave.
        ungrouped: how many of these have no group.
        fragments: of Lance, as their JSON.
        quarantine: path, reason and reader of each item that gave no image, or not all of its images.
    """

    number: int
    items: int
    rows: int = 0
    fragments: list[dict[str, Any]] = field(default_factory=list)
    quarantine: list[Rejected] = field(default_factory=list)
    ungrouped: int = 0

    def __add__(self, other: Record) -> Record:
        return Record(
            self.number,
            self.items + other.items,
            self.rows + other.rows,
            self.fragments + other.fragments,
            self.quarantine + other.quarantine,
            self.ungrouped + other.ungrouped,
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Record:
        quarantine = [(path, reason, reader) for path, reason, reader in content["quarantine"]]
        return cls(**{**content, "quarantine": quarantine})


def write_rows(job: Job, chunk: Chunk, beat: Beat) -> Record:
    """Decode a chunk and write its rows as a fragment that no version of the corpus has yet.

    Rows are written while they are made, so a volume or a slide of any length takes little memory.

    Args:
        beat: called with the number of the item before it is opened and before each of its images.
    """
    from lance.fragment import write_fragments

    columns = schema(job.spec.channels)
    rejected: list[Rejected] = []
    count = ungrouped = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal count, ungrouped
        for rows in _in_batches(_rows(job, chunk, beat, rejected)):
            count += len(rows)
            ungrouped += sum(row["group"] < 0 for row in rows)
            yield pa.RecordBatch.from_pylist(rows, schema=columns)

    stream = batches()
    first = next(stream, None)
    if first is None:
        return Record(chunk.number, len(chunk.items), quarantine=rejected)
    reader = pa.RecordBatchReader.from_batches(columns, chain([first], stream))
    # "overwrite" writes files and nothing else; "append" would ask for the columns that others added to the corpus.
    written = write_fragments(reader, job.folder, schema=columns, mode="overwrite", max_bytes_per_file=2**31)
    return Record(chunk.number, len(chunk.items), count, [f.to_json() for f in written], rejected, ungrouped)


def _in_batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    held: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        held.append(row)
        size += len(row["image"])
        if len(held) >= _BATCH_ROWS or size >= _BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def _rows(job: Job, chunk: Chunk, beat: Beat, rejected: list[Rejected]) -> Iterator[dict[str, Any]]:
    origin, spec = job.origins[chunk.origin], job.spec
    told = ReadContext(mpp=spec.mpp, tile=spec.tile, max_tiles=spec.max_tiles, group_tag=spec.group_tag)
    for number, item in enumerate(chunk.items):
        beat(number)
        try:
            for image in item.images(spec.modality, told):
                try:
                    fitted = fit(item.name, image, spec)
                except UnreadableImage as error:  # of this frame: the next may be another
                    row = (item.name, error.reason, reader_of(item))
                    rejected += [] if row in rejected else [row]
                else:
                    yield _row(job, origin, item, fitted)
                beat(number)
        except UnreadableImage as error:
            rejected.append((item.name, error.reason, reader_of(item)))


def _row(job: Job, origin: Origin, item: Item, image: MedicalImage) -> dict[str, Any]:
    unit = image.unit()
    label = named(item.label, origin.classes)
    codec, data = encode(image.pixels, job.spec.quality)
    return {
        "image": data,
        "codec": codec,
        "modality": MODALITIES[image.modality].code,
        "channels": image.channels,
        "height": image.pixels.shape[0],
        "width": image.pixels.shape[1],
        "bits": 8 * image.pixels.dtype.itemsize,
        "window": image.window,
        "quantity": image.quantity,
        "group": keyed_hash(job.key, image.group if image.by_tag else item.group or image.group),
        "source": origin.name,
        "licence": origin.licence,
        "split": SPLITS.index(item.split) if item.split else -1,
        "label": label and utf8(label),
        "sha256": pixel_hash(image.pixels),
        "phash": perceptual_hash(unit),
        "moments": moments(unit).ravel().tolist(),
        "volume": keyed_hash(job.key, image.volume),
        "index": image.index,
        "flags": int(flags(image.pixels, unit)),
    }


def fit(name: str, image: MedicalImage, spec: CorpusSpec) -> MedicalImage:
    """The image in the corpus' channels, at its size, with a modality that has these channels.

    Raises:
        UnreadableImage: it has other channels and the spec does not say to convert it.
    """
    known, wanted = MODALITIES.get(image.modality), CHANNEL_COUNT[spec.channels]
    # A picture of a color modality is in color even where it happens to show gray only.
    in_color = known is not None and known.channels == "color" and not image.modality.startswith("generic")
    pixels = image.pixels if in_color else collapse_gray(image.pixels)
    if pixels.shape[2] != wanted:
        if not spec.convert:
            kind, other = ("color", "gray") if pixels.shape[2] == 3 else ("gray", "color")
            raise UnreadableImage(name, f"a {kind} image in a {other} corpus (convert=true turns it into {other})")
        pixels = np.rint(pixels @ LUMA)[..., None].astype(pixels.dtype) if wanted == 1 else pixels.repeat(3, axis=2)
    modality = image.modality if known and known.channels == spec.channels else f"generic_{spec.channels}"
    return replace(image, pixels=pixels, modality=modality).shrunk(spec.store_size)


def reader_of(item: Item) -> str:
    """The name of the reader that an item meets; empty where it meets none."""
    content = item.content
    if isinstance(content, tuple) and not isinstance(content, PhantomIndex):
        content = content[0]  # a slide in several files
    try:
        if isinstance(content, Path):
            with content.open("rb") as file:
                return format_of(item.name, file.read(_HEAD))
        return format_of(item.name, content[:_HEAD]) if isinstance(content, bytes) else ""
    except (OSError, UnreadableImage):
        return ""
