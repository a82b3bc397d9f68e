"""DICOM: every frame of a file through modality LUT, VOI LUT or window, and inversion, in the order of the standard.

PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT), C.7.6.3.1.2 (photometric interpretation). No text of any tag but the
coded ones that say how to read the pixels ever reaches a message.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.uid import UID

from ssl_mednet.imaging.image import DEFAULT_CT_WINDOW, HU_OFFSET, MedicalImage
from ssl_mednet.imaging.modality import DICOM_MODALITY
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.frames import along_normal, decoded, functional, places
from ssl_mednet.imaging.readers.levels import stretch, stretch_range
from ssl_mednet.imaging.readers.tags import value_of

_NO_PICTURES = {  # SOP classes, PS3.4, annex B.5
    "1.2.840.10008.5.1.4.1.1.66.4": "a segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "a label map",
    "1.2.840.10008.5.1.4.1.1.481.2": "a distribution of dose",
}
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_DEFLATED_ANYWAY = 16 * 1024**2  # bytes that any deflated file may unpack to
_HEAD, _CHUNK = 1024, 1024**2
_Shown = tuple[np.ndarray, tuple[float, float], Literal["intensity", "hu"]]


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """The frames of a file.

    - CT with a rescale: Hounsfield units plus ``HU_OFFSET`` in uint16, with the file's window (or soft tissue).
    - Other gray: after the file's first VOI LUT or window, on the whole range of uint8 (up to 8 bits stored) or uint16.
      Without either, the file's own smallest..largest value takes the whole range, so nothing is clipped (PET, MR).
    - MONOCHROME1 is inverted, so both photometric interpretations of a picture give equal pixels.
    - Palettes and YBR become RGB.

    ``group`` of each image is the patient's identifier as it stands in the file (or what it says at ``ctx.group_tag``),
    ``volume`` the series (of one slice)
    or the file (of many frames), and ``index`` the place of the frame: along the normal of the planes where an
    enhanced file says where they lie, in the order of the file (time) otherwise.

    Raises:
        UnreadableImage: no pixels, an unknown compression, or damage; frames before the damage have been yielded.
    """
    data = _open(source, ctx)
    modality = DICOM_MODALITY.get(str(data.get("Modality", "")).strip(), ctx.modality)
    if _is_color(data) and modality in ("ct", "mri"):
        modality = ""  # a color rendering
    group = value_of(data, ctx.group_tag or "PatientID")
    place, volume = places(data), _volume(data)
    show = _show(data, modality, ctx)
    wanted = _wanted(data, place, ctx)
    numbers: Iterable[int] = count() if wanted is None else wanted
    for index, frame in zip(numbers, decoded(data, ctx, wanted), strict=False):
        pixels, window, quantity = show(frame, index)
        where = place[index] if place else index
        yield MedicalImage(pixels, modality, window, quantity, group, where, volume, bool(ctx.group_tag))


def _wanted(data: Dataset, place: list[int] | None, ctx: ReadContext) -> list[int] | None:
    """The frames that are taken, evenly spread in space or time; None for all, however many there really are."""
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if not 0 < ctx.most < frames:
        return None
    wanted = set(ctx.chosen(frames))
    return [i for i in range(frames) if (place[i] if place else i) in wanted]


def _volume(data: Dataset) -> str:
    """What the images of a file are a part of: slices of a series, frames of the file; "" for a single picture."""
    series, instance = str(data.get("SeriesInstanceUID", "") or ""), str(data.get("SOPInstanceUID", "") or "")
    if int(data.get("NumberOfFrames", 1) or 1) > 1:
        return f"{series} {instance}"
    return series if along_normal(data.get("ImagePositionPatient"), data.get("ImageOrientationPatient")) else ""


def _show(data: Dataset, modality: str, ctx: ReadContext) -> Callable[[np.ndarray, int], _Shown]:
    """From a frame as it is stored, and its number, to pixels, window and quantity of a :class:`MedicalImage`."""
    if _is_color(data):
        return lambda frame, index: (_rgb(frame, data), (0.0, 0.0), "intensity")
    bounds = _file_range(data, ctx) if _needs_range(data) and not (modality == "ct" and _rescale(data, 0)) else None

    def show(frame: np.ndarray, index: int) -> _Shown:
        values = _rescaled(frame, data, index)
        if modality == "ct" and _rescale(data, index) is not None:
            stored = np.clip(np.rint(values) + HU_OFFSET, 0, 65535).astype(np.uint16)
            low, high = _window(data, index) or DEFAULT_CT_WINDOW
            return stored[..., None], (low + HU_OFFSET, high + HU_OFFSET), "hu"
        return _display(values, data, index, bounds)[..., None], (0.0, 0.0), "intensity"

    return show


def _open(source: Path | bytes, ctx: ReadContext) -> Dataset:
    _refuse_bomb(source, ctx)
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
    if what := _NO_PICTURES.get(str(data.get("SOPClassUID", ""))):
        raise ctx.fail(f"holds {what}, which is no picture")
    rows, columns = int(data.get("Rows", 0) or 0), int(data.get("Columns", 0) or 0)
    ctx.check_size(rows, columns, max(1, int(data.get("NumberOfFrames", 1) or 1)))
    _swap_palette(data)
    _sign_lut(data)
    return data


def _refuse_bomb(source: Path | bytes, ctx: ReadContext) -> None:
    """Unpack a deflated file (PS3.5 A.5) to see how long it is, since pydicom unpacks it without a limit."""
    if isinstance(source, bytes):
        start = source[:_HEAD]
    else:
        with source.open("rb") as file:
            start = file.read(_HEAD)
    if _DEFLATED not in start:
        return
    whole = source if isinstance(source, bytes) else source.read_bytes()
    behind = 144 + int.from_bytes(whole[140:144], "little")  # the length of the file meta group, PS3.10 7.1
    limit, total = max(_DEFLATED_ANYWAY, 2 * ctx.max_pixels), 0
    machine, packed = zlib.decompressobj(-15), whole[behind:]
    while packed and not machine.eof:
        total += len(machine.decompress(packed, _CHUNK))
        packed = machine.unconsumed_tail
        if total > limit:
            raise ctx.fail(f"unpacks to more than {limit:,} bytes")


def _swap_palette(data: Dataset) -> None:
    """Palettes of big-endian files in the byte order in which pydicom 3.0 reads them, which is the machine's."""
    if data.original_encoding[1] is False:
        for color in ("Red", "Green", "Blue"):
            table = data.get(f"{color}PaletteColorLookupTableData")
            if isinstance(table, bytes) and len(table) % 2 == 0:
                data[f"{color}PaletteColorLookupTableData"].value = np.frombuffer(table, ">u2").astype("=u2").tobytes()


