"""Stain variation of H&E sections: amounts of dye differ between laboratories, the empty glass does not."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_mednet.augment.ops import Params, RowOp, between, register_op

# Optical density of haematoxylin, eosin and DAB in R, G, B: Ruifrok and Johnston 2001, table 1, as scikit-image has it.
RGB_FROM_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))
FLOOR = 1 / 255  # the darkest that light is taken for: one step of 8 bits
GLASS, TISSUE = 0.07, 0.35  # mean optical density, nats, of the brightest tissue at all and of what is surely tissue


def optical_density(images: Tensor) -> Tensor:
    """``-ln(max(x, 1 / 255))``, float32: Beer-Lambert absorbance in nats, between 0 and 5.54."""
    return images.float().clamp(min=FLOOR).log().neg_()


def rgb_to_hed(images: Tensor) -> Tensor:
    """``[B, 3, H, W]`` in [0, 1] to amounts of haematoxylin, eosin and DAB, in nats along (nearly) unit vectors.

    The conversion is linear in density and not clipped, so that :func:`hed_to_rgb` undoes it; amounts may be below 0.
    """
    matrix = torch.linalg.inv(_vectors(images))
    return torch.matmul(matrix.T, optical_density(images).flatten(2)).view_as(images)


def hed_to_rgb(amounts: Tensor) -> Tensor:
    """Amounts of :func:`rgb_to_hed` to ``[B, 3, H, W]`` in [0, 1]."""
    density = torch.matmul(_vectors(amounts).T, amounts.float().flatten(2))
    return torch.exp(-density).clamp(0, 1).view_as(amounts)


def tissue_weight(images: Tensor) -> Tensor:
    """``[B, 1, H, W]`` float32: 0 on glass, 1 on tissue, smooth between by the mean density of the three channels."""
    return _tissue(optical_density(images))


def _tissue(density: Tensor) -> Tensor:
    t = ((density.mean(dim=1, keepdim=True) - GLASS) / (TISSUE - GLASS)).clamp_(0, 1)
    return t * t * (3 - 2 * t)


def _vectors(images: Tensor) -> Tensor:
    return torch.tensor(RGB_FROM_HED, device=images.device)


@register_op("stain_jitter")
class StainJitter(RowOp):
    """Amount of each dye ``c -> alpha c + beta`` on tissue, alpha within 1 -+ sigma, beta within -+ bias, both uniform.

    Tellez et al. 2018 (Whole-slide mitosis detection, IEEE TMI) in the units of tiatoolbox's StainAugmentor:
    nats along unit stain vectors. Haematoxylin and eosin change; the rest that neither explains (pigment, DAB) stays.
    The change of density is applied as a transmission, ``x * exp(-change)``: black stays black, glass stays glass.

    Args:
        sigma: range of the factor.
        bias: range of the added amount, nats; 0.2 of eosin takes 18 % of the green light.
    """

    numbers = 4
    color_only = True

    def __init__(self, sigma: float = 0.4, bias: float = 0.2, p: float = 0.8, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.sigma, self.bias = sigma * strength, bias * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {
            "scale": between(u[:, :2], 1 - self.sigma, 1 + self.sigma),
            "bias": between(u[:, 2:], -self.bias, self.bias),
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        density = optical_density(images)
        vectors = _vectors(images)
        amounts = torch.linalg.inv(vectors)[:, :2].T  # [2, 3]: density to haematoxylin and eosin
        # Change of density = V^T ((alpha - 1) A d + beta): one 3 x 3 matrix and one offset a row; negated.
        gain = vectors[:2].T @ ((1 - params["scale"].float())[:, :, None] * amounts)
        offset = params["bias"].float() @ vectors[:2]
        thinner = torch.baddbmm(-offset[:, :, None], gain, density.flatten(2)).view_as(density)
        return (images * thinner.mul_(_tissue(density)).exp_()).clamp_(0, 1).to(images.dtype)
