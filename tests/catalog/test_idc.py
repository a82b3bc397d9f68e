"""Selections of IDC: capped by patient, seeded, independent of the index's order; people only, nothing derived."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_mednet.catalog import idc
from ssl_mednet.catalog.idc import Columns, Query, cap_patients, choose, human_collections, read_index
from ssl_mednet.errors import DataError, UserError

CAPS = (20, 40, 80, 150, 200)
# What the survey of the catalog left out of CT by name. It kept two sets of phantoms, which we leave out, and left out
# 4D-CT and all of the low-dose set, of which we leave out the raw projections only.
SURVEY_WITHOUT = {
    "ldct_and_projection_data", "4d_lung", "cc_radiomics_phantom", "cc_radiomics_phantom_2", "cc_radiomics_phantom_3",
    "uw_cirp_mouse_pet_ct_nsclc", "rider_phantom_pet_ct", "ct4harmonization_multicentric", "qiba_ct_liver_phantom",
    "qiba_ct_1c", "ct_phantom4radiomics", "lung_phantom", "pseudo_phi_dicom_data",
}  # fmt: skip


@pytest.fixture(scope="module")
def ct() -> Columns:
    return read_index(("CT",))


def taken(table: Columns, cap: int | None) -> int:
    names = (table[n] for n in ("collection_id", "PatientID", "SeriesInstanceUID"))
    return int(cap_patients(*names, table["instanceCount"], cap, 0)[1].sum())


def test_the_figures_of_the_survey_are_reproduced(ct: Columns) -> None:
    rows = np.array([c not in SURVEY_WITHOUT for c in ct["collection_id"]])
    rows &= np.isin(ct["license_short_name"].astype(str), ["CC BY 3.0", "CC BY 4.0"])
    table = {name: column[rows] for name, column in ct.items()}
    assert taken(table, None) == 29_485_007
    assert len(set(zip(table["collection_id"], table["PatientID"], strict=True))) == 38_109
    assert [taken(table, cap) for cap in CAPS] == [760_832, 1_518_874, 3_017_608, 5_562_096, 7_304_745]


def test_ours_differs_from_the_survey_by_named_collections_only(ct: Columns) -> None:
    series = choose(Query("*", ("CT",), 20), ct)
    images = Counter[str]()
    for s in series:
        images[s.collection] += s.take
    more = images["ldct_and_projection_data"] + images["4d_lung"]
    assert (images["ldct_and_projection_data"], images["4d_lung"]) == (199 * 20, 20 * 20)
    assert not images.keys() & {"dro_toolkit", "mri_dir"}  # digital references and a porcine phantom
    assert images.total() == 760_832 + more - (32 + 1) * 20 == 764_552


@pytest.mark.parametrize(
    ("modality", "survey", "without"),
    [("MR", [139_105, 991_623], [180, 790]), ("PT", [50_596, 370_277], [32, 44])],
)
def test_mri_and_pet_are_those_of_the_survey_less_captures(
    modality: str, survey: list[int], without: list[int]
) -> None:
    table = read_index((modality,))
    found = [sum(s.take for s in choose(Query("*", (modality,), cap), table)) for cap in (20, 150)]
    assert found == [a - b for a, b in zip(survey, without, strict=True)]


def test_slides_are_taken_whole_and_counted_as_slides() -> None:
    table = read_index(("SM",))
    series = choose(Query("*", ("SM",)), table)
    assert len(series) == 74_947
    assert len({(s.collection, s.patient) for s in series}) == 21_367
    assert all(s.take == s.instances for s in series)
    two = choose(Query("gtex", ("SM",), 2), table)
    assert set(Counter(s.patient for s in two).values()) <= {1, 2}
    assert all(s.take == s.instances for s in two)


def test_the_order_of_the_index_does_not_matter_and_the_seed_does() -> None:
    table = read_index(("PT",))
    first = choose(Query("*", ("PT",), 20, seed=3), table)
    shuffled = np.random.default_rng(0).permutation(len(table["Modality"]))
    assert choose(Query("*", ("PT",), 20, seed=3), {k: v[shuffled] for k, v in table.items()}) == first
    other = choose(Query("*", ("PT",), 20, seed=4), table)
    assert sum(s.take for s in other) == sum(s.take for s in first)
    assert {s.uid for s in other} != {s.uid for s in first}


def test_only_images_of_people_under_free_licences_are_chosen(ct: Columns) -> None:
    series = choose(Query("*", ("CT",), 5), ct)
    assert {s.licence for s in series} == {"CC-BY-3.0", "CC-BY-4.0"}
    assert {s.collection for s in series} <= human_collections()
    allowed = choose(Query("nsclc_*", ("CT",), 5, any_licence=True), ct)
    assert "CC-BY-NC-3.0" in {s.licence for s in allowed}
    derived = {u for u, a in zip(ct["SeriesInstanceUID"], ct["analysis_result_id"], strict=True) if a}
    assert {c for c, a in zip(ct["collection_id"], ct["analysis_result_id"], strict=True) if a} == {"nlst"}
    assert not derived & {s.uid for s in choose(Query("nlst", ("CT",)), ct)}


@pytest.mark.parametrize(
    ("query", "says"),
    [
        (Query("nlsst", ("CT",)), "no such collection with CT.*did you mean 'nlst'"),
        (Query("nlst", ("SEG",)), "SEG is no DICOM modality of images"),
        (Query("mouse_mammary", ("MR",)), "no collection of patients"),
        (Query("dro_toolkit", ("CT",)), "no collection of patients"),
        (Query("duke_breast_cancer_mri", ("MR",)), "not permissive; add licence=any"),
        (Query("cbis_ddsm", ("MG",), without=("*",)), "left out by their description"),
        (Query("nlst", ("CT",), 0), "at least 1"),
    ],
)
def test_why_nothing_can_be_chosen_is_said(query: Query, says: str) -> None:
    with pytest.raises(DataError, match=says):
        choose(query)


def test_masks_are_left_out_by_their_description() -> None:
    series = choose(Query("cbis_ddsm", ("MG",), without=("ROI mask*", "cropped*")))
    assert sum(s.take for s in series) == 3103


def test_without_the_index_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "idc_index_data", None)
    with pytest.raises(UserError, match=r"ssl-mednet\[idc\]"):
        choose(Query("nlst", ("CT",)))


@st.composite
def tables(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows = draw(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("pqr"), st.integers(0, 60)), max_size=40))
    names = [np.array([r[i] for r in rows], object) for i in range(2)]
    return *names, np.array([f"1.2.{i}" for i in range(len(rows))], object), np.array([r[2] for r in rows], np.int64)


@given(tables(), st.integers(1, 100), st.integers(0, 3))
@settings(deadline=None)
def test_a_patient_gives_all_or_the_cap_and_no_series_more_than_it_has(
    table: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], cap: int, seed: int
) -> None:
    collection, patient, _, units = table
    order, take = cap_patients(*table, cap, seed)
    assert sorted(order) == list(range(len(units)))
    assert (take >= 0).all()
    assert (take <= units[order]).all()
    have, got = Counter[str](), Counter[str]()
    for row, n in zip(order, take, strict=True):
        have[collection[row] + patient[row]] += int(units[row])
        got[collection[row] + patient[row]] += int(n)
    assert got == {p: min(n, cap) for p, n in have.items()}


def test_a_cap_is_spread_over_several_series_of_a_patient() -> None:
    names = np.array(["c"] * 6, object), np.array(["p"] * 6, object), np.array([f"1.{i}" for i in range(6)], object)
    _, take = cap_patients(*names, np.full(6, 300), 20, 0)
    assert sorted(take) == [0, 0, 5, 5, 5, 5]
    _, take = cap_patients(*names, np.array([300, 1, 1, 1, 1, 1]), 20, 0)
    assert take.sum() == 20


def test_licences_of_the_index_become_spdx() -> None:
    assert [idc.spdx(x) for x in ("CC BY-NC 3.0", "CC BY 4.0", "NLM terms", "")] == [
        "CC-BY-NC-3.0",
        "CC-BY-4.0",
        "custom:NLM terms",
        "",
    ]
