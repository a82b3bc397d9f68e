"""Where the retina is in a fundus photograph: the bright disc in its dark surround."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.augment.ops import MASKS

_GRID = 64  # samples a side on which the circle is fitted
_DARK = 0.12  # a surround is darker than this
_ROUNDS = 6  # of reweighting


@MASKS.register("disc")
def disc_mask(images: Tensor, sizes: Tensor) -> Tensor:
    """``[B, 1, H, W]`` of 0 and 1: the retinal disc of each image, all 1 where there is none.

    A circle is fitted to the outermost bright samples of every line and column: least squares (Kasa 1976), reweighted
    so that a notch, a label or a dark quadrant does not pull it. Discs cut by the border are found by the arcs that
    are left. A circle counts if it is bright within, black without, with a step at its rim; full-frame pictures,
    vignettes, noise and black pictures have none.

    Args:
        images: ``[B, C, H, W]`` in [0, 1].
        sizes: ``[B, 2]`` height and width of the valid part; beyond it the mask repeats as the picture does.
    """
    height, width = images.shape[-2:]
    extent = sizes.to(images.device).float().flip(1)  # [B, 2]: width, height
    light = _sample(images.float().mean(dim=1, keepdim=True), extent)  # [B, G, G]
    level = light[:, ::2, ::2].flatten(1).sort(dim=1).values
    dark, bright = level[:, level.shape[1] // 100], level[:, level.shape[1] * 3 // 4]
    cut = dark + 0.2 * (bright - dark)
    inside = light > cut[:, None, None]
    circle = _fit(inside, extent)  # [B, 3]: x, y, radius
    found = _is_disc(light, inside, circle, extent, dark, bright)

    x = torch.arange(width, device=images.device) + 0.5
    y = torch.arange(height, device=images.device) + 0.5
    x = torch.minimum(x, extent[:, :1] - 0.5) - circle[:, :1]  # [B, W]
    y = torch.minimum(y, extent[:, 1:] - 0.5) - circle[:, 1:2]
    mask = x.square()[:, None, :] + y.square()[:, :, None] <= circle[:, 2].square()[:, None, None]
    return (mask | ~found[:, None, None])[:, None].to(images.dtype)


def _axis(extent: Tensor) -> Tensor:
    """Sample places along both axes, pixels: ``[B, 2, G]``."""
    steps = (torch.arange(_GRID, device=extent.device) + 0.5) / _GRID
    return extent[:, :, None] * steps


def _sample(gray: Tensor, extent: Tensor) -> Tensor:
    """The valid part of ``[B, 1, H, W]`` on a grid, ``[B, G, G]``, averaged where the grid is coarser."""
    height, width = gray.shape[-2:]
    shrink = max(min(height, width) // _GRID, 1)
    if shrink > 1:
        gray = F.avg_pool2d(gray, shrink, ceil_mode=True, count_include_pad=False)
    place = _axis(extent) / shrink
    x = place[:, 0] * (2 / gray.shape[-1]) - 1
    y = place[:, 1] * (2 / gray.shape[-2]) - 1
    grid = torch.stack([x[:, None, :].expand(-1, _GRID, -1), y[:, :, None].expand(-1, -1, _GRID)], dim=-1)
    return F.grid_sample(gray, grid, mode="bilinear", padding_mode="border", align_corners=False)[:, 0]


def _fit(inside: Tensor, extent: Tensor) -> Tensor:
    """Circle through the rim of ``inside`` ``[B, G, G]``: ``[B, 3]`` of x, y and radius in pixels."""
    points, weight = _rim(inside, extent)
    half = extent.amax(dim=1)[:, None] / 2  # lengths in halves of the longer side, about the middle, for conditioning
    points = (points - extent[:, None] / 2) / half[:, :, None]
    design = torch.cat([points, torch.ones_like(points[..., :1])], dim=2)  # 2 a x + 2 b y + c = x^2 + y^2
    target = points.square().sum(dim=2, keepdim=True)
    ridge = 1e-6 * torch.eye(3, device=extent.device)
    trust = weight
    for _ in range(_ROUNDS):
        normal = design.transpose(1, 2) @ (trust[:, :, None] * design) + ridge
        a, b, c = torch.linalg.solve(normal, design.transpose(1, 2) @ (trust[:, :, None] * target))[..., 0].unbind(1)
        radius = (c + (a / 2).square() + (b / 2).square()).clamp(min=1e-6).sqrt()
        away = torch.hypot(points[..., 0] - a[:, None] / 2, points[..., 1] - b[:, None] / 2) - radius[:, None]
        trust = weight / (1 + (away / 0.03).square()).square()  # Geman and McClure; 3 % of the half side
    middle = extent / 2
    return torch.stack([middle[:, 0] + a / 2 * half[:, 0], middle[:, 1] + b / 2 * half[:, 0], radius * half[:, 0]], 1)


def _rim(inside: Tensor, extent: Tensor) -> tuple[Tensor, Tensor]:
    """First and last bright place of every line and column, ``[B, 4 G, 2]`` pixels, and weight 0 where there is none
    or the picture's border cut it."""
    batch = len(inside)
    axis = _axis(extent)
    cell = extent / _GRID
    points, weights = [], []
    for dim, bright in ((0, inside), (1, inside.transpose(1, 2))):  # lines along x, then along y
        first = bright.byte().argmax(dim=2)
        last = _GRID - 1 - bright.flip(2).byte().argmax(dim=2)
        some = bright.any(dim=2)
        for index, edge, border in ((first, 0, 0), (last, 1, _GRID - 1)):
            along = (index + edge) * cell[:, dim, None]  # between the last dark sample and the first bright one
            pair = [along, axis[:, 1 - dim]] if dim == 0 else [axis[:, 0], along]
            points.append(torch.stack(pair, dim=2))
            weights.append((some & (index != border)).float())
    return torch.cat(points, 1).view(batch, -1, 2), torch.cat(weights, 1)


def _mean(values: Tensor, over: Tensor) -> Tensor:
    return (values * over).sum(dim=(1, 2)) / over.sum(dim=(1, 2)).clamp(min=1)


def _is_disc(light: Tensor, inside: Tensor, circle: Tensor, extent: Tensor, dark: Tensor, bright: Tensor) -> Tensor:
    """``[B]`` bool: whether the circle parts a bright disc from a dark surround."""
    axis = _axis(extent)
    away = torch.hypot(axis[:, 0, None, :] - circle[:, 0, None, None], axis[:, 1, :, None] - circle[:, 1, None, None])
    share = away / circle[:, 2, None, None]
    within, without = (share < 0.97).float(), (share > 1.03).float()
    step = _mean(light, within * (share > 0.9)) - _mean(light, without * (share < 1.1))

    contrast = bright - dark
    seen = without.mean(dim=(1, 2))
    return (
        (dark < _DARK)
        & (contrast > 0.06)
        & (circle[:, 2] > 0.25 * extent.amax(dim=1))
        & (seen > 0.005)
        & (_mean(inside.float(), within) > 0.7)
        & (_mean(inside.float(), without) < 0.1)
        # A rim, not a vignette: light falls at the circle and the surround is black up to it.
        & (step > 0.3 * contrast)
        & (_mean((light - dark[:, None, None]).abs(), without) < 0.08 * contrast + 0.01)
    )
