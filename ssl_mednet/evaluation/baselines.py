"""What a backbone must beat, as modules like any other: intensity statistics, raw pixels; and gray for color nets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

GRAY_BINS, COLOR_BINS = 64, 8


class Histogram(nn.Module):
    """Square roots of the shares of pixels in 64 bins of intensity, or in 8 x 8 x 8 bins of color.

    With square roots the cosine of two histograms is their Bhattacharyya coefficient. It knows nothing of shape: a task
    that it solves is solved by exposure or stain.
    """

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 1 | 3, H, W]`` in [0, 1] to ``[B, 64 | 512]``."""
        bins = GRAY_BINS if images.shape[1] == 1 else COLOR_BINS
        level = (images * bins).long().clamp(0, bins - 1).flatten(2)  # [B, C, H * W]
        cell = level[:, 0]
        for channel in level.unbind(1)[1:]:
            cell = cell * bins + channel
        counts = torch.zeros(len(images), bins ** images.shape[1], device=images.device)
        counts.scatter_add_(1, cell, torch.ones_like(cell, dtype=counts.dtype))
        return (counts / cell.shape[1]).sqrt()


class Pixels(nn.Module):
    """The pixels themselves, their mean taken out: ``[B, C, H, W]`` to ``[B, C * H * W]``."""

    def forward(self, images: Tensor) -> Tensor:
        return (images - images.mean(dim=(1, 2, 3), keepdim=True)).flatten(1)


class RepeatChannels(nn.Module):
    """A net for three channels, given one or three in [0, 1]: gray is repeated, then each channel is normalised.

    Exact, where a stem with summed kernels is so only for equal statistics of all channels, and away from the border.
    """

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @property
    def num_features(self) -> int:
        return int(self.net.num_features)  # type: ignore[arg-type]

    def forward(self, images: Tensor) -> Tensor:
        return self.net((images.expand(-1, 3, -1, -1) - self.mean) / self.std)


# Module, and the side in pixels that images are resized to.
BASELINES: dict[str, tuple[Callable[[], nn.Module], int]] = {"histogram": (Histogram, 64), "pixels": (Pixels, 28)}
