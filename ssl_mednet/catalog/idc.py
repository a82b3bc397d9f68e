"""Series of the NCI Imaging Data Commons (IDC), chosen reproducibly from its index: nothing is downloaded here.

The index is the Parquet table of the package ``idc-index-data`` (which ``idc-index`` brings): one row a DICOM series,
with collection, patient, modality, licence, number of instances and public address. A. Fedorov et al., "National Cancer
Institute Imaging Data Commons", RadioGraphics 2023.
"""

from __future__ import annotations

import functools
import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib import metadata
from math import ceil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ssl_mednet.catalog.licences import classify
from ssl_mednet.errors import DataError, UserError, did_you_mean
from ssl_mednet.imaging.modality import DICOM_MODALITY

SLIDES = "SM"
SERIES_OF_A_PATIENT = 4  # a cap is spread over about this many series: more views of a patient, few listings
# The index's column of species calls these human; they are phantoms, synthetic, or copies of other collections.
NO_PATIENTS = frozenset(
    {
        "cc_radiomics_phantom", "cc_radiomics_phantom_2", "ct_phantom4radiomics", "dro_toolkit", "gbm_dsc_mri_dro",
        "lung_phantom", "phantom_fda", "pseudo_phi_dicom_data", "qiba_ct_1c", "qiba_ct_liver_phantom",
        "qin_pet_phantom", "rider_phantom_mri", "rider_phantom_pet_ct", "victre",
    }
)  # fmt: skip
_RAW = "Raw Data Storage"  # projections and k-space
_CAPTURE = "Secondary Capture Image Storage"  # dose sheets and renderings, where slices have a class of their own
_SLICED = frozenset({"CT", "MR", "PT"})
_COLUMNS = [
    "collection_id", "analysis_result_id", "PatientID", "SeriesInstanceUID", "SeriesDescription", "Modality",
    "sop_class_name", "instanceCount", "license_short_name", "series_aws_url", "series_size_MB",
]  # fmt: skip


@dataclass(frozen=True)
class Query:
    """Which series are wanted.

    Args:
        collection: id of a collection, or a shell pattern; ``*`` is all of IDC.
        modality: DICOM modalities, such as ``("CT",)``; empty for every one that holds images.
        per_patient: at most this many images of a patient of a collection, slides where the modality is SM. The index
            counts objects, so that one of several frames is one here; see :func:`images_at_most`.
        seed: which ones.
        any_licence: also those that are not permissive (CC-BY).
        without: shell patterns of series descriptions to leave out.
    """

    collection: str = "*"
    modality: tuple[str, ...] = ()
    per_patient: int | None = None
    seed: int = 0
    any_licence: bool = False
    without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Series:
    """One chosen series.

    Args:
        patient: the collection's own id of the patient; for counting, never for writing down.
        modality: DICOM's word.
        licence: SPDX.
        url: ``s3://BUCKET/SERIES/*``.
        instances: DICOM objects that the series has.
        take: how many of them are wanted.
        megabytes: of the whole series.
    """

    collection: str
    patient: str
    uid: str
    modality: str
    licence: str
    url: str
    instances: int
    take: int
    megabytes: float


Columns = dict[str, np.ndarray]


def choose(query: Query, index: Columns | None = None) -> list[Series]:
    """The series of a query, in an order that depends on the seed and on no order of rows in the index.

    People only; no phantoms, nothing synthetic, no derived objects (segmentations, structure sets, reports, and
    whatever an analysis of the collection added), no raw data, no secondary captures beside CT, MR and PET slices.

    Args:
        index: columns as of :func:`read_index`, instead of those of the installed package.

    Raises:
        DataError: no such collection or modality, or nothing of it may be used; the message says why.
        UserError: the index is not installed.
    """
    if query.per_patient is not None and query.per_patient < 1:
        raise DataError(f"per_patient is at least 1, not {query.per_patient}")
    wrong = [m for m in query.modality if m not in DICOM_MODALITY]
    if wrong:
        raise DataError(f"{wrong[0]} is no DICOM modality of images", did_you_mean(wrong[0], DICOM_MODALITY))
    table = read_index(query.modality or tuple(DICOM_MODALITY)) if index is None else index
    table = _keep(table, query)
    slides = table["Modality"] == SLIDES
    units = np.where(slides, 1, table["instanceCount"])
    order, take = cap_patients(
        table["collection_id"], table["PatientID"], table["SeriesInstanceUID"], units, query.per_patient, query.seed
    )
    take = np.where(slides[order], table["instanceCount"][order] * take, take)
    return [_series(table, int(row), int(n)) for row, n in zip(order, take, strict=True) if n]


