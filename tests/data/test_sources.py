"""Whatever a user holds: what is found in it, with which label, split and group, and what is said of the rest."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_mednet import ingest
from ssl_mednet.data.corpus import QUARANTINE, Corpus, CorpusSpec, open_corpus
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.data.sources import files, open_source, open_sources
from ssl_mednet.errors import DataError

GRAY, COLOR = CorpusSpec("gray", 64), CorpusSpec("color", 64)


def picture(seed: int, color: bool = False, size: tuple[int, int] = (40, 32)) -> bytes:
    shape = (*size, 3) if color else size
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root: Path, files: dict[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def zipped(path: Path, files: dict[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def skipped(corpus: Corpus) -> dict[str, str]:
    with (corpus.folder / QUARANTINE).open(newline="") as file:
        return {Path(row["path"]).name: row["reason"] for row in csv.DictReader(file)}


TABLE = (
    "path,label,split,group,modality\n"
    "a/0.png,sick,train,p1,xray\na/1.png,well,train,p2,xray\na/2.png,sick,val,p3,xray\na/3.png,well,test,p4,xray\n"
)


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_table_of_labels_is_read_from_a_folder_and_from_an_archive(kind: str, tmp_path: Path) -> None:
    files = {"labels.csv": TABLE} | {f"a/{i}.png": picture(i) for i in range(4)} | {"a/other.png": picture(9)}
    source = folder(tmp_path / "set", files) if kind == "folder" else zipped(tmp_path / "set.zip", files)
    corpus = open_corpus(source, GRAY, quiet=True)
    assert len(corpus) == 4  # the file that the table does not name is not part of the set
    assert corpus.classes == ["sick", "well"]
    assert corpus.label.tolist() == [0, 1, 0, 1]
    assert corpus.split.tolist() == [0, 0, 1, 2]
    assert len(set(corpus.group.tolist())) == 4
    assert corpus.modalities(corpus.rows()) == {"xray": 4}
    task = open_labelled(source, GRAY, quiet=True)
    assert {s: r.tolist() for s, r in task.splits.items()} == {"train": [0, 1], "val": [2], "test": [3]}
    assert task.made == ()


def test_a_table_that_names_missing_files_loses_only_those(tmp_path: Path) -> None:
    files = {"labels.csv": TABLE} | {f"a/{i}.png": picture(i) for i in range(3)}
    corpus = open_corpus(folder(tmp_path / "set", files), GRAY, quiet=True)
    assert len(corpus) == 3
    assert skipped(corpus) == {"3.png": "labels.csv names it, but there is no such file"}
    assert corpus.meta["skipped"] == 1


def test_a_table_may_name_a_file_twice_but_not_as_two_things(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"0.png": picture(0)})
    for rows, says in (("0.png,a,train\n0.png,a,val\n", "'train' and 'val'"), ("0.png,a,\n0.png,b,\n", "'a' and 'b'")):
        (root / "labels.csv").write_text("path,label,split\n" + rows)
        with pytest.raises(DataError, match=rf"labels.csv: names 0\.png twice, with the (label|split) {says}"):
            open_corpus(root, GRAY, quiet=True)
    (root / "labels.csv").write_text("path,label,split\n0.png,a,val\n0.png,a,val\n")
    assert open_corpus(root, GRAY, quiet=True).classes == ["a"]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("file,label\nx.png,a\n", "no column path"),
        ("path,label,split\n0.png,a,later\n", "split is train, val or test, not 'later'"),
        ("path,label\n0.png,a\n1.png,a\n", "one class only"),
        ("\xff\xfe\x00", "no column"),
    ],
)
def test_a_wrong_table_is_refused_with_what_is_wrong(table: str, says: str, tmp_path: Path) -> None:
    files = {"labels.csv": table, "0.png": picture(0), "1.png": picture(1)}
    with pytest.raises(DataError, match=says):
        open_labelled(folder(tmp_path / "set", files), GRAY, quiet=True)


def test_folders_are_classes_and_splits(tmp_path: Path) -> None:
    names = [f"set/{s}/{c}/{i}.png" for s in ("train", "valid", "test") for c in ("cat", "dog") for i in range(2)]
    root = folder(tmp_path, {n: picture(i) for i, n in enumerate(names)})
    corpus = open_corpus(root, GRAY, quiet=True)
    assert corpus.classes == ["cat", "dog"]
    assert np.bincount(corpus.split).tolist() == [4, 4, 4]
    plain = folder(tmp_path / "plain", {f"{c}/deep/{i}.png": picture(i) for c in ("x", "y") for i in range(3)})
    assert open_corpus(plain, GRAY, quiet=True).classes == ["x", "y"]
    flat = folder(tmp_path / "flat", {f"{i}.png": picture(i) for i in range(3)})
    assert open_corpus(flat, GRAY, quiet=True).classes == []
    with pytest.raises(DataError, match="no labels"):
        open_labelled(flat, GRAY, quiet=True)


def test_several_findings_a_row_become_a_matrix(tmp_path: Path) -> None:
    table = "path,label\n0.png,edema|mass\n1.png,\n2.png,mass\n"
    files = {"labels.csv": table} | {f"{i}.png": picture(i) for i in range(3)}
    corpus = open_corpus(folder(tmp_path / "set", files), GRAY, quiet=True)
    assert corpus.classes == ["edema", "mass"]
    assert corpus.label.tolist() == [[1, 1], [0, 0], [0, 1]]


def test_medmnist_arrays_keep_their_splits_and_labels(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 6), ("val", 3), ("test", 4)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        arrays[f"{split}_labels"] = (np.arange(n) % 2)[:, None].astype(np.uint8)
    np.savez(tmp_path / "set.npz", **arrays)
    task = open_labelled(tmp_path / "set.npz", GRAY, quiet=True)
    assert [len(task.splits[s]) for s in ("train", "val", "test")] == [6, 3, 4]
    pixels = task.corpus.batch(task.splits["val"]).pixels.numpy()[:, 0]
    assert np.array_equal(pixels, arrays["val_images"])
    assert task.labels[task.splits["test"]].tolist() == [0, 1, 0, 1]


def test_one_bad_file_of_each_kind_never_ends_a_run(tmp_path: Path) -> None:
    good = picture(1)
    bad = {
        "empty.png": b"",
        "truncated.png": good[: len(good) // 2],
        "text.png": b"this is not a picture",
        "broken.dcm": b"\0" * 128 + b"DICM" + b"\1" * 50,
        "broken.nii.gz": b"\x1f\x8b" + b"\0" * 30,
        "broken.npz": b"PK\x03\x04" + b"\0" * 20,
    }
    corpus = open_corpus(folder(tmp_path / "set", bad | {"good.png": good}), GRAY, quiet=True)
    assert len(corpus) == 1
    reasons = skipped(corpus)
    assert set(reasons) == set(bad)
    assert all(len(reason) > 5 and "Traceback" not in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "holds no image"),
        ({"notes.txt": "nothing here"}, "holds no image"),
        ({"a.png": b"", "b.png": b""}, "none of its 2 files can be used"),
        ({"a.png": picture(0, color=True)}, "a color image in a gray corpus"),
    ],
)
def test_a_source_without_a_usable_image_says_why(files: dict[str, bytes], says: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    with pytest.raises(DataError, match=says):
        open_corpus(folder(tmp_path / "set", files), GRAY, quiet=True)


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("nowhere", "no such file or folder"),
        ("corpora/gray", "ssl-mednet ingest SRC... --out corpora/gray makes it"),
        ("phantoms:grey", "did you mean 'gray'"),
        ("phantoms:gray?m=3", "unknown option 'm'"),
        ("phantoms:gray?n=zero", "whole numbers"),
        ("phantoms:gray?label=age", "lesion, modality, finding"),
    ],
)
def test_a_source_that_is_not_there_is_named(spec: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        open_source(spec)


def test_a_glob_is_a_source_too(tmp_path: Path) -> None:
    files = {"a/1.png": picture(1), "b/2.png": picture(2), "b/3.jpg": picture(3), "c.txt": "nothing"}
    (tmp_path / "set").mkdir()
    root = folder(tmp_path / "set", files)
    assert len(open_corpus(f"{root}/*/*.png", GRAY, quiet=True)) == 2
    assert len(open_corpus(f"{root}/**/*.*", GRAY, quiet=True)) == 3
    with pytest.raises(DataError, match="no file has such a name"):
        open_corpus(f"{root}/*.dcm", GRAY, quiet=True)


def test_gray_saved_as_rgb_is_gray_and_color_needs_to_be_asked_for(tmp_path: Path) -> None:
    gray = np.random.default_rng(0).integers(0, 256, (20, 20), dtype=np.uint8)
    Image.fromarray(gray).convert("RGB").save(tmp_path / "gray_as_rgb.png")
    (tmp_path / "color.png").write_bytes(picture(3, color=True))
    corpus = open_corpus(tmp_path, GRAY, quiet=True)
    assert len(corpus) == 1
    assert np.array_equal(corpus.batch(np.array([0])).pixels.numpy()[0, 0], gray)
    assert "convert=true" in skipped(corpus)["color.png"]
    both = open_corpus(tmp_path, CorpusSpec("gray", 64, convert=True), quiet=True)
    assert len(both) == 2
    assert both.channels == "gray"
    colored = open_corpus(tmp_path, CorpusSpec("color", 64, convert=True), quiet=True)
    assert colored.batch(np.arange(2)).pixels.shape[1] == 3


def test_patients_never_reach_the_cache(tmp_path: Path) -> None:
    table = "path,label,group\n0.png,a,Doe^Jane\n1.png,b,Doe^Jane\n2.png,a,Roe^Richard\n"
    files = {"labels.csv": table} | {f"{i}.png": picture(i) for i in range(3)}
    corpus = open_corpus(folder(tmp_path / "set", files), GRAY, quiet=True)
    assert corpus.group.tolist() == [0, 0, 1]
    written = b"".join(p.read_bytes() for p in corpus.folder.rglob("*") if p.is_file())
    assert b"Doe" not in written
    assert b"Roe" not in written


def test_a_table_is_read_as_people_write_it(tmp_path: Path) -> None:
    """Blanks around words, capitals in splits, ``./`` and backslashes in paths, and images that nobody has labelled."""
    table = "path,label,split\n./a/0.png,sick ,Train\na\\1.png, well,TEST\na/2.png,sick,val\na/3.png, ,train\n"
    files = {"labels.csv": table} | {f"a/{i}.png": picture(i) for i in range(4)}
    corpus = open_corpus(folder(tmp_path / "set", files), GRAY, quiet=True)
    assert (corpus.classes, corpus.label.tolist()) == (["sick", "well"], [0, 1, 0, -1])
    assert corpus.split.tolist() == [0, 2, 1, 0]
    assert not corpus.meta["skipped"]


def test_an_image_without_findings_is_not_one_without_a_label(tmp_path: Path) -> None:
    table = "path,label\n0.png,nodule | mass\n1.png,\n2.png,mass\n"
    files = {"labels.csv": table} | {f"{i}.png": picture(i) for i in range(3)}
    corpus = open_corpus(folder(tmp_path / "set", files), GRAY, quiet=True)
    assert (corpus.classes, corpus.label.tolist()) == (["mass", "nodule"], [[1, 1], [0, 0], [1, 0]])


def test_a_bar_in_the_name_of_a_folder_is_not_taken_for_two_findings(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", {"a|b/0.png": picture(0), "c/1.png": picture(1)})
    with pytest.raises(DataError, match=r"a\|b/0.png: there is a \| in the name of the class .*rename the folder"):
        open_corpus(root, GRAY, quiet=True)
    assert ingest(root, tmp_path / "corpus", quiet=True).images == 2  # takes no labels from folders


@pytest.mark.parametrize("names", [("Training", "Testing"), ("train", "test"), ("TRAIN", "valid")])
def test_folders_of_splits_are_no_classes(names: tuple[str, str], tmp_path: Path) -> None:
    files = {
        f"{name}/{label}/{i}.png": picture(10 * n + i) for n, name in enumerate(names) for i, label in enumerate("ab")
    }
    corpus = open_corpus(folder(tmp_path / "set", files), GRAY, quiet=True)
    assert (corpus.classes, set(corpus.split.tolist())) == (["a", "b"], {0, 1 if "valid" in names else 2})
    stray = folder(tmp_path / "set", {"overview.png": picture(99)})
    with pytest.raises(DataError, match=r"overview.png: lies beside the folders .* and .*, which are splits .*move it"):
        open_corpus(stray, GRAY, quiet=True)
    found = ingest(stray, tmp_path / "corpus", quiet=True)
    assert found.images == 5
    assert any("which are splits: so no image has a split" in note for note in found.notes)


def test_tables_of_several_folders_are_one(tmp_path: Path) -> None:
    tables = {f"{name}/labels.csv": f"path,label\n0.png,a\n1.png,{name}\n" for name in ("train", "test")}
    files = tables | {
        f"{name}/{i}.png": picture(i + 5 * n) for n, name in enumerate(("train", "test")) for i in range(2)
    }
    corpus = open_corpus(folder(tmp_path / "set", files), GRAY, quiet=True)
    assert (len(corpus), corpus.classes) == (4, ["a", "test", "train"])
    assert sorted(corpus.split.tolist()) == [0, 0, 2, 2]


def test_a_table_may_not_give_a_file_to_two_patients(tmp_path: Path) -> None:
    table = "path,label,group\n0.png,a,p1\n0.png,a,p2\n"
    root = folder(tmp_path, {"labels.csv": table, "0.png": picture(0)})
    with pytest.raises(DataError, match=r"names 0.png twice, with the group 'p1' and 'p2'"):
        open_corpus(root, GRAY, quiet=True)


@pytest.mark.parametrize("kind", ["uint16", "float32", "int16"])
def test_arrays_of_medmnists_keys_have_one_scale_that_is_not_the_test_images(kind: str, tmp_path: Path) -> None:
    train = np.linspace(0, 4000, 8 * 64).reshape(8, 8, 8)
    arrays = {"train_images": train, "val_images": train / 2, "test_images": 2 * train}
    labels = {f"{split}_labels": np.arange(8)[:, None] % 2 for split in ("train", "val", "test")}
    arrays = {
        name: array.astype(kind) if kind != "uint16" else (array / 2).astype(kind) for name, array in arrays.items()
    }
    np.savez(tmp_path / "set.npz", **arrays, **labels)
    corpus = open_corpus(tmp_path / "set.npz", GRAY, quiet=True)
    values = corpus.batch(np.arange(24)).unit().amax(dim=(1, 2, 3)).reshape(3, 8).amax(dim=1)
    expected = [2000 / 4095, 1000 / 4095, 4000 / 4095] if kind == "uint16" else [1.0, 0.5, 1.0]
    np.testing.assert_allclose(values, expected, atol=2e-3)


def test_a_source_is_another_one_where_what_it_names_has_changed(tmp_path: Path) -> None:
    header = "ObjectType = Image\nNDims = 2\nDimSize = 4 4\nElementType = MET_UCHAR\nElementDataFile = a.raw\n"
    folder(tmp_path, {"a.mhd": header, "a.raw": bytes(range(16))})
    before = [one.fingerprint() for spec in ("a.mhd", "*.mhd") for one in open_sources(str(tmp_path / spec))]
    (tmp_path / "a.raw").write_bytes(bytes(range(1, 17)) + b"x")
    after = [one.fingerprint() for spec in ("a.mhd", "*.mhd") for one in open_sources(str(tmp_path / spec))]
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_a_large_archive_is_hashed_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, digest = list[Path](), files._digest
    monkeypatch.setattr(files, "_digest", lambda path: (read.append(path), digest(path))[1])
    path = tmp_path / "a.zip"

    def fingerprint(content: bytes) -> str:
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("1.png", content)
        return open_source(path).fingerprint()

    small = fingerprint(b"small")
    assert len(read) == 1
    monkeypatch.setattr(files, "_LARGE", 0)
    assert open_source(path).fingerprint() == open_source(path).fingerprint() == small
    assert len(read) == 2
    assert fingerprint(b"another") != small
    assert len(read) == 3
    monkeypatch.setenv("SSL_MEDNET_CACHE", str(path / "no folder"))
    assert open_source(path).fingerprint() == open_source(path).fingerprint()
    assert len(read) == 5, "a cache that cannot be written only costs time"
