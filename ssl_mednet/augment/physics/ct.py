"""CT: the window through which Hounsfield units are seen."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_mednet.augment.ops import Params, RowOp, between, column, register_op


@register_op("random_window")
class RandomWindow(RowOp):
    """Another window level and width, chosen before anything is clipped (arXiv 2510.08116, arXiv 2311.14990).

    Unlike contrast on the finished picture it shows what the first window cut off, and two tissues that differ go on
    differing by the same Hounsfield units. A policy applies it to the windows of stored values (``stage`` "window"),
    and only to rows that hold Hounsfield units; as a kornia module it acts on finished pictures, which are clipped
    already.

    Args:
        level: largest shift of the centre, as a share of the width.
        width: largest factor on the width minus 1; log-uniform, as often wider as narrower.
    """

    numbers = 2
    stage = "window"

    def __init__(self, level: float = 0.25, width: float = 0.6, p: float = 0.8, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.level, self.log_width = level * strength, math.log1p(width) * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {
            "level": between(u[:, 0], -self.level, self.level),
            "width": torch.exp(between(u[:, 1], -self.log_width, self.log_width)),
        }

    def change_window(self, window: Tensor, params: Params) -> Tensor:
        """``[B, 2]`` smallest and largest stored value to the same."""
        low, high = window.unbind(1)
        width = high - low
        centre = (low + high) / 2 + params["level"] * width
        half = width * params["width"] / 2
        return torch.stack([centre - half, centre + half], dim=1)

    def change(self, images: Tensor, params: Params) -> Tensor:
        whole = torch.tensor([[0.0, 1.0]], device=images.device).expand(len(images), 2)
        low, high = self.change_window(whole, params).unbind(1)
        return ((images - column(low, images)) / column(high - low, images)).clamp(0, 1)
