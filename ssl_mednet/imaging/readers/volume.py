"""What all volume formats share: slices along the axis of acquisition, on one scale, empty ones left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

import numpy as np

from ssl_mednet.imaging.image import DEFAULT_CT_WINDOW, HU_OFFSET, MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.levels import stretch, stretch_range

Upright = Callable[[np.ndarray], np.ndarray]
_WINDOW = (0.5, 99.5)  # percentiles of a volume that map to black and white
_AIR = -500.0  # Hounsfield units: a CT of anything in a bore holds air, and no other scale goes this low by chance
_HIGHEST = 65535.0 - HU_OFFSET  # largest Hounsfield unit that is stored


def slices(
    data: np.ndarray, spacing: Sequence[float], ctx: ReadContext, upright: Upright = np.rot90
) -> Iterator[MedicalImage]:
    """The slices of a volume or of a series of volumes.

    The slice axis is the one with the coarsest spacing (the last where several are alike). Values are mapped linearly
    from the volume's smallest..largest to uint16, so no level of a 16-bit scan is lost; the window is the volume's
    0.5 to 99.5 percentile. Where the caller says that it is CT, and the values are in the range of Hounsfield units
    (air is there), they stay Hounsfield units. Constant slices (beyond the head) are left out but counted, so
    ``index`` is the position; NaN counts as the smallest value.

    Args:
        data: ``[X, Y]``, ``[X, Y, Z]`` or more axes behind, which are further volumes; the axes as the spacing has
            them.
        spacing: mm (or any unit) between samples along the first three axes.
        upright: from an ``[X, Y]`` plane to a picture with rows and columns.

    Raises:
        UnreadableImage: the wrong number of axes, no finite value at all, or nothing but constant slices.
    """
    if data.ndim < 2 or data.ndim > 5:
        raise ctx.fail(f"has {data.ndim} dimensions; 2 to 5 are pictures")
    data = data.reshape(*data.shape[:3], -1) if data.ndim > 2 else data[:, :, None, None]
    data = np.moveaxis(data, slice_axis(spacing, data.shape[:3]), 2)
    if not np.isfinite(data).any():
        raise ctx.fail("holds no finite value (all NaN)")
    name = ctx.name if data.shape[2] * data.shape[3] > 1 else ""
    count = data.shape[2]
    varied = [n for n in range(count * data.shape[3]) if _varies(data[:, :, n % count, n // count])]
    if not varied:
        raise ctx.fail("holds no slice in which anything varies")
    wanted = [varied[i] for i in ctx.chosen(len(varied))]
    for t, numbers in groupby(wanted, lambda n: n // count):
        scale = _Scale(data[..., t], ctx.modality)
        for n in numbers:
            yield scale.image(upright(data[:, :, n % count, t]), ctx.modality, name, n)


def _varies(plane: np.ndarray) -> bool:
    finite = np.isfinite(plane)
    return bool(finite.any() and np.nanmin(plane) != np.nanmax(plane))


def color_slices(data: np.ndarray, ctx: ReadContext, upright: Upright = np.rot90) -> Iterator[MedicalImage]:
    """The slices of a volume of RGB voxels, ``[X, Y, Z..., 3]``, all-black ones left out but counted."""
    data = data.reshape(*data.shape[:2], -1, 3).astype(np.uint8)
    name = ctx.name if data.shape[2] > 1 else ""
    seen = [k for k in range(data.shape[2]) if data[:, :, k].any()]
    for k in (seen[i] for i in ctx.chosen(len(seen))):
        yield MedicalImage(upright(data[:, :, k]), ctx.modality, index=k, volume=name)


class _Scale:
    """How the values of one volume are stored: Hounsfield units as they are, anything else on the whole uint16."""

    def __init__(self, volume: np.ndarray, modality: str) -> None:
        self.low, self.high = stretch_range(volume)
        self.hounsfield = modality == "ct" and -HU_OFFSET <= self.low <= _AIR and self.high <= _HIGHEST
        if self.hounsfield:
            self.window = (DEFAULT_CT_WINDOW[0] + HU_OFFSET, DEFAULT_CT_WINDOW[1] + HU_OFFSET)
            return
        bounds = np.percentile(volume[np.isfinite(volume)], _WINDOW)
        span = self.high - self.low
        window = [float(b - self.low) * (65535.0 / span) for b in bounds] if span > 0 else [0.0, 0.0]
        self.window = (window[0], window[1]) if window[1] - window[0] >= 1 else (0.0, 65535.0)

    def image(self, plane: np.ndarray, modality: str, volume: str, index: int) -> MedicalImage:
        if not self.hounsfield:
            stored = stretch(plane, self.low, self.high)
            return MedicalImage(stored[..., None], modality, self.window, index=index, volume=volume)
        finite = np.nan_to_num(plane.astype(np.float64), nan=self.low, posinf=self.high, neginf=self.low)
        stored = np.clip(np.rint(finite) + HU_OFFSET, 0, 65535).astype(np.uint16)
        return MedicalImage(stored[..., None], modality, self.window, "hu", index=index, volume=volume)


def slice_axis(spacing: Sequence[float], shape: Sequence[int]) -> int:
    """The axis of acquisition of a volume: across its slices, which lie farther apart than the pixels in them."""
    known = [*map(abs, map(float, spacing)), *[1.0] * (3 - len(spacing))]
    candidates = [a for a in range(3) if shape[a] > 1] or [2]
    if len(candidates) < 3:
        return next(a for a in (2, 1, 0) if shape[a] == 1)
    coarsest = max(known)
    # NaN in a damaged header compares with nothing: then the last axis, as in most files.
    return max((a for a in candidates if known[a] > coarsest * 0.99), default=2)
