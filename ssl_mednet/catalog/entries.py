"""The catalog: what is known of each public set, what of it was read and what is memory, and how it is ingested."""

from __future__ import annotations

import functools
from fnmatch import fnmatch
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ssl_mednet.catalog.licences import LicenceClass, classify
from ssl_mednet.errors import DataError, did_you_mean
from ssl_mednet.imaging.modality import MODALITIES, Channels

FOLDER = Path(__file__).parent
Count = Annotated[int, Field(ge=0)]
_CATALOG_MODALITIES = ("xray", "ct", "mri", "ultrasound", "pet", "oct", "histopathology", "cytology",
                       "dermatology", "photo", "fundus", "endoscopy")  # fmt: skip


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Where(_Strict):
    """Where in a set its groups, labels or splits are written.

    Attributes:
        kind: ``dicom`` the tag PatientID; ``path`` the first match of ``pattern`` in a file's path; ``table`` the
            ``column`` of a CSV ``table`` (shell pattern), found by the column ``file``; ``folder`` the folder's name;
            ``lists`` text files of names, one for each split; None where it is not known or there is none.
        pattern: a regular expression; with ``dicom`` it is searched in the tag.
    """

    kind: Literal["dicom", "path", "table", "folder", "lists"] | None = None
    pattern: str | None = None
    table: str | None = None
    file: str | None = None
    column: str | None = None
    lists: dict[Literal["train", "val", "test"], str] = {}

    @model_validator(mode="after")
    def _complete(self) -> Where:
        needed: dict[str | None, tuple[Any, ...]] = {
            "path": (self.pattern,),
            "table": (self.table, self.file, self.column),
            "lists": (self.lists,),
        }
        if not all(needed.get(self.kind, ())):
            raise ValueError(f"kind {self.kind!r} lacks what it needs")
        return self


NOWHERE = Where()


class IdcFacts(_Strict):
    """Which series of the NCI Imaging Data Commons an entry means.

    Attributes:
        collection: its id or a shell pattern.
        modality: DICOM modalities.
        without: shell patterns of series descriptions that are no images of patients, such as masks.
    """

    collection: str
    modality: tuple[str, ...]
    without: tuple[str, ...] = ()


class Ingest(_Strict):
    """How an ingest reads the set.

    Attributes:
        modality: ours; None where the set mixes several.
        skip: shell patterns of paths that are no images to train on, such as masks.
        idc: where the set comes through the NCI Imaging Data Commons.
        evaluation: MedMNIST sets that were made from these images.
        verified: whether this block was checked against the set itself; else it is memory.
    """

    modality: str | None
    group: Where = NOWHERE
    label: Where = NOWHERE
    split: Where = NOWHERE
    skip: tuple[str, ...] = ()
    idc: IdcFacts | None = None
    evaluation: tuple[str, ...] = ()
    verified: bool = False


class Provenance(_Strict):
    """Where count and licence were read; ``memory`` where they were not, None where there is nothing."""

    count: str | None
    licence: str | None


class Entry(_Strict):
    """A public set. None means not known; nothing is invented.

    Attributes:
        modality: the catalog's word; ``ingest.modality`` is ours.
        n_images: two-dimensional images in units of ``n_unit``, or slides.
        n_basis: counted by us in an index, reported by a source, estimated; None where there is no count.
        n_volumes: series, scans or videos.
        usable_estimate: of ``n_images``, how many are images to train on, where that differs.
        licence: SPDX identifier or ``custom:...``.
        access: open, registration (an agreement or account), credentialed (a person or course is checked).
        count_verified, licence_verified: read in the place named under ``source``; False is memory or not known.
        overlaps: ids of entries that hold some of the same images.
    """

    id: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    title: str
    modality: Literal[_CATALOG_MODALITIES]  # type: ignore[valid-type]
    channels: Channels
    body_part: str | None
    n_images: Count | None
    n_unit: str
    n_basis: Literal["counted", "reported", "estimated"] | None
    n_volumes: Count | None
    patients: Count | None
    format: str
    bit_depth: str | None
    licence: str | None
    licence_class: LicenceClass
    access: Literal["open", "registration", "credentialed"]
    url: str | None
    group_key: str | None
    citation: str | None
    source: Provenance
    count_verified: bool
    licence_verified: bool
    verified: bool
    overlaps: tuple[str, ...]
    notes: str | None
    usable_estimate: Count | None = None
    ingest: Ingest

    @model_validator(mode="after")
    def _consistent(self) -> Entry:
        ours = self.ingest.modality
        if ours is not None and (ours not in MODALITIES or MODALITIES[ours].channels != self.channels):
            raise ValueError(f"ingest.modality {ours!r} is no {self.channels} modality of ours")
        if self.licence_class != classify(self.spdx):
            raise ValueError(f"licence {self.licence!r} is {classify(self.spdx)}, not {self.licence_class}")
        if self.verified != (self.count_verified and self.licence_verified):
            raise ValueError("verified means that both the count and the licence were read")
        return self

    @property
    def spdx(self) -> str:
        """The licence as a corpus row states it: ``""`` where it is not known."""
        return self.licence or ""

    @property
    def is_slides(self) -> bool:
        """Whether ``n_images`` counts whole slides, whose images are tiles to be cut."""
        return self.n_unit in ("slides", "whole_slide_series")

    @property
    def count_mark(self) -> str:
        """How far the count can be trusted: ``read``, ``memory`` or ``-`` where there is none."""
        if self.n_images is None:
            return "-"
        return "read" if self.count_verified else "memory"


@functools.cache
def catalog() -> dict[str, Entry]:
    """All entries by id, gray before color.

    Raises:
        DataError: a catalog file breaks its schema.
    """
    entries: dict[str, Entry] = {}
    for name in ("gray.yaml", "color.yaml"):
        entries |= read_entries(FOLDER / name)
    return entries


def read_entries(path: Path) -> dict[str, Entry]:
    """The entries of one file by id.

    Raises:
        DataError: an entry breaks the schema, or an id comes twice; the message names it.
    """
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where libyaml is there
    entries: dict[str, Entry] = {}
    for raw in yaml.load(path.read_text(encoding="utf-8"), Loader=loader):
        try:
            entry = Entry.model_validate(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise DataError(f"{path.name}: {raw.get('id')}: {where or 'entry'}: {first['msg']}") from error
        if entry.id in entries:
            raise DataError(f"{path.name}: {entry.id} comes twice")
        entries[entry.id] = entry
    return entries


def find_entry(name: str) -> Entry:
    """The entry of an id.

    Raises:
        DataError: there is none; the message has the nearest.
    """
    entries = catalog()
    if name not in entries:
        hint = did_you_mean(name, entries) or "ssl-mednet list datasets shows all"
        raise DataError(f"catalog:{name}: no such set in the catalog", hint)
    return entries[name]


def matching(pattern: str = "") -> list[Entry]:
    """Entries whose id or modality matches a shell pattern; all without one."""
    wanted = pattern or "*"
    return [
        e for e in catalog().values() if any(fnmatch(x, wanted) for x in (e.id, e.modality, e.ingest.modality or ""))
    ]


def how_to_get(entry: Entry) -> str:
    """What a person has to do to have the files of a set; nothing is downloaded for them."""
    home = entry.url or "look its home page up by its title and citation: the catalog has no address"
    first = {
        "open": "open to everyone",
        "registration": "it needs an account or a signed agreement",
        "credentialed": "it needs a credentialed account: training and an agreement, or an application",
    }[entry.access]
    licence = entry.licence or "not known, read it on the home page"
    return f"{first}; {home}; licence: {licence}; then give the folder with --from DIR"
