"""Optical coherence tomography: speckle."""

from __future__ import annotations

from torch import Tensor

from ssl_mednet.augment.intensity import normal_field
from ssl_mednet.augment.ops import Params, RowOp, between, register_op


@register_op("oct_speckle")
class OCTSpeckle(RowOp):
    """``x * s``, s gamma-distributed with mean 1 and deviation ``contrast``, clipped at 1.

    Contrast, uniform in [sigma / 4, sigma], is 1 / sqrt(number of averaged frames) for intensities, .52 for an
    amplitude of one frame. Schmitt, Xiang and Yung 1999. The same speckle in all channels.
    """

    numbers = 2

    def __init__(self, sigma: float = 0.6, p: float = 0.5, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.sigma = sigma * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"contrast": between(u[:, 0], self.sigma / 4, self.sigma), "noise": u[:, 1]}

    def change(self, images: Tensor, params: Params) -> Tensor:
        noise = normal_field(params["noise"], (1, *images.shape[2:]), images.device)
        return (images * speckle(noise, params["contrast"])).clamp(max=1).to(images.dtype)


def speckle(noise: Tensor, contrast: Tensor) -> Tensor:
    """A gamma variate of mean 1 and deviation ``contrast`` [B] (up to .7 or so) from each of ``[B, 1, H, W]`` normals.

    The cube of a normal (Wilson and Hilferty 1931), divided by its own mean ``a^3 + 3 a b^2``.
    """
    b = contrast.float()[:, None, None, None] / 3
    a = 1 - b.square()
    root = (noise * b).add_(a).clamp_(min=0)
    return root.square().mul_(root).div_(a**3 + 3 * a * b.square())
