"""Every file that pydicom and pydicom-data install: read right, by an independent decode, or listed with its reason."""

from __future__ import annotations

import fnmatch
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.data.data_manager import DATA_ROOT, external_data_sources
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi_lut, pixel_array
from pydicom.uid import AllTransferSyntaxes

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import HU_OFFSET, MedicalImage
from ssl_mednet.imaging.readers import read

FOLDERS = [Path(DATA_ROOT) / "test_files", *(Path(s.data_path) for s in external_data_sources().values())]
# pydicom's own listing would download more. Its index of sources is no image either.
FILES = {
    path.relative_to(folder).as_posix(): path
    for folder in FOLDERS
    for path in sorted(folder.rglob("*"))
    if path.is_file() and path.suffix not in (".py", ".pyc", ".txt", ".json", ".dump", ".icc") and path.name != "README"
}

NO_PICTURE = "holds no picture"
UNDECODABLE = "cannot be decoded"
# Files without a picture that can be read, by pattern, and what is said of them.
REFUSED = {
    "dicomdirtests/DICOMDIR*": NO_PICTURE,  # directories of other files
    "dicomdirtests/TINY_ALPHA/*": NO_PICTURE,  # headers whose pixels were taken out
    "ExplVR_*NoMeta.dcm": NO_PICTURE,  # a few elements, for tests of the parser
    "UN_sequence.dcm": NO_PICTURE,
    "empty_charset_LEI.dcm": NO_PICTURE,
    "no_meta_group_length.dcm": NO_PICTURE,
    "priv_SQ.dcm": NO_PICTURE,
    "meta_missing_tsyntax.dcm": "is empty",  # pixels without rows and columns
    "nested_priv_SQ.dcm": "is empty",
    "rtplan*.dcm": NO_PICTURE,  # a plan
    "rtstruct.dcm": NO_PICTURE,  # contours
    "reportsi*.dcm": NO_PICTURE,  # structured reports
    "test-SR.dcm": NO_PICTURE,
    "waveform_ecg.dcm": NO_PICTURE,  # an electrocardiogram
    "no_meta.dcm": "does not begin as DICOM does",  # its first byte belongs to no element
    "badVR.dcm": "holds a distribution of dose",
    "rtdose*.dcm": "holds a distribution of dose",
    "liver*.dcm": "holds a segmentation",
    "MR_truncated.dcm": UNDECODABLE,  # 62 bytes of its pixels are missing
    "JPEG2000-embedded-sequence-delimiter.dcm": UNDECODABLE,  # its codestream is cut at what looks like an end
    "emri_small_jpeg_2k_lossless_too_short.dcm": NO_PICTURE,  # cut so that its last element cannot be parsed
}
# Compressed, or in another byte order: the file that holds the same picture, and how far apart pixels may be (of 1).
EXACT, LOSSY = 0.0, 0.04
TWINS = {
    "693_J2K[IR].dcm": ("693_UNC{0}.dcm", EXACT),
    "MR2_J2K[IR].dcm": ("MR2_UNC{0}.dcm", EXACT),
    "RG1_J2K[IR].dcm": ("RG1_UNC{0}.dcm", EXACT),
    "RG3_J2K[IR].dcm": ("RG3_UNC{0}.dcm", EXACT),
    "US1_J2K[IR].dcm": ("US1_UNC{0}.dcm", EXACT),
    "examples_jpeg2k.dcm": ("US1_UNCR.dcm", EXACT),
    "JPEG2000.dcm": ("JPEG2000_UNC.dcm", EXACT),
    "MR_small_*.dcm": ("MR_small.dcm", EXACT),
    "zipMR.gz": ("MR_small.dcm", EXACT),
    "emri_small_*.dcm": ("emri_small.dcm", EXACT),
    "SC_rgb_rle.dcm": ("SC_rgb.dcm", EXACT),
    "SC_rgb_rle_16bit.dcm": ("SC_rgb_16bit.dcm", EXACT),
    "SC_rgb_rle_16bit_2frame.dcm": ("SC_rgb_16bit_2frame.dcm", EXACT),
    "SC_rgb_rle_2frame.dcm": ("SC_rgb_2frame.dcm", EXACT),
    "SC_rgb_rle_32bit.dcm": ("SC_rgb_32bit.dcm", EXACT),
    "SC_rgb_rle_32bit_2frame.dcm": ("SC_rgb_32bit_2frame.dcm", EXACT),
    "SC_rgb_expb.dcm": ("SC_rgb.dcm", EXACT),
    "SC_rgb_expb_16bit.dcm": ("SC_rgb_16bit.dcm", EXACT),
    "SC_rgb_expb_16bit_2frame.dcm": ("SC_rgb_16bit_2frame.dcm", EXACT),
    "SC_rgb_expb_2frame.dcm": ("SC_rgb_2frame.dcm", EXACT),
    "SC_rgb_expb_32bit.dcm": ("SC_rgb_32bit.dcm", EXACT),
    "SC_rgb_expb_32bit_2frame.dcm": ("SC_rgb_32bit_2frame.dcm", EXACT),
    "SC_rgb_dcmtk_+eb+cr.dcm": ("SC_rgb_dcmtk_ebcr_dcmd.dcm", EXACT),
    "SC_rgb_dcmtk_+eb+cy+n1.dcm": ("SC_rgb_dcmtk_ebcyn1_dcmd.dcm", EXACT),
    "SC_rgb_dcmtk_+eb+cy+n2.dcm": ("SC_rgb_dcmtk_ebcyn2_dcmd.dcm", EXACT),
    "SC_rgb_dcmtk_+eb+cy+np.dcm": ("SC_rgb_dcmtk_ebcynp_dcmd.dcm", EXACT),
    "SC_rgb_dcmtk_+eb+cy+s2.dcm": ("SC_rgb_dcmtk_ebcys2_dcmd.dcm", EXACT),
    "SC_rgb_dcmtk_+eb+cy+s4.dcm": ("SC_rgb_dcmtk_ebcys4_dcmd.dcm", EXACT),
    "SC_rgb_gdcm_KY.dcm": ("SC_rgb_gdcm2k_uncompressed.dcm", EXACT),
    "SC_rgb_jpeg.dcm": ("SC_rgb_jpeg_dcmd.dcm", EXACT),
    "SC_jpeg_no_color_transform.dcm": ("SC_rgb_jpeg_dcmd.dcm", EXACT),
    "SC_rgb_jpeg_gdcm.dcm": ("SC_rgb.dcm", EXACT),
    "SC_rgb_jpeg_dcmtk.dcm": ("SC_rgb.dcm", LOSSY),
    "SC_rgb_jls_lossy_*.dcm": ("SC_rgb.dcm", LOSSY),
    "SC_ybr_full_*uncompressed.dcm": ("SC_rgb.dcm", LOSSY),
    "SC_rgb_small_odd_*.dcm": ("SC_rgb_small_odd.dcm", LOSSY),
    "OBXXXX1A_expb.dcm": ("OBXXXX1A.dcm", EXACT),
    "OBXXXX1A_rle.dcm": ("OBXXXX1A.dcm", EXACT),
    "OBXXXX1A_*_2frame.dcm": ("OBXXXX1A_2frame.dcm", EXACT),
    "color-pl.dcm": ("color-px.dcm", EXACT),
    "gdcm-US-ALOKA-16_big.dcm": ("gdcm-US-ALOKA-16.dcm", EXACT),
    "liver_expb.dcm": ("liver.dcm", EXACT),
    "liver_expb_1frame.dcm": ("liver_1frame.dcm", EXACT),
    "rtdose_*_1frame.dcm": ("rtdose_1frame.dcm", EXACT),
    "rtdose_expb.dcm": ("rtdose.dcm", EXACT),
    "rtdose_rle.dcm": ("rtdose.dcm", EXACT),
}


