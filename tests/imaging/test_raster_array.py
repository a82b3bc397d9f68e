"""PNG, JPEG, TIFF, npy and npz: depth and channels kept, every kind of damage named."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import MedicalImage, collapse_gray
from ssl_mednet.imaging.readers import ReadContext, is_image_name, npz_splits, read

RNG = np.random.default_rng(0)
GRAY8 = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
GRAY16 = RNG.integers(0, 65536, (20, 30), dtype=np.uint16)
RGB8 = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)
RGB16 = RNG.integers(0, 65536, (20, 30, 3), dtype=np.uint16)


def one(source: Path | bytes, **options: object) -> MedicalImage:
    images = list(read(source, ReadContext(**options)))
    assert len(images) == 1
    return images[0]


def pil(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (pil(Image.fromarray(GRAY8)), GRAY8),
        (pil(Image.fromarray(RGB8)), RGB8),
        (pil(Image.fromarray(GRAY16)), GRAY16),
        (imagecodecs.png_encode(RGB16), RGB16),
        (pil(Image.fromarray(GRAY8), "BMP"), GRAY8),
        (tiff(GRAY8), GRAY8),
        (tiff(GRAY16, compression="zlib"), GRAY16),
        (tiff(GRAY16, byteorder=">", compression="lzw"), GRAY16),
        (tiff(RGB8, photometric="rgb"), RGB8),
        (tiff(np.moveaxis(RGB16, -1, 0), photometric="rgb", planarconfig="separate"), RGB16),
        (tiff(255 - GRAY8, photometric="miniswhite"), GRAY8),
        (npy(GRAY8), GRAY8),
        (npy(RGB16), RGB16),
    ],
)
def test_pixels_are_kept_at_their_depth(data: bytes, expected: np.ndarray) -> None:
    image = one(data)
    assert image.pixels.dtype == expected.dtype
    assert np.array_equal(image.pixels, expected.reshape(20, 30, -1))
    assert image.modality == ("generic_gray" if expected.ndim == 2 else "generic_color")


def test_unusual_modes_become_gray_or_rgb() -> None:
    assert np.array_equal(one(pil(Image.fromarray(GRAY8 > 128))).pixels[..., 0], (GRAY8 > 128) * np.uint8(255))
    transparent = Image.fromarray(np.dstack([RGB8, np.full((20, 30), 7, np.uint8)]))
    assert np.array_equal(one(pil(transparent)).pixels, RGB8)
    palette = Image.fromarray(RGB8).quantize(16)
    assert np.array_equal(one(pil(palette)).pixels, np.asarray(palette.convert("RGB")))
    assert one(pil(Image.fromarray(RGB8).convert("CMYK"), "JPEG")).channels == 3


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are none
def test_the_orientation_in_exif_and_tiff_is_applied(orientation: int) -> None:
    picture = Image.fromarray(GRAY8)
    exif = picture.getexif()
    exif[0x0112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(pil(picture, exif=exif)))))
    assert np.array_equal(one(pil(picture, exif=exif)).pixels[..., 0], expected)
    turned = tiff(GRAY8, extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(one(turned).pixels[..., 0], expected)
    deep = pil(Image.fromarray(GRAY8.astype(np.uint16) * 257), exif=exif)
    assert np.array_equal(one(deep).pixels[..., 0], expected.astype(np.uint16) * 257)
    color = tiff(RGB8, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    assert np.array_equal(one(color).pixels[..., 1], np.asarray(ImageOps.exif_transpose(exif_of(RGB8[..., 1], exif))))


def exif_of(pixels: np.ndarray, exif: Image.Exif) -> Image.Image:
    return Image.open(io.BytesIO(pil(Image.fromarray(pixels), exif=exif)))


def test_inks_of_tiff_are_those_of_jpeg_and_other_colors_are_refused() -> None:
    inks = np.asarray(Image.fromarray(RGB8).convert("CMYK")).copy()
    inks[:, :15, 3] = 90  # some black
    expected = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB"))
    assert np.abs(one(tiff(inks, photometric="separated")).pixels.astype(int) - expected).max() <= 1
    deep = one(tiff(inks.astype(np.uint16) * 257, photometric="separated"))
    assert np.abs(deep.pixels / 257 - expected).max() <= 1
    five = tiff(np.dstack([inks, inks[..., :1]]), photometric="separated")
    for data in (five, tiff(RGB8, photometric="cielab")):
        with pytest.raises(UnreadableImage, match="save it as RGB"):
            one(data)


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_white_is_the_upper_end_of_the_bits_that_there_are(bits: int) -> None:
    top = 2**bits - 1
    film = np.full((8, 8), top // 3, np.uint16)
    film[0, 0] = top  # black
    image = one(tiff(film, photometric="miniswhite"))
    assert image.window == (0, top)
    assert np.array_equal(image.pixels[..., 0], top - film)
    wide = one(tiff(film.astype(np.uint32), photometric="miniswhite")).pixels[..., 0]  # stretched
    assert (wide[0, 0], wide[1, 1]) == (0, 65535)


def test_gray_jpeg_stays_gray_and_gray_rgb_collapses() -> None:
    assert one(pil(Image.fromarray(GRAY8), "JPEG", quality=95)).channels == 1
    assert collapse_gray(np.repeat(GRAY8[..., None], 3, axis=2)).shape == (20, 30, 1)
    assert collapse_gray(RGB8) is RGB8


def test_stacks_give_an_image_a_page_and_floats_their_own_range() -> None:
    stack = RNG.integers(0, 256, (4, 9, 8), dtype=np.uint8)
    for data in (tiff(stack, photometric="minisblack"), npy(stack)):
        images = list(read(data))
        assert [i.index for i in images] == [0, 1, 2, 3]
        assert all(np.array_equal(i.pixels[..., 0], s) for i, s in zip(images, stack, strict=True))
    values = np.array([[-1.5, 0.0], [np.nan, 2.5]])
    assert one(npy(values)).pixels[..., 0].tolist() == [[0, 24576], [0, 65535]]
    assert one(npy(np.array([[-5, 5]], np.int16))).pixels[..., 0].tolist() == [[0, 65535]]


def test_pictures_of_12_bits_in_files_of_16_are_not_black() -> None:
    """As most exports of CT and radiographs are; a stack has the bits of its brightest picture, pages of a TIFF all."""
    for highest, top in ((255, 255), (256, 4095), (4095, 4095), (4096, 65535), (65535, 65535)):
        picture = np.full((8, 8), highest, np.uint16)
        for data in (imagecodecs.png_encode(picture), tiff(picture), npy(picture)):
            image = one(data)
            assert image.window == (0, top)
            assert np.array_equal(image.pixels[..., 0], picture)
    dark, bright = np.full((8, 8), 300, np.uint16), np.full((8, 8), 9000, np.uint16)
    assert [i.window for i in read(npy(np.stack([dark, dark, bright])))] == [(0, 65535)] * 3
    assert [i.window for i in read(tiff(np.stack([dark, bright]), photometric="minisblack"))] == [(0, 65535)] * 2
    assert one(npy(dark.astype(np.float32) * [[1, 2] * 4])).window == (0, 65535)  # stretched to all of its bits
    assert one(imagecodecs.png_encode(GRAY8)).window == (0, 255)


@pytest.mark.parametrize(
    ("bits", "packed", "values"),
    [
        (2, [0b00011011], [0, 85, 170, 255]),
        (4, [0x0F, 0x81], [0, 255, 136, 17]),
        (10, [0x00, 0x3F, 0xF0, 0x00, 0x01], [0, 1023, 0, 1]),
    ],
)
@pytest.mark.parametrize("photometric", [1, 0])
def test_a_tiff_of_few_bits_is_as_bright_as_it_declares(
    bits: int, packed: list[int], values: list[int], photometric: int, tmp_path: Path
) -> None:
    path, top = tmp_path / "x.tif", 255 if bits < 8 else 2**bits - 1
    path.write_bytes(tiff(np.array([packed], np.uint8)))
    with tifffile.TiffFile(path, mode="r+b") as file:
        for tag, value in (("ImageWidth", 4), ("BitsPerSample", bits), ("PhotometricInterpretation", photometric)):
            file.pages[0].tags[tag].overwrite(value)
    image = one(path)
    assert image.pixels[0, :, 0].tolist() == (values if photometric else [top - value for value in values])
    assert image.window == (0, top)


def test_of_a_pyramid_only_the_base_is_read(tmp_path: Path) -> None:
    base = RNG.integers(0, 256, (256, 256, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as writer:
        writer.write(base, tile=(64, 64), photometric="rgb", subifds=1)
        writer.write(base[::2, ::2], tile=(64, 64), photometric="rgb", subfiletype=1)
    assert np.array_equal(one(tmp_path / "pyramid.tif").pixels, base)


def test_a_real_tiff_of_16_bit_stays_gray(data_root: Path) -> None:
    small = one(data_root / "formats" / "smalltif.tif")
    assert (small.channels, small.pixels.dtype) == (1, np.uint16)


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def test_npz_with_medmnist_keys(data_root: Path) -> None:
    path = data_root / "pneumoniamnist.npz"
    splits = npz_splits(path)
    assert {s: len(i) for s, (i, _) in splits.items()} == {"train": 3882, "val": 524, "test": 624}
    assert sum(1 for _ in read(path)) == 3882 + 524 + 624
    assert set(np.unique(splits["val"][1])) == {0, 1}


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("x.png", b"", "empty"),
        ("x.png", pil(Image.fromarray(RGB8))[:-400], "truncated"),
        ("x.png", pil(Image.fromarray(RGB8))[:20], "damaged"),
        ("x.jpg", b"not a picture at all", "no known image format"),
        ("x.npy", npy(GRAY8)[:-100], "truncated"),
        ("x.npy", npy(np.array([["a"]], dtype=object)), "never unpickled"),
        ("x.npy", npy(np.full((4, 4), np.nan)), "NaN"),
        ("x.npy", npy(np.zeros((0, 4), np.uint8)), "empty"),
        ("x.npy", npy(np.zeros((2, 2, 2, 2, 2), np.uint8)), "shape"),
        ("x.npz", npz(a=np.arange(3))[:-30], "damaged"),
        ("x.npz", npz(only=np.array(["text"])), r"\w"),
        ("x.tif", tiff(GRAY16)[:200], r"\w"),
        ("x.tif", tiff(np.full((8, 8), np.nan, np.float32)), "NaN"),
        ("x.zip", b"PK\x03\x04" + b"\0" * 40, "archive inside"),
    ],
)
def test_bad_files_are_refused_with_their_name_and_a_reason(name: str, data: bytes, says: str) -> None:
    with pytest.raises(UnreadableImage, match=says) as caught:
        list(read(data, ReadContext(name=name)))
    assert caught.value.path == name
    assert caught.value.reason


def test_absurd_sizes_are_refused_before_memory_is_taken() -> None:
    header = bytearray(pil(Image.fromarray(GRAY8)))
    header[16:24] = (200_000).to_bytes(4, "big") * 2
    header[29:33] = zlib.crc32(header[12:29]).to_bytes(4, "big")
    with pytest.raises(UnreadableImage, match=r"more pixels|too large"):
        list(read(bytes(header), ReadContext(name="bomb.png")))
    absurd = io.BytesIO()
    np.lib.format.write_array_header_1_0(absurd, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**6)})
    with pytest.raises(UnreadableImage, match="too large"):
        list(read(absurd.getvalue(), ReadContext(name="bomb.npy")))
    with pytest.raises(UnreadableImage, match="too large"):
        list(read(pil(Image.fromarray(GRAY8)), ReadContext(name="x.png", max_pixels=100)))


def test_a_wrong_suffix_does_not_matter_and_folders_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "really_png.dcm").write_bytes(pil(Image.fromarray(GRAY8)))
    assert np.array_equal(one(tmp_path / "really_png.dcm").pixels[..., 0], GRAY8)
    with pytest.raises(UnreadableImage, match="folder"):
        list(read(tmp_path))
    with pytest.raises(UnreadableImage, match="cannot be opened"):
        list(read(tmp_path / "nowhere.png"))


def test_protected_npz_members_are_refused() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.npy", npy(GRAY8))
    data = bytearray(buffer.getvalue())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    with pytest.raises(UnreadableImage, match="password"):
        list(read(bytes(data), ReadContext(name="x.npz")))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.PNG", True),
        ("IM0001", True),
        ("v.nii.gz", True),
        ("a.txt", False),
        (".DS_Store", False),
        ("README", False),
    ],
)
def test_which_names_are_looked_at(name: str, expected: bool) -> None:
    assert is_image_name(name) is expected
