"""Emission tomography: fewer counts, wider point spread. Uptake is quantitative: both keep its mean."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from scipy.stats import norm, poisson
from torch import Tensor

from ssl_mednet.augment.intensity import gaussian_blur, normal_field
from ssl_mednet.augment.ops import Params, RowOp, between, register_op

_MOST_RATE = 64  # above, the table's last row is stretched: right mean and variance, skewness 1/8 instead of less
_STEP = 1 / 16  # of the root of the rate from row to row of the table
_REACH, _BINS = 5, 1024  # the table's columns: normals in [-5, 5]
_TABLES: dict[torch.device, Tensor] = {}


@register_op("count_thinning")
class CountThinning(RowOp):
    """``Poisson(x k) / k``: a scan with k counts a pixel at full uptake, k log-uniform in [5, 500], clipped at 1.

    The mean is kept wherever ``Poisson(x k)`` seldom exceeds k; nothing is clipped at 0. Strength scales the noise's
    deviation. Cherry et al., Physics in Nuclear Medicine, chapter 9; the range of k is our own.

    Args:
        counts: smallest and largest k.
    """

    numbers = 2

    def __init__(self, counts: tuple[float, float] = (5, 500), p: float = 0.5, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.counts = counts

    def parameters_from(self, u: Tensor) -> Params:
        counts = torch.exp(between(u[:, 0], math.log(self.counts[0]), math.log(self.counts[1])))
        return {"grain": self.strength**2 / counts, "noise": u[:, 1]}  # what one count adds to a pixel

    def change(self, images: Tensor, params: Params) -> Tensor:
        noise = normal_field(params["noise"], (1, *images.shape[2:]), images.device)
        grain = params["grain"].float()[:, None, None, None]
        # Poisson noise has mean 0 whatever the image: the gradient of the mean, 1, stands for that of every pixel.
        rate = images.detach().float() / grain.clamp(min=1e-8)
        return torch.addcmul(images.float(), grain, poisson_noise(rate, noise)).clamp_(0, 1).to(images.dtype)


def poisson_noise(rate: Tensor, noise: Tensor) -> Tensor:
    """``Poisson(rate) - rate``, each from one standard normal of ``noise`` (broadcast), by a table of the inverse CDF.

    A rate between two rows of the table takes one of them at random, so that the mean is exact and the variance 0.4 %
    too large at most; the choice is made by the digits of the normal that the column does not use.
    """
    table = _TABLES.get(rate.device)
    if table is None:
        table = _TABLES[rate.device] = torch.from_numpy(_table()).float().to(rate.device)
    column = noise.add(_REACH).mul_(_BINS / (2 * _REACH)).clamp_(0, _BINS - 0.01)
    digits = column.frac()
    within = rate.clamp(max=_MOST_RATE)
    row = within.sqrt().mul_(1 / _STEP).floor_().clamp_(max=len(table) - 2)
    share = (within - (row * _STEP).square_()).div_((2 * row + 1) * _STEP**2)
    row += digits < share
    counts = table.flatten()[row.mul_(_BINS).add_(column.floor_()).long()]
    return counts.sub_(within).mul_((rate * (1 / _MOST_RATE)).clamp_(min=1).sqrt_())


@functools.cache
def _table() -> np.ndarray:
    """Mean counts ``[rates, bins]`` where the normal falls into a bin; a row's mean over the normal is its rate."""
    rate = (np.arange(round(math.sqrt(_MOST_RATE) / _STEP) + 1) * _STEP)[:, None] ** 2
    edges = norm.cdf(np.linspace(-_REACH, _REACH, _BINS + 1))
    edges[[0, -1]] = 0, 1
    integral = np.zeros((len(rate), _BINS + 1))  # of the inverse CDF up to each edge: every count beyond j adds 1
    for j in range(2 * _MOST_RATE):
        integral += np.clip(edges - poisson.cdf(j, rate), 0, None)
    return np.diff(integral) / np.diff(edges)


@register_op("point_spread")
class PointSpread(RowOp):
    """Gaussian point spread, full width at half maximum uniform in [0, fwhm], a share of the image's width.

    Scanners of 4 to 7 mm over fields of 25 to 70 cm have .006 to .03 (Moses 2011, "Fundamental limits of spatial
    resolution in PET", and the fields of brain and body scans).
    """

    numbers = 1

    def __init__(self, fwhm: float = 0.03, p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.fwhm = fwhm * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"fwhm": u[:, 0] * self.fwhm}

    def change(self, images: Tensor, params: Params) -> Tensor:
        pixels = images.shape[-1] / math.sqrt(8 * math.log(2))
        return gaussian_blur(images, params["fwhm"] * pixels, self.fwhm * pixels).clamp(0, 1)
