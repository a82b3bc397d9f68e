"""MHA, MHD, NRRD and NHDR against ITK; CT stays in Hounsfield units when told."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import HU_OFFSET, MedicalImage
from ssl_mednet.imaging.readers import ReadContext, read

RNG = np.random.default_rng(0)
KINDS = ["v.mha", "v.mhd", "v.nrrd", "v.nhdr"]


def written(path: Path, values: np.ndarray, spacing: tuple[float, ...] = (1, 1, 3), packed: bool = False) -> Path:
    """``[Z, Y, X]`` (or ``[Z, Y, X, 3]``) as ITK writes it."""
    image = sitk.GetImageFromArray(values, isVector=values.ndim == 4)
    image.SetSpacing(spacing)
    sitk.WriteImage(image, str(path), useCompression=packed)
    return path


def images(path: Path | bytes, **options: object) -> list[MedicalImage]:
    return list(read(path, ReadContext(**options)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_slices_are_those_that_itk_reads(kind: str, packed: bool, dtype: str, tmp_path: Path) -> None:
    values = RNG.integers(0, 200, (5, 6, 7)).astype(dtype)
    path = written(tmp_path / kind, values, packed=packed)
    back = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(float)
    found = images(path, modality="mri")
    assert [i.index for i in found] == [0, 1, 2, 3, 4]
    assert {i.volume for i in found} == {str(path)}
    assert {i.modality for i in found} == {"mri"}
    for image in found:
        expected = (back[image.index] - back.min()) / np.ptp(back) * 65535
        np.testing.assert_allclose(image.pixels[..., 0], expected, atol=1)


@pytest.mark.parametrize("kind", ["v.mha", "v.nrrd"])
def test_the_axis_of_acquisition_and_empty_slices(kind: str, tmp_path: Path) -> None:
    values = RNG.integers(0, 200, (5, 6, 7)).astype(np.int16)
    values[:, 2] = 0
    found = images(written(tmp_path / kind, values, spacing=(1, 5, 1)))
    assert [i.index for i in found] == [0, 1, 3, 4, 5]  # along Y, the third slice is empty
    assert sorted(found[0].pixels.shape) == [1, 5, 7]
    with pytest.raises(UnreadableImage, match="no slice in which anything varies"):
        images(written(tmp_path / f"empty{kind}", np.zeros((3, 4, 5), np.int16)))


@pytest.mark.parametrize("kind", ["v.mha", "v.nrrd"])
def test_color_stays_color(kind: str, tmp_path: Path) -> None:
    values = RNG.integers(0, 256, (3, 6, 7, 3), dtype=np.uint8)
    found = images(written(tmp_path / kind, values))
    assert len(found) == 3
    assert all(np.array_equal(i.pixels, values[i.index]) for i in found)


@pytest.mark.parametrize("kind", ["v.mha", "v.nrrd", "v.nii"])
def test_ct_is_in_hounsfield_units_when_told_and_when_it_can_be(kind: str, tmp_path: Path) -> None:
    values = RNG.integers(-1024, 2000, (3, 6, 7)).astype(np.int16)
    path = written(tmp_path / kind, values)
    told = images(path, modality="ct")
    assert {i.quantity for i in told} == {"hu"}
    stored = np.sort(np.stack([i.pixels.astype(int) - HU_OFFSET for i in told]), axis=None)
    assert np.array_equal(stored, np.sort(values, axis=None))
    assert {i.window for i in told} == {(-160.0 + HU_OFFSET, 240.0 + HU_OFFSET)}
    assert {i.quantity for i in images(path)} == {"intensity"}
    mask = written(tmp_path / f"mask{kind}", (values > 0).astype(np.int16))
    assert {i.quantity for i in images(mask, modality="ct")} == {"intensity"}


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_named(kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / kind, RNG.integers(0, 200, (5, 6, 7)).astype(np.int16), packed=True)
    numbers = next((p for s in ("zraw", "raw.gz", "raw") if (p := path.with_suffix(f".{s}")).exists()), path)
    whole = numbers.read_bytes()
    numbers.write_bytes(whole[: len(whole) - 40])
    with pytest.raises(UnreadableImage, match="truncated"):
        images(path)
    if numbers != path:
        numbers.unlink()
        with pytest.raises(UnreadableImage, match="not there"):
            images(path)
        with pytest.raises(UnreadableImage, match="inside an archive"):
            images(path.read_bytes(), name=kind)


def test_a_header_leads_nowhere_else_and_asks_for_no_more_than_there_is(tmp_path: Path) -> None:
    (tmp_path / "secret.raw").write_bytes(bytes(range(24)))
    (tmp_path / "in").mkdir()
    meta = "ObjectType = Image\nNDims = 3\nDimSize = {size}\nElementType = MET_UCHAR\nElementDataFile = {file}\n"
    nrrd = "NRRD0004\ntype: uint8\ndimension: 3\nsizes: {size}\nencoding: raw\ndata file: {file}\n\n"
    for text, name in ((meta, "in/v.mhd"), (nrrd, "in/v.nhdr")):
        for file in ("../secret.raw", str(tmp_path / "secret.raw"), "..\\secret.raw"):
            (tmp_path / name).write_text(text.format(size="2 3 4", file=file))
            with pytest.raises(UnreadableImage, match="another folder"):
                images(tmp_path / name)
        (tmp_path / "in" / "link.raw").unlink(missing_ok=True)
        (tmp_path / "in" / "link.raw").symlink_to(tmp_path / "secret.raw")
        (tmp_path / name).write_text(text.format(size="2 3 4", file="link.raw"))
        with pytest.raises(UnreadableImage, match="not there"):
            images(tmp_path / name)
        (tmp_path / name).write_text(text.format(size="200000 300000 4000", file="x.raw"))
        with pytest.raises(UnreadableImage, match="too large"):
            images(tmp_path / name)
    bomb = b"NRRD0004\ntype: uint8\ndimension: 2\nsizes: 9 9\nencoding: gzip\n\n"
    with pytest.raises(UnreadableImage, match="unpacks to more"):
        images(bomb + gzip.compress(bytes(10**7)), name="v.nrrd")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "NRRD0004\ntype: Doe^Jane\ndimension: 2\nsizes: 4 4\nencoding: raw\n\n",
            "an unknown type, which is no bright",
        ),
        ("NRRD0004\ntype: block\ndimension: 2\nsizes: 4 4\nencoding: raw\n\n", "the type block, which is no bright"),
        ("NRRD0004\ntype: uchar\ndimension: 2\nsizes: 4 4\nencoding: Doe^Jane\n\n", "in an unknown way, which is not"),
        ("NRRD0004\ntype: uchar\ndimension: 2\nsizes: 4 4\nencoding: hex\n\n", "encoded as hex, which is not read"),
        ("NDims = 2\nDimSize = 4 4\nElementType = Doe^Jane\nElementDataFile = LOCAL\n", "an unknown type"),
    ],
)
def test_a_reason_quotes_words_of_the_format_and_nothing_else(text: str, told: str) -> None:
    with pytest.raises(UnreadableImage, match=told) as caught:
        images(text.encode() + bytes(16), name="x.nrrd" if text.startswith("NRRD") else "x.mha")
    assert "doe" not in str(caught.value).lower()


@pytest.mark.parametrize("kinds", ["list domain domain domain", "vector space space space"])
def test_an_axis_of_measurements_before_those_of_space_is_not_cut_across(kinds: str) -> None:
    header = f"NRRD0004\ntype: uint8\ndimension: 4\nsizes: 7 5 6 3\nkinds: {kinds}\nencoding: raw\n\n"
    with pytest.raises(UnreadableImage, match="no direction in space"):
        images(header.encode() + bytes(range(210)) * 3)
    last = header.replace(kinds, "domain domain domain list").replace("7 5 6 3", "5 6 3 7")
    assert len(images(last.encode() + bytes(range(210)) * 3)) == 21
