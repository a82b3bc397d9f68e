"""Sets of the catalog as sources: their files with patient, label and split as the set writes them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ssl_mednet.catalog.entries import find_entry
from ssl_mednet.catalog.idc import Series
from ssl_mednet.catalog.selection import Selection, resolve
from ssl_mednet.catalog.source import open_selection
from ssl_mednet.errors import DataError

if TYPE_CHECKING:
    from ssl_mednet.data.sources import Item


def put(root: Path, *names: str, **texts: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    for name, text in texts.items():
        (root / name.replace("__", ".")).write_text(text)
    return root


def items(spec: str, root: Path) -> dict[str, Item]:
    (selection,) = resolve(spec, root)
    (source,) = open_selection(selection)
    return {Path(item.name).name: item for item in source.items()}


def test_patients_findings_and_official_splits_come_from_the_set_s_own_tables(tmp_path: Path) -> None:
    table = "Image Index,Finding Labels,Patient ID\n1_0.png,Mass|Edema,11\n1_1.png,No Finding,11\n2_0.png,Mass,12\n"
    put(tmp_path, "images/1_0.png", "images/1_1.png", "images/2_0.png", "images/3_0.png")
    put(
        tmp_path, Data_Entry_2017_v2020__csv=table, test_list__txt="2_0.png\n", train_val_list__txt="1_0.png\n1_1.png\n"
    )
    found = items("catalog:nih_chestxray14", tmp_path)
    assert {n: (i.group, i.label, i.split) for n, i in found.items()} == {
        "1_0.png": ("11", "Mass|Edema", "train"),
        "1_1.png": ("11", "No Finding", "train"),
        "2_0.png": ("12", "Mass", "test"),
        "3_0.png": ("", None, ""),
    }
    assert {i.modality for i in found.values()} == {"xray"}


def test_a_table_may_name_files_without_suffix(tmp_path: Path) -> None:
    put(tmp_path, "ISIC_1.jpg", "ISIC_2.jpg", HAM10000_metadata__csv="lesion_id,image_id,dx\nHAM_7,ISIC_1,nv\n")
    found = items("catalog:ham10000", tmp_path)
    assert (found["ISIC_1.jpg"].group, found["ISIC_1.jpg"].label) == ("HAM_7", "nv")
    assert found["ISIC_2.jpg"].group == ""


def test_patients_come_from_paths_and_classes_from_folders(tmp_path: Path) -> None:
    put(tmp_path, "train/DRUSEN/DRUSEN-17-1.jpeg", "train/DRUSEN/DRUSEN-17-2.jpeg", "test/CNV/CNV-17-1.jpeg")
    found = items("catalog:kermany_oct2017", tmp_path)
    assert [(i.group, i.label) for i in found.values()] == [
        ("CNV-17", "CNV"),
        ("DRUSEN-17", "DRUSEN"),
        ("DRUSEN-17", "DRUSEN"),
    ]


def test_masks_are_not_looked_at(tmp_path: Path) -> None:
    put(tmp_path, "patient001/patient001_frame01.nii.gz", "patient001/patient001_frame01_gt.nii.gz")
    assert [*items("catalog:acdc", tmp_path)] == ["patient001_frame01.nii.gz"]


@pytest.mark.parametrize("name", ["nih_chestxray14", "mura", "kermany_oct2017"])
def test_a_rule_that_finds_nothing_says_so(tmp_path: Path, name: str) -> None:
    put(tmp_path, "x.png")
    with pytest.raises(DataError, match=f"{name}: the rule of the catalog for its patients, which is from memory"):
        items(f"catalog:{name}", tmp_path)


def test_a_table_with_other_columns_says_so(tmp_path: Path) -> None:
    put(tmp_path, "1_0.png", Data_Entry_2017__csv="a,b\n1,2\n")
    with pytest.raises(DataError, match="no columns Image Index, Patient ID"):
        items("catalog:nih_chestxray14", tmp_path)


def test_views_of_one_breast_patient_stay_together(tmp_path: Path) -> None:
    """The index of CBIS-DDSM has a PatientID for each view: Calc-Test_P_00038_LEFT_MLO_1."""
    ids = {"u1": "Calc-Test_P_00038_LEFT_MLO", "u2": "Calc-Test_P_00038_RIGHT_CC", "u3": "Mass-Test_P_00016_LEFT_CC"}
    put(tmp_path, *(f"{u}/a.dcm" for u in ids))
    series = tuple(
        Series("cbis_ddsm", p, u, "MG", "CC-BY-3.0", f"s3://open-data/{u}/*", 1, 1, 1.0) for u, p in ids.items()
    )
    rule = find_entry("idc_cbis_ddsm_mg").ingest.group
    (source,) = open_selection(Selection("idc:cbis_ddsm", (tmp_path,), "xray", "CC-BY-3.0", rule, series=series))
    assert [i.group for i in source.items()] == ["P_00038", "P_00038", "P_00016"]


def test_dicom_files_leave_the_patient_to_their_reader(tmp_path: Path) -> None:
    put(tmp_path, "a.dcm")
    (source,) = open_selection(resolve("catalog:rsna_pneumonia", tmp_path)[0])
    assert [i.group for i in source.items()] == [""]
    assert source.licence == "custom:RSNA/Kaggle non-commercial"


def test_labels_can_be_left_out_and_rules_change_the_fingerprint(tmp_path: Path) -> None:
    put(tmp_path, "DRUSEN/DRUSEN-17-1.jpeg")
    (source,) = open_selection(resolve("catalog:kermany_oct2017", tmp_path)[0])
    before = source.fingerprint()
    source.labels = "none"  # type: ignore[attr-defined]
    assert [i.label for i in source.items()] == [None]
    (other,) = open_selection(resolve("catalog:nct_crc_he", tmp_path)[0])
    assert other.fingerprint() != before


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    put(tmp_path, "x.zip")
    with pytest.raises(DataError, match="unpack"):
        open_selection(resolve("catalog:mura", tmp_path / "x.zip")[0])
