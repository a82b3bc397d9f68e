"""What a corpus would hold before anything is fetched: a selection of sets, by modality, patient and licence."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ssl_mednet.catalog.corpus_recipe import CorpusRecipe, Part, Store, part_entry, read_corpus_recipe
from ssl_mednet.catalog.entries import Entry, find_entry
from ssl_mednet.catalog.idc import SLIDES, Query, choose, index_version
from ssl_mednet.catalog.licences import LicenceClass, Verdict, classify, roll_up
from ssl_mednet.catalog.selection import entry_query
from ssl_mednet.errors import RecipeError
from ssl_mednet.imaging.modality import CHANNEL_COUNT, DICOM_MODALITY, MODALITIES, Channels

# Bits a pixel of PNG, and of JPEG at quality 90, measured on small public sets (radiographs, brain MRI, ultrasound,
# skin, blood cells; 16 bit: CT and MRI of pydicom's files); a plan needs the order, not the last per cent.
BITS = {"png8": 5.0, "png16": 7.0, "png_color": 14.0, "jpeg": 3.0, "jpeg_color": 4.0}
ROW = 200  # bytes of the other columns of an image
FORMULA = "bytes = images x (size^2 x bits a pixel / 8 + 200): an upper bound, as if all were square"
_DEEP = frozenset({"ct", "mri", "pet"})  # more than 8 bits, so kept without loss whatever the quality


@dataclass(frozen=True)
class Row:
    """What one part would bring.

    Args:
        patients: None where they are not known.
        licences: images of each licence.
        classes: images of each class of licence.
        count: ``counted`` in the index of IDC, ``read`` in a source, or ``memory``.
        licence_read: whether the licence was read, too.
        access: as in the catalog.
        size: bytes in the corpus.
    """

    name: str
    modality: str
    images: int
    patients: int | None
    licences: dict[str, int]
    classes: dict[LicenceClass, int]
    count: Literal["counted", "read", "memory"]
    licence_read: bool
    access: str
    size: int


@dataclass(frozen=True)
class Plan:
    """A corpus recipe with what it would hold.

    Args:
        rows: one a part, in the order of the recipe.
        verdict: under which licence weights may be published that are trained on all of it.
        overlaps: pairs of sets in it that share images.
        evaluation: MedMNIST sets that were made from images in it.
        index: version of the index of IDC it was counted in, or ``""``.
    """

    recipe: CorpusRecipe
    rows: tuple[Row, ...]
    verdict: Verdict
    overlaps: tuple[tuple[str, str], ...]
    evaluation: tuple[str, ...]
    index: str

    @property
    def images(self) -> int:
        return sum(r.images for r in self.rows)

    @property
    def size(self) -> int:
        return sum(r.size for r in self.rows)

    @property
    def patients(self) -> int:
        """Of the sets whose patients are known; who is in two sets counts twice."""
        return sum(r.patients or 0 for r in self.rows)

    def by(self, key: Callable[[Row], str]) -> dict[str, int]:
        """Images by whatever ``key`` makes of a row, most first."""
        counts: Counter[str] = Counter()
        for row in self.rows:
            counts[key(row)] += row.images
        return dict(counts.most_common())

    def of_classes(self, allowed: Iterable[LicenceClass]) -> int:
        """Images that would be left with these classes of licences only."""
        return sum(row.classes.get(c, 0) for row in self.rows for c in allowed)


def plan(path: str | Path) -> Plan:
    """What the corpus of a recipe would hold.

    Raises:
        RecipeError: no such recipe, or it says something it may not say.
        DataError: a set that is not in the catalog or the index.
        UserError: it needs the index of IDC, which is not installed.
    """
    recipe = read_corpus_recipe(path)
    rows = tuple(_row(part, recipe) for part in recipe.parts)
    counts: Counter[str] = Counter()
    for row in rows:
        counts.update(row.licences)
    entries = [find_entry(p.catalog) for p in recipe.parts if p.catalog]
    names = {e.id for e in entries}
    overlaps = tuple((e.id, other) for e in entries for other in e.overlaps if other in names)
    evaluation = tuple(sorted({name for e in entries for name in e.ingest.evaluation}))
    from_idc = any(p.idc for p in recipe.parts) or any(e.ingest.idc for e in entries)
    return Plan(recipe, rows, roll_up(counts), overlaps, evaluation, index_version() if from_idc else "")


def _row(part: Part, recipe: CorpusRecipe) -> Row:
    entry = part_entry(part, recipe)
    if entry is None:
        query = Query(part.idc or "", part.modality, part.per_patient, recipe.seed, part.any_licence)
        modality = _common_modality(part, recipe)
        return _idc_row(f"idc:{part.idc} {'+'.join(part.modality)}", query, modality, part, recipe, None)
    if entry.ingest.idc:
        query = entry_query(entry, part.per_patient, recipe.seed)
        return _idc_row(entry.id, query, entry.ingest.modality or "", part, recipe, entry.ingest.group.pattern)
    return _entry_row(entry, part, recipe)


def _common_modality(part: Part, recipe: CorpusRecipe) -> str:
    ours = {DICOM_MODALITY.get(m, m) for m in part.modality}
    if len(ours) > 1 or next(iter(ours)) not in MODALITIES:
        raise RecipeError(f"{recipe.name}: idc:{part.idc}: {part.modality} is not one modality of ours")
    if MODALITIES[next(iter(ours))].channels != recipe.channels:
        raise RecipeError(f"{recipe.name}: idc:{part.idc}: {part.modality} is not {recipe.channels}")
    return ours.pop()


def _idc_row(
    name: str, query: Query, modality: str, part: Part, recipe: CorpusRecipe, pattern: str | None
) -> Row:  # fmt: skip
    """Counted in the index. Slides count their tiles; an instance of several frames counts as one image."""
    series = choose(query)
    slides = [s for s in series if s.modality == SLIDES]
    if bool(slides) != bool(part.tiles):
        raise RecipeError(f"{recipe.name}: {name}: tiles go with slides, and slides with tiles")
    licences: Counter[str] = Counter()
    for s in series:
        licences[s.licence] += part.tiles or s.take
    patients = len({(s.collection, _patient(s.patient, pattern)) for s in series})
    return _made(name, modality, dict(licences), patients, "counted", True, "open", modality in _DEEP, recipe)


def _patient(name: str, pattern: str | None) -> str:
    """The patient in a PatientID that holds more than that."""
    match = re.search(pattern, name) if pattern else None
    return match[0] if match else name


def _entry_row(entry: Entry, part: Part, recipe: CorpusRecipe) -> Row:
    """Of what the catalog knows: exact where a count was read, as good as memory where it is."""
    images = expected_images(entry, part)
    modality = entry.ingest.modality or entry.modality
    read = entry.count_verified and (entry.usable_estimate is None or part.per_volume is not None)
    deep = modality in _DEEP and "8" not in (entry.bit_depth or "").split()
    return _made(
        entry.id, modality, {entry.spdx: images}, entry.patients, "read" if read else "memory",
        entry.licence_verified, entry.access, deep, recipe,
    )  # fmt: skip


def expected_images(entry: Entry, part: Part) -> int:
    """How many images a part takes of an entry that does not come through IDC.

    Raises:
        RecipeError: the catalog has no count to reckon from; nothing is invented.
    """
    known = entry.n_images if entry.usable_estimate is None else entry.usable_estimate
    if part.tiles:
        if not entry.is_slides or known is None:
            raise RecipeError(f"{entry.id}: tiles are of slides, and their number has to be known")
        known *= part.tiles
    elif entry.is_slides:
        raise RecipeError(f"{entry.id}: its images are slides", "say how many tiles of each: tiles: 20")
    several = part.per_volume or part.beside_images
    if several and entry.n_volumes is None:
        raise RecipeError(f"{entry.id}: the catalog does not know its volumes", "give limit instead")
    frames = (several or 0) * (entry.n_volumes or 0)
    if part.per_volume:
        known = frames if known is None else min(known, frames)
    if known is None:
        raise RecipeError(f"{entry.id}: the catalog has no count of its images", "per_volume may give one")
    if part.beside_images:
        known += frames
    return min(known, part.limit or known)


def _made(
    name: str, modality: str, licences: dict[str, int], patients: int | None,
    count: Literal["counted", "read", "memory"], licence_read: bool, access: str, deep: bool, recipe: CorpusRecipe,
) -> Row:  # fmt: skip
    images = sum(licences.values())
    classes: Counter[LicenceClass] = Counter()
    for licence, n in licences.items():
        classes[classify(licence)] += n
    size = stored_bytes(images, recipe.channels, deep, recipe.store)
    return Row(name, modality, images, patients, licences, dict(classes), count, licence_read, access, size)


def stored_bytes(images: int, channels: Channels, deep: bool, store: Store) -> int:
    """Bytes of ``images`` in a corpus, by :data:`FORMULA`; ``deep`` is more than 8 bits a sample."""
    color = CHANNEL_COUNT[channels] == 3
    if store.quality is None or deep:
        bits = BITS["png_color" if color else "png16" if deep else "png8"]
    else:
        bits = BITS["jpeg_color" if color else "jpeg"]
    return round(images * (store.size**2 * bits / 8 + ROW))
