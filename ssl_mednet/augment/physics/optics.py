"""Optics of cameras and endoscopes: out of focus, in motion, dim at the rim, highlights on wet surfaces."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.augment.ops import Params, RowOp, between, column, register_op
from ssl_mednet.augment.physics.place import place_of


@register_op("defocus")
class Defocus(RowOp):
    """Geometric blur of a round aperture: the mean over a disc, radius uniform in [0, radius] of the width.

    The disc is cut from pixels with soft edges and sums to one (Goodman, Introduction to Fourier Optics, section 6.4).
    """

    numbers = 1

    def __init__(self, radius: float = 0.02, p: float = 0.2, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.radius = radius * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"radius": u[:, 0] * self.radius}

    def change(self, images: Tensor, params: Params) -> Tensor:
        width = images.shape[-1]
        reach = min(math.ceil(self.radius * width), min(images.shape[-2:]) - 1)
        axis = torch.arange(-reach, reach + 1, device=images.device, dtype=torch.float32)
        distance = torch.hypot(axis[:, None], axis)
        inside = (params["radius"].float()[:, None, None] * width + 0.5 - distance).clamp_(0, 1)
        return blur_by(images, inside / inside.sum(dim=(1, 2), keepdim=True))


@register_op("motion_blur")
class MotionBlur(RowOp):
    """The mean along a straight path at any angle, its length uniform in [0, length] of the width.

    The kernel is that of averaging bilinear samples, two a pixel: shake of the hand or scope at constant speed.
    """

    numbers = 2

    def __init__(self, length: float = 0.08, p: float = 0.2, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.length = length * strength

    def parameters_from(self, u: Tensor) -> Params:
        return {"length": u[:, 0] * self.length, "angle": u[:, 1] * math.pi}

    def change(self, images: Tensor, params: Params) -> Tensor:
        width = images.shape[-1]
        reach = min(math.ceil(self.length * width / 2), min(images.shape[-2:]) - 1)
        return blur_by(images, line_kernel(params["length"].float() * width, params["angle"].float(), reach))


def line_kernel(length: Tensor, angle: Tensor, reach: int) -> Tensor:
    """``[B, 2 reach + 1, 2 reach + 1]``, sum 1: a centred line of ``[B]`` lengths in pixels and angles in radians."""
    axis = torch.arange(-reach, reach + 1, device=length.device, dtype=torch.float32)
    path = torch.linspace(-0.5, 0.5, 4 * reach + 1, device=length.device)  # places along the line, ends included
    if reach == 0:
        path = path * 0
    along = length[:, None] * path
    near_x = (1 - ((along * torch.cos(angle)[:, None])[:, :, None] - axis).abs()).clamp_(min=0)  # [B, places, columns]
    near_y = (1 - ((along * torch.sin(angle)[:, None])[:, :, None] - axis).abs()).clamp_(min=0)
    return torch.bmm(near_y.transpose(1, 2), near_x) / len(path)


def blur_by(images: Tensor, kernels: Tensor) -> Tensor:
    """Each image filtered by its own ``[B, k, k]`` kernel, k odd, borders reflected."""
    batch, channels, height, width = images.shape
    reach = kernels.shape[-1] // 2
    padded = F.pad(images.float(), (reach, reach, reach, reach), mode="reflect")
    padded = padded.view(1, batch * channels, height + 2 * reach, width + 2 * reach)
    weights = kernels[:, None, None].expand(-1, channels, -1, -1, -1).flatten(0, 1)
    out = F.conv2d(padded, weights, groups=batch * channels)
    return out.view_as(images).clamp_(0, 1).to(images.dtype)


@register_op("vignette")
class Vignette(RowOp):
    """Light falls off from the middle of the source image: ``x * cos^4(angle)`` about a centre near its middle.

    ``cos^4 = 1 / (1 + k r^2)^2``, r = 1 at the corners, k such that the corner loses a share uniform in [0, falloff]
    of its value (the cos^4 law, e.g. Kingslake, Optics in Photography, here on coded values).

    Args:
        falloff: largest share lost at the corners.
        shift: largest distance of the centre from the middle, in each direction, share of the image.
    """

    numbers = 3
    uses_place = True

    def __init__(self, falloff: float = 0.4, shift: float = 0.1, p: float = 0.2, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.falloff, self.shift = falloff * strength, shift

    def parameters_from(self, u: Tensor) -> Params:
        return {"falloff": u[:, 0] * self.falloff, "centre": between(u[:, 1:], 0.5 - self.shift, 0.5 + self.shift)}

    def change(self, images: Tensor, params: Params) -> Tensor:
        offset = place_of(images, params).float() - params["centre"].float()[:, None, None, :]
        squared = 2 * offset.square().sum(dim=-1)[:, None]  # 1 at the corners
        k = (1 - params["falloff"].float()).rsqrt() - 1
        return images * torch.addcmul(torch.ones_like(squared), squared, k.view(-1, 1, 1, 1)).pow_(-2).to(images.dtype)


_BLOBS = 5


@register_op("specular_highlights")
class SpecularHighlights(RowOp):
    """Mirror images of the lamp on wet tissue: up to five small white ellipses with soft edges.

    Screen-blended, ``x + a (1 - x)``, ``a = opacity * min(1.5 exp(-q^2), 1)``, q = 1 on the ellipse; full where the
    picture is at least as bright as its mean and none below half of it, for a surface in shadow does not shine.

    Args:
        radius: smallest and largest half axis, share of the width.
    """

    numbers = 2 + 5 * _BLOBS

    def __init__(self, radius: tuple[float, float] = (0.015, 0.05), p: float = 0.3, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.radius = radius

    def parameters_from(self, u: Tensor) -> Params:
        each = u[:, 2:].view(-1, 5, _BLOBS)
        longer = between(each[:, 2] ** 2, *self.radius)  # small ones are the most
        return {
            "count": 1 + (u[:, 0] * _BLOBS).floor(),
            "opacity": self.strength * between(u[:, 1], 0.85, 1.0),
            "x": each[:, 0],
            "y": each[:, 1],
            "longer": longer,
            "shorter": (longer * between(each[:, 3], 0.4, 1.0)).clamp(min=self.radius[0] / 2),
            "angle": each[:, 4] * math.pi,
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        coefficients = _ellipses(params, images.shape[-2] / images.shape[-1])  # [B, blobs, 6]
        basis = plane_basis(images)
        nearest = coefficients[:, 0] @ basis
        for i in range(1, _BLOBS):
            nearest = torch.minimum(nearest, coefficients[:, i] @ basis)
        glare = torch.exp(nearest.clamp_(max=5).square_().neg_()).mul_(1.5).clamp_(max=1)
        glare = glare.view(len(images), 1, *images.shape[-2:])
        gray = images.float().mean(dim=1, keepdim=True)
        lit = (2 * gray / gray.mean(dim=(2, 3), keepdim=True).clamp(min=1e-3) - 1).clamp(0, 1)
        alpha = (glare * lit).to(images.dtype) * column(params["opacity"], images)
        return torch.addcmul(images, alpha, 1 - images).clamp_(0, 1)


def _ellipses(params: Params, aspect: float) -> Tensor:
    """Quadratic forms that are 1 on each ellipse, ``[B, blobs, 6]`` on :func:`plane_basis`; huge beyond the count."""
    x, y = 2 * params["x"].float() - 1, aspect * (2 * params["y"].float() - 1)
    cos, sin = torch.cos(params["angle"].float()), torch.sin(params["angle"].float())
    p, q = (2 * params["longer"].float()) ** -2, (2 * params["shorter"].float()) ** -2
    xx, xy, yy = p * cos**2 + q * sin**2, 2 * cos * sin * (p - q), p * sin**2 + q * cos**2
    constant = xx * x**2 + xy * x * y + yy * y**2
    off = torch.arange(_BLOBS, device=x.device) >= params["count"][:, None]
    return torch.stack([xx, xy, yy, -2 * xx * x - xy * y, -2 * yy * y - xy * x, constant + 1e6 * off], dim=-1)


def plane_basis(images: Tensor) -> Tensor:
    """``[6, H W]``: x^2, xy, y^2, x, y, 1 at the pixel centres, from the middle in half widths (square pixels).

    Curves given by quadratic forms are then one small matrix product for all rows.
    """
    height, width = images.shape[-2:]
    x = (torch.arange(width, device=images.device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    y = (torch.arange(height, device=images.device, dtype=torch.float32) + 0.5) * (2 / width) - height / width
    y, x = (t.flatten() for t in torch.meshgrid(y, x, indexing="ij"))
    return torch.stack([x * x, x * y, y * y, x, y, torch.ones_like(x)])
