"""DICOM against pydicom's own functions and its own collection of files; identity never in a message."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_files import dicom
from pydicom.data import get_testdata_file
from pydicom.pixels import apply_color_lut, apply_rescale, apply_voi_lut, pixel_array

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import HU_OFFSET
from ssl_mednet.imaging.readers import ReadContext, read

RNG = np.random.default_rng(0)


def test_both_photometric_interpretations_of_a_picture_give_equal_pixels(data_root: Path) -> None:
    one, two = (next(read(data_root / "formats" / f"cxr_monochrome{i}.dcm")) for i in (1, 2))
    assert np.array_equal(one.pixels, 255 - two.pixels)  # the same stored values, so one is the other's negative
    assert one.modality == two.modality == "xray"
    values = RNG.integers(0, 4096, (8, 8), dtype=np.uint16)
    window = {"WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12, "HighBit": 11}
    plain = next(read(dicom(values, **window)))
    inverted = next(read(dicom(values, PhotometricInterpretation="MONOCHROME1", **window)))
    assert np.array_equal(plain.pixels, 65535 - inverted.pixels)


def test_ct_keeps_hounsfield_units() -> None:
    stored = RNG.integers(0, 4096, (16, 16), dtype=np.int16)
    data = dicom(stored, Modality="CT", RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=400)
    image = next(read(data))
    assert image.quantity == "hu"
    assert np.array_equal(image.pixels[..., 0].astype(int) - HU_OFFSET, stored.astype(int) - 1024)
    low, high = (w - HU_OFFSET for w in image.window)
    assert (low, high) == (40 - 0.5 - 399 / 2, 40 - 0.5 + 399 / 2)
    loaded = pydicom.dcmread(io.BytesIO(data))
    expected = apply_voi_lut(apply_rescale(loaded.pixel_array, loaded), loaded)
    unit = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(image.unit()[..., 0], unit, atol=2e-3)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
def test_windows_follow_the_standard(function: str) -> None:
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    tags = {"WindowCenter": 1000.0, "WindowWidth": 800.0, "VOILUTFunction": function, "BitsStored": 12, "HighBit": 11}
    data = dicom(values, Modality="MR", **tags)
    loaded = pydicom.dcmread(io.BytesIO(data))
    expected = apply_voi_lut(loaded.pixel_array, loaded) / 4095
    np.testing.assert_allclose(next(read(data)).pixels[..., 0] / 65535, expected, atol=1e-4)


def test_without_a_window_nothing_is_clipped_and_frames_share_a_scale() -> None:
    frames = np.stack([np.full((4, 4), 100), np.full((4, 4), 300)]).astype(np.uint16)
    frames[0, 0, 0] = 0
    images = list(read(dicom(frames, Modality="PT", RescaleSlope=2.0, RescaleIntercept=0.0)))
    assert [i.index for i in images] == [0, 1]
    assert images[0].modality == "pet"
    assert images[0].pixels[0, 0, 0] == 0
    assert images[0].pixels[1, 1, 0] == round(65535 / 3)
    assert (images[1].pixels == 65535).all()


def test_eight_bits_stay_and_color_is_rgb() -> None:
    gray = RNG.integers(0, 256, (6, 7), dtype=np.uint8)
    assert np.array_equal(next(read(dicom(gray))).pixels[..., 0], gray)
    color = RNG.integers(0, 256, (6, 7, 3), dtype=np.uint8)
    assert np.array_equal(next(read(dicom(color, Modality="ES"))).pixels, color)
    assert next(read(dicom(color, Modality="ES"))).modality == "endoscopy"


def test_palettes_and_ybr_become_rgb_as_pydicom_does() -> None:
    palette = pydicom.dcmread(get_testdata_file("examples_palette.dcm"))
    expected = apply_color_lut(palette.pixel_array, palette)[..., :3]
    ours = next(read(Path(palette.filename))).pixels
    np.testing.assert_allclose(ours / np.iinfo(ours.dtype).max, expected / np.iinfo(expected.dtype).max, atol=1 / 255)
    ybr = get_testdata_file("examples_ybr_color.dcm")
    assert np.array_equal(next(read(Path(ybr))).pixels, pixel_array(ybr)[0])


def test_no_tag_reaches_a_message() -> None:
    data = dicom(
        np.zeros((8, 8), np.uint16),
        PatientName="Doe^Jane",
        PatientID="ID4711",
        StudyDescription="secret",
        PixelData=b"\0\0",
    )
    with pytest.raises(UnreadableImage) as caught:
        list(read(data, ReadContext(name="x.dcm")))
    assert not any(word in str(caught.value) for word in ("Doe", "4711", "secret"))
    assert next(read(dicom(np.ones((8, 8), np.uint8), PatientID="ID4711"))).group == "ID4711"
