"""What an image is in this toolkit: one 2-D picture at its native bit depth, with the range that maps it to [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from PIL import Image

from ssl_mednet.imaging.modality import generic

# Stored CT values are Hounsfield units plus this offset, so that they fit uint16 (stored 0 is -32768 HU).
HU_OFFSET = 32768
# Where a CT file states no window: soft tissue, level 40 and width 400 HU.
DEFAULT_CT_WINDOW = (-160.0, 240.0)
MAX_PIXELS = 512 * 1024 * 1024


@dataclass(frozen=True)
class MedicalImage:
    """One 2-D image: a file, a slice, a frame or a tile.

    Args:
        pixels: ``[H, W, C]``, C-contiguous, uint8 or uint16, C is 1 or 3. CT in Hounsfield units is stored as
            ``HU + HU_OFFSET`` in uint16, so no level is lost before a window is chosen.
        modality: a name from :data:`ssl_mednet.imaging.modality.MODALITIES`.
        window: the stored values ``(low, high)`` that map to 0 and 1; values outside are clipped.
        quantity: ``"hu"`` when the values are Hounsfield units plus the offset, else ``"intensity"``.
        group: what must not be split between training and test (a patient, a lesion, a slide), as the source names it;
            it never leaves the process as it is. Empty where the source has none.
        by_tag: the group is what the user asked for, also where it is empty: nothing else names it.
        index: position of this image in its volume (slice, frame or tile), 0 for single images.
        volume: what it is a part of (a volume, a series, a cine, a slide), as the source names it; like the group it
            never leaves the process as it is. Empty for single images.

    Raises:
        ValueError: pixels of another dtype or shape, an empty image, or an empty window.
    """

    pixels: np.ndarray
    modality: str = ""
    window: tuple[float, float] = (0.0, 0.0)
    quantity: Literal["intensity", "hu"] = "intensity"
    group: str = ""
    index: int = 0
    volume: str = ""
    by_tag: bool = False

    def __post_init__(self) -> None:
        p = self.pixels
        if p.dtype not in (np.uint8, np.uint16):
            raise ValueError(f"pixels must be uint8 or uint16, not {p.dtype}")
        if p.ndim != 3 or p.shape[2] not in (1, 3):
            raise ValueError(f"pixels must be [H, W, 1] or [H, W, 3], not {list(p.shape)}")
        if 0 in p.shape:
            raise ValueError(f"the image is empty: {p.shape[1]} x {p.shape[0]} pixels")
        if not self.modality:
            object.__setattr__(self, "modality", generic(p.shape[2]))
        if self.window == (0.0, 0.0):
            object.__setattr__(self, "window", (0.0, 255.0 if p.dtype == np.uint8 else 65535.0))
        if not self.window[0] < self.window[1]:
            raise ValueError(f"the window {self.window} is empty")
        object.__setattr__(self, "pixels", np.ascontiguousarray(p))

    @property
    def channels(self) -> int:
        return int(self.pixels.shape[2])

    def unit(self) -> np.ndarray:
        """The picture as float32 ``[H, W, C]`` in [0, 1]: windowed and clipped."""
        low, high = self.window
        return np.clip((self.pixels.astype(np.float32) - low) / (high - low), 0.0, 1.0)

    def shrunk(self, longest: int) -> MedicalImage:
        """This image with its longest side at most ``longest`` pixels: area-averaged, depth kept, never enlarged."""
        height, width = self.pixels.shape[:2]
        scale = longest / max(height, width)
        if scale >= 1:
            return self
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        planes = [self._resize_plane(self.pixels[..., c], size) for c in range(self.channels)]
        return replace(self, pixels=np.stack(planes, axis=-1))

    @staticmethod
    def _resize_plane(plane: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """``[H, W]`` to ``size`` (width, height), with Pillow's antialiased bilinear filter, in float for 16 bit."""
        if plane.dtype == np.uint8:
            return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BILINEAR))
        resized = Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
        return np.clip(np.rint(np.asarray(resized)), 0, 65535).astype(np.uint16)


def collapse_gray(pixels: np.ndarray, tolerance: int = 2) -> np.ndarray:
    """Gray pictures saved as RGB back to one channel.

    Args:
        pixels: ``[H, W, 3]``.
        tolerance: how far the channels may lie apart (in 8-bit steps) and still count as equal.

    Returns:
        ``[H, W, 1]`` where all three channels agree, else ``pixels`` as they are.
    """
    if pixels.shape[2] != 3:
        return pixels
    step = tolerance * (257 if pixels.dtype == np.uint16 else 1)
    wide = pixels.astype(np.int32)
    return pixels[..., 1:2] if int(np.ptp(wide, axis=2).max(initial=0)) <= step else pixels
