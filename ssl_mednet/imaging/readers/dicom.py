"""DICOM: every frame of a file through modality LUT, VOI LUT or window, and inversion, in the order of the standard.

PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (photometric interpretation). No text of any tag but the
coded ones that say how to read the pixels ever reaches a message.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi, get_decoder, iter_pixels
from pydicom.uid import UID

from ssl_mednet.imaging.image import DEFAULT_CT_WINDOW, HU_OFFSET, MedicalImage
from ssl_mednet.imaging.modality import DICOM_MODALITY
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.levels import stretch, stretch_range

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """The frames of a file.

    - CT with a rescale: Hounsfield units plus ``HU_OFFSET`` in uint16, with the file's window (or soft tissue).
    - Other gray: after the file's first VOI LUT or window, on the whole range of uint8 (up to 8 bits stored) or uint16.
      Without either, the file's own smallest..largest value takes the whole range, so nothing is clipped (PET, MR).
    - MONOCHROME1 is inverted, so both photometric interpretations of a picture give equal pixels.
    - Palettes and YBR become RGB.

    ``group`` of each image is the patient's identifier as it stands in the file.

    Raises:
        UnreadableImage: no pixels, an unknown compression, or damage; frames before the damage have been yielded.
    """
    data = _open(source, ctx)
    modality = DICOM_MODALITY.get(str(data.get("Modality", "")).strip(), ctx.modality)
    group = str(data.get("PatientID", "") or "").strip()
    frames = _frames(data, ctx)
    if _is_color(data):
        for index, frame in enumerate(frames):
            yield MedicalImage(
                _rgb(frame, data), "" if modality in ("ct", "mri") else modality, group=group, index=index
            )
        return
    bounds = _file_range(data, ctx) if _needs_range(data) else None
    for index, frame in enumerate(frames):
        values = _rescaled(frame, data, index)
        if modality == "ct" and _rescale(data, index) is not None:
            stored = np.clip(np.rint(values) + HU_OFFSET, 0, 65535).astype(np.uint16)
            low, high = _window(data, index) or DEFAULT_CT_WINDOW
            window = (low + HU_OFFSET, high + HU_OFFSET)
            yield MedicalImage(stored[..., None], modality, window, "hu", group, index)
        else:
            yield MedicalImage(_display(values, data, index, bounds)[..., None], modality, group=group, index=index)


def _open(source: Path | bytes, ctx: ReadContext) -> Dataset:
    try:
        data = pydicom.dcmread(io.BytesIO(source) if isinstance(source, bytes) else source, force=True)
    except (InvalidDicomError, EOFError) as error:
        raise ctx.fail("is no DICOM file, or a truncated one") from error
    if not any(name in data for name in _PIXELS):
        if "Rows" in data:
            raise ctx.fail("is truncated: its pixels are missing")
        raise ctx.fail("holds no picture (a report, a plan, a structure set or the like)")
    if not hasattr(data, "file_meta") or "TransferSyntaxUID" not in data.file_meta:
        data.ensure_file_meta()
        implicit, little = data.original_encoding
        guess = "1.2.840.10008.1.2.2" if little is False else f"1.2.840.10008.1.2{'' if implicit else '.1'}"
        data.file_meta.TransferSyntaxUID = UID(guess)
    rows, columns = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    ctx.check_size(rows, columns, max(1, int(data.get("NumberOfFrames", 1) or 1)))
    return data


def _frames(data: Dataset, ctx: ReadContext) -> Iterator[np.ndarray]:
    syntax = data.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ctx.fail(f"has the transfer syntax {_name(syntax)}, which holds no pixels that can be decoded") from error
    if not decoder.is_available:
        raise ctx.fail(f"is compressed as {_name(syntax)}, for which no decoder is installed")
    try:
        yield from iter_pixels(data)
    except BaseException as error:
        # A decoder in Rust that gives up raises a "PanicException", which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ctx.fail(
            f"its pixels cannot be decoded ({_name(syntax)}): truncated, damaged or wrongly described"
        ) from error


def _name(syntax: UID) -> str:
    return syntax.name if syntax.name != str(syntax) and syntax.is_transfer_syntax else f"an unknown syntax ({syntax})"


def _is_color(data: Dataset) -> bool:
    return int(data.get("SamplesPerPixel", 1)) == 3 or data.get("PhotometricInterpretation") == "PALETTE COLOR"


def _rgb(frame: np.ndarray, data: Dataset) -> np.ndarray:
    """``[H, W, 3]`` uint8 or uint16; pydicom has turned YBR into RGB already."""
    if data.get("PhotometricInterpretation") == "PALETTE COLOR":
        frame = apply_color_lut(frame, data)[..., :3]
        bits = 8 * frame.dtype.itemsize
    else:
        bits = int(data.get("BitsStored", 8))
    if frame.dtype == np.uint8:
        return frame
    return stretch(frame, 0, 2**bits - 1)


def _functional(data: Dataset, index: int, sequence: str) -> Dataset | None:
    """The item of a functional group that applies to a frame: of the frame itself, or shared (PS3.3 C.7.6.16)."""
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    groups = [per_frame[index]] if index < len(per_frame) else []
    groups += list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    for group in groups:
        if group.get(sequence):
            return group[sequence].value[0]
    return None


def _rescale(data: Dataset, index: int) -> tuple[float, float] | None:
    """Slope and intercept of a frame, or None where the file states none."""
    source = data if "RescaleSlope" in data else _functional(data, index, "PixelValueTransformationSequence")
    if source is None or source.get("RescaleSlope") is None:
        return None
    return float(source.RescaleSlope), float(source.get("RescaleIntercept") or 0)


def _rescaled(frame: np.ndarray, data: Dataset, index: int) -> np.ndarray:
    """Stored values through the modality LUT, float64."""
    if data.get("ModalityLUTSequence"):
        return apply_modality_lut(frame, data).astype(np.float64)
    values = frame.astype(np.float64)
    rescale = _rescale(data, index)
    return values if rescale is None else values * rescale[0] + rescale[1]


def _window(data: Dataset, index: int) -> tuple[float, float] | None:
    """Smallest and largest value of the first window: PS3.3 C.11.2.1.2 (LINEAR) and C.11.2.1.3.2 (LINEAR_EXACT)."""
    source = data if "WindowCenter" in data else _functional(data, index, "FrameVOILUTSequence")
    if source is None or source.get("WindowCenter") is None or source.get("WindowWidth") is None:
        return None
    centre, width = (float(_first(source[name].value)) for name in ("WindowCenter", "WindowWidth"))
    if source.get("VOILUTFunction", "LINEAR") == "LINEAR":
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    else:
        low, high = centre - width / 2, centre + width / 2
    return (low, high) if high > low else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple | pydicom.multival.MultiValue) else value


def _display(values: np.ndarray, data: Dataset, index: int, bounds: tuple[float, float] | None) -> np.ndarray:
    """Values as a picture on the whole range of uint8 or uint16, not inverted any more."""
    if data.get("VOILUTSequence"):
        table = data.VOILUTSequence[0]
        shown = apply_voi(values.astype(np.int64), data).astype(np.float64)
        low, high = 0.0, 2.0 ** int(table.LUTDescriptor[2]) - 1
    elif (window := _window(data, index)) is not None:
        shown, (low, high) = values, window
        if data.get("VOILUTFunction") == "SIGMOID":  # C.11.2.1.3.1
            shown, low, high = 1 / (1 + np.exp(-4 * (values - (low + high) / 2) / (high - low))), 0.0, 1.0
    else:
        shown = values
        low, high = bounds if bounds is not None else (0.0, 2.0 ** int(data.get("BitsStored", 8)) - 1)
    stored = stretch(shown, low, high)
    if int(data.get("BitsStored", 16) or 16) <= 8 and "PixelData" in data:
        stored = np.rint(stored / 257.0).astype(np.uint8)
    return np.iinfo(stored.dtype).max - stored if data.get("PhotometricInterpretation") == "MONOCHROME1" else stored


def _needs_range(data: Dataset) -> bool:
    """Whether only the values themselves can say what is black and what is white."""
    if data.get("VOILUTSequence") or _window(data, 0) is not None:
        return False
    plain = int(data.get("PixelRepresentation", 0) or 0) == 0 and "PixelData" in data
    return not (plain and int(data.get("BitsStored", 16)) <= 8 and _rescale(data, 0) in (None, (1.0, 0.0)))


def _file_range(data: Dataset, ctx: ReadContext) -> tuple[float, float]:
    """Smallest and largest value over all frames, so that the frames of a cine share one scale."""
    ranges = []
    for index, frame in enumerate(_frames(data, ctx)):
        values = _rescaled(frame, data, index)
        if np.isfinite(values).any():
            ranges.append(stretch_range(values))
    if not ranges:
        raise ctx.fail("holds no finite value (all NaN)")
    return min(r[0] for r in ranges), max(r[1] for r in ranges)
