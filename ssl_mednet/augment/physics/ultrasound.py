"""Ultrasound: where the echo is, and what depth, shadows, haze, speckle and the gain knob do to it, inside only."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.augment.intensity import normal_field
from ssl_mednet.augment.ops import MASKS, Params, RowOp, between, register_op
from ssl_mednet.augment.physics.oct import speckle
from ssl_mednet.augment.physics.place import place_of

_FLOOR = 0.03  # darker is no echo
_DENSE = 0.35  # share of echo in the 5 x 5 raster points about one of the field; letters and marks beside it have less
_LEAST, _MOST = 0.2, 0.9  # share of the image; less is no field, more is a field that fills the image
_SIDE = 64  # of the raster, over the valid part of each image, on which the field is sought


@MASKS.register("fan")
def fan_mask(images: Tensor, sizes: Tensor) -> Tensor:
    """The field that holds echo: sector, trapezoid or the whole image; 1 everywhere where none is found.

    A pixel belongs to it if echo is dense somewhere to its left and right (or there) and above and below; dark lesions
    and shadows are enclosed, letters beside the field are left out.

    Args:
        images: ``[B, C, H, W]``, the border of each repeated beyond its valid part.
        sizes: ``[B, 2]`` height and width of the valid part.

    Returns:
        ``[B, 1, H, W]`` of 0 and 1 in the images' type, its border repeated as that of the images.
    """
    height, width = images.shape[-2:]
    sizes = sizes.to(images.device)
    whole = bool((sizes == sizes.new_tensor([height, width])).all())
    raster = F.interpolate(images, (_SIDE, _SIDE), mode="nearest-exact") if whole else _raster(images, sizes)
    echo = F.pad((raster.amax(dim=1, keepdim=True) > _FLOOR).float(), (2, 2, 2, 2), mode="replicate")
    window = torch.ones(_SIDE + 4, _SIDE, device=images.device).tril().triu(-4) / 5  # each column: the mean of five
    dense = window.T @ (echo @ window) > _DENSE
    mask = _between(_between(dense, 2) & _between(dense, 3), 2)
    covered = mask.float().mean(dim=(1, 2, 3), keepdim=True)
    mask = mask | (covered < _LEAST) | (covered > _MOST)
    if whole:
        return F.interpolate(mask.to(images.dtype), (height, width), mode="nearest")
    row, column = (
        torch.arange(side, device=images.device).minimum(valid - 1) * _SIDE // valid
        for side, valid in ((height, sizes[:, :1]), (width, sizes[:, 1:]))
    )
    return _pixels(mask, row, column).to(images.dtype)


def _raster(images: Tensor, sizes: Tensor) -> Tensor:
    """``[B, C, _SIDE, _SIDE]``: every image's valid part, a pixel for each field of the raster."""
    share = (torch.arange(_SIDE, device=images.device) + 0.5) / _SIDE
    return _pixels(images, (share * sizes[:, :1]).long(), (share * sizes[:, 1:]).long())


def _pixels(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """``[B, C, h, w]``: of each image the pixels at its rows ``[B, h]`` and columns ``[B, w]``."""
    count, channels, _, width = images.shape
    places = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)[:, None].expand(-1, channels, -1)
    return images.flatten(2).gather(2, places).view(count, channels, rows.shape[1], columns.shape[1])


def _between(flags: Tensor, dim: int) -> Tensor:
    """From the first to the last set flag along ``dim``, of ``[B, 1, S, S]``: flags on both sides, itself included."""
    upto = torch.ones(flags.shape[dim], flags.shape[dim], device=flags.device).triu()
    x = flags.float()
    before, after = (x @ upto, x @ upto.T) if dim == 3 else (upto.T @ x, upto @ x)  # counts, exact
    return (before > 0) & (after > 0)


@register_op("depth_attenuation")
class DepthAttenuation(RowOp):
    """``x * exp(-rate * depth)``, rate uniform in [0, rate] over the whole image's height, 1 at the view's top.

    Depth is the place's y: the probe is at the top of the source. Ostvik et al. 2021; the range is that of Tupper and
    Gagne 2025 (arXiv 2501.13193).
    """

    numbers = 1
    uses_place = True

    def __init__(self, rate: float = 3.0, p: float = 0.4, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.rate = rate * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"rate": u[:, 0] * self.rate}

    def change(self, images: Tensor, params: Params) -> Tensor:
        depth = place_of(images, params)[..., 1]
        depth = depth - depth.amin(dim=(1, 2), keepdim=True)
        kept = torch.exp(depth * -params["rate"].float()[:, None, None])
        return (images * kept[:, None]).clamp(0, 1).to(images.dtype)


