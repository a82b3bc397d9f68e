"""What `catalog:ID` and `idc:COLLECTION` resolve to, on a small index; fetched from a local bucket into folders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small_index import put_index

from ssl_mednet.catalog.selection import is_selection, prepare, resolve
from ssl_mednet.errors import DataError

if TYPE_CHECKING:
    from tests.catalog.conftest import Bucket


@pytest.fixture
def index(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """Two collections of the index's own ids, with a few series that the bucket holds."""
    rows = [
        ("nlst", "p1", "CT", "CC BY 4.0", 6),
        ("nlst", "p1", "CT", "CC BY 4.0", 5),
        ("nlst", "p2", "CT", "CC BY 4.0", 3),
        ("nlst", "p2", "CT", "CC BY 3.0", 2),
        ("nlst", "p3", "PT", "CC BY 4.0", 2),
        ("lidc_idri", "p1", "CT", "CC BY 3.0", 4),
        ("nsclc_radiomics", "p1", "CT", "CC BY-NC 3.0", 4),
    ]
    put_index(monkeypatch, [(*row, bucket.series(f"uuid-{i}", row[-1], 100)) for i, row in enumerate(rows)])
    return bucket


def test_a_query_becomes_one_selection_for_each_set_modality_and_licence(index: Bucket, tmp_path: Path) -> None:
    found = resolve("idc:*", tmp_path)
    assert [(s.name, s.modality, s.licence) for s in found] == [
        ("idc:lidc_idri", "ct", "CC-BY-3.0"),
        ("idc:nlst", "ct", "CC-BY-3.0"),
        ("idc:nlst", "ct", "CC-BY-4.0"),
        ("idc:nlst", "pet", "CC-BY-4.0"),
    ]
    assert {s.group.kind for s in found} == {"dicom"}
    assert all(s.verified for s in found)
    assert not list(tmp_path.iterdir())  # resolving fetches nothing


def test_selections_are_fetched_into_their_own_folders(index: Bucket, tmp_path: Path) -> None:
    found = resolve("idc:nlst?modality=ct", tmp_path, per_patient=4)
    fetched = prepare(found, quiet=True)
    assert fetched.failed == ()
    assert fetched.files == 4 + 4 == sum(len(list(s.sources[0].rglob("*.dcm"))) for s in found)
    assert len({s.sources for s in found}) == 2
    index.asked.clear()
    assert prepare(resolve("idc:nlst?modality=CT&per_patient=4", tmp_path), quiet=True).files == 8
    assert index.asked == []


def test_another_cap_or_seed_goes_into_another_folder(index: Bucket, tmp_path: Path) -> None:
    specs = ["idc:nlst", "idc:nlst?per_patient=2", "idc:nlst?seed=1", "idc:nlst?licence=any", "idc:nl*"]
    assert len({resolve(s, tmp_path)[0].sources for s in specs}) == len(specs)


def test_what_the_spec_says_comes_before_the_options(index: Bucket, tmp_path: Path) -> None:
    found = resolve("idc:nlst?modality=CT&per_patient=2", tmp_path, per_patient=5)
    assert sum(s.take for x in found for s in x.series) == 4


def test_an_entry_that_comes_through_idc_is_fetched_under_its_own_licence(index: Bucket, tmp_path: Path) -> None:
    (found,) = resolve("catalog:idc_nsclc_radiomics_ct", tmp_path, per_patient=3)
    assert (found.name, found.licence, found.modality) == ("idc:nsclc_radiomics", "CC-BY-NC-3.0", "ct")
    assert prepare([found], quiet=True).files == 3
    with pytest.raises(DataError, match="licence=any"):
        resolve("idc:nsclc_radiomics", tmp_path)


def test_without_a_folder_idc_goes_into_the_cache(index: Bucket, own_cache: Path) -> None:
    assert resolve("idc:nlst")[0].sources[0].is_relative_to(own_cache / "downloads" / "idc")


def test_an_entry_with_a_folder_has_its_options(tmp_path: Path) -> None:
    (found,) = resolve("catalog:nih_chestxray14", tmp_path)
    assert (found.name, found.sources, found.modality) == ("nih_chestxray14", (tmp_path,), "xray")
    assert found.licence == "custom:NIH-CC no restrictions, attribution required"
    assert (found.group.kind, found.group.column) == ("table", "Patient ID")
    assert found.split.lists["test"] == "test_list.txt"
    assert found.evaluation == ("chestmnist",)
    assert not found.verified
    assert prepare([found], quiet=True).series == 0


@pytest.mark.parametrize("root", [None, Path("nowhere")])
def test_nothing_is_downloaded_that_a_person_has_to_agree_to(root: Path | None) -> None:
    with pytest.raises(DataError) as caught:
        resolve("catalog:chexpert", root)
    for part in ("CheXpert", "account or a signed agreement", "stanfordmlgroup", "custom:Stanford", "--from DIR"):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("catalog:chexprt", "did you mean 'chexpert'"),
        ("idc:nlst?modalty=CT", "did you mean 'modality'"),
        ("idc:nlst?per_patient=many", "per_patient is a whole number"),
        ("idc:nlst?seed=-1", "seed is a whole number"),
        ("idc:nlst?licence=nc", "permissive or any"),
        ("idc:nlst?per_patient=0", "at least 1"),
    ],
)
def test_mistakes_are_answered(index: Bucket, tmp_path: Path, spec: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        resolve(spec, tmp_path)


def test_caps_by_patient_need_an_index_of_patients(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--per-patient is for IDC"):
        resolve("catalog:mura", tmp_path, per_patient=3)


def test_a_file_is_no_folder_for_series(index: Bucket, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(DataError, match="is no folder"):
        resolve("idc:nlst", tmp_path / "x")


def test_paths_are_no_selections() -> None:
    assert is_selection("idc:nlst")
    assert is_selection("catalog:mura")
    assert not is_selection("catalog/mura")
