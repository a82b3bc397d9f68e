"""Which tag of a DICOM file a group is read from, as people and vendors write tags."""

from __future__ import annotations

import io
import struct

import numpy as np
import pydicom
import pytest
from made_files import dicom, picture, pyramid, tiled_dicom
from pydicom.uid import ImplicitVRLittleEndian

from ssl_mednet.errors import DataError
from ssl_mednet.imaging.readers import ReadContext, read
from ssl_mednet.imaging.readers.tags import parse_tag, value_of

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)


def with_private(owner_first: str = "") -> pydicom.FileDataset:
    """A file with a private block; another one before it moves it to other numbers."""
    data = pydicom.dcmread(io.BytesIO(dicom(PIXELS, StudyInstanceUID="1.2.9", ImageType=["ORIGINAL", "PRIMARY"])))
    for owner, value in [(owner_first, "no"), ("ACME 1.1", "subject 7")]:
        if owner:
            data.private_block(0x0019, owner, create=True).add_new(0x0C, "LO", value)
    return data


def test_keywords_numbers_and_private_blocks_are_tags() -> None:
    assert parse_tag("PatientID") == parse_tag("(0010,0020)") == parse_tag("00100020") == (0x00100020, "")
    assert parse_tag("(0019,100c)") == (0x0019100C, "")
    assert parse_tag("(0019,xx0C,ACME 1.1)") == parse_tag("0019,0c,ACME 1.1") == (0x0019000C, "ACME 1.1")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("PatientId", "did you mean 'PatientID'"),
        ("StudyInstanceUid", "did you mean 'StudyInstanceUID'"),
        ("zzz", r"\(0010,0020\)"),
        ("", "no DICOM tag"),
        ("(0018,xx0C,OWNER)", "no DICOM tag"),  # private groups are odd
        ("PixelData", "no value"),
        ("RequestAttributesSequence", "no value"),
    ],
)
def test_what_is_no_tag_is_refused_with_the_nearest(text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        parse_tag(text)


def test_values_of_all_kinds_are_text() -> None:
    data = with_private("OTHER")
    assert value_of(data, "StudyInstanceUID") == "1.2.9"
    assert value_of(data, "ImageType") == "ORIGINAL\\PRIMARY"
    assert value_of(data, "Rows") == "8"
    assert value_of(data, "AccessionNumber") == value_of(data, "(0019,xx0D,ACME 1.1)") == ""
    assert value_of(data, "(0019,xx0C,NOBODY)") == value_of(data, "(0021,xx0C,ACME 1.1)") == ""


def test_a_private_block_is_found_by_its_owner_wherever_it_lies() -> None:
    one, other = with_private(), with_private("OTHER")
    assert value_of(one, "(0019,xx0C,ACME 1.1)") == value_of(other, "(0019,xx0C,ACME 1.1)") == "subject 7"
    assert (value_of(one, "(0019,100C)"), value_of(other, "(0019,100C)")) == ("subject 7", "no")
    buffer = io.BytesIO()
    one.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    one.save_as(buffer, enforce_file_format=True)
    assert struct.pack("<HHL", 0x0019, 0x100C, 10) in buffer.getvalue()  # nothing says that it is text
    assert value_of(pydicom.dcmread(io.BytesIO(buffer.getvalue())), "(0019,xx0C,ACME 1.1)") == "subject 7"


def groups(data: bytes, tag: str) -> set[tuple[str, bool]]:
    return {(i.group, i.by_tag) for i in read(data, ReadContext(name="a file", group_tag=tag, min_tissue=0.01))}


def test_only_dicom_is_grouped_by_a_tag() -> None:
    assert groups(dicom(PIXELS), "") == {("p1", False)}
    assert groups(dicom(PIXELS, StudyID="s"), "StudyID") == {("s", True)}
    assert groups(dicom(PIXELS), "StudyID") == {("", True)}, "the patient is no substitute for what was asked for"
    slide = tiled_dicom(picture(), 0.5, StudyID="s", SeriesInstanceUID="1.5", PatientID="")
    assert groups(slide, "StudyID") == {("s", True)}
    assert groups(slide, "") == {("1.5", False)}
    assert groups(slide, "AccessionNumber") == {("", True)}
    assert groups(pyramid(picture(), 0.5), "StudyID") == {("a file", False)}