@register_op("gaussian_shadow")
class GaussianShadow(RowOp):
    """``x * (1 - darkness * g)``, g a Gaussian about a pixel of the view that runs on undiminished below its centre.

    Centre uniform over the view; deviations, shares of the source's sides, uniform in [.05, .2] across and
    [.05, .4] above the centre. Smistad et al. 2018, whose Gaussian falls off below too; a shadow of bone or air does
    not.

    Args:
        darkness: largest; drawn uniform in [5 / 16, 1] of it, so .25 to .8.
    """

    numbers = 5
    uses_place = True

    def __init__(self, darkness: float = 0.8, p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.darkness = darkness * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {
            "darkness": between(u[:, 0], self.darkness * 5 / 16, self.darkness),
            "centre": u[:, 1:3],
            "across": between(u[:, 3], 0.05, 0.2),
            "above": between(u[:, 4], 0.05, 0.4),
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        place = place_of(images, params)
        count, height, width = place.shape[:3]
        column = (params["centre"][:, 0] * width).long()
        row = (params["centre"][:, 1] * height).long()
        centre = place[torch.arange(count, device=images.device), row, column][:, None, None]  # [B, 1, 1, 2]
        across, above = (params[k].float()[:, None, None] for k in ("across", "above"))
        x = (place[..., 0] - centre[..., 0]) / across
        y = ((place[..., 1] - centre[..., 1]) / above).clamp_(max=0)
        shadow = torch.addcmul(x * x, y, y).mul_(-0.5).exp_()
        shadow = shadow.mul_(-params["darkness"].float()[:, None, None]).add_(1)
        return (images * shadow[:, None]).clamp(0, 1).to(images.dtype)


@register_op("haze")
class Haze(RowOp):
    """``x + (1 - x) * amount * band * s``: static in a Gaussian band at one distance from the probe, s speckle.

    The probe is at the middle of the source's top edge. Amount uniform in [0, amount], distance uniform in [0, 1] and
    the band's deviation in [.02, .1] of the source's sides. Ostvik et al. 2021.
    """

    numbers = 4
    uses_place = True

    def __init__(self, amount: float = 0.5, p: float = 0.2, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.amount = amount * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {
            "amount": u[:, 0] * self.amount,
            "distance": u[:, 1],
            "width": between(u[:, 2], 0.02, 0.1),
            "noise": u[:, 3],
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        amount, distance, width = (params[k].float()[:, None, None] for k in ("amount", "distance", "width"))
        x, y = place_of(images, params).unbind(-1)
        radius = torch.addcmul((x - 0.5).square_(), y, y).sqrt_()
        band = radius.sub_(distance).div_(width).square_().mul_(-0.5).exp_().mul_(amount)
        noise = _grains(params["noise"], images)
        haze = (band[:, None] * speckle(noise, torch.full_like(params["amount"], 0.5))).clamp_(max=1)
        return torch.addcmul(images.float(), haze, 1 - images.float()).clamp(0, 1).to(images.dtype)


@register_op("speckle")
class Speckle(RowOp):
    """``x * s``, s gamma-distributed with mean 1 and deviation ``contrast`` uniform in [sigma / 3, sigma].

    Grains are two pixels wide: neighbours correlate by 1/2. Multiplicative on the detected envelope, Wagner et al.
    1983.
    """

    numbers = 2

    def __init__(self, sigma: float = 0.3, p: float = 0.4, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.sigma = sigma * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"contrast": between(u[:, 0], self.sigma / 3, self.sigma), "noise": u[:, 1]}

    def change(self, images: Tensor, params: Params) -> Tensor:
        return (images * speckle(_grains(params["noise"], images), params["contrast"])).clamp(0, 1).to(images.dtype)


def _grains(noise: Tensor, images: Tensor) -> Tensor:
    """Standard normal ``[B, 1, H, W]``, the sum of the four numbers about each pixel: grains two pixels wide."""
    height, width = images.shape[-2:]
    field = normal_field(noise, (1, height + 1, width + 1), images.device)
    pairs = field[..., 1:, :] + field[..., :-1, :]
    return (pairs[..., 1:] + pairs[..., :-1]).mul_(0.5)


@register_op("gain")
class Gain(RowOp):
    """``x * gain``, gain log-uniform in [low, high], clipped to [0, 1]: the knob at the machine."""

    numbers = 1

    def __init__(self, low: float = 0.3, high: float = 2.0, p: float = 0.4, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.log_low, self.log_high = math.log(low) * strength, math.log(high) * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"gain": torch.exp(between(u[:, 0], self.log_low, self.log_high))}

    def change(self, images: Tensor, params: Params) -> Tensor:
        return (images * params["gain"].float()[:, None, None, None]).clamp(0, 1).to(images.dtype)
