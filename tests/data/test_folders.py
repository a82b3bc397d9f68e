"""Which files of a folder count: for what is read of it, and for whether it is the same folder still."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_mednet.data.corpus import Corpus, CorpusSpec, open_corpus
from ssl_mednet.data.sources import FolderSource, open_source
from ssl_mednet.errors import DataError
from ssl_mednet.ingesting.run import ingest


def pictures(root: Path, *names: str) -> Path:
    for i, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (12, 12), dtype=np.uint8)).save(path, "PNG")
    return root


def skipped(out: Path) -> dict[str, str]:
    with (out / "quarantine.csv").open(newline="") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}


def test_a_corpus_in_its_source_and_other_files_do_not_make_it_another(tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", "0.png", "a/1.png")
    (root / "bad.png").write_bytes(b"no image")
    first = ingest(root, root / "corpus", workers=1, quiet=True)
    (root / "Thumbs.db").write_bytes(b"x")
    (root / "a/.DS_Store").write_bytes(b"x")
    again = ingest(root, root / "corpus", workers=1, quiet=True)
    assert (again.already, again.total, again.fingerprint) == (True, 2, first.fingerprint)
    pictures(root, "0.png", "a/1.png", "2.png")
    assert ingest(root, root / "corpus", workers=1, quiet=True).total == 5


@pytest.mark.parametrize("name", ["labels.csv", "a.mhd", "numbers.raw", "n.nhdr", "voxels.dat", "0.png"])
def test_what_is_read_makes_a_folder_another(name: str, tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", "0.png")
    (root / "labels.csv").write_text("path,label\n0.png,a\n")
    (root / "a.mhd").write_text("NDims = 2\nElementDataFile = numbers.raw\n")
    (root / "n.nhdr").write_text("NRRD0004\ndata file: voxels.dat\n")
    for data in ("numbers.raw", "voxels.dat", "other.raw"):
        (root / data).write_bytes(b"1")
    before = open_source(root).fingerprint()
    (root / "other.raw").write_bytes(b"22")
    assert open_source(root).fingerprint() == before
    with (root / name).open("ab") as file:
        file.write(b"\n")
    assert open_source(root).fingerprint() != before


def test_hidden_folders_are_left_out_but_one_above_the_source_is_not(tmp_path: Path) -> None:
    names = ("0.png", ".ipynb_checkpoints/0-checkpoint.png", "a/.Trash/b/1.png", "a/2.png")
    root = pictures(tmp_path / ".hidden/set", *names)
    assert FolderSource(root).names() == ["0.png", "a/2.png"]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name in names:
            archive.write(root / name, name)
    assert len([*open_source(tmp_path / "set.zip").items()]) == 2


def test_links_to_nothing_are_listed(tmp_path: Path) -> None:
    root = pictures(tmp_path / "set", "0.png")
    (root / "1.png").symlink_to(root / "gone.png")
    (root / "notes.md").symlink_to(root / "gone.md")
    (root / "loop.png").symlink_to(root / "loop.png")
    out = ingest(root, tmp_path / "out", workers=1, quiet=True)
    assert (out.images, out.quarantined) == (1, 2)
    assert skipped(out.folder)["1.png"] == "is a link to what is not there"
    assert "notes.md" not in skipped(out.folder)


_AS_NOBODY = """
import os, sys
from pathlib import Path
from ssl_mednet.data.sources import open_source
items = [*open_source(sys.argv[1]).items()]  # all is imported, while it may be
os.getuid() or os.setuid(65534)
for item in open_source(sys.argv[1]).items():
    print(Path(item.name).name, item.content.reason if isinstance(item.content, Exception) else "")
"""


@pytest.mark.parametrize("beside", [False, True])
def test_a_folder_that_may_not_be_read_is_listed(beside: bool) -> None:
    with TemporaryDirectory() as place:  # which others may enter, unlike the folders of pytest
        root = pictures(Path(place), "0.png", "shut/1.png", "names only/2.png")
        root.chmod(0o755)
        if beside:
            pq.write_table(pa.table({"image": [b"x"]}), root / "t.parquet")
        for name, mode in (("shut", 0), ("names only", 0o444)):
            (root / name).chmod(mode)
        done = subprocess.run([sys.executable, "-c", _AS_NOBODY, place], capture_output=True, text=True)
        for name in ("shut", "names only"):
            (root / name).chmod(0o755)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert "shut the folder cannot be read: Permission denied" in said
    assert "2.png cannot be opened: Permission denied" in said
    assert len(said) == 3 + beside


@pytest.mark.parametrize("how", ["ingest", "pretrain"])
def test_names_that_are_no_utf8(how: str, tmp_path: Path) -> None:
    root = pictures(tmp_path / os.fsdecode(b"s\xfft"), "b/0.png", os.fsdecode(b"a\xff/\xe9.png"), "b/2.png")
    (root / os.fsdecode(b"b/bad\xff.png")).write_bytes(b"no image")
    if how == "pretrain":
        corpus = open_corpus(root, CorpusSpec("gray", 64), quiet=True)
        assert corpus.classes == ["a\ufffd", "b"]
    else:
        corpus = Corpus(ingest(root, tmp_path / "out", group_field="file", workers=1, quiet=True).folder)
        assert len(set(corpus.group.tolist())) == 3
    assert len(corpus) == 3


def test_a_file_that_goes_away_while_the_folder_is_looked_at_is_told(tmp_path: Path) -> None:
    opened = open_source(pictures(tmp_path / "set", "0.png", "1.png"))
    (tmp_path / "set/1.png").unlink()
    with pytest.raises(DataError, match=r"1\.png: cannot be read"):
        opened.fingerprint()


def test_a_single_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(self: Path, *how: object) -> None:
        raise PermissionError(13, "Permission denied")

    opened = open_source(pictures(tmp_path, "0.png") / "0.png")
    monkeypatch.setattr(Path, "open", closed)
    with pytest.raises(DataError, match=r"0\.png: cannot be read: Permission denied"):
        opened.fingerprint()
