"""DICOM against pydicom's own functions and its own collection of files; identity never in a message."""

from __future__ import annotations

import io
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from made_files import dicom
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_rescale, apply_voi_lut, pixel_array
from pydicom.uid import ExplicitVRLittleEndian

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import HU_OFFSET
from ssl_mednet.imaging.readers import ReadContext, read
from ssl_mednet.imaging.readers.jpeg_header import jpeg_size

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


@pytest.mark.parametrize("kind", ["US", "SS"])
def test_a_voi_lut_may_begin_below_zero(kind: str) -> None:
    """Its type is often written wrong where the stored values are unsigned and the intercept is negative."""
    values, table = np.arange(24, 280, dtype=np.uint16).reshape(16, 16), Dataset()
    table.add_new("LUTDescriptor", kind, [256, 2**16 - 1000 if kind == "US" else -1000, 8])
    table.add_new("LUTData", "OW", np.arange(256, dtype="<u2").tobytes())
    image = next(read(dicom(values, Modality="MR", RescaleSlope=1, RescaleIntercept=-1024, VOILUTSequence=[table])))
    assert (image.pixels[..., 0] // 257).tolist() == (values - 24).tolist()


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


def test_a_deflated_bomb_is_refused_before_it_is_unpacked() -> None:
    plain = dicom(np.zeros((64, 64), np.uint8))
    meta = 144 + int.from_bytes(plain[140:144], "little")
    head = plain[:meta].replace(ExplicitVRLittleEndian.encode() + b"\0", b"1.2.840.10008.1.2.1.99")
    head = head.replace(b"\x02\x00\x10\x00UI\x14\x00", b"\x02\x00\x10\x00UI\x16\x00")
    head = head[:140] + (len(head) - 144).to_bytes(4, "little") + head[144:]
    for count, bomb in ((0, False), (64 * 1024**2, True)):
        machine = zlib.compressobj(wbits=-15)
        data = head + machine.compress(plain[meta:] + bytes(count)) + machine.flush()
        tracemalloc.start()
        if bomb:
            with pytest.raises(UnreadableImage, match="unpacks to more"):
                list(read(data, ReadContext(max_pixels=10**6)))
            assert tracemalloc.get_traced_memory()[1] < 10 * 1024**2
        else:
            assert len(list(read(data))) == 1
        tracemalloc.stop()


def test_a_compressed_frame_that_claims_more_than_the_file_is_refused() -> None:
    data = Path(get_testdata_file("SC_rgb_jpeg_gdcm.dcm")).read_bytes()
    at = data.index(b"\xff\xc3") + 5
    assert data[at : at + 4] == bytes([0, 100, 0, 100])
    with pytest.raises(UnreadableImage, match="cannot be decoded"):
        list(read(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :]))


@pytest.mark.parametrize(
    "name", ["JPEG-LL.dcm", "JPGExtended.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_small_odd_jpeg.dcm"]
)
def test_the_size_in_a_jpeg_header(name: str) -> None:
    data = pydicom.dcmread(get_testdata_file(name))
    frame = next(generate_frames(data.PixelData, number_of_frames=1))
    assert jpeg_size(frame) == (data.Rows, data.Columns)
    assert jpeg_size(frame[:4]) is None
    assert jpeg_size(b"not a JPEG") is None


def test_what_fills_up_a_picture_does_not_set_its_range() -> None:
    values = np.arange(64, dtype=np.int16).reshape(8, 8)
    padded = np.where(values < 8, np.int16(-32768), values)
    shown = next(read(dicom(padded, Modality="MR", PixelPaddingValue=-32768))).pixels[..., 0]
    assert (shown.min(), shown.max()) == (0, 65535)
    np.testing.assert_allclose(shown[1:], np.rint((values[1:] - 8) / 55 * 65535), atol=1)
    between = next(read(dicom(values, Modality="MR", PixelPaddingValue=0, PixelPaddingRangeLimit=15))).pixels[..., 0]
    assert (between[2, 0], between[7, 7]) == (0, 65535)


@pytest.mark.parametrize(
    ("sop_class", "told"), [("66.4", "a segmentation"), ("66.7", "a label map"), ("481.2", "a distribution of dose")]
)
def test_masks_and_doses_are_no_pictures(sop_class: str, told: str) -> None:
    uid = f"1.2.840.10008.5.1.4.1.1.{sop_class}"
    with pytest.raises(UnreadableImage, match=f"holds {told}, which is no picture"):
        list(read(dicom(np.eye(8, dtype=np.uint8), SOPClassUID=uid), ReadContext(modality="ct")))
