"""From whatever numbers a file holds to uint8 or uint16, without losing levels that fit."""

from __future__ import annotations

import numpy as np

from ssl_mednet.errors import UnreadableImage


def as_stored(values: np.ndarray, name: str) -> np.ndarray:
    """Pixels as uint8 or uint16.

    Unsigned 8 and 16 bit stay as they are, boolean becomes 0 and 255. Signed and wider integers, and floats, are mapped
    linearly from their own smallest..largest value to the whole range of uint16; infinities and NaN take the smallest
    finite value.

    Raises:
        UnreadableImage: no finite value at all, or numbers that are no brightness (complex, object).
    """
    if values.dtype == bool:
        return values.astype(np.uint8) * 255
    if values.dtype in (np.uint8, np.uint16):
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind not in "iuf":
        raise UnreadableImage(name, f"holds values of type {values.dtype.name}, which are no brightness")
    finite = np.isfinite(values) if values.dtype.kind == "f" else np.ones(1, bool)
    if not finite.any():
        raise UnreadableImage(name, "holds no finite value (all NaN)")
    low, high = stretch_range(values)
    return stretch(values, low, high)


def bits_window(values: np.ndarray) -> tuple[float, float]:
    """What becomes 0 and 1 of a picture or of a stack of them as the file has it: the ends of the range of its bits.

    Most 16-bit pictures in medicine hold 12 bits (CT, radiographs, cameras) and would be all but black over the whole
    range: where no value needs more than 12 or 8 bits they are taken for pictures of so many. Pixels that
    :func:`as_stored` stretched use all 16.
    """
    if values.dtype != np.uint16 or not values.size:
        return (0.0, 255.0) if values.dtype in (np.uint8, bool) else (0.0, 65535.0)
    highest = int(values.max())
    return 0.0, float(next(2**bits - 1 for bits in (8, 12, 16) if highest < 2**bits))


def stretch_range(values: np.ndarray) -> tuple[float, float]:
    """Smallest and largest finite value."""
    kept = values[np.isfinite(values)] if values.dtype.kind == "f" else values
    return float(kept.min()), float(kept.max())


def stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """``low..high`` to 0..65535 as uint16, clipped; what is not finite becomes 0."""
    scale = 65535.0 / (high - low) if high > low else 0.0
    scaled = (np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low) - low) * scale
    return np.clip(np.rint(scaled), 0, 65535).astype(np.uint16)


def in_channels(pixels: np.ndarray, name: str) -> np.ndarray:
    """``[H, W]``, ``[H, W, 1]``, ``[H, W, 2]``, ``[H, W, 3]`` or ``[H, W, 4]`` as ``[H, W, 1]`` or ``[H, W, 3]``.

    A fourth channel (or second) is opacity and is dropped: medical pictures use it for nothing else.

    Raises:
        UnreadableImage: another shape.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 2, 3, 4):
        raise UnreadableImage(name, f"has shape {list(pixels.shape)}, which is no picture of 1 or 3 channels")
    return pixels[..., :1] if pixels.shape[2] < 3 else pixels[..., :3]


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """``[H, W, ...]`` turned as tag 274 of EXIF and TIFF says (TIFF 6.0, page 36), else as it is."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)  # 5: no more; 6 and 8 are quarter turns, 7 is the other diagonal
    rows = slice(None, None, -1 if orientation in (3, 4, 7, 8) else 1)
    columns = slice(None, None, -1 if orientation in (2, 3, 6, 7) else 1)
    return np.ascontiguousarray(pixels[rows, columns])
