"""Intensity augmentations that make sense for any image; those of single modalities live with their physics."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.augment.ops import Params, RowOp, between, column, register_op


@register_op("brightness_contrast")
class BrightnessContrast(RowOp):
    """``(x - mean) * contrast + mean * brightness``, factors uniform in [1 - range, 1 + range], clipped to [0, 1]."""

    numbers = 2

    def __init__(self, brightness: float = 0.4, contrast: float = 0.4, p: float = 0.8, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.brightness, self.contrast = brightness * strength, contrast * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {
            "brightness": between(u[:, 0], 1 - self.brightness, 1 + self.brightness),
            "contrast": between(u[:, 1], 1 - self.contrast, 1 + self.contrast),
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        contrast, brightness = column(params["contrast"], images), column(params["brightness"], images)
        mean = images.mean(dim=(1, 2, 3), keepdim=True)
        return torch.addcmul(mean * (brightness - contrast), images, contrast).clamp_(0, 1)


@register_op("gamma")
class Gamma(RowOp):
    """``x ** gamma``, gamma log-uniform in [1 / (1 + range), 1 + range]: as often brighter as darker."""

    numbers = 1

    def __init__(self, gamma: float = 0.5, p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.log_range = math.log1p(gamma) * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"gamma": torch.exp(between(u[:, 0], -self.log_range, self.log_range))}

    def change(self, images: Tensor, params: Params) -> Tensor:
        # The gradient of x ** g at 0 is infinite for g < 1; a floor well under one 16-bit step keeps it finite.
        return images.clamp(min=1e-6) ** column(params["gamma"], images)


@register_op("gaussian_blur")
class GaussianBlur(RowOp):
    """Gaussian point spread, sigma uniform in [0, sigma] pixels, borders reflected."""

    numbers = 1

    def __init__(self, sigma: float = 0.8, p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.sigma = sigma * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"sigma": u[:, 0] * self.sigma}

    def change(self, images: Tensor, params: Params) -> Tensor:
        return gaussian_blur(images, params["sigma"], self.sigma)


def gaussian_blur(images: Tensor, sigma: Tensor, largest: float) -> Tensor:
    """Blur each image with its own sigma.

    Args:
        images: ``[B, C, H, W]``.
        sigma: ``[B]`` pixels; 0 is the identity.
        largest: a bound on ``sigma``; it sets the support, 3 sigma.
    """
    radius = min(math.ceil(3 * largest), min(images.shape[-2:]) - 1)
    if radius < 1:
        return images
    taps = torch.arange(radius + 1, device=images.device)
    weights = torch.exp(-0.5 * (taps / sigma.clamp(min=1e-3)[:, None]) ** 2)  # [B, R + 1], one side
    weights = weights / (weights[:, :1] + 2 * weights[:, 1:].sum(1, keepdim=True))
    for dim in (2, 3):
        size = images.shape[dim]
        padded = F.pad(images, (0, 0, radius, radius) if dim == 2 else (radius, radius, 0, 0), mode="reflect")
        out = images * column(weights[:, 0], images)
        for tap in range(1, radius + 1):
            pair = padded.narrow(dim, radius - tap, size) + padded.narrow(dim, radius + tap, size)
            out.addcmul_(pair, column(weights[:, tap], images))
        images = out
    return images


@register_op("gaussian_noise")
class GaussianNoise(RowOp):
    """Additive normal noise, standard deviation uniform in [0, sigma], clipped to [0, 1]."""

    numbers = 2

    def __init__(self, sigma: float = 0.08, p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.sigma = sigma * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"sigma": u[:, 0] * self.sigma, "place": u[:, 1]}

    def change(self, images: Tensor, params: Params) -> Tensor:
        noise = normal_field(params["place"], images.shape[1:], images.device)
        return torch.addcmul(images, noise.to(images.dtype), column(params["sigma"], images)).clamp_(0, 1)


_BANK_SIZE = 1 << 22
_BANKS: dict[torch.device, Tensor] = {}


def normal_field(place: Tensor, shape: torch.Size | tuple[int, ...], device: torch.device) -> Tensor:
    """Standard normal noise for each row, from a fixed bank of four million numbers read at the row's own place.

    Drawing noise per row and per pixel so that it depends on the row only would cost more than the whole rest of the
    augmentation; reading a bank costs a copy. Two rows share numbers only where their windows overlap, shifted.

    Args:
        place: ``[B]`` float32 in [0, 1), multiples of 2^-24 (:class:`~ssl_mednet.draws.Draws`): where each row reads.
        shape: ``[C, H, W]`` of one image.

    Returns:
        ``[B, C, H, W]`` float32.
    """
    count = math.prod(shape)
    size = max(_BANK_SIZE, 4 * count)
    bank = _BANKS.get(device)
    if bank is None or len(bank) < size:
        generator = torch.Generator().manual_seed(0x5EED)
        bank = torch.randn(size, generator=generator).to(device)
        _BANKS[device] = bank
    windows = bank.as_strided((size - count + 1, count), (1, 1))
    start = (place * 2.0**24).long() * (size - count) >> 24  # exact, without float64, which Apple's GPUs do not have
    return windows[start].view(-1, *shape)


_RGB_TO_YIQ = ((0.299, 0.587, 0.114), (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))


@register_op("color_jitter")
class ColorJitter(RowOp):
    """Saturation by a factor uniform in [1 - range, 1 + range] and a small hue turn, for color images only.

    The hue turns about the gray axis in YIQ space (ITU-R BT.601 luma), which is linear and keeps gray gray.

    Args:
        saturation: range of the factor.
        hue: largest turn, as a share of the full circle.
    """

    numbers = 2
    color_only = True

    def __init__(self, saturation: float = 0.2, hue: float = 0.02, p: float = 0.5, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.saturation, self.hue = saturation * strength, hue * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {
            "saturation": between(u[:, 0], 1 - self.saturation, 1 + self.saturation),
            "angle": between(u[:, 1], -self.hue, self.hue) * (2 * math.pi),
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        to_yiq = torch.tensor(_RGB_TO_YIQ, device=images.device)
        cos = torch.cos(params["angle"]) * params["saturation"]
        sin = torch.sin(params["angle"]) * params["saturation"]
        one, zero = torch.ones_like(cos), torch.zeros_like(cos)
        turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
        matrix = torch.linalg.inv(to_yiq) @ turn @ to_yiq
        return torch.bmm(matrix.to(images.dtype), images.flatten(2)).view_as(images).clamp_(0, 1)


@register_op("grayscale")
class Grayscale(RowOp):
    """Color taken out: every channel becomes the luma of ITU-R BT.601. Part of the natural baseline only."""

    numbers = 1
    color_only = True

    def __init__(self, p: float = 0.2, strength: float = 1.0) -> None:
        super().__init__(p, strength)

    def parameters_from(self, u: Tensor) -> Params:
        return {"share": torch.full_like(u[:, 0], min(1.0, self.strength))}

    def change(self, images: Tensor, params: Params) -> Tensor:
        weights = images.new_tensor(_RGB_TO_YIQ[0]).view(1, 3, 1, 1)
        luma = (images * weights).sum(1, keepdim=True)
        return torch.lerp(images, luma.expand_as(images), column(params["share"], images))
