"""``catalog:ID`` and ``idc:COLLECTION`` as what an ingest needs: where the files are, what they are, whose they are."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path

from ssl_mednet.catalog.caps import ALL, Caps
from ssl_mednet.catalog.entries import NOWHERE, Entry, Where, find_entry, how_to_get
from ssl_mednet.catalog.fetch import Fetched, fetch_series
from ssl_mednet.catalog.idc import Query, Series, choose, images_at_most, index_version
from ssl_mednet.data.sources import parse_spec
from ssl_mednet.errors import DataError
from ssl_mednet.files import cache_folder
from ssl_mednet.imaging.modality import DICOM_MODALITY

KINDS = ("catalog:", "idc:")
IDC = "idc"  # folder below the root of several sets into which series are fetched


@dataclass(frozen=True)
class Selection:
    """Files of one set, one modality and one licence, and how to read them.

    Args:
        name: of the set, as the rows of a corpus state it: ``mura``, ``idc:nlst``.
        sources: folders or files; those of IDC are there after :func:`prepare`.
        modality: ours; None where the set mixes several and the user has to say.
        licence: SPDX, ``custom:...`` or ``""``.
        group, label, split: where they are written; kind None where that is not known.
        skip: shell patterns of paths below the sources that are no images to train on.
        verified: whether these rules were checked against the set itself; else they are memory, and rules that match
            nothing are to be reported.
        evaluation: MedMNIST sets that were made from these images.
        series: to be fetched first; empty where the user has the files.
        seed: which instances of a series are taken.
        caps: how much of it is taken.
        per_patient: images of each patient at most, by the id in ``series``; empty where patients are not capped, or
            their slides are.
    """

    name: str
    sources: tuple[Path, ...]
    modality: str | None
    licence: str
    group: Where = NOWHERE
    label: Where = NOWHERE
    split: Where = NOWHERE
    skip: tuple[str, ...] = ()
    verified: bool = False
    evaluation: tuple[str, ...] = ()
    series: tuple[Series, ...] = ()
    seed: int = 0
    caps: Caps = ALL
    per_patient: Mapping[str, int] = field(default_factory=dict)


def is_selection(spec: str) -> bool:
    """Whether ``spec`` is one of this room's, and no path."""
    return spec.startswith(KINDS)


def resolve(
    spec: str, root: Path | None = None, per_patient: int | None = None, seed: int = 0
) -> tuple[Selection, ...]:
    """What ``catalog:ID`` or ``idc:COLLECTION[?modality=CT,PT&per_patient=20&seed=0&licence=any]`` means.

    Nothing is downloaded, here or later, that a person has to agree to.

    Args:
        root: where the files are (``--from``); for IDC, where they go, by default into the cache.
        per_patient: images (slides) of a patient at most, for IDC; what the spec says comes first.
        seed: which ones; what the spec says comes first.

    Returns:
        One selection for each set, modality and licence.

    Raises:
        DataError: no such set, or its files are not there; the message says how to get them.
        UserError: the index of IDC is not installed.
    """
    if spec.startswith("idc:"):
        return _of_idc(_query(spec, per_patient, seed), root)
    entry = find_entry(spec.removeprefix("catalog:"))
    if entry.ingest.idc:
        found = _of_idc(entry_query(entry, per_patient, seed), root)
        return tuple(replace(s, group=entry.ingest.group, modality=entry.ingest.modality) for s in found)
    if per_patient is not None:
        raise DataError(f"{spec}: --per-patient is for IDC", "its index knows the patients before the files are there")
    return (_of_folder(entry, root),)


def roots_of(specs: Sequence[str], root: Path | None) -> dict[str, Path | None]:
    """Where the files of each set are: ``root`` itself for one set; ``root/ID`` where a set of the catalog is one of
    several, and ``root/idc`` for those that are fetched.

    Raises:
        DataError: a folder is not there, or no such set; the message says how to get it.
    """
    folders = {text: folder_of(text, root) for text in specs}
    if root is None or len(specs) < 2 or all(path == root / IDC for path in folders.values()):
        return dict.fromkeys(specs, root)
    for text, path in folders.items():
        if path and path != root / IDC and not path.is_dir():
            hint = f"with several sets, --from {root} has DIR/ID of each; {how_to_get(find_entry(path.name))}"
            raise DataError(f"{text}: {path} does not exist", hint)
    return folders


