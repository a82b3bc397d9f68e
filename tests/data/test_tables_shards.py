"""Parquet, what Hugging Face's datasets writes, and WebDataset shards, as any other source."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ssl_mednet.data.corpus import CorpusSpec, open_corpus
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.data.sources import Item, Source, open_source, open_sources
from ssl_mednet.data.sources.mixed import MixedSource
from ssl_mednet.errors import DataError, UnreadableImage
from ssl_mednet.ingesting.hashes import pixel_hash

GRAY = CorpusSpec("gray", 64)


def array(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (20, 16), dtype=np.uint8)


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def table(rows: list[dict[str, object]], names: list[str] | None = None) -> pa.Table:
    made = pa.Table.from_pylist(rows)
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def rows(seeds: range, **more: object) -> list[dict[str, object]]:
    return [{"image": {"bytes": png(s), "path": f"{s}.png"}, "label": s % 2, **more} for s in seeds]


def test_a_dataset_of_images_in_parquet_with_named_classes_and_splits(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, seeds in (("train", range(0, 6)), ("validation", range(6, 8)), ("test", range(8, 10))):
        pq.write_table(table(rows(seeds), ["well", "sick"]), tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    source = open_source(tmp_path)
    assert source.count() == 10
    assert source.classes == ("well", "sick")
    task = open_labelled(tmp_path, GRAY, quiet=True)
    assert [len(task.splits[s]) for s in ("train", "val", "test")] == [6, 2, 2]
    assert sorted(task.corpus.classes) == ["sick", "well"]
    batch = task.corpus.batch(task.splits["train"]).pixels.numpy()[:, 0]
    assert sorted(map(bytes, batch)) == sorted(bytes(array(s)) for s in range(6))


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_folder_that_save_to_disk_wrote(kind: str, tmp_path: Path) -> None:
    made = table(rows(range(20), patient_id="p1"), ["well", "sick"])
    path = tmp_path / "train" / "data-00000-of-00001.arrow"
    path.parent.mkdir()
    (tmp_path / "train" / "state.json").write_text("{}")
    writer = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as file, writer(file, made.schema) as out:
        out.write_table(made, max_chunksize=7)
    items = list(open_source(tmp_path).items())
    assert len(items) == 20
    assert {(i.split, i.group) for i in items} == {("train", "p1")}
    assert [i.label for i in items] == [str(n % 2) for n in range(20)]
    assert np.array_equal(next(items[13].images()).pixels[..., 0], array(13))


def test_plain_bytes_lists_of_findings_and_missing_labels(tmp_path: Path) -> None:
    made = pa.table({"png": [png(0), png(1), None], "labels": [["mass", "edema"], None, ["mass"]]})
    pq.write_table(made, tmp_path / "set.parquet")
    items = list(open_source(tmp_path / "set.parquet").items())
    assert [i.label for i in items] == ["mass|edema", None, "mass"]
    assert [i.split for i in items] == ["", "", ""]
    with pytest.raises(UnreadableImage, match="holds no image"):
        list(items[2].images())


def test_images_beside_the_table_are_read_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(3))
    (tmp_path / "out.png").write_bytes(png(4))
    paths = ["a.png", "../out.png", str(tmp_path / "out.png"), "missing.png"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    column = pa.array([{"bytes": None, "path": p} for p in paths], kind)
    pq.write_table(pa.table({"image": column}), tmp_path / "in" / "t.parquet")
    found = [_outcome(item) for item in open_source(tmp_path / "in").items()]
    assert np.array_equal(found[0], array(3))
    assert "leads out" in found[1]
    assert "leads out" in found[2]
    assert "cannot be opened" in found[3]


def _outcome(item: Item) -> np.ndarray | str:
    try:
        return next(item.images()).pixels[..., 0]
    except UnreadableImage as error:
        return error.reason


def test_a_damaged_table_loses_itself_only(tmp_path: Path) -> None:
    pq.write_table(table(rows(range(4))), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    corpus = open_corpus(tmp_path, GRAY, quiet=True)
    assert (len(corpus), corpus.meta["skipped"]) == (4, 1)


def test_a_table_whose_columns_have_no_names_any_more_is_told(tmp_path: Path) -> None:
    pq.write_table(table(rows(range(2))), tmp_path / "a.parquet")
    whole = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole.replace(b"bytes", b"by\xe5es"))  # no UTF-8
    source = open_source(tmp_path)
    assert source.count() is None
    assert ["the table is damaged" in str(_outcome(item)) for item in source.items()] == [True]


def test_a_table_without_images_is_no_source_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(0))
    pq.write_table(pa.table({"name": ["a.png"], "age": [3]}), tmp_path / "facts.parquet")
    assert len(list(open_source(tmp_path).items())) == 1
    from ssl_mednet.data.sources.tables import TableSource

    with pytest.raises(DataError, match="no table with a column of images"):
        TableSource(tmp_path)


def test_images_beside_tables_and_shards_are_read_too(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    pq.write_table(table(rows(range(10, 12))), tmp_path / "t.parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    named = pa.table({"image": pa.array([{"bytes": None, "path": "0.png"}], kind), "label": ["named"]})
    pq.write_table(named, tmp_path / "u.parquet")
    shard(tmp_path / "s-0.tar", sample(20, 1))
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "cine.avi").write_bytes(b"RIFF")
    with zipfile.ZipFile(tmp_path / "more.zip", "w") as archive:
        archive.writestr("x.png", png(30))
    corpus = open_corpus(tmp_path, GRAY, quiet=True)
    assert len(corpus) == 3 + 2 + 1
    listed = (corpus.folder / "quarantine.csv").read_text()
    assert all(name in listed for name in ("bad.parquet", "cine.avi", "more.zip"))
    assert listed.count("\n") == 4
    stored = sorted(corpus.column("sha256").to_pylist())
    assert stored == sorted(pixel_hash(array(seed)[..., None]) for seed in (0, 1, 2, 10, 11, 20))
    again = open_corpus(tmp_path, GRAY, quiet=True)
    assert again.meta["fingerprint"] == corpus.meta["fingerprint"]


def test_every_part_of_a_mixed_folder_is_prepared(tmp_path: Path) -> None:
    class Part(Source):
        prepared = False

        def prepare(self, quiet: bool = False) -> None:
            self.prepared = quiet

    parts = [Part("table"), Part("folder")]
    MixedSource(tmp_path, [*parts]).prepare(quiet=True)
    assert all(part.prepared for part in parts)


@pytest.mark.parametrize("kind", ["table", "shard"])
def test_what_is_not_read_beside_a_table_or_a_shard_is_listed(kind: str, tmp_path: Path) -> None:
    """Without a single image beside it; names of classes stay as they are, in their order."""
    if kind == "table":
        pq.write_table(table(rows(range(4)), ["well", "sick"]), tmp_path / "T.PARQUET")
    else:
        shard(tmp_path / "s-0.tar", sample(20, 1))
    alone = open_source(tmp_path)
    for name in ("cine.mp4", "more.zip", "README.md"):
        (tmp_path / name).write_bytes(b"something")
    source = open_source(tmp_path)
    assert source.classes == alone.classes
    outcomes = {Path(item.name).name: _outcome(item) for item in source.items()}
    assert outcomes["cine.mp4"] == "is a video, which is not read; extract its frames first"
    assert "is an archive" in outcomes["more.zip"]
    assert len(outcomes) == len(list(alone.items())) + 2


def test_classes_that_a_table_counts_keep_their_names_beside_images(tmp_path: Path) -> None:
    pq.write_table(table(rows(range(2)), ["well", "sick"]), tmp_path / "t.parquet")
    for label in ("sick", "1"):
        (tmp_path / label).mkdir()
        (tmp_path / label / "0.png").write_bytes(png(len(label)))
    corpus = open_corpus(tmp_path, GRAY, quiet=True)
    assert corpus.column("label").to_pylist() == ["well", "sick", "1", "sick"]


@pytest.mark.parametrize("first", ["damaged", "without labels"])
def test_one_tar_does_not_decide_for_the_others(first: str, tmp_path: Path) -> None:
    if first == "damaged":
        (tmp_path / "a.tar").write_bytes(b"nothing" * 100)
    else:
        shard(tmp_path / "a.tar", {"x.png": png(7)})
    shard(tmp_path / "b.tar", sample(20, 1))
    (tmp_path / "c.png").write_bytes(png(9))
    found = [_outcome(item) for item in open_source(tmp_path).items()]
    assert len(found) == 3
    assert ("truncated or damaged" in str(found[0])) == (first == "damaged")
    good = [array(20), array(9)] if first == "damaged" else [array(7), array(20), array(9)]
    assert all(np.array_equal(a, b) for a, b in zip(found[-len(good) :], good, strict=True))


def test_a_damaged_archive_of_a_glob_loses_itself_only(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x.png", png(1))
    (tmp_path / "b.zip").write_bytes((tmp_path / "a.zip").read_bytes().replace(b"PK\1\2", b"XXXX"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and no more")
    found = [_outcome(item) for source in open_sources(str(tmp_path / "*")) for item in source.items()]
    assert np.array_equal(found[0], array(1))
    assert "its directory cannot be read" in found[1]
    assert "the table is damaged" in found[2]
    (tmp_path / "d.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:100])  # cut off, and its directory with it
    for name in ("b.zip", "d.zip"):
        with pytest.raises(DataError, match="damaged archive"):
            open_sources(tmp_path / name)


def shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def sample(n: int, label: int) -> dict[str, bytes]:
    return {f"s/{n:04d}.png": png(n), f"s/{n:04d}.cls": str(label).encode()}


def test_shards_with_classes(tmp_path: Path) -> None:
    shard(tmp_path / "train-0000.tar", sample(0, 1) | sample(1, 0))
    shard(tmp_path / "train-0001.tar", sample(2, 1))
    shard(tmp_path / "val-0000.tar", sample(3, 0))
    items = list(open_source(tmp_path).items())
    assert [(i.label, i.split) for i in items] == [("1", "train"), ("0", "train"), ("1", "train"), ("0", "val")]
    for n, item in enumerate(items):
        assert np.array_equal(next(item.images()).pixels[..., 0], array(n))


def test_a_single_shard_whose_side_files_are_json(tmp_path: Path) -> None:
    said = {"label": "sick", "split": "validation", "group": "p7", "modality": "mri", "report": "Doe, Jane"}
    many = {"labels": ["mass", "edema"]}
    members = {
        "a.json": json.dumps(said).encode(), "a.png": png(0),
        "b.left.png": png(1), "b.right.png": png(2), "b.json": json.dumps(many).encode(), "b.txt": b"free text",
        "c.png": png(3), "c.json": b"{broken",
        "d.png": png(4),
    }  # fmt: skip
    items = list(open_source(shard(tmp_path / "set.tar.gz", members)).items())
    good = [i for i in items if isinstance(i.content, bytes)]
    assert [i.label for i in good] == ["sick", "mass|edema", "mass|edema", None, None]
    assert (good[0].split, good[0].group, good[0].modality) == ("val", "p7", "mri")
    (bad,) = [i for i in items if isinstance(i.content, UnreadableImage)]
    assert "c.json" in bad.name
    assert not any("Doe" in repr((i.name, i.label, i.group)) for i in items)


def test_an_ordinary_tar_is_no_shard(tmp_path: Path) -> None:
    path = shard(tmp_path / "set.tar", {"sick/0.png": png(0), "well/0.png": png(1)})
    assert [i.label for i in open_source(path).items()] == ["sick", "well"]


def test_a_shard_that_is_cut_off_gives_what_came_before(tmp_path: Path) -> None:
    whole = shard(tmp_path / "w.tar", sample(0, 1) | sample(1, 0) | sample(2, 1)).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: whole.index(b"s/0002.png") + 600])
    items = list(open_source(tmp_path / "cut.tar").items())
    assert [i.label for i in items if isinstance(i.content, bytes)] == ["1", "0"]
    assert any("truncated" in i.content.reason for i in items if isinstance(i.content, UnreadableImage))


def test_a_shard_in_another_folder_is_of_another_split(tmp_path: Path) -> None:
    shard(tmp_path / "train" / "0.tar", sample(0, 1))
    shard(tmp_path / "val" / "0.tar", sample(1, 0))
    before = open_source(tmp_path).fingerprint()
    (tmp_path / "train").rename(tmp_path / "testing")
    assert open_source(tmp_path).fingerprint() != before
    assert {item.split for item in open_source(tmp_path).items()} == {"test", "val"}


def test_of_two_columns_of_images_the_one_named_so_is_taken(tmp_path: Path) -> None:
    mask = {"bytes": png(9), "path": "m.png"}
    masked = [{"mask": mask, "image": row["image"], "label": mask, "class": "a"} for row in rows(range(2))]
    pq.write_table(table(masked), tmp_path / "x.parquet")
    items = list(open_source(tmp_path / "x.parquet").items())
    assert [item.label for item in items] == ["a", "a"]
    assert np.array_equal(next(items[0].images()).pixels[..., 0], array(0))