def matching(table: dict[str, object], name: str) -> str | None:
    return next((pattern for pattern in table if fnmatch.fnmatchcase(name, pattern)), None)


def pixels(images: list[MedicalImage]) -> np.ndarray:
    return np.stack([i.pixels for i in sorted(images, key=lambda i: i.index)]).astype(np.float64)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_right_or_listed_with_its_reason(name: str) -> None:
    known = matching(REFUSED, name)
    if known is not None:
        with pytest.raises(UnreadableImage, match=REFUSED[known]):
            list(read(FILES[name]))
        return
    found = pixels(images := list(read(FILES[name])))
    pattern = matching(TWINS, name)
    if pattern is not None:
        twin, tolerance = TWINS[pattern]
        other = pixels(list(read(FILES[twin.format(Path(name).stem[-1])])))
        assert found.shape == other.shape
        assert np.abs(found - other).max() <= tolerance * np.iinfo(images[0].pixels.dtype).max
    else:
        agrees_with_pydicom(FILES[name], images)


def agrees_with_pydicom(path: Path, images: list[MedicalImage]) -> None:
    data = pydicom.dcmread(path, force=True)
    frames = decoded(data)
    count = int(data.get("NumberOfFrames", 1) or 1)
    frames = frames if count > 1 else frames[None]
    assert sorted(i.index for i in images) == list(range(count))  # enhanced frames have the order of space
    for number, (image, frame) in enumerate(zip(images, frames, strict=True)):
        top = np.iinfo(image.pixels.dtype).max
        if image.channels == 3:
            expected = shown_in_color(frame, data)
            np.testing.assert_allclose(image.pixels / top, expected, atol=1 / 255)
        elif image.quantity == "hu":
            assert np.array_equal(image.pixels[..., 0].astype(int) - HU_OFFSET, np.rint(rescaled(frame, data, number)))
        else:
            like_in_brightness(image.pixels[..., 0] / top, frame, data)


