"""The modalities this toolkit knows, and how DICOM names them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ssl_mednet.errors import DataError, did_you_mean

Channels = Literal["gray", "color"]
CHANNEL_COUNT: dict[str, int] = {"gray": 1, "color": 3}


@dataclass(frozen=True)
class Modality:
    """A way of making medical images: what channels its images have, and its stable number in a corpus."""

    name: str
    channels: Channels
    code: int
    title: str


MODALITIES: dict[str, Modality] = {
    m.name: m
    for m in (
        Modality("generic_gray", "gray", 0, "gray image of unstated origin"),
        Modality("generic_color", "color", 1, "color image of unstated origin"),
        Modality("xray", "gray", 2, "projection radiography, mammography, fluoroscopy"),
        Modality("ct", "gray", 3, "computed tomography"),
        Modality("mri", "gray", 4, "magnetic resonance imaging"),
        Modality("ultrasound", "gray", 5, "B-mode ultrasound"),
        Modality("pet", "gray", 6, "positron emission tomography and other nuclear medicine"),
        Modality("oct", "gray", 7, "optical coherence tomography"),
        Modality("histopathology", "color", 8, "stained tissue sections"),
        Modality("cytology", "color", 9, "stained cells, smears"),
        Modality("blood", "color", 10, "stained blood cells"),
        Modality("dermatology", "color", 11, "dermoscopy and clinical skin photographs"),
        Modality("photo", "color", 12, "clinical photographs"),
        Modality("fundus", "color", 13, "retinal photographs"),
        Modality("endoscopy", "color", 14, "endoscopic frames"),
    )
}
BY_CODE: dict[int, Modality] = {m.code: m for m in MODALITIES.values()}

# DICOM PS3.3 C.7.3.1.1.1, Modality (0008,0060), defined terms.
DICOM_MODALITY: dict[str, str] = {
    **dict.fromkeys(("CR", "DX", "XA", "RF", "MG", "PX", "IO", "BMD", "RTIMAGE"), "xray"),
    **dict.fromkeys(("CT", "CTPROTOCOL"), "ct"),
    "MR": "mri",
    **dict.fromkeys(("US", "IVUS", "BDUS"), "ultrasound"),
    **dict.fromkeys(("PT", "NM"), "pet"),
    **dict.fromkeys(("OCT", "OPT", "IVOCT"), "oct"),
    "SM": "histopathology",
    "GM": "cytology",
    "DMS": "dermatology",
    "XC": "photo",
    "OP": "fundus",
    "ES": "endoscopy",
}


def modality(name: str) -> Modality:
    """Look a modality up by name.

    Raises:
        DataError: the name is not known; the message has the nearest right one.
    """
    if name not in MODALITIES:
        raise DataError(
            f"unknown modality {name!r}", did_you_mean(name, MODALITIES) or f"one of {', '.join(MODALITIES)}"
        )
    return MODALITIES[name]


def generic(channels: int) -> str:
    """The name of the modality of an image that does not say what it is: by its number of channels, 1 or 3."""
    return "generic_gray" if channels == 1 else "generic_color"