def _sign_lut(data: Dataset) -> None:
    """The first value of a VOI LUT with its sign, which follows from the rescale and not from the stored values.

    PS3.3 C.11.2.1.1; where its type is not written in the file, pydicom takes that of the stored values.
    """
    rescale = _rescale(data, 0)
    for item in data.get("VOILUTSequence") or ():
        entries, first, bits = item.LUTDescriptor
        if rescale is not None and rescale[1] < 0 and first > np.iinfo(np.int16).max:
            item.LUTDescriptor = [entries, first - 2**16, bits]


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


def _rescale(data: Dataset, index: int) -> tuple[float, float] | None:
    """Slope and intercept of a frame, or None where the file states none."""
    source = data if "RescaleSlope" in data else functional(data, index, "PixelValueTransformationSequence")
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
    source = data if "WindowCenter" in data else functional(data, index, "FrameVOILUTSequence")
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


def _is_padding(frame: np.ndarray, data: Dataset) -> np.ndarray:
    """Where a frame, as it is stored, holds what fills it up beyond the picture (PS3.3, C.7.5.1.1.2)."""
    value = data.get("PixelPaddingValue")
    if not isinstance(value, int):
        return np.zeros(frame.shape, bool)
    limit = data.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return (frame >= low) & (frame <= high)


def _file_range(data: Dataset, ctx: ReadContext) -> tuple[float, float]:
    """Smallest and largest value over all frames, so that the frames of a cine share one scale."""
    ranges = []
    for index, frame in enumerate(decoded(data, ctx)):
        values = _rescaled(frame, data, index)[~_is_padding(frame, data)]
        if np.isfinite(values).any():
            ranges.append(stretch_range(values))
    if not ranges:
        raise ctx.fail("holds no finite value (all NaN)")
    return min(r[0] for r in ranges), max(r[1] for r in ranges)
