"""The catalog: a strict schema, honest marks, and facts that agree with the index where they were counted in it."""

from __future__ import annotations

import subprocess
import sys
from collections import defaultdict
from fnmatch import fnmatch
from pathlib import Path

import pytest
import yaml

from ssl_mednet.catalog import entries
from ssl_mednet.catalog.entries import FOLDER, Entry, catalog, find_entry, how_to_get, matching, read_entries
from ssl_mednet.catalog.idc import read_index, spdx
from ssl_mednet.errors import DataError
from ssl_mednet.imaging.modality import MODALITIES
from ssl_mednet.listing import listing

IDC = [e for e in catalog().values() if e.ingest.idc]


def test_the_catalog_is_whole() -> None:
    assert len(read_entries(FOLDER / "gray.yaml")) == 123
    assert len(read_entries(FOLDER / "color.yaml")) == 71
    assert len(catalog()) == 194
    assert len(IDC) == 73


def test_what_is_read_says_where_and_what_is_memory_says_so() -> None:
    for entry in catalog().values():
        for verified, place in (
            (entry.count_verified, entry.source.count),
            (entry.licence_verified, entry.source.licence),
        ):
            assert not verified or (place and not place.startswith("memory")), entry.id
        assert entry.count_mark == "-" if entry.n_images is None else entry.count_mark in ("read", "memory")
    assert (sum(e.count_verified for e in catalog().values()), sum(e.licence_verified for e in catalog().values())) == (
        111 + 59,
        82 + 21,
    )


def test_every_overlap_is_an_entry() -> None:
    for entry in catalog().values():
        assert set(entry.overlaps) <= catalog().keys() - {entry.id}


Counted = dict[tuple[str, str], list[tuple[str, int, str]]]


@pytest.fixture(scope="module")
def counted() -> Counted:
    """Patient, instances and licence of every series in the index, by collection and DICOM modality."""
    index = read_index(sorted({m for e in IDC for m in e.ingest.idc.modality}))  # type: ignore[union-attr]
    series: Counted = defaultdict(list)
    names = ("collection_id", "Modality", "PatientID", "instanceCount", "license_short_name")
    for collection, modality, *rest in zip(*(index[n] for n in names), strict=True):
        series[collection, modality].append(tuple(rest))
    return series


@pytest.mark.parametrize("entry", IDC, ids=lambda e: e.id)
def test_what_was_counted_in_the_index_is_counted_there_again(entry: Entry, counted: Counted) -> None:
    idc = entry.ingest.idc
    assert idc is not None
    kinds = [(c, m) for c, m in counted if fnmatch(c, idc.collection) and m in idc.modality]
    patients, instances, licences = zip(*(s for kind in kinds for s in counted[kind]), strict=True)
    assert entry.n_images == (len(instances) if entry.is_slides else sum(instances))
    assert entry.patients == len(set(patients))
    assert entry.n_volumes in (None, len(instances))
    assert {spdx(x) for x in licences} == {entry.licence}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"colour": "red"}, "colour: Extra inputs"),
        ({"modality": "xrays"}, "modality: Input should be"),
        ({"licence_class": "permissive"}, "is nc, not permissive"),
        ({"verified": True}, "both the count and the licence"),
        ({"ingest": {"modality": "fundus"}}, "no gray modality"),
        ({"ingest": {"modality": "xray", "group": {"kind": "table"}}}, "lacks what it needs"),
        ({"ingest": {"modality": "xray", "group": {"kind": "path"}}}, "lacks what it needs"),
        ({"n_images": -1}, "n_images"),
    ],
)
def test_a_broken_entry_is_named(tmp_path: Path, change: dict, says: str) -> None:
    raw = next(r for r in yaml.safe_load((FOLDER / "gray.yaml").read_text()) if r["id"] == "mura")
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump([raw | change]))
    with pytest.raises(DataError, match=says) as caught:
        read_entries(path)
    assert "mine.yaml: mura" in str(caught.value)


def test_an_entry_that_comes_twice_is_refused(tmp_path: Path) -> None:
    raw = yaml.safe_load((FOLDER / "gray.yaml").read_text())[:1]
    (tmp_path / "twice.yaml").write_text(yaml.safe_dump(raw + raw))
    with pytest.raises(DataError, match="nih_chestxray14 comes twice"):
        read_entries(tmp_path / "twice.yaml")


def test_a_misspelled_id_is_answered_with_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean 'chexpert'"):
        find_entry("chexprt")


@pytest.mark.parametrize(("name", "word"), [("mura", "agreement"), ("mimic_cxr", "credentialed"), ("busi", "open to")])
def test_how_to_get_a_set_says_access_address_and_licence(name: str, word: str) -> None:
    entry = find_entry(name)
    text = how_to_get(entry)
    assert word in text
    assert (entry.url or "no address") in text
    assert (entry.licence or "not known") in text


def test_sets_are_listed_by_pattern_or_modality_with_what_was_read() -> None:
    assert {e.id for e in matching("idc_nlst_*")} == {"idc_nlst_ct", "idc_nlst_sm"}
    assert {e.ingest.modality for e in matching("blood")} == {"blood"}
    lines = listing("datasets", "echonet_*")
    assert [line.split()[0] for line in lines] == ["echonet_dynamic", "echonet_lvh"]
    assert "1,770,000 memory sign" in lines[0]
    assert " - -      sign" in lines[1]
    assert "21,085,211 read   open  CC-BY-4.0" in listing("datasets", "idc_nlst_ct")[0]
    assert len(listing("datasets")) == 194
    with pytest.raises(DataError, match="did you mean 'mura'"):
        listing("datasets", "murra")


def test_modalities_are_ours_or_left_to_the_user() -> None:
    assert {e.id for e in catalog().values() if e.ingest.modality is None} == {"radimagenet"}
    assert {e.ingest.modality for e in catalog().values()} - {None} <= MODALITIES.keys()
    assert entries.find_entry("bbbc051_tissue").ingest.modality == "generic_gray"


def test_a_list_of_sets_does_not_wait_for_torch() -> None:
    code = "import sys; from ssl_mednet.listing import listing; listing('datasets'); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
