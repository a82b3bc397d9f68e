"""Where a corpus may lie, and that what lies beside it stays."""

from __future__ import annotations

import shutil
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from ingest_helpers import numbers, write_pictures

from ssl_mednet.errors import DataError, IngestError
from ssl_mednet.ingesting.run import ingest


def test_a_folder_that_holds_something_else_is_no_corpus(tmp_path: Path) -> None:
    one, two = write_pictures(tmp_path / "one", 3), write_pictures(tmp_path / "two", 4)
    ingest(one, tmp_path / "all/data/gray", workers=1, quiet=True)
    for out in (tmp_path / "all", tmp_path / "all/data", one):
        before = sorted(path.name for path in out.iterdir())
        with pytest.raises(IngestError, match="is no corpus and not empty"):
            ingest(two, out, workers=1, quiet=True)
        assert sorted(path.name for path in out.iterdir()) == before
    with pytest.raises(IngestError, match=r"lies in the corpus .*gray"):
        ingest(two, tmp_path / "all/data/gray/data/more", workers=1, quiet=True)
    assert numbers(tmp_path / "all/data/gray") == [0, 1, 2]


def test_a_relative_source_is_found_after_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes that read are kept from one ingest to the next, and were born where the first one was called."""
    for name in ("one", "two"):
        write_pictures(tmp_path / name / f"set of {name}", 3)
        monkeypatch.chdir(tmp_path / name)
        assert ingest(f"set of {name}", "corpus", workers=1, quiet=True).total == 3


def test_a_folder_that_is_as_good_as_empty_or_was_begun_is_taken(tmp_path: Path) -> None:
    source = write_pictures(tmp_path / "set", 3)
    for name in ("mounted/lost+found", "kept/.git", "begun/data"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "begun/.ingest.lock").touch()  # killed before its first piece was done
    for name in ("mounted", "kept", "begun"):
        assert ingest(source, tmp_path / name, workers=1, quiet=True).total == 3


def test_other_data_below_a_corpus_stays_and_what_a_killed_run_left_goes(tmp_path: Path) -> None:
    out = ingest(write_pictures(tmp_path / "one", 3), tmp_path / "out", workers=1, quiet=True).folder
    inner = tmp_path / "inner"
    ingest(write_pictures(tmp_path / "two", 4), inner, workers=1, quiet=True)
    shutil.move(inner, out / "data/inner")
    lance.write_dataset(pa.table({"a": [1, 2]}), str(out / "data/table.lance"))
    (out / "data/mine.lance").write_text("")
    orphan = out / "data" / f"{'01' * 12}{'ab' * 13}.lance"
    orphan.write_text("")
    assert ingest(write_pictures(tmp_path / "three", 5), out, workers=1, quiet=True).total == 8
    assert numbers(out / "data/inner") == list(range(4))
    assert lance.dataset(str(out / "data/table.lance")).count_rows() == 2
    assert (out / "data/mine.lance").exists()
    assert not orphan.exists()
    assert [len(lance.dataset(str(out), version=v).to_table()) for v in (1, 2)] == [3, 8]


@pytest.mark.parametrize("out", ["/proc/corpus", "/proc", "x" * 300, f"{'x' * 300}/corpus"])
def test_a_folder_that_cannot_be_made_is_told(out: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"name another --out|name a new folder"):
        ingest("phantoms:gray?n=3", tmp_path / out, quiet=True)