def folder_of(spec: str, root: Path | None) -> Path | None:
    """The folder of one set among those of several below ``root``: ``root/ID``, or ``root/idc`` for what is fetched."""
    if root is None:
        return None
    entry = None if spec.startswith("idc:") else find_entry(spec.removeprefix("catalog:"))
    return root / (IDC if entry is None or entry.ingest.idc else entry.id)


def prepare(selections: Iterable[Selection], workers: int = 8, quiet: bool = False) -> Fetched:
    """Have the files of all selections on this machine: those of IDC are fetched, resumed where they were cut off.

    Raises:
        DataError: the server cannot be reached, or gives nothing.
    """
    wanted = [s for s in selections if s.series]
    parts = [fetch_series(s.series, s.sources[0], s.seed, workers=workers, quiet=quiet) for s in wanted]
    failed = tuple(f for part in parts for f in part.failed)
    return Fetched(sum(p.series for p in parts), sum(p.files for p in parts), failed)


def entry_query(entry: Entry, per_patient: int | None, seed: int) -> Query:
    """The series that an entry of the catalog means, under the licence that it states.

    Raises:
        ValueError: the entry does not come through IDC.
    """
    idc = entry.ingest.idc
    if idc is None:
        raise ValueError(f"{entry.id} does not come through IDC")
    return Query(idc.collection, idc.modality, per_patient, seed, entry.licence_class != "permissive", idc.without)


def _query(spec: str, per_patient: int | None, seed: int) -> Query:
    cap = "" if per_patient is None else str(per_patient)
    defaults = {"modality": "", "per_patient": cap, "seed": str(seed), "licence": "permissive"}
    name, given = parse_spec(spec, defaults)
    if given["licence"] not in ("permissive", "any"):
        raise DataError(f"{spec}: licence is permissive or any, not {given['licence']!r}")
    for key in ("per_patient", "seed"):
        if given[key] and not given[key].isdecimal():
            raise DataError(f"{spec}: {key} is a whole number, not {given[key]!r}")
    return Query(
        name,
        tuple(given["modality"].upper().split(",")) if given["modality"] else (),
        int(given["per_patient"]) if given["per_patient"] else None,
        int(given["seed"]),
        given["licence"] == "any",
    )


def _of_idc(query: Query, root: Path | None) -> tuple[Selection, ...]:
    """One selection for each collection, modality and licence, in folders named after the query.

    A folder holds the files of one query only: with another cap or seed, others would lie beside those that are meant.
    """
    if root is not None and root.exists() and not root.is_dir():
        raise DataError(f"{root}: is no folder", "--from is where the series of IDC go")
    digest = hashlib.sha256(f"{query} {index_version()}".encode()).hexdigest()[:12]
    base = (root or _downloads()) / digest

    def kind(s: Series) -> tuple[str, str, str]:
        return s.collection, DICOM_MODALITY[s.modality], s.licence

    selections = []
    chosen = choose(query)
    most = images_at_most(chosen, query.per_patient)
    for (collection, modality, licence), grouped in groupby(sorted(chosen, key=kind), kind):
        folder = base / collection / modality / (licence.replace(":", "_").replace("/", "_") or "unknown")
        series, per_patient = tuple(grouped), Counter[str]()
        for one in series:
            if one.uid in most:
                per_patient[one.patient] += most[one.uid]
        selections.append(
            Selection(
                f"idc:{collection}", (folder,), modality, licence, Where(kind="dicom"),
                verified=True, series=series, seed=query.seed, per_patient=per_patient,
            )
        )  # fmt: skip
    return tuple(selections)


def _downloads() -> Path:
    return cache_folder() / "downloads" / "idc"


def _of_folder(entry: Entry, root: Path | None) -> Selection:
    if root is None or not root.exists():
        where = "has to be got by you" if root is None else f"is not there: {root} does not exist"
        raise DataError(f"catalog:{entry.id}: {entry.title} {where}", how_to_get(entry))
    rules = entry.ingest
    return Selection(
        entry.id, (root,), rules.modality, entry.spdx, rules.group, rules.label, rules.split, rules.skip,
        rules.verified, rules.evaluation,
    )  # fmt: skip
