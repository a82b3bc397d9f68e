"""DICOM series in folders and archives: slices as they lie in space, slides with all their levels."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from joblib.externals.loky.process_executor import TerminatedWorkerError
from made_files import dicom, half, picture, tiled_dicom
from pydicom.dataset import Dataset

from ssl_mednet.catalog.caps import Caps
from ssl_mednet.catalog.entries import Where
from ssl_mednet.catalog.selection import Selection
from ssl_mednet.catalog.source import open_selection
from ssl_mednet.data.sources import Item, Source, open_source
from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import HU_OFFSET, MedicalImage
from ssl_mednet.imaging.readers import ReadContext, read, series

AXIAL, CORONAL = [1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1]


def ct_slice(
    value: int, position: list[float], orientation: list[float] = AXIAL, uid: str = "1.2.7", n: int = 1
) -> bytes:
    pixels = np.full((8, 8), value, np.int16)
    pixels[0, 0] = value + 1
    tags = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": 0, "PatientID": "p1", "SeriesInstanceUID": uid}
    place = {"ImagePositionPatient": position, "ImageOrientationPatient": orientation, "InstanceNumber": n}
    return dicom(pixels, **tags, **place)


def folder(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    path = path.with_suffix(".zip")
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    path = path.with_suffix(".tar")
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


Pack = Callable[[Path, dict[str, bytes]], Path]
PACKS = [folder, zipped, tarred]


def images(source: Source, **options: object) -> list[tuple[Item, MedicalImage]]:
    return [(item, image) for item in source.items() for image in item.images(ctx=ReadContext(**options))]


def value(image: MedicalImage) -> int:
    return int(image.pixels[1, 1, 0]) - HU_OFFSET


@pytest.mark.parametrize("pack", PACKS)
def test_slices_are_sorted_by_position_not_by_name_or_number(pack: Pack, tmp_path: Path) -> None:
    # The value of a slice is its height; names and instance numbers are both shuffled, and differently.
    heights, numbers = [30, -10, 0, 20, 10, -20], [4, 1, 6, 2, 5, 3]
    files = {f"s/{i}.dcm": ct_slice(h, [5, 5, h], n=numbers[i]) for i, h in enumerate(heights)}
    found = images(open_source(pack(tmp_path / "set", files)))
    places = {value(image): image.index for _, image in found}
    assert places == {h: i for i, h in enumerate(sorted(heights))}
    if pack is not tarred:  # a tar is read once, from its beginning to its end
        assert [value(image) for _, image in found] == sorted(heights)
    assert {image.volume for _, image in found} == {"1.2.7"}
    assert {image.group for _, image in found} == {"p1"}


def test_the_normal_of_the_planes_decides(tmp_path: Path) -> None:
    """Coronal slices of a table that moves: the third coordinate says nothing, the second all."""
    normal = np.cross(CORONAL[:3], CORONAL[3:])
    files = {f"{i}.dcm": ct_slice(y, [0, y, (7 * y) % 11], CORONAL) for i, y in enumerate((40, 10, 30, 20))}
    found = [value(image) for _, image in images(open_source(folder(tmp_path / "set", files)))]
    assert found == sorted((40, 10, 30, 20), key=lambda y: normal[1] * y)


HEIGHTS = [30, -10, 0, 20, 10, -20, 50, 40, 60, 70]
SPREAD = {
    "one folder": "s/{}.dcm",
    "two folders": "DIR00{half}/{}.dcm",
    "a folder a slice": "s/{}/im.dcm",
    "a deep folder a slice": "{half}/{}/DICOM/im.dcm",
    "a folder and what is in it": "s/{below}{}.dcm",
}


def spread(where: str) -> dict[str, bytes]:
    """One series of ten slices, the value of each its height."""
    names = [SPREAD[where].format(i, half=i % 2, below=("", "more/", "more/yet/")[i % 3]) for i in range(10)]
    return {name: ct_slice(h, [5, 5, h]) for name, h in zip(names, HEIGHTS, strict=True)}


@pytest.mark.parametrize("pack", PACKS)
@pytest.mark.parametrize("where", SPREAD)
def test_a_series_is_one_however_it_is_spread_over_folders(where: str, pack: Pack, tmp_path: Path) -> None:
    beside = {f"other/{i}.dcm": ct_slice(90 + i, [0, 0, i], uid="1.2.8") for i in range(2)}
    source = open_source(pack(tmp_path / "set", spread(where) | beside))
    found = {(sha256(image.pixels.tobytes()).hexdigest(), image.index) for _, image in images(source)}
    alone = [(h, i) for i, h in enumerate(sorted(HEIGHTS))] + [(90, 0), (91, 1)]
    expected = [(next(read(ct_slice(h, [0, 0, 0]))).pixels, i) for h, i in alone]
    assert found == {(sha256(pixels.tobytes()).hexdigest(), i) for pixels, i in expected}
    assert not source.remarks


def test_a_limit_counts_what_files_hold_and_not_what_they_may_give() -> None:
    stacks = [series.Stack([f"{i}.nii"]) for i in range(20)]
    taken = Caps(per_volume=10, limit=45).take(stacks, lambda name: "", lambda name: 3)
    assert (len(taken), sum(taken.values())) == (15, 45)
    taken = Caps(per_volume=2, limit=9).take(stacks, lambda name: "", lambda name: 3)
    assert (len(taken), sum(taken.values())) == (5, 9)
    assert sum(Caps(per_volume=10, limit=45).take(stacks, lambda name: "", lambda name: None).values()) == 45


@pytest.mark.parametrize(("caps", "heights"), [(Caps(per_volume=5), [-10, 10, 30, 50, 70]), (Caps(limit=4), None)])
@pytest.mark.parametrize("where", SPREAD)
def test_caps_count_a_series_once(where: str, caps: Caps, heights: list[int] | None, tmp_path: Path) -> None:
    root = folder(tmp_path / "set", spread(where))
    (source,) = open_selection(Selection("set", (root,), "ct", "CC0-1.0", Where(), caps=caps))
    found = images(source)
    assert len(found) == (caps.per_volume or caps.limit)
    if heights:
        assert [value(image) for _, image in found] == heights
    rank = {h: i for i, h in enumerate(sorted(HEIGHTS))}
    assert all(image.index == rank[value(image)] for _, image in found)


def test_each_header_is_read_once_and_none_where_no_series_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def header(path: Path) -> series.Header | None:
        asked.append(path)
        return read_header(path)

    read_header = series.header
    monkeypatch.setattr(series, "header", header)
    files = spread("two folders") | {"single/a.dcm": ct_slice(99, [0, 0, 0], uid="1.2.9"), "x/none": b"text"}
    of_all = sorted(tmp_path / "set" / name for name in files)
    source = open_source(folder(tmp_path / "set", files))
    assert len(list(source.items())) == 12
    assert sorted(asked) == of_all
    asked.clear()
    source.prepare(quiet=True)  # as an ingest does, with a bar
    assert len(list(source.items())) == 12
    assert sorted(asked) == of_all
    asked.clear()
    source = open_source(folder(tmp_path / "png", {"a/1.png": b"", "b/1.png": b"", "c/1.dcm": b""}))
    source.prepare(quiet=True)
    assert len(list(source.items())) == 3
    assert asked == []


def test_folders_that_share_no_slices_keep_their_order(tmp_path: Path) -> None:
    """Pictures and cines of one series lie in several folders; nothing of them is a stack."""
    cine = dicom(np.zeros((3, 8, 8), np.uint8), SeriesInstanceUID="1.2.9")
    files = {f"{a}/{n}": cine for a in "abc" for n in ("1", "2")} | {"b/0.dcm": ct_slice(1, [0, 0, 0])}
    files |= {"c/0.dcm": ct_slice(2, [0, 0, 1], uid="1.2.8"), "a/0.png": b""}
    names = [item.name for item in open_source(folder(tmp_path / "set", files)).items()]
    assert names == [str(tmp_path / "set" / name) for name in sorted(files)]


def test_slices_without_preamble_are_sorted_too(tmp_path: Path) -> None:
    files = {f"{i}.dcm": ct_slice(h, [0, 0, h])[132:] for i, h in enumerate([3, 1, 2])}
    found = images(open_source(folder(tmp_path / "set", files)))
    assert [(value(image), image.index) for _, image in found] == [(1, 0), (2, 1), (3, 2)]


BAD = {
    "SeriesInstanceUID": (b"1.2.7\0", b"JANE D"),
    "SOPClassUID": (b"1.2.840.10008.5.1.4.1.1.7\0", b"JANE DOE 19700101 SMITH ST"),
    "InstanceNumber": (b"IS\x02\x001 ", b"IS\x02\x00J "),
    "ImagePositionPatient": (b"771.0\\772.0\\773.0", b"JANE \\DOE 1\\19700"),
}


@pytest.mark.parametrize("bare", [False, True], ids=["", "without preamble"])
@pytest.mark.parametrize("tag", BAD)
def test_a_header_whose_value_is_wrong_is_not_quoted(
    tag: str, bare: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    old, new = BAD[tag]
    content = ct_slice(1, [771, 772, 773])
    assert old in content
    (tmp_path / "a.dcm").write_bytes(content.replace(old, new)[132 if bare else 0 :])
    head = series.header(tmp_path / "a.dcm")
    assert head is not None
    assert head.series == ("JANE D" if tag == "SeriesInstanceUID" else "1.2.7")
    assert (head.key is None) == (tag == "ImagePositionPatient")
    assert not recwarn.list


@pytest.mark.parametrize("pack", PACKS)
def test_series_in_one_folder_stay_apart_and_everything_else_is_read_too(pack: Pack, tmp_path: Path) -> None:
    files = {
        "a.dcm": ct_slice(2, [0, 0, 2], uid="1.2.1"),
        "b.dcm": ct_slice(1, [0, 0, 1], uid="1.2.2"),
        "c.dcm": ct_slice(1, [0, 0, 1], uid="1.2.1"),
        "d.dcm": ct_slice(0, [0, 0, 0], uid="1.2.2"),
        "e.dcm": dicom(np.arange(64, dtype=np.uint8).reshape(8, 8), SeriesInstanceUID="1.2.9"),
        "f.dcm": b"\0" * 128 + b"DICM" + b"\1" * 40,
    }
    items = list(open_source(pack(tmp_path / "set", files)).items())
    assert sorted(item.name[-5:] for item in items) == sorted(files)
    place = {item.name[-5]: item.index for item in items}
    assert (place["a"], place["c"], place["b"], place["d"], place["e"]) == (1, 0, 1, 0, 0)
    alone = next(next(i for i in items if i.name.endswith("e.dcm")).images())
    assert (alone.volume, alone.index) == ("", 0)


def test_double_and_missing_slices_are_told_and_not_fatal(tmp_path: Path) -> None:
    heights = [0, 1, 2, 2, 3, 6, 7]
    files = {f"{i}.dcm": ct_slice(h, [0, 0, h], uid="1.2.55") for i, h in enumerate(heights)}
    source = open_source(folder(tmp_path / "set", files))
    assert [image.index for _, image in images(source)] == list(range(7))
    ((name, remark),) = source.remarks
    assert name.endswith("0.dcm")
    assert "1 of 7 slices lie where another one lies" in remark
    assert "about 2 slices are missing" in remark
    assert "1.2.55" not in remark
    even = open_source(folder(tmp_path / "even", {f"{i}.dcm": ct_slice(i, [0, 0, i * 2.5]) for i in range(5)}))
    assert len(images(even)) == 5
    assert even.remarks == []


def test_localizers_of_three_orientations_are_kept_together_by_orientation(tmp_path: Path) -> None:
    planes = [(AXIAL, [0, 0, 3]), (CORONAL, [0, 9, 0]), (AXIAL, [0, 0, 1]), (CORONAL, [0, 5, 0])]
    files = {f"{i}.dcm": ct_slice(i, where, axes) for i, (axes, where) in enumerate(planes)}
    order = [value(image) for _, image in images(open_source(folder(tmp_path / "set", files)))]
    assert {tuple(sorted(order[:2])), tuple(sorted(order[2:]))} == {(0, 2), (1, 3)}


@pytest.mark.parametrize("pack", PACKS)
def test_the_levels_of_a_slide_are_one_item(pack: Pack, tmp_path: Path) -> None:
    label = tiled_dicom(picture(128), 0.5, ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])
    files = {"l.dcm": label, "0.dcm": tiled_dicom(picture(), 0.25), "1.dcm": tiled_dicom(half(picture()), 0.5)}
    found = images(open_source(pack(tmp_path / "slide", files)), tile=128)
    assert len({id(item) for item, _ in found}) == 1
    assert [image.index for _, image in found] == [5, 6, 9, 10]


def test_a_slide_in_an_archive_does_not_get_lost_with_one_of_its_levels(tmp_path: Path) -> None:
    base = tiled_dicom(picture(), 0.25)
    files = {"0.dcm": base, "1.dcm": tiled_dicom(half(picture()), 0.5), "2.dcm": tiled_dicom(half(half(picture())), 1)}
    path = zipped(tmp_path / "slide", files)
    path.write_bytes(path.read_bytes().replace(base, base[:-8] + b"rotten!!"))
    bad, slide = open_source(path).items()
    assert isinstance(bad.content, UnreadableImage)
    assert bad.name.endswith("0.dcm")
    assert [image.index for image in slide.images("", ReadContext(tile=128))] == [5, 6, 9, 10]


def test_the_levels_of_a_slide_in_two_folders_give_the_same_tiles(tmp_path: Path) -> None:
    levels = [tiled_dicom(picture(), 0.25), tiled_dicom(half(picture()), 0.5)]
    one = folder(tmp_path / "one", {"s/0.dcm": levels[0], "s/1.dcm": levels[1]})
    two = folder(tmp_path / "two", {"a/b/0.dcm": levels[0], "c/1.dcm": levels[1]})
    tiles = [[(i.index, i.pixels.tobytes()) for _, i in images(open_source(root), tile=128)] for root in (one, two)]
    assert [index for index, _ in tiles[0]] == [5, 6, 9, 10]
    assert tiles[0] == tiles[1]


def test_files_named_by_their_uid_and_without_suffix_are_found(tmp_path: Path) -> None:
    files = {"1.2.840.5": ct_slice(1, [0, 0, 1]), "IM0": ct_slice(0, [0, 0, 0]), "1.2.840.7": ct_slice(2, [0, 0, 2])}
    assert [value(i) for _, i in images(open_source(folder(tmp_path / "set", files)))] == [0, 1, 2]


def test_a_table_of_labels_goes_with_series(tmp_path: Path) -> None:
    files = {f"{i}.dcm": ct_slice(h, [0, 0, h]) for i, h in enumerate((3, 1, 2))}
    table = "path,label,split\n0.dcm,high,train\n1.dcm,low,test\n"
    items = list(open_source(folder(tmp_path / "set", files | {"labels.csv": table.encode()})).items())
    assert [(i.label, i.split, i.index) for i in items[:2]] == [("low", "test", 0), ("high", "train", 1)]
    (unnamed,) = items[2:]
    assert "labels.csv does not name it" in str(unnamed.content)


def enhanced(heights: list[float], slopes: list[float]) -> bytes:
    """An enhanced CT: position and rescale of each frame in its functional groups."""
    pixels = np.stack([np.full((8, 8), 100 * i + 1, np.uint16) for i in range(len(heights))])
    shared, frames = Dataset(), []
    axes = Dataset()
    axes.ImageOrientationPatient = AXIAL
    shared.PlaneOrientationSequence = [axes]
    for height, slope in zip(heights, slopes, strict=True):
        groups, place, rescale = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [0, 0, height]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = slope, -1000, "HU"
        groups.PlanePositionSequence, groups.PixelValueTransformationSequence = [place], [rescale]
        frames.append(groups)
    tags = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": frames}
    return dicom(pixels, Modality="CT", SeriesInstanceUID="1.2.8", **tags)


def test_enhanced_frames_have_their_own_rescale_and_their_place_in_space() -> None:
    found = list(read(enhanced([30, 10, 20], [1, 2, 3])))
    assert [image.index for image in found] == [2, 0, 1]
    assert [value(image) for image in found] == [1 - 1000, 2 * 101 - 1000, 3 * 201 - 1000]
    assert len({image.volume for image in found}) == 1
    assert {image.group for image in found} == {"p1"}


def test_a_cine_is_in_the_order_of_time_and_its_frames_share_the_patient() -> None:
    frames = np.stack([np.full((4, 4), 10 * i, np.uint8) for i in range(4)])
    found = list(read(dicom(frames, Modality="US", PatientID="p9", SeriesInstanceUID="1.2")))
    assert [(i.index, int(i.pixels[0, 0, 0])) for i in found] == [(0, 0), (1, 10), (2, 20), (3, 30)]
    assert {i.group for i in found} == {"p9"}
    other = list(read(dicom(frames, SeriesInstanceUID="1.2", SOPInstanceUID="9.9")))
    assert {i.volume for i in found}.isdisjoint({i.volume for i in other})  # two cines of a series are two volumes


def test_a_header_is_read_without_the_pixels(tmp_path: Path) -> None:
    data = ct_slice(1, [0, 0, 5])
    assert series.header(data[:-60]) == series.header(data)
    assert series.header(b"not DICOM") is None
    assert series.header(tmp_path / "missing.dcm") is None
    broken = ct_slice(1, [0, 0, 5], orientation=[1, 0, 0, 1, 0, 0])  # rows and columns in one direction
    assert series.header(broken).key is None


@pytest.mark.parametrize("killed", [False, True])
def test_processes_read_the_same_headers(killed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder(tmp_path / "set", spread("two folders") | {"x/none": b"text"})
    paths = sorted(path for path in (tmp_path / "set").rglob("*") if path.is_file())
    expected = [series.header(path) for path in paths]
    monkeypatch.setattr(series, "_MANY", 1)
    if killed:

        def dying(tasks: Iterable[tuple[Any, Any, Any]]) -> Iterator[series.Header | None]:
            for number, (work, arguments, _) in enumerate(tasks):
                if number == 5:
                    raise TerminatedWorkerError
                yield work(*arguments)

        monkeypatch.setattr(series, "Parallel", lambda **_: dying)
    found = list(series.headers(paths))
    assert found == expected
    stacks = [head for head in found if head and head.key]
    assert len({id(head.series) for head in stacks}) == len({head.series for head in stacks}) > 0
    assert len({id(head.key[0]) for head in stacks if head.key}) == len({head.key[0] for head in stacks if head.key})
