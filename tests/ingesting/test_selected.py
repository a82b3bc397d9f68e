"""Sets of the catalog among the sources of an ingest: their licence, modality, patients and splits become rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import lance
import numpy as np
import pytest
from ingest_helpers import write_pictures
from PIL import Image

from ssl_mednet.catalog.selection import roots_of
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.errors import DataError
from ssl_mednet.ingesting.selected import Choice, ingest_selected


@pytest.fixture
def oct_set(tmp_path: Path) -> Path:
    """A few pictures under the names of the OCT set of Kermany et al.: class folders, patients in the file names."""
    rng = np.random.default_rng(0)
    for name in ("train/DRUSEN/DRUSEN-17-1", "train/DRUSEN/DRUSEN-17-2", "train/CNV/CNV-9-1", "test/CNV/CNV-5-1"):
        path = tmp_path / "oct" / f"{name}.jpeg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 48), np.uint8)).save(path)
    return tmp_path / "oct"


def test_a_set_of_the_catalog_keeps_its_rules_beside_plain_files(oct_set: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    Image.fromarray(np.random.default_rng(1).integers(0, 255, (32, 32), np.uint8)).save(plain / "a.png")
    sources, choice = ["catalog:kermany_oct2017", str(plain)], Choice(root=oct_set)
    summary = ingest_selected(sources, tmp_path / "corpus", choice, licence="CC0-1.0", labels="all", quiet=True)
    assert (summary.images, summary.total) == (5, 5)
    corpus = Corpus(summary.folder)
    assert corpus.modalities(np.arange(5)) == {"generic_gray": 1, "oct": 4}
    rows = np.flatnonzero(corpus.group >= 0)
    assert len(rows) == 4
    assert len(set(corpus.group[rows].tolist())) == 3  # two pictures are of one patient
    kept = lance.dataset(str(summary.folder)).to_table(columns=["licence", "source", "label"]).to_pylist()
    assert {(r["licence"], r["source"]) for r in kept} == {("CC0-1.0", "plain"), ("CC-BY-4.0", "kermany_oct2017")}
    assert {r["label"] for r in kept} == {None, "CNV", "DRUSEN"}
    again = ingest_selected(sources, tmp_path / "corpus", choice, licence="CC0-1.0", labels="all", quiet=True)
    assert again.already
    assert again.total == 5


def test_several_sets_have_a_folder_each(oct_set: Path, tmp_path: Path) -> None:
    root = tmp_path / "downloads"
    root.mkdir()
    oct_set.rename(root / "kermany_oct2017")
    sources = ["catalog:kermany_oct2017", "catalog:busi"]
    with pytest.raises(
        DataError, match=r"catalog:busi: .*downloads/busi does not exist .*DIR/ID of each; .*--from DIR"
    ):
        ingest_selected(sources, tmp_path / "corpus", Choice(root=root), quiet=True, workers=1)
    assert not (tmp_path / "corpus").exists(), "nothing is read before all folders are there"
    write_pictures(root / "busi", 3)
    summary = ingest_selected(sources, tmp_path / "corpus", Choice(root=root), quiet=True, workers=1)
    kept = lance.dataset(str(summary.folder)).to_table(columns=["licence", "source"]).to_pylist()
    assert Counter(r["source"] for r in kept) == {"kermany_oct2017": 4, "busi": 3}
    assert len({(r["source"], r["licence"]) for r in kept}) == 2
    twice = ingest_selected(["catalog:busi"] * 2, tmp_path / "one", Choice(root=root / "busi"), quiet=True, workers=1)
    assert twice.total == 3, "one set has the folder itself"


def test_fetched_series_do_not_lie_in_the_folder_of_another_set(tmp_path: Path) -> None:
    (tmp_path / "busi").mkdir()
    both = ["catalog:busi", "idc:nlst"]
    assert roots_of(both, tmp_path) == {"catalog:busi": tmp_path / "busi", "idc:nlst": tmp_path / "idc"}
    assert roots_of(["idc:nlst", "idc:upenn_gbm"], tmp_path) == dict.fromkeys(["idc:nlst", "idc:upenn_gbm"], tmp_path)
    assert roots_of(both, None) == dict.fromkeys(both)


def test_files_that_a_person_has_to_get_are_told_how(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"physionet|registration|credential"):
        ingest_selected(["catalog:mimic_cxr"], tmp_path / "corpus", Choice(), quiet=True)
    assert not (tmp_path / "corpus").exists()


def test_nothing_at_all_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to ingest"):
        ingest_selected([], tmp_path / "corpus", Choice(), quiet=True)
