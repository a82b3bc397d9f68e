"""What is in a corpus: counts, sizes, intensities, copies, groups and licences."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ssl_mednet.auditing.near import exact_within
from ssl_mednet.auditing.quality import read_marks
from ssl_mednet.auditing.records import records
from ssl_mednet.augment.views import resize
from ssl_mednet.catalog.licences import DISCLAIMER, Verdict, roll_up
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.data.schema import Flag
from ssl_mednet.data.sources import SPLITS
from ssl_mednet.errors import DataError
from ssl_mednet.imaging.modality import BY_CODE

WIDTH = 80  # of the table, columns
QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
SAMPLE, SHOWN, SIDE = 64, 24, 96  # images of a modality that are looked at, and shown, at so many pixels
BINS = 32
_SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class ModalityPart:
    """The images of one modality.

    Args:
        bits: how many images of each depth.
        height, width: quantiles 0, 5, 50, 95 and 100 %, pixels.
        histogram: share of the pixels in each of 32 equal bins of [0, 1], as seen through the window, of a sample of
            64 images, ``[32]``.
        pictures: 24 of the sample, ``[n, 96, 96]`` or ``[n, 96, 96, 3]`` uint8.
    """

    name: str
    images: int
    bits: dict[int, int]
    height: tuple[int, ...]
    width: tuple[int, ...]
    histogram: np.ndarray
    pictures: np.ndarray


@dataclass(frozen=True)
class SplitPart:
    """Images and groups of one split; ``""`` is for rows without one, ``ungrouped`` images name no group."""

    name: str
    images: int
    groups: int
    ungrouped: int


@dataclass(frozen=True)
class Inspection:
    """What is in a corpus.

    Args:
        quarantined: files that gave no image.
        copies: images whose pixels equal those of one before.
        flags: images with each flag of the ingest.
        marks: images with each mark of ``curate``; None where it was not run on this version.
        shared_groups: groups that lie in more than one split.
        sources: images of each source and licence.
        verdict: under which licence weights trained on all of it may be published.
    """

    name: str
    channels: str
    fingerprint: str
    images: int
    quarantined: int
    labelled: int
    modalities: list[ModalityPart]
    splits: list[SplitPart]
    copies: int
    flags: dict[str, int]
    marks: dict[str, int] | None
    shared_groups: int
    sources: dict[tuple[str, str], int]
    verdict: Verdict

    def lines(self) -> list[str]:
        """A table of at most 80 columns."""
        return [line[:WIDTH] for line in _lines(self)]


def inspect(corpus: str | Path | Corpus) -> Inspection:
    """Look through a corpus; pixels are read of a sample alone, so it takes seconds whatever its size.

    Raises:
        DataError: not a corpus.
    """
    opened = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
    known = records(opened)
    size = np.stack([opened.numbers("height"), opened.numbers("width")], axis=1)
    bits, label = opened.numbers("bits"), opened.column("label")
    codes = np.unique(opened.modality)
    splits, shared = _splits(opened)
    sources = _sources(opened)
    licences: dict[str, int] = {}
    for (_, licence), count in sources.items():
        licences[licence] = licences.get(licence, 0) + count
    return Inspection(
        name=opened.folder.name,
        channels=opened.channels,
        fingerprint=opened.meta["fingerprint"],
        images=len(opened),
        quarantined=opened.meta["skipped"],
        labelled=len(label) - label.null_count,
        modalities=[_modality(opened, np.flatnonzero(opened.modality == code), size, bits) for code in codes],
        splits=splits,
        copies=len(exact_within(known.sha256)),
        flags={str(f.name).lower().replace("_", " "): int(((known.flags & f) > 0).sum()) for f in Flag},
        marks=_marks(opened),
        shared_groups=shared,
        sources=sources,
        verdict=roll_up(licences),
    )


def _modality(corpus: Corpus, rows: np.ndarray, size: np.ndarray, bits: np.ndarray) -> ModalityPart:
    depths, counts = np.unique(bits[rows], return_counts=True)
    height, width = np.quantile(size[rows], QUANTILES, axis=0, method="nearest").T.astype(int)
    sample = rows[np.linspace(0, len(rows) - 1, min(SAMPLE, len(rows))).round().astype(int)]
    batch = corpus.batch(sample)
    histogram = np.zeros(BINS)
    for image, (rows_of, columns_of) in zip(batch.unit().numpy(), batch.sizes.tolist(), strict=True):
        # Every image weighs the same, whatever its size.
        counted, _ = np.histogram(image[:, :rows_of, :columns_of], bins=BINS, range=(0, 1))
        histogram += counted / counted.sum()
    shown = np.linspace(0, len(sample) - 1, min(SHOWN, len(sample))).round().astype(int)
    pictures = (resize(batch, SIDE)[shown] * 255).round().byte().numpy()
    return ModalityPart(
        name=BY_CODE[int(corpus.modality[rows[0]])].name,
        images=len(rows),
        bits={int(d): int(c) for d, c in zip(depths, counts, strict=True)},
        height=tuple(map(int, height)),
        width=tuple(map(int, width)),
        histogram=histogram / len(sample),
        pictures=pictures[:, 0] if pictures.shape[1] == 1 else pictures.transpose(0, 2, 3, 1),
    )


def _splits(corpus: Corpus) -> tuple[list[SplitPart], int]:
    group, parts = corpus.group, []
    for code in np.unique(corpus.split):
        own = group[corpus.split == code]
        name = SPLITS[code] if code >= 0 else ""
        parts.append(SplitPart(name, len(own), len(np.unique(own[own >= 0])), int((own < 0).sum())))
    pairs = np.unique(np.stack([group, corpus.split], axis=1)[group >= 0], axis=0)
    _, homes = np.unique(pairs[:, 0], return_counts=True)
    return parts, int((homes > 1).sum())


def _sources(corpus: Corpus) -> dict[tuple[str, str], int]:
    table = pa.table({name: corpus.column(name) for name in ("source", "licence")})
    counted = table.group_by(["source", "licence"]).aggregate([([], "count_all")]).to_pylist()
    listed = sorted(counted, key=lambda row: (-row["count_all"], row["source"], row["licence"]))
    return {(row["source"], row["licence"]): row["count_all"] for row in listed}


def _marks(corpus: Corpus) -> dict[str, int] | None:
    try:
        return read_marks(corpus).counts()
    except DataError:
        return None


def _lines(found: Inspection) -> Iterator[str]:
    yield f"{found.name}: {found.images} {found.channels} images, {found.labelled} with a label"
    yield f"fingerprint {found.fingerprint[:24]}, in quarantine: {found.quarantined}"
    yield ""
    yield f"{'modality':<18} {'images':>9}  {'bits':<8} {'height 5-50-95 %':<17} {'width 5-50-95 %':<17}"
    for part in found.modalities:
        sizes = " ".join(f"{'-'.join(map(str, side[1:4])):<17}" for side in (part.height, part.width))
        yield f"{part.name:<18.18} {part.images:>9}  {'/'.join(map(str, part.bits)):<8} {sizes}".rstrip()
    yield ""
    yield f"{'intensity, 0 to 1':<18} dark {' ' * (BINS - 10)} bright"
    for part in found.modalities:
        yield f"{part.name:<18.18} |{_shaded(part.histogram)}|"
    yield ""
    yield f"{'split':<18} {'images':>9} {'groups':>9} {'ungrouped':>10}"
    for split in found.splits:
        yield f"{split.name or 'none':<18} {split.images:>9} {split.groups:>9} {split.ungrouped:>10}"
    if found.shared_groups:
        yield f"{found.shared_groups} groups lie in more than one split"
    yield ""
    yield _counted({"exact copies": found.copies, **found.flags})
    yield "marks: " + (
        _counted(found.marks) if found.marks is not None else "none of this version; ssl-mednet curate makes them"
    )
    yield ""
    yield f"{'source':<34} {'licence':<34} {'images':>9}"
    for (source, licence), count in found.sources.items():
        yield f"{source:<34.34} {licence or 'not stated':<34.34} {count:>9}"
    yield ""
    yield from wrapped(found.verdict)


def wrapped(verdict: Verdict) -> list[str]:
    """What the licences come to, in lines of the table's width."""
    said = [verdict.sentence, *(f"- {condition}" for condition in verdict.conditions), DISCLAIMER]
    return [line for text in said for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]


def _counted(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _shaded(histogram: np.ndarray) -> str:
    """A histogram as characters, each darker the fuller its bin; the root is shown, so that rare levels are seen."""
    level = np.sqrt(histogram / max(histogram.max(), 1e-12)) * (len(_SHADES) - 1)
    return "".join(_SHADES[int(np.ceil(x))] for x in level)