def decoded(data: Dataset) -> np.ndarray:
    """The stored values; by libjpeg where none of pydicom's decoders reads JPEG of 12 bits."""
    try:
        if "TransferSyntaxUID" not in data.file_meta:
            data.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
        return data.pixel_array
    except RuntimeError:
        return imagecodecs.jpeg_decode(next(generate_frames(data.PixelData, number_of_frames=1)))


def shown_in_color(frame: np.ndarray, data: Dataset) -> np.ndarray:
    if data.PhotometricInterpretation == "PALETTE COLOR":
        shown = apply_color_lut(frame, data)[..., :3]
        return shown / np.iinfo(shown.dtype).max
    return frame / (2.0**data.BitsStored - 1)


def rescaled(frame: np.ndarray, data: Dataset, number: int) -> np.ndarray:
    if "RescaleSlope" in data or "ModalityLUTSequence" in data:
        return apply_modality_lut(frame, data)
    groups = data.PerFrameFunctionalGroupsSequence[number]
    groups = groups if "PixelValueTransformationSequence" in groups else data.SharedFunctionalGroupsSequence[0]
    return apply_modality_lut(frame, groups.PixelValueTransformationSequence[0])


def like_in_brightness(ours: np.ndarray, frame: np.ndarray, data: Dataset) -> None:
    """Ours is pydicom's modality and VOI transform up to black and white points, inverted for MONOCHROME1."""
    theirs = apply_voi_lut(apply_modality_lut(frame, data), data).astype(np.float64)
    if data.PhotometricInterpretation == "MONOCHROME1":
        theirs = -theirs
    if np.ptp(theirs) == 0 or np.ptp(ours) == 0:
        assert np.ptp(ours) == np.ptp(theirs) == 0
        return
    slope, offset = np.polyfit(theirs.ravel(), ours.ravel(), 1)
    assert slope > 0
    np.testing.assert_allclose(ours, slope * theirs + offset, atol=1 / 200)


def test_lossy_and_lossless_copies_of_a_scan_agree() -> None:
    """12-bit JPEG, which no permissive plugin of pydicom reads, against the same scan in lossless JPEG."""
    lossless = pixel_array(FILES["JPEG-LL.dcm"]).astype(np.float64)
    for name in ("JPEG-lossy.dcm", "JPGExtended.dcm"):
        lossy = next(read(FILES[name])).pixels[..., 0].astype(np.float64)
        assert np.corrcoef(lossless.ravel(), lossy.ravel())[0, 1] > 0.98


def test_the_tables_name_files_that_are_there() -> None:
    for table in (REFUSED, TWINS):
        for pattern in table:
            assert fnmatch.filter(FILES, pattern), pattern
    assert len(FILES) > 150


def test_the_files_cover_every_family_of_transfer_syntax() -> None:
    names = set()
    for path in FILES.values():
        data = pydicom.dcmread(path, stop_before_pixels=True, force=True)
        syntax = getattr(data, "file_meta", {}).get("TransferSyntaxUID")
        if syntax in AllTransferSyntaxes:
            names.add(syntax.name)
    for part in (
        "Implicit",
        "Big Endian",
        "Deflated",
        "RLE",
        "JPEG Baseline",
        "JPEG Extended",
        "JPEG Lossless",
        "JPEG-LS Lossless",
        "JPEG-LS Lossy",
        "JPEG 2000",
    ):
        assert any(part in name for name in names), part
