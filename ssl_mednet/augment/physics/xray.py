"""Projection radiography: noise of counted photons."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_mednet.augment.intensity import normal_field
from ssl_mednet.augment.ops import Params, RowOp, between, column, register_op

_MOST_PHOTONS = 1e5


@register_op("poisson_dose")
class PoissonDose(RowOp):
    """``x + sqrt(x / N) * n``: detected counts N x as a normal of equal mean and variance, clipped to [0, 1].

    N, photons a pixel at full brightness, is log-uniform in [photons, 1e5]; the noise's deviation, not N, is scaled by
    the strength. Pictures with bright bone show paths and not counts, but there too noise grows with brightness.
    Bushberg et al., The Essential Physics of Medical Imaging; the same noise in all channels.
    """

    numbers = 2

    def __init__(self, photons: float = 1e3, p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.photons = photons

    def parameters_from(self, u: Tensor) -> Params:
        photons = torch.exp(between(u[:, 0], math.log(self.photons), math.log(_MOST_PHOTONS)))
        return {"sigma": self.strength / photons.sqrt(), "noise": u[:, 1]}

    def change(self, images: Tensor, params: Params) -> Tensor:
        noise = normal_field(params["noise"], (1, *images.shape[2:]), images.device).to(images.dtype)
        # The gradient of the root at 0 is infinite; the floor's own noise is a thousandth of full brightness'.
        deviation = images.clamp(min=1e-6).sqrt() * column(params["sigma"], images)
        return torch.addcmul(images, deviation, noise).clamp_(0, 1)
