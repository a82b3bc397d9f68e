"""What lies on the skin in dermoscopy: hairs, and the scale of the instrument."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ssl_mednet.augment.ops import Params, RowOp, between, register_op
from ssl_mednet.augment.physics.optics import plane_basis

_HAIRS = 8


@register_op("hair")
class Hair(RowOp):
    """Up to eight dark, slightly bent hairs; each a parabola in a turned frame, thinning out towards its tip.

    With s along and t across, in half widths, a hair lies at ``t = offset + bend s^2``; its width in pixels falls from
    ``thickness`` to nothing over half a half width before ``s = tip``. A pixel is covered by the part of it that a
    straight strand of that width would cover. Hairs and scales are among the artefacts that classifiers of dermoscopy
    lean on (Bissoto et al. 2020); what hairs look like: Abbas, Celebi and Garcia 2011.

    Args:
        thickness: smallest and largest, share of the width.
    """

    numbers = 2 + 6 * _HAIRS
    color_only = True

    def __init__(self, thickness: tuple[float, float] = (0.005, 0.013), p: float = 0.2, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.thickness = thickness

    def parameters_from(self, u: Tensor) -> Params:
        each = u[:, 2:].view(-1, 6, _HAIRS)
        return {
            "count": 1 + (u[:, 0] * _HAIRS).floor(),
            "brown": u[:, 1],
            "angle": each[:, 0] * (2 * math.pi),
            "offset": between(each[:, 1], -0.9, 0.9),
            "bend": between(each[:, 2], -0.2, 0.2),
            "thickness": between(each[:, 3], *self.thickness),
            "opacity": self.strength * between(each[:, 4], 0.5, 0.95),
            "tip": between(each[:, 5], 0.0, 2.5),
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        pixels = images.shape[-1] / 2  # of a half width
        basis = plane_basis(images)
        across, width = _strands(params, pixels)  # [B, hairs, 6], [B, hairs, 3]
        most = 2 * pixels * params["thickness"].float()
        cover = torch.zeros(len(images), basis.shape[1], device=images.device)
        for i in range(_HAIRS):
            distance = (across[:, i] @ basis).abs_()
            wide = torch.minimum(width[:, i] @ basis[3:], most[:, i, None])
            cover = torch.maximum(cover, line_cover(distance, wide).mul_(params["opacity"][:, i, None].float()))
        black, brown = (torch.tensor(c, device=images.device) for c in ((0.06, 0.05, 0.05), (0.30, 0.20, 0.14)))
        return _ink(images, cover, torch.lerp(black, brown, params["brown"].float()[:, None]))


def _strands(params: Params, pixels: float) -> tuple[Tensor, Tensor]:
    """Distance across (on x^2, xy, y^2, x, y, 1) and width (on x, y, 1) of each hair, in pixels."""
    angle, offset, bend, tip = (params[k].float() for k in ("angle", "offset", "bend", "tip"))
    cos, sin = torch.cos(angle), torch.sin(angle)
    across = [-bend * cos**2, -2 * bend * cos * sin, -bend * sin**2, -sin, cos, -offset]
    there = torch.arange(_HAIRS, device=angle.device) < params["count"][:, None]
    slope = 4 * params["thickness"].float() * there  # the full width, 2 thickness half widths, is lost over 1 / 2
    width = [-cos * slope, -sin * slope, tip * slope]
    return pixels * torch.stack(across, dim=-1), pixels * torch.stack(width, dim=-1)


def line_cover(distance: Tensor, width: Tensor) -> Tensor:
    """Share of a pixel under a line of ``width`` at ``distance`` from its centre, pixels; sums to ``width`` across."""
    return torch.minimum(torch.sub(0.5, distance).add_(width, alpha=0.5), width).clamp_(0, 1)


@register_op("ruler_marks")
class RulerMarks(RowOp):
    """The millimetre scale of a dermoscope: evenly spaced ticks on a straight line off the middle, every fifth longer.

    Args:
        spacing: smallest and largest distance of ticks, share of the width.
    """

    numbers = 8
    color_only = True

    def __init__(self, spacing: tuple[float, float] = (0.05, 0.12), p: float = 0.1, strength: float = 1.0) -> None:
        super().__init__(p, strength)
        self.spacing = spacing

    def parameters_from(self, u: Tensor) -> Params:
        return {
            "angle": u[:, 0] * (2 * math.pi),
            "offset": between(u[:, 1], 0.5, 0.9),  # half widths from the middle
            "spacing": between(u[:, 2], *self.spacing),
            "phase": u[:, 3] * 5,  # ticks
            "length": between(u[:, 4], 0.03, 0.06),  # share of the width; long ticks 1.7 times that
            "thickness": between(u[:, 5], 0.006, 0.014),
            "opacity": self.strength * between(u[:, 6], 0.5, 0.9),
            "baseline": (u[:, 7] < 0.3).float(),
        }

    def change(self, images: Tensor, params: Params) -> Tensor:
        pixels = float(images.shape[-1])
        offset, spacing, phase, length, thickness, opacity, baseline = (
            params[k].float()[:, None]
            for k in ("offset", "spacing", "phase", "length", "thickness", "opacity", "baseline")
        )
        cos, sin = torch.cos(params["angle"].float()), torch.sin(params["angle"].float())
        plane = plane_basis(images)[3:5] / 2  # widths
        along = torch.stack([cos, sin], dim=1) @ plane
        across = torch.stack([-sin, cos], dim=1) @ plane - offset / 2
        ticks = along / spacing + phase
        nearest = ticks.round()
        thick = thickness * pixels
        tick = line_cover((ticks - nearest).abs_() * (spacing * pixels), thick)
        reach = length * torch.where(nearest.remainder(5) == 0, 1.7, 1.0)
        # A tick stands on the line and points to the middle: across from -reach to 0.
        tick *= line_cover((across + reach / 2).abs_() * pixels, reach * pixels)
        line = line_cover(across.abs() * pixels, thick) * baseline
        ink = torch.full((len(images), 3), 0.08, device=images.device)
        return _ink(images, torch.maximum(tick, line) * opacity, ink)


def _ink(images: Tensor, cover: Tensor, color: Tensor) -> Tensor:
    """``images`` under ink of ``color`` ``[B, 3]`` where ``cover`` ``[B, H W]`` is 1."""
    cover = cover.view(len(images), 1, *images.shape[-2:]).to(images.dtype)
    return torch.lerp(images, color.to(images.dtype)[:, :, None, None].expand_as(images), cover.expand_as(images))
