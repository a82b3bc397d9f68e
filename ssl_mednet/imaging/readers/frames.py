"""The frames of a DICOM file, decoded one after the other, and the order in which they lie in space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, iter_pixels
from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes

from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.jpeg import plugin_for


def decoded(data: Dataset, ctx: ReadContext, wanted: Sequence[int] | None = None) -> Iterator[np.ndarray]:
    """Every frame as it is stored, ``[H, W]`` or ``[H, W, 3]`` (RGB), in the order of the file; or those ``wanted``.

    Raises:
        UnreadableImage: no decoder for the transfer syntax, or frames that cannot be decoded; those before have been
            yielded.
    """
    syntax = data.file_meta.TransferSyntaxUID
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ctx.fail(f"is stored as {_name(syntax)}, which holds no pixels that can be decoded") from error
    if not decoder.is_available:
        raise ctx.fail(f"is compressed as {_name(syntax)}, for which no decoder is installed")
    try:
        yield from _frames(data, syntax, wanted)
    except BaseException as error:
        # A decoder in Rust that gives up raises a "PanicException", which is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ctx.fail(
            f"its pixels cannot be decoded ({_name(syntax)}): truncated, damaged or wrongly described"
        ) from error


def _frames(data: Dataset, syntax: UID, wanted: Sequence[int] | None) -> Iterator[np.ndarray]:
    every = range(int(data.get("NumberOfFrames", 1) or 1))
    # Frame by frame where a sign may have to be put right: iterating, pydicom 3.0 does so in arrays that are read-only.
    signed = syntax in (*JPEG2000TransferSyntaxes, *JPEGLSTransferSyntaxes)
    indices = wanted if wanted is not None else every if signed else None
    return iter_pixels(data, indices=indices, decoding_plugin=plugin_for(syntax))


def _name(syntax: UID) -> str:
    """The standard's name of a transfer syntax. A UID that it does not list may be any text, which is not told."""
    known = syntax.name != str(syntax) and syntax.is_transfer_syntax
    return syntax.name if known else "an unknown transfer syntax"


def functional(data: Dataset, index: int, sequence: str) -> Dataset | None:
    """The item of a functional group that applies to a frame: of the frame itself, or shared (PS3.3 C.7.6.16)."""
    per_frame = data.get("PerFrameFunctionalGroupsSequence") or []
    groups = [per_frame[index]] if index < len(per_frame) else []
    groups += list(data.get("SharedFunctionalGroupsSequence") or [])[:1]
    for group in groups:
        if group.get(sequence):
            return group[sequence].value[0]
    return None


def places(data: Dataset) -> list[int] | None:
    """For each frame of an enhanced file its place along the normal of the planes; None where the file is a cine.

    Frames at one position (phases, echoes) follow each other in the order of the file.
    """
    count = int(data.get("NumberOfFrames", 1) or 1)
    if count < 2 or not data.get("PerFrameFunctionalGroupsSequence"):
        return None
    keys = []
    for index in range(count):
        position = functional(data, index, "PlanePositionSequence")
        orientation = functional(data, index, "PlaneOrientationSequence")
        key = along_normal(
            position and position.get("ImagePositionPatient"),
            orientation and orientation.get("ImageOrientationPatient"),
        )
        if key is None:
            return None
        keys.append(key)
    order = sorted(range(count), key=keys.__getitem__)
    return [place for _, place in sorted(zip(order, range(count), strict=True))]


def along_normal(position: Any, orientation: Any) -> tuple[tuple[float, ...], float] | None:
    """Orientation of a plane, rounded, and how far along its normal it lies, mm (PS3.3 C.7.6.2.1.1).

    None where the file has no usable position or orientation. Sorting by the pair puts the planes of each orientation
    together and in order.
    """
    where, axes = _numbers(position, 3), _numbers(orientation, 6)
    if where is None or axes is None:
        return None
    normal = np.cross(axes[:3], axes[3:])
    length = float(np.linalg.norm(normal))
    if not 0.5 < length < 2.0:
        return None
    # Adding 0 turns -0 into 0, which is another key else.
    return tuple((np.round(normal / length, 2) + 0.0).tolist()), round(float(where @ normal / length), 4)


def _numbers(value: Any, count: int) -> np.ndarray | None:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != count:
        return None
    try:
        numbers = np.array([float(v) for v in value])
    except (TypeError, ValueError):
        return None
    return numbers if np.isfinite(numbers).all() else None
