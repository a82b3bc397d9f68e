"""NIfTI-1 and -2, plain and gzipped: volumes as slices along the axis of acquisition."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.spatialimages import SpatialImage

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.packed import content
from ssl_mednet.imaging.readers.volume import Upright, color_slices, slices


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """Slices of the volume, or of each volume of a series, as :func:`.volume.slices` makes them.

    Whatever order its voxels are stored in, by the affine rows run from anterior to posterior or from superior to
    inferior, and columns from the patient's right to left or from anterior to posterior, as radiologists see them and
    as DICOM comes. Without an affine NIfTI says that x goes to the left, y to anterior.

    Raises:
        UnreadableImage: damaged, too large, or without any finite value that varies.
    """
    image = _load(content(source, ctx), ctx)
    shape = image.shape
    ctx.check_size(*shape)
    structured = image.get_data_dtype().fields is not None
    data: Any = np.asarray(image.dataobj) if structured else np.asarray(image.dataobj, dtype=np.float32)
    data, spacing, upright = _oriented(data, image)
    if structured:  # RGB24: three bytes a voxel
        yield from color_slices(np.stack([data[c] for c in ("R", "G", "B")], axis=-1), ctx, upright)
        return
    yield from slices(data, spacing, ctx, upright)


def _oriented(data: np.ndarray, image: SpatialImage) -> tuple[np.ndarray, tuple[float, ...], Upright]:
    """The voxels with axes to right, anterior and superior, their spacing, and how a plane of them is turned upright.

    Where the affine says nothing (a picture of two axes, or it is damaged), axes stay as they are stored.
    """
    spacing = tuple(map(float, image.header.get_zooms()[:3]))
    if data.ndim < 3 or not np.isfinite(image.affine).all():
        return data, spacing, np.rot90
    axes = nibabel.orientations.io_orientation(image.affine)
    if np.isnan(axes).any():
        return data, spacing, np.rot90
    order = np.argsort(axes[:, 0])
    turned = nibabel.orientations.apply_orientation(data, axes)
    return turned, tuple(spacing[i] for i in order), lambda plane: plane[::-1, ::-1].swapaxes(0, 1)


def _load(data: bytes, ctx: ReadContext) -> SpatialImage:
    kind = nibabel.Nifti2Image if data[4:7] in (b"n+2", b"ni2") else nibabel.Nifti1Image
    if len(data) < kind.header_class.sizeof_hdr:
        raise ctx.fail(f"is truncated: {len(data)} bytes are less than a header")
    try:
        return kind.from_bytes(data)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError, ValueError) as error:
        raise ctx.fail("its header is no NIfTI header") from error
