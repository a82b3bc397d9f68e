"""Sources in, a corpus out: every good image once, in order, the same every time; what is wrong is told."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ingest_helpers import numbers, same_content, table, write_pictures
from PIL import Image

from ssl_mednet.auditing.quality import curate
from ssl_mednet.data.corpus import Corpus, CorpusSpec, open_corpus
from ssl_mednet.data.schema import CODECS, JPEG, PNG, WORK
from ssl_mednet.errors import DataError
from ssl_mednet.imaging.image import HU_OFFSET
from ssl_mednet.ingesting.chunks import chunks
from ssl_mednet.ingesting.run import ingest


def quarantine(folder: Path) -> dict[str, tuple[str, str]]:
    with (folder / "quarantine.csv").open(newline="") as file:
        return {row["path"]: (row["reason"], row["reader"]) for row in csv.DictReader(file)}


def test_every_image_once_in_the_order_of_the_files_and_two_runs_are_equal(pictures: Path, tmp_path: Path) -> None:
    one = ingest(pictures, tmp_path / "one", quiet=True)
    two = ingest(pictures, tmp_path / "two", workers=1, quiet=True)
    assert numbers(one.folder) == list(range(700))
    assert (one.images, one.total, one.quarantined) == (700, 700, 0)
    assert same_content(one.folder, two.folder)
    assert one.fingerprint == two.fingerprint == Corpus(one.folder).meta["fingerprint"]
    assert not (one.folder / WORK).exists()


def test_pieces_depend_on_the_items_alone_and_grow(pictures: Path) -> None:
    class Many:
        def items(self) -> object:
            from ssl_mednet.data.sources import Item

            return (Item(str(i), ("gray", i, 32, 0)) for i in range(30000))

    sizes = [len(chunk.items) for chunk in chunks([Many()])]  # type: ignore[list-item]
    assert sum(sizes) == 30000
    assert sizes[:9] == [256] * 8 + [512]
    assert max(sizes) == 2048


def test_a_second_run_changes_nothing_and_another_source_is_added_behind(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "corpus"
    first = ingest(pictures, out, quiet=True)
    assert not first.already
    again = ingest(pictures, out, quiet=True)
    assert again.already
    assert again.fingerprint == first.fingerprint
    assert len(Corpus(out)) == 700
    opened = Corpus(out)
    more = ingest(write_pictures(tmp_path / "more", 30), out, licence="CC0-1.0", source="more", quiet=True)
    assert (more.images, more.total) == (30, 730)
    assert numbers(out) == [*range(700), *range(30)]
    assert more.fingerprint != first.fingerprint
    assert len(opened) == 700  # who has it open keeps what was there
    assert len(opened.batch(np.array([699])).pixels) == 1
    rows = table(out)
    assert set(rows["source"].to_pylist()[700:]) == {"more"}
    assert set(rows["licence"].to_pylist()) == {"", "CC0-1.0"}
    assert Corpus(out).meta["licence"] == "CC0-1.0"
    assert [i["images"] for i in Corpus(out).meta["ingests"]] == [700, 30]


def test_a_folder_that_has_grown_is_told_how_much_of_it_was_there(tmp_path: Path) -> None:
    root, out = write_pictures(tmp_path / "set", 5), tmp_path / "out"
    first = ingest(root, out, quiet=True)
    second = ingest(write_pictures(root, 7), out, quiet=True)
    assert (first.total, second.total) == (5, 12)
    assert first.notes == ()
    assert second.notes == ("5 of these images were in the corpus already: ssl-mednet curate marks copies",)
    assert ingest(write_pictures(tmp_path / "other", 9), out, quiet=True).notes[0].startswith("7 of these")
    assert [i["again"] for i in Corpus(out).meta["ingests"]] == [0, 5, 7]
    assert curate(out, quiet=True).counts()["exact"] == 12


def test_columns_and_deletions_that_others_made_survive_what_is_added(tmp_path: Path) -> None:
    import lance

    out = tmp_path / "corpus"
    ingest(write_pictures(tmp_path / "one", 20), out, quiet=True)
    data = lance.dataset(str(out))
    data.add_columns({"twice": "height * 2"})
    data.delete("index = 0 AND width = 12 AND _rowid = 3")
    assert data.count_rows() == 19
    ingest(write_pictures(tmp_path / "two", 5), out, quiet=True)
    assert numbers(out) == [0, 1, 2, *range(4, 20), *range(5)]
    assert table(out)["twice"].to_pylist() == [24] * 19 + [None] * 5
    assert Corpus(out).meta["images"] == len(Corpus(out)) == 24


def test_each_file_is_a_row_or_in_quarantine_with_its_reason_and_reader(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set", 3)
    (root / "empty.png").write_bytes(b"")
    (root / "half.png").write_bytes((root / "00000.png").read_bytes()[:60])
    (root / "text.dcm").write_bytes(b"no image at all")
    (root / "cut.nii").write_bytes(b"\0" * 344 + b"n+1\0")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)).save(root / "color.png")
    summary = ingest(root, tmp_path / "out", quiet=True)
    listed = quarantine(summary.folder)
    assert numbers(summary.folder) == [0, 1, 2]
    assert {Path(p).name for p in listed} == {"empty.png", "half.png", "text.dcm", "cut.nii", "color.png"}
    assert all(Path(p).is_file() for p in listed)  # named as the user finds them
    readers = {Path(p).name: reader for p, (_, reader) in listed.items()}
    assert readers["half.png"] == readers["color.png"] == "raster"
    assert readers["cut.nii"] == "nifti"
    assert summary.quarantined == 5 == Corpus(summary.folder).meta["skipped"]


def test_a_glob_is_one_source_and_archives_stay_what_they_are(tmp_path: Path) -> None:
    root = write_pictures(tmp_path / "set", 9)
    with zipfile.ZipFile(tmp_path / "set" / "more.zip", "w") as archive:
        archive.write(root / "00001.png", "inside.png")
    out = ingest(str(root / "0000[0-4]*"), tmp_path / "out", quiet=True)
    assert numbers(out.folder) == [0, 1, 2, 3, 4]
    every = ingest([str(root / "*")], tmp_path / "every", quiet=True)
    assert numbers(every.folder) == [*range(9), 1]
    with pytest.raises(DataError, match="no file has such a name"):
        ingest(str(root / "z*"), tmp_path / "none", quiet=True)


@pytest.mark.parametrize("quality", [0, 90])
def test_sixteen_bits_and_hounsfield_units_lose_nothing_whatever_the_quality(quality: int, tmp_path: Path) -> None:
    from pydicom.data import get_testdata_file

    root = tmp_path / "set"
    root.mkdir()
    deep = np.random.default_rng(0).integers(0, 65536, (90, 70), dtype=np.uint16)
    Image.fromarray(deep).save(root / "a.png")
    (root / "ct.dcm").write_bytes(Path(get_testdata_file("CT_small.dcm")).read_bytes())
    shallow = (np.sort(deep, axis=1) >> 8).astype(np.uint8)
    Image.fromarray(shallow).save(root / "z.png")
    out = ingest(root, tmp_path / "out", quality=quality, quiet=True).folder
    corpus, rows = Corpus(out), table(out)
    batch = corpus.batch(np.arange(3))
    assert np.array_equal(batch.pixels[0, 0, :90, :70].numpy(), deep)
    assert [CODECS[c] for c in rows["codec"].to_pylist()[:2]] == ["raw", "jpegls"]  # noise does not get smaller
    assert rows["quantity"].to_pylist() == ["intensity", "hu", "intensity"]
    import pydicom

    scan = pydicom.dcmread(root / "ct.dcm")
    units = scan.pixel_array.astype(np.int64) * int(scan.RescaleSlope) + int(scan.RescaleIntercept)
    assert np.array_equal(batch.pixels[1, 0, : units.shape[0], : units.shape[1]].numpy().astype(int) - HU_OFFSET, units)
    last = batch.pixels[2, 0, :90, :70].numpy().astype(int)
    assert rows["codec"].to_pylist()[2] == (JPEG if quality else PNG)
    assert (np.abs(last - shallow).max() > 0) == bool(quality)


@pytest.mark.parametrize("channels", ["gray", "color"])
@pytest.mark.parametrize(("side", "quality", "codec"), [(20, 0, "raw"), (200, 0, "png"), (200, 95, "jpeg")])
def test_every_codec_gives_back_the_picture(channels: str, side: int, quality: int, codec: str, tmp_path: Path) -> None:
    y, x = np.mgrid[:side, :side] / side
    planes = np.stack([x, y, 1 - x], axis=-1)[..., : 1 if channels == "gray" else 3]
    pixels = np.rint(planes * 255).astype(np.uint8)
    (tmp_path / "set").mkdir()
    Image.fromarray(pixels.squeeze()).save(tmp_path / "set" / "a.png")
    out = ingest(tmp_path / "set", tmp_path / "out", channels=channels, quality=quality, quiet=True).folder
    assert [CODECS[c] for c in table(out)["codec"].to_pylist()] == [codec]
    shown = Corpus(out).batch(np.array([0])).pixels.numpy()[0].transpose(1, 2, 0)
    assert np.abs(shown.astype(int) - pixels).max() <= (4 if quality else 0)


def test_a_corpus_is_data_as_it_is_and_one_of_other_channels_is_refused(tmp_path: Path) -> None:
    out = ingest(write_pictures(tmp_path / "set", 4), tmp_path / "out", quiet=True).folder
    assert open_corpus(out, CorpusSpec("gray", 8), quiet=True).folder == out
    with pytest.raises(DataError, match="corpus of gray images, color is wanted"):
        open_corpus(out, CorpusSpec("color", 8), quiet=True)
    with pytest.raises(DataError, match="holds gray images, not color"):
        ingest("phantoms:color?n=5", out, channels="color", quiet=True)


def test_names_of_folders_are_labels_only_where_they_are_asked_for(tmp_path: Path) -> None:
    for name in ("Doe_Jane", "Roe_Richard"):
        write_pictures(tmp_path / "set" / name, 2)
    kept = ingest(tmp_path / "set", tmp_path / "out", quiet=True).folder
    assert Corpus(kept).classes == []
    assert table(kept)["label"].null_count == 4
    asked = ingest(tmp_path / "set", tmp_path / "asked", labels="all", quiet=True).folder
    assert Corpus(asked).classes == ["Doe_Jane", "Roe_Richard"]


@pytest.mark.parametrize(
    ("field", "groups"),
    [("", [0, 0, 1]), ("site", [0, 1, 1]), ("folder", [0, 1, 1]), ("file", [0, 1, 2]), (r"path:(\d)\.png", [0, 0, 1])],
)
def test_the_group_is_what_the_user_says_it_is(field: str, groups: list[int], tmp_path: Path) -> None:
    for name in ("a/0.png", "b/00.png", "b/1.png"):
        write_pictures(tmp_path / "one", 1)
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes((tmp_path / "one" / "00000.png").read_bytes())
    lines = ["path,label,group,site", "a/0.png,x,p,m", "b/00.png,x,p,n", "b/1.png,x,q,n"]
    (tmp_path / "set" / "labels.csv").write_text("\n".join(lines))
    out = ingest(tmp_path / "set", tmp_path / "out", group_field=field, quiet=True).folder
    assert Corpus(out).group.tolist() == groups
    with pytest.raises(DataError, match="no column ward"):
        ingest(tmp_path / "set", tmp_path / "other", group_field="ward", quiet=True)


def test_a_volume_streams_and_its_slices_know_their_place(tmp_path: Path) -> None:
    stack = np.random.default_rng(0).integers(0, 256, (1500, 10, 10), dtype=np.uint8)
    np.save(tmp_path / "stack.npy", stack)
    out = ingest(tmp_path / "stack.npy", tmp_path / "out", quiet=True).folder
    assert table(out)["index"].to_pylist() == list(range(1500))
    assert np.array_equal(Corpus(out).batch(np.array([1499, 3])).pixels.numpy()[:, 0], stack[[1499, 3]])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"channels": "grey"}, "gray or color"),
        ({"quality": 101}, "1 to 100"),
        ({"store_size": 2}, "8 pixels"),
        ({"modality": "xrays"}, "did you mean 'xray'"),
        ({"timeout": 0}, "above 0"),
        ({"engine": "rai"}, "did you mean 'ray'"),
        ({"address": "auto"}, "has no address"),
        ({"group_field": "path:("}, r"path:\(: is no regular expression"),
    ],
)
def test_what_cannot_be_meant_is_refused(options: dict[str, object], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says):
        ingest("phantoms:gray?n=3", tmp_path / "out", quiet=True, **options)  # type: ignore[arg-type]


def test_large_archives_are_cut_by_bytes_not_by_number(tmp_path: Path) -> None:
    from ssl_mednet.data.sources import open_source, open_sources

    noise = np.random.default_rng(0)
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for i in range(5):
            buffer = io.BytesIO()
            np.save(buffer, noise.integers(0, 256, (3000, 4000), dtype=np.uint8))
            archive.writestr(f"{i}.npy", buffer.getvalue())
    assert [len(c.items) for c in chunks([open_source(tmp_path / "set.zip")])] == [2, 2, 1]
    for i in range(5):
        np.save(tmp_path / f"{i}.npy", noise.integers(0, 256, (2000, 3500), dtype=np.uint8))
    assert [len(c.items) for c in chunks(open_sources(str(tmp_path / "*.npy")))] == [2, 2, 1]


def test_slides_come_as_tiles_of_the_asked_resolution(data_root: Path, tmp_path: Path) -> None:
    slide = data_root / "formats" / "small_HE.svs"
    options = {"channels": "color", "mpp": 1.0, "tile": 64, "quiet": True}
    all_tiles = Corpus(ingest(slide, tmp_path / "all", **options).folder)
    few = Corpus(ingest(slide, tmp_path / "few", max_tiles=3, **options).folder)
    assert len(few) == 3 < len(all_tiles)
    assert few.modalities(np.arange(3)) == {"histopathology": 3}
    assert few.batch(np.arange(3)).pixels.shape == (3, 3, 64, 64)
    assert len(set(few.group.tolist())) == 1
