"""Stored images of one batch, as they come from the corpus and go to the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_mednet.imaging.image import HU_OFFSET


@dataclass(frozen=True)
class ImageBatch:
    """Images side by side on one canvas, each in the top left corner with its border repeated beyond it.

    Args:
        pixels: ``[B, C, H, W]`` uint8 or uint16, stored values.
        sizes: ``[B, 2]`` int64, height and width of each image on the canvas.
        window: ``[B, 2]`` float32, the stored values that map to 0 and 1.
        modality: ``[B]`` int64, codes of :data:`ssl_mednet.imaging.modality.MODALITIES`; always on the CPU.
        rows: ``[B]`` int64, positions in the corpus; always on the CPU.
    """

    pixels: Tensor
    sizes: Tensor
    window: Tensor
    modality: Tensor
    rows: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device | str) -> ImageBatch:
        """The same batch on ``device``; copies do not block where the memory is pinned.

        What decides which row gets what (modality and row numbers) stays on the CPU, so that nothing waits for a GPU.
        """
        pixels, sizes, window = (t.to(device, non_blocking=True) for t in (self.pixels, self.sizes, self.window))
        return ImageBatch(pixels, sizes, window, self.modality, self.rows)

    def take(self, index: Tensor) -> ImageBatch:
        """Some of the rows, in the order of ``index`` (on the CPU, or on the device of the pixels)."""
        there, here = index.to(self.pixels.device, non_blocking=True), index.cpu()
        return ImageBatch(
            select_images(self.pixels, there),
            self.sizes[there],
            self.window[there],
            self.modality[here],
            self.rows[here],
        )

    @property
    def hounsfield(self) -> Tensor:
        """``[B]`` bool on the pixels' device: rows that hold Hounsfield units, whose windows lie far above 0."""
        return self.window[:, 0] > HU_OFFSET / 2

    def pin_memory(self) -> ImageBatch:
        """The same batch in page-locked memory, for copies to a GPU that overlap with its work."""
        return ImageBatch(*(getattr(self, f).pin_memory() for f in self.__dataclass_fields__))

    def unit(self) -> Tensor:
        """``[B, C, H, W]`` float32 in [0, 1]: every image through its own window, clipped."""
        return seen_through(self.window, self.pixels.to(torch.float32, copy=True))


def select_images(images: Tensor, index: Tensor) -> Tensor:
    """``images[index]`` of any type: torch moves uint16 by far slower than int16, and the bits are the same."""
    if images.dtype != torch.uint16:
        return images.index_select(0, index)
    return images.view(torch.int16).index_select(0, index).view(torch.uint16)


def seen_through(window: Tensor, values: Tensor) -> Tensor:
    """Stored values ``[N, C, H, W]`` as [0, 1] through the window ``[N, 2]`` of each, clipped; written over them."""
    low, high = (window[:, i].view(-1, 1, 1, 1) for i in (0, 1))
    return values.sub_(low).mul_(1.0 / (high - low)).clamp_(0.0, 1.0)
