"""JPEG compression: the blocks and rings that archives, scanners and telemedicine leave, differentiable."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.augment.ops import Params, RowOp, between, register_op

# Quantisation steps at quality 50: ITU-T T.81, annex K, tables K.1 (luminance) and K.2 (chrominance).
_LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMINANCE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *((99,) * 8,) * 4,
)
# JFIF: RGB to Y, Cb, Cr.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


@register_op("jpeg")
class JPEG(RowOp):
    """Coding and decoding at a quality uniform in the range: 8 x 8 cosine transform, quantised by the tables of T.81.

    Quality scales the tables as libjpeg does, in whole steps; color goes through YCbCr with chroma at full resolution
    (4:4:4), since the view is usually smaller than the picture that was coded. Sizes that are no multiple of 8 are
    padded by their last pixel. Rounding passes gradients straight through. Quality 100 stands for no coding at all.

    Args:
        quality: lowest and highest at strength 1; strength moves both towards 100.
    """

    numbers = 1

    def __init__(self, quality: tuple[float, float] = (30, 95), p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.low, self.high = (100 - (100 - q) * strength for q in quality)

    def parameters_from(self, u: Tensor) -> Params:
        return {"quality": between(u[:, 0], self.low, self.high)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        height, width = images.shape[-2:]
        color = images.shape[1] == 3
        x = images.float()
        x = F.pad(x, (0, -width % 8, 0, -height % 8), mode="replicate")
        if color:
            matrix = torch.tensor(_TO_YCC, device=x.device)
            x = torch.matmul(matrix, x.flatten(2)).view_as(x)
            x[:, 0] -= 128 / 255  # the level shift; Cb and Cr lie about 0 already
        else:
            x = x - 128 / 255
        x = _quantise(x, quantisation_steps(params["quality"].float(), color) / 255)
        if color:
            x[:, 0] += 128 / 255
            x = torch.matmul(torch.linalg.inv(matrix), x.flatten(2)).view_as(x)
        else:
            x = x + 128 / 255
        out = x[..., :height, :width].clamp(0, 1).to(images.dtype)
        return torch.where(params["quality"].view(-1, 1, 1, 1) < 100, out, images)


def quantisation_steps(quality: Tensor, color: bool) -> Tensor:
    """``[B]`` qualities to ``[B, 3 or 1, 8, 8]`` steps, whole numbers in [1, 255], in units of 8-bit gray levels."""
    tables = (_LUMINANCE, _CHROMINANCE, _CHROMINANCE) if color else (_LUMINANCE,)
    base = torch.tensor(tables, device=quality.device, dtype=torch.float32)
    percent = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality).floor()
    return ((base * percent.view(-1, 1, 1, 1) + 50) / 100).floor().clamp(1, 255)


def _quantise(x: Tensor, steps: Tensor) -> Tensor:
    """Round the cosine coefficients of every 8 x 8 block to multiples of ``steps`` ``[B, C, 8, 8]``."""
    cosine = _cosine(x.device)
    steps = steps[:, :, None, :, None, :]
    scaled = _transform(x, cosine).view(*x.shape[:2], x.shape[2] // 8, 8, x.shape[3] // 8, 8) / steps
    rounded = scaled + (scaled.detach().round() - scaled.detach())
    return _transform((rounded * steps).view_as(x), cosine.T)


def _transform(x: Tensor, matrix: Tensor) -> Tensor:
    """``matrix @ block @ matrix^T`` for each 8 x 8 block of ``[B, C, H, W]``."""
    across = x.reshape(-1, 8) @ matrix.T
    return torch.matmul(matrix, across.view(-1, 8, x.shape[3])).view_as(x)


def _cosine(device: torch.device) -> Tensor:
    """The orthonormal cosine transform (T.81, A.3.3), ``[frequency, place]``."""
    n = torch.arange(8, device=device, dtype=torch.float32)
    matrix = torch.cos(math.pi / 16 * torch.outer(n, 2 * n + 1)) / 2
    matrix[0] /= math.sqrt(2)
    return matrix