def cap_patients(
    collection: np.ndarray, patient: np.ndarray, uid: np.ndarray, units: np.ndarray, cap: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """How much of each series is taken: of a patient all, or exactly ``cap`` where there is more.

    A patient's series come in an order drawn from (seed, uid). Each first gives at most a fourth of the cap; what is
    then missing comes from the rest of them, again in that order.

    Args:
        collection, patient, uid: strings, one a series; a patient is one of a collection.
        units: instances of each series.

    Returns:
        Rows by collection, patient and draw, and for each of them how many units are taken.
    """
    patients = _codes(patient)
    groups = _codes(collection) * (int(patients.max(initial=0)) + 1) + patients
    draws = np.frombuffer(b"".join(draw(seed, u) for u in uid), ">u8").reshape(-1, 2)
    order = np.lexsort((draws[:, 1], draws[:, 0], groups))
    groups, available = groups[order], units[order].astype(np.int64)
    if cap is None:
        return order, available
    first = _fill(np.minimum(available, ceil(cap / SERIES_OF_A_PATIENT)), groups, np.full(len(order), cap))
    left = cap - _of_group(first, groups)
    return order, first + _fill(available - first, groups, left)


def images_at_most(series: Sequence[Series], cap: int | None) -> dict[str, int]:
    """How many images each series may give, by its uid, so that no patient gives more than the cap.

    Each object gives at least one. What is left of the cap goes to the series of the patient that has the largest
    objects: those may hold many frames, which the index does not say. Slides count, but are not in it.
    """
    if cap is None:
        return {}
    patients = defaultdict[tuple[str, str], list[Series]](list)
    for one in series:
        patients[one.collection, one.patient].append(one)
    most: dict[str, int] = {}
    for own in patients.values():
        left = cap - sum(1 if s.modality == SLIDES else s.take for s in own)
        scans = [s for s in own if s.modality != SLIDES]
        most |= {s.uid: s.take for s in scans}
        if scans:
            most[max(scans, key=lambda s: (s.megabytes / s.instances, s.uid)).uid] += left
    return most


def _fill(available: np.ndarray, groups: np.ndarray, cap: np.ndarray) -> np.ndarray:
    """Of each row what still fits under the cap of its group; groups lie together."""
    before = np.cumsum(available) - available
    starts = np.r_[True, groups[1:] != groups[:-1]] if len(groups) else np.zeros(0, bool)
    before -= np.maximum.accumulate(np.where(starts, before, 0))
    return np.clip(cap - before, 0, available)


def _of_group(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """For each row the sum over its group."""
    _, inverse = np.unique(groups, return_inverse=True)
    return np.bincount(inverse, values, minlength=1)[inverse].astype(np.int64)


def _codes(names: np.ndarray) -> np.ndarray:
    """For each name its place among all different ones, sorted."""
    code = {name: i for i, name in enumerate(sorted(set(names)))}
    return np.fromiter(map(code.__getitem__, names), np.int64, len(names))


def _among(names: np.ndarray, wanted: Collection[str]) -> np.ndarray:
    return np.fromiter((name in wanted for name in names), bool, len(names))


def draw(seed: int, name: str) -> bytes:
    """A place of a name in an order that the seed draws."""
    return hashlib.blake2b(f"{seed}\0{name}".encode(), digest_size=16).digest()


def draw_of(names: Sequence[str], count: int, seed: int) -> list[str]:
    """``count`` of the names, all where there are no more: a function of the seed and the names, not of their order."""
    return sorted(sorted(names, key=lambda name: draw(seed, name))[:count])


def _keep(table: Columns, query: Query) -> Columns:
    """The rows that a query may use.

    Raises:
        DataError: none; the message has the step that took the last ones.
    """
    ids = set(table["collection_id"])
    wanted = {c for c in ids if fnmatch(c, query.collection)}
    if not wanted:
        modality = f" with {', '.join(query.modality)}" if query.modality else ""
        raise DataError(f"idc:{query.collection}: no such collection{modality}", did_you_mean(query.collection, ids))
    sop, capture = table["sop_class_name"], _among(table["Modality"], _SLICED) & (table["sop_class_name"] == _CAPTURE)
    licences = set(table["license_short_name"])
    usable = {name for name in licences if query.any_licence or classify(spdx(name)) == "permissive"}
    steps = {
        "it is no collection of patients": _among(table["collection_id"], wanted & human_collections()),
        "its series are derived or raw data": (table["analysis_result_id"] == "") & (sop != _RAW) & ~capture,
        "all its series are left out by their description": ~_matches(table["SeriesDescription"], query.without),
        "its licence is not permissive; add licence=any if you may use it": _among(table["license_short_name"], usable),
    }
    rows = np.ones(len(sop), bool)
    for reason, step in steps.items():
        rows &= step
        if not rows.any():
            raise DataError(f"idc:{query.collection}: {reason}")
    return {name: column[rows] for name, column in table.items()}


def _matches(texts: np.ndarray, patterns: Sequence[str]) -> np.ndarray:
    return np.fromiter((any(fnmatch(text, p) for p in patterns) for text in texts), bool, len(texts))


def _series(table: Columns, row: int, take: int) -> Series:
    def of(name: str) -> Any:
        return table[name][row]

    return Series(
        of("collection_id"), of("PatientID"), of("SeriesInstanceUID"), of("Modality"), spdx(of("license_short_name")),
        of("series_aws_url"), int(of("instanceCount")), take, float(of("series_size_MB")),
    )  # fmt: skip


@functools.cache
def spdx(name: str) -> str:
    """The index's short name of a licence as SPDX: ``CC BY-NC 4.0`` is ``CC-BY-NC-4.0``.

    >>> spdx("CC BY 3.0")
    'CC-BY-3.0'
    """
    return "-".join(name.split()) if name.startswith("CC") else f"custom:{name}" if name else ""


def read_index(modalities: Sequence[str], path: Path | None = None) -> Columns:
    """Columns of the index for series of these DICOM modalities, absent strings as ``""``.

    Args:
        path: a Parquet file with the same columns, instead of the installed one.

    Raises:
        UserError: the index is not installed.
    """
    parquet = path or Path(_package().IDC_INDEX_PARQUET_FILEPATH)
    from pyarrow import parquet as pq

    table = pq.read_table(parquet, columns=_COLUMNS, filters=[("Modality", "in", list(modalities))])
    columns = {}
    for name in _COLUMNS:
        column = table.column(name)
        numeric = name in ("instanceCount", "series_size_MB")
        columns[name] = column.fill_null(0 if numeric else "").to_numpy()
    return columns


@functools.cache
def human_collections() -> frozenset[str]:
    """Collections of people only: neither animals, nor phantoms, nor synthetic images."""
    from pyarrow import parquet as pq

    path = _package().INDEX_METADATA["collections_index"]["parquet_filepath"]
    table = pq.read_table(path, columns=["collection_id", "species"]).to_pydict()
    human = {c for c, s in zip(table["collection_id"], table["species"], strict=True) if s == "Human"}
    return frozenset(human - NO_PATIENTS)


def index_version() -> str:
    """The version of the installed index; its first number is that of the IDC release."""
    _package()
    return metadata.version("idc-index-data")


def _package() -> ModuleType:
    try:
        import idc_index_data
    except ImportError as error:
        raise UserError("the index of IDC is not installed", "pip install 'ssl-mednet[idc]'") from error
    return idc_index_data
