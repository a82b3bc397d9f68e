"""NIfTI-1 and -2, plain and gzipped: volumes as slices along the axis of acquisition."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.levels import stretch, stretch_range

_WINDOW = (0.5, 99.5)  # percentiles of a volume that map to black and white


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """Slices of the volume, or of each volume of a series.

    The slice axis is the one with the coarsest spacing (the last where several are alike). Values are mapped linearly
    from the volume's smallest..largest to uint16, so no level of a 16-bit scan is lost; the window is the volume's
    0.5 to 99.5 percentile. Constant slices (beyond the head) are left out; NaN counts as the smallest value. Slices
    are turned so that rows run from anterior to posterior or superior to inferior, as radiologists see them.

    Raises:
        UnreadableImage: damaged, too large, or without any finite value that varies.
    """
    image = _load(_unzipped(source, ctx), ctx)
    shape = image.shape
    ctx.check_size(*shape)
    structured = image.get_data_dtype().fields is not None
    data: Any = np.asarray(image.dataobj) if structured else np.asarray(image.dataobj, dtype=np.float32)
    if structured:  # RGB24: three bytes a voxel
        yield from _color(np.stack([data[c] for c in ("R", "G", "B")], axis=-1), ctx)
        return
    if data.ndim < 2 or data.ndim > 5:
        raise ctx.fail(f"has {data.ndim} dimensions; 2 to 5 are pictures")
    data = data.reshape(*data.shape[:3], -1) if data.ndim > 2 else data[:, :, None, None]
    axis = _slice_axis(image.header.get_zooms()[:3], data.shape[:3])
    yield from _slices(np.moveaxis(data, axis, 2), ctx)


def _slices(data: np.ndarray, ctx: ReadContext) -> Iterator[MedicalImage]:
    if not np.isfinite(data).any():
        raise ctx.fail("holds no finite value (all NaN)")
    index = 0
    for t in range(data.shape[3]):
        volume = data[..., t]
        if not np.isfinite(volume).any():
            continue
        low, high = stretch_range(volume)
        bounds = np.percentile(volume[np.isfinite(volume)], _WINDOW)
        window = tuple((bounds - low) * (65535.0 / (high - low))) if high > low else (0.0, 0.0)
        window = (float(window[0]), float(window[1])) if window[1] - window[0] >= 1 else (0.0, 65535.0)
        for k in range(volume.shape[2]):
            plane = volume[:, :, k]
            if np.nanmin(plane) != np.nanmax(plane):
                stored = np.rot90(stretch(plane, low, high))
                yield MedicalImage(stored[..., None], ctx.modality, window, index=index)
            index += 1
    if not index:
        raise ctx.fail("is empty")


def _color(data: np.ndarray, ctx: ReadContext) -> Iterator[MedicalImage]:
    data = data.reshape(*data.shape[:2], -1, 3).astype(np.uint8)
    for k in range(data.shape[2]):
        if data[:, :, k].any():
            yield MedicalImage(np.rot90(data[:, :, k]), ctx.modality, index=k)


def _slice_axis(zooms: tuple[float, ...], shape: tuple[int, ...]) -> int:
    spacing = [*map(float, zooms), *[1.0] * (3 - len(zooms))]
    candidates = [a for a in range(3) if shape[a] > 1] or [2]
    if len(candidates) < 3:
        return next(a for a in (2, 1, 0) if shape[a] == 1)
    coarsest = max(spacing)
    return max(a for a in candidates if spacing[a] > coarsest * 0.99)


def _load(data: bytes, ctx: ReadContext) -> SpatialImage:
    kind = nibabel.Nifti2Image if data[4:7] in (b"n+2", b"ni2") else nibabel.Nifti1Image
    if len(data) < kind.header_class.sizeof_hdr:
        raise ctx.fail(f"is truncated: {len(data)} bytes are less than a header")
    try:
        return kind.from_bytes(data)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, ValueError) as error:
        raise ctx.fail("its header is no NIfTI header") from error


def _unzipped(source: Path | bytes, ctx: ReadContext) -> bytes:
    """The content, gunzipped up to a limit: a bomb is refused where it passes the limit, not where it ends."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    if data[:2] != b"\x1f\x8b":
        return data
    limit = 8 * ctx.max_pixels
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            content = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ctx.fail("is a truncated or damaged gzip file") from error
    if len(content) > limit:
        raise ctx.fail(f"unpacks to more than {limit:,} bytes")
    return content
