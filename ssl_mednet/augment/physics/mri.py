"""Magnetic resonance: coil sensitivity, noise of magnitude images, resolution. Artefacts of k-space: ``kspace``."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_mednet.augment.intensity import normal_field
from ssl_mednet.augment.ops import Params, RowOp, between, register_op
from ssl_mednet.augment.physics.place import place_of

# Powers of x and y of the terms of a polynomial of order 3, by rising order; the constant is a mere gain.
_POWERS = ((1, 0), (0, 1), (2, 0), (1, 1), (0, 2), (3, 0), (2, 1), (1, 2), (0, 3))


@register_op("bias_field")
class BiasField(RowOp):
    """``x * exp(polynomial)`` in the place in the source, [-1, 1]^2; coefficients uniform in [-range, range].

    The logarithm of the field has mean 0 over the view. Where the product would leave [0, 1] the whole image is scaled
    back: receive coils multiply, they do not clip. Van Leemput et al. 1999; range of Sudre et al. 2017 and TorchIO.

    Args:
        order: of the polynomial, 1 to 3.
    """

    numbers = len(_POWERS)
    uses_place = True

    def __init__(self, coefficient: float = 0.5, order: int = 3, p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.coefficient, self.order = coefficient * strength, order

    def parameters_from(self, u: Tensor) -> Params:
        used = torch.tensor([i + j <= self.order for i, j in _POWERS], device=u.device)
        return {"coefficients": between(u, -self.coefficient, self.coefficient) * used}

    def change(self, images: Tensor, params: Params) -> Tensor:
        x, y = (2 * at - 1 for at in place_of(images, params).unbind(-1))
        c = dict(zip(_POWERS, params["coefficients"].float()[:, :, None, None].unbind(1), strict=True))
        # Horner's scheme in y, each of its coefficients one in x.
        log_field = torch.addcmul(torch.addcmul(c[0, 2], x, c[1, 2]), y, c[0, 3])
        linear = torch.addcmul(c[0, 1], x, torch.addcmul(c[1, 1], x, c[2, 1]))
        log_field = torch.addcmul(linear, y, log_field)
        constant = x * torch.addcmul(c[1, 0], x, torch.addcmul(c[2, 0], x, c[3, 0]))
        log_field = torch.addcmul(constant, y, log_field)
        field = log_field.sub_(log_field.mean(dim=(1, 2), keepdim=True)).exp_()
        out = images * field[:, None]
        return (out / out.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1)).to(images.dtype)


@register_op("rician_noise")
class RicianNoise(RowOp):
    """``sqrt((x + n1)^2 + n2^2)``, n1 and n2 normal: the magnitude of a complex signal, clipped at 1.

    Standard deviation uniform in [0, sigma], the same noise in all channels. Gudbjartsson and Patz 1995.
    """

    numbers = 2

    def __init__(self, sigma: float = 0.1, p: float = 0.2, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.sigma = sigma * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"sigma": u[:, 0] * self.sigma, "noise": u[:, 1]}

    def change(self, images: Tensor, params: Params) -> Tensor:
        noise = normal_field(params["noise"], (2, *images.shape[2:]), images.device)
        noise = noise * params["sigma"].float()[:, None, None, None]
        real = images.float() + noise[:, :1]
        # The floor, a millionth under the root, keeps the gradient at 0 finite.
        power = torch.addcmul(noise[:, 1:].square().add_(1e-12), real, real)
        return power.sqrt().clamp(max=1).to(images.dtype)


@register_op("low_resolution")
class LowResolution(RowOp):
    """Down to ``zoom`` times the pixels by area means and up again linearly; zoom uniform in [zoom, 1].

    As nnU-Net simulates it (Isensee et al. 2021, supplement); here the small image is an average, not a sample.
    """

    numbers = 1

    def __init__(self, zoom: float = 0.5, p: float = 0.1, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.loss = (1 - zoom) * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"zoom": 1 - u[:, 0] * self.loss}

    def change(self, images: Tensor, params: Params) -> Tensor:
        rows, columns = (_down_and_up(params["zoom"].float(), size)[:, None] for size in images.shape[-2:])
        return (rows @ images.float() @ columns.mT).to(images.dtype).clamp_(0, 1)


def _down_and_up(zoom: Tensor, size: int) -> Tensor:
    """``[B, size, size]``, rows that sum to 1: area means over ``round(zoom * size)`` pixels, then interpolation."""
    count = (zoom * size).round().clamp(min=1)[:, None, None]
    scale = count / size
    fine = torch.arange(size, device=zoom.device)[None, :, None]
    coarse = fine.mT
    share = torch.minimum((fine + 1) * scale, coarse + 1) - torch.maximum(fine * scale, coarse)
    centre = ((fine + 0.5) * scale - 0.5).clamp(min=0).minimum(count - 1)
    return (1 - (centre - coarse).abs()).clamp(min=0) @ share.clamp(min=0).mT
