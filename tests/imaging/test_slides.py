"""Whole slides: tissue tiles at the resolution asked for, from TIFF and DICOM, and a level never in memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from made_files import SIDE, TILE, half, picture, pyramid, tiled_dicom

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext, read
from ssl_mednet.imaging.readers.slide import otsu, tissue


def tiles(source: Path | bytes | tuple[bytes, ...], **options: object) -> list[MedicalImage]:
    return list(read(source, ReadContext(**{"name": "slide.tif", "tile": TILE} | options)))


INSIDE = [r * 8 + c for r in range(2, 6) for c in range(2, 6)]  # of a grid of 8 x 8 the tiles in the square of tissue


@pytest.mark.parametrize("kind", ["tiff", "full", "sparse", "packed"])
def test_only_tissue_is_cut_row_by_row_and_nothing_is_lost(kind: str) -> None:
    pixels = picture()
    made = {
        "tiff": lambda: pyramid(pixels, 0.5),
        "full": lambda: tiled_dicom(pixels, 0.5),
        "sparse": lambda: tiled_dicom(pixels, 0.5, sparse=True),
        "packed": lambda: tiled_dicom(pixels, 0.5, packed=True),
    }
    found = tiles(made[kind]())
    assert [t.index for t in found] == INSIDE
    for tile in found:
        y, x = (TILE * n for n in divmod(tile.index, 8))
        expected = pixels[y : y + TILE, x : x + TILE]
        if kind == "packed":
            np.testing.assert_allclose(tile.pixels.astype(int), expected, atol=16)
        else:
            assert np.array_equal(tile.pixels, expected)
    assert {t.modality for t in found} == {"histopathology"}
    assert {t.group for t in found} == ({"slide.tif"} if kind == "tiff" else {"p1"})
    assert {t.volume for t in found} == ({"slide.tif"} if kind == "tiff" else {"1.2.3.4"})


def test_the_level_is_the_coarsest_that_is_fine_enough() -> None:
    data = pyramid(picture(), 0.25)
    levels = [half(picture()), half(half(picture()))]
    for mpp, level, count in ((0.5, levels[0], 4), (1.0, levels[1], 2)):
        found = tiles(data, mpp=mpp, min_tissue=0.2)
        assert len(found) == 4
        for tile in found:
            y, x = (TILE * n for n in divmod(tile.index, count))
            assert np.array_equal(tile.pixels, level[y : y + TILE, x : x + TILE])
    # Between two levels the finer one is averaged down.
    between = tiles(data, mpp=0.7, min_tissue=0.01)
    assert {t.pixels.shape for t in between} == {(TILE, TILE, 3)}
    assert len(between) == 4  # 512 pixels of 0.5 um are 2 tiles of 179
    # What was scanned coarser than asked for is never enlarged.
    assert [t.index for t in tiles(pyramid(picture(), 4.0))] == INSIDE


def test_resolution_is_what_the_file_says_and_a_screen_resolution_is_none() -> None:
    with_words = pyramid(picture(), 352.0, description="Aperio |AppMag = 40|MPP = 0.25", software="x")
    assert len(tiles(with_words)) == 4  # read at half of its size
    by_objective = pyramid(picture(), 352.0, description="Aperio |AppMag = 40")
    assert len(tiles(by_objective)) == 4
    assert len(tiles(pyramid(picture(), 352.0))) == len(INSIDE)


def test_several_dicom_levels_are_one_slide_and_its_label_is_left_out() -> None:
    fine, coarse = tiled_dicom(picture(), 0.25), tiled_dicom(half(picture()), 0.5)
    label = tiled_dicom(picture(TILE), 0.5, ImageType=["ORIGINAL", "PRIMARY", "LABEL", "NONE"])
    expected = half(picture())
    for source in ((fine, coarse, label), (label, coarse, fine)):
        found = tiles(source)
        assert [t.index for t in found] == [5, 6, 9, 10]
        assert np.array_equal(found[0].pixels, expected[TILE : 2 * TILE, TILE : 2 * TILE])
    with pytest.raises(UnreadableImage, match="label or an overview"):
        tiles(label)


def test_a_cap_spreads_over_the_tissue_and_is_the_same_every_time() -> None:
    data = pyramid(picture(), 0.5)
    some = [t.index for t in tiles(data, max_tiles=4)]
    assert some == [INSIDE[i] for i in (0, 5, 10, 15)]
    assert [t.index for t in tiles(data, max_tiles=4)] == some
    assert len(tiles(data, max_tiles=99)) == len(INSIDE)


def test_glass_alone_is_no_slide_and_tissue_everywhere_is_kept_whole() -> None:
    noise = np.random.default_rng(0).integers(-6, 7, (SIDE, SIDE, 1))
    glass = np.clip(243 + noise.repeat(3, axis=2), 0, 255).astype(np.uint8)
    with pytest.raises(UnreadableImage, match="no tissue"):
        tiles(pyramid(glass, 0.5))
    stained = np.clip(np.array([190, 110, 170]) + 3 * noise, 0, 255).astype(np.uint8)
    stained[: SIDE // 2, :, 1] -= 30  # two stains, neither of them glass
    assert len(tiles(pyramid(stained, 0.5))) == 64


def test_otsu_divides_where_the_variance_between_is_largest() -> None:
    generator = np.random.default_rng(3)
    for _ in range(5):
        values = np.concatenate([generator.normal(m, 12, 500) for m in generator.uniform(20, 230, 2)])
        values = np.clip(values, 0, 255).astype(np.uint8)
        best = max(range(255), key=lambda t: _between(values, t))
        assert _between(values, otsu(values)) == pytest.approx(_between(values, best))
    assert tissue(picture(256))[67:189, 67:189].all()
    assert tissue(picture(256)).sum() < 1.05 * 128**2


def _between(values: np.ndarray, threshold: int) -> float:
    low, high = values[values <= threshold], values[values > threshold]
    if not len(low) or not len(high):
        return 0.0
    return len(low) * len(high) * float(low.mean() - high.mean()) ** 2


def test_a_level_is_never_in_memory(tmp_path: Path) -> None:
    """64 megapixels are 201 MB; the reader may hold a few segments and the tile."""
    path, side = tmp_path / "large.tif", 8192
    block = np.full((TILE, TILE, 3), (190, 110, 170), np.uint8)
    with tifffile.TiffWriter(path) as writer:
        count = (side // TILE) ** 2
        writer.write(
            (block for _ in range(count)), shape=(side, side, 3), dtype=np.uint8, tile=(TILE, TILE), photometric="rgb",
            compression="zlib",
        )  # fmt: skip
    tracemalloc.start()
    number = sum(1 for _ in read(path, ReadContext(tile=1024, name="large.tif")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert number == 64
    assert peak < 150e6


def test_real_slides(data_root: Path) -> None:
    slide = data_root / "formats" / "small_HE.svs"
    whole = tifffile.imread(slide)
    found = list(read(slide, ReadContext()))
    assert 20 <= len(found) <= 60
    for tile in found:
        y, x = (256 * n for n in divmod(tile.index, 2220 // 256))
        assert np.array_equal(tile.pixels, whole[y : y + 256, x : x + 256])  # scanned at 0.499 um
    bright = np.mean([t.pixels.mean() for t in found])
    assert bright < whole.mean()
    dicom = data_root / "formats" / "small_dicom.dcm"
    data = pydicom.dcmread(dicom)
    frames = data.pixel_array
    for tile in read(dicom, ReadContext(tile=500)):
        # 500 pixels are a frame: 2638 x 3236 pixels are 6 x 7 of them, the last row and column incomplete.
        row, column = divmod(tile.index, 3236 // 500)
        assert np.array_equal(tile.pixels, frames[row * 7 + column])
    for name, reason in (("openslide_unopenable.tiff", "compression 52479"), ("openslide_unreadable.svs", "JPEG")):
        with pytest.raises(UnreadableImage, match=reason):
            list(read(data_root / "formats" / name))


@pytest.mark.parametrize(
    ("tags", "says"),
    [
        ({"NumberOfFrames": 3}, "3 tiles where its size asks for 64"),
        ({"TotalPixelMatrixRows": 2**31, "TotalPixelMatrixColumns": 2**31}, "tiles where its size asks for"),
        ({"SamplesPerPixel": 1, "PhotometricInterpretation": "MONOCHROME2"}, "not 8-bit color"),
        ({"PixelData": b"\0" * 100}, "cannot be decoded"),
    ],
)
def test_slides_that_are_not_what_they_say(tags: dict[str, object], says: str) -> None:
    with pytest.raises(UnreadableImage, match=says):
        tiles(tiled_dicom(picture(), 0.5, **tags))
