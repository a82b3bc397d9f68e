"""All geometry of a view as one matrix, and the one sampling that applies it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.draws import Draws

MAX_LEVEL = 4  # the coarsest image of the pyramid is 2^4 times smaller than the source


@dataclass(frozen=True)
class Geometry:
    """Ranges of the geometry of a view; ``scaled(0)`` leaves the crop only.

    Args:
        ratio: smallest width / height of the crop; the largest is its inverse.
        horizontal_flip, vertical_flip: probabilities.
        quarter_turns: turn by a random multiple of 90 degrees.
        rotate: largest angle, degrees.
        translate: largest shift, share of the crop.
        zoom: largest relative change of magnification, beyond the crop's.
        shear: largest angle, degrees.
        probability: of rotation, translation, zoom and shear together.
        fill: what lies beyond the border: ``"zero"`` (black) or ``"reflect"``.
    """

    ratio: float = 3 / 4
    horizontal_flip: float = 0.5
    vertical_flip: float = 0.0
    quarter_turns: bool = False
    rotate: float = 0.0
    translate: float = 0.0
    zoom: float = 0.0
    shear: float = 0.0
    probability: float = 1.0
    fill: str = "zero"

    def scaled(self, strength: float) -> Geometry:
        """These ranges times ``strength``; at 0 flips and turns go too."""
        if strength == 0:
            return Geometry(self.ratio, 0.0, 0.0, False, 0.0, 0.0, 0.0, 0.0, 0.0, self.fill)
        names = ("rotate", "translate", "zoom", "shear")
        return replace(self, **{n: getattr(self, n) * strength for n in names})


def draw_matrix(geometry: Geometry, crop: tuple[float, float], sizes: Tensor, draws: Draws) -> Tensor:
    """One affine matrix a row: from the view's square [-1, 1]^2 to pixels of the source image.

    The crop is that of Szegedy et al. 2015 (area share uniform, ratio log-uniform, position uniform), clipped to the
    image instead of drawn again.

    Args:
        crop: smallest and largest share of the image's area.
        sizes: ``[B, 2]`` height and width of each source image.

    Returns:
        ``[B, 2, 3]`` float32; pixel centres are at integer + 0.5.
    """
    u = draws.uniform("geometry", 13)
    height, width = sizes[:, 0].float(), sizes[:, 1].float()
    area = crop[0] + (crop[1] - crop[0]) * u[:, 0]
    log_ratio = math.log(geometry.ratio) * (2 * u[:, 1] - 1)
    # A crop of the whole image is the whole image: its ratio jitter fades as the area nears 1.
    log_ratio = log_ratio.clamp(torch.log(area), -torch.log(area))
    half_w = 0.5 * width * torch.sqrt(area * torch.exp(log_ratio))
    half_h = 0.5 * height * torch.sqrt(area * torch.exp(-log_ratio))
    centre_x = half_w + (width - 2 * half_w) * u[:, 2]
    centre_y = half_h + (height - 2 * half_h) * u[:, 3]

    on = (u[:, 11] < geometry.probability).float()
    shift = geometry.translate * (4 * u[:, 4:6] - 2) * on[:, None]  # the square is 2 wide
    half = torch.stack([half_w, half_h], dim=1)
    linear = _linear(geometry, u) * half[:, None, :]  # the crop's window is turned rigidly about its centre
    offset = torch.stack([centre_x, centre_y], dim=1) + half * shift
    return torch.cat([linear, offset[:, :, None]], dim=2)


def _linear(geometry: Geometry, u: Tensor) -> Tensor:
    """Rotation, zoom, shear, flips and quarter turns as ``[B, 2, 2]``."""
    on = (u[:, 11] < geometry.probability).float()
    angle = math.radians(geometry.rotate) * (2 * u[:, 6] - 1) * on
    if geometry.quarter_turns:
        angle = angle + (u[:, 7] * 4).floor() * (math.pi / 2)
    zoom = torch.exp(math.log1p(geometry.zoom) * (2 * u[:, 8] - 1) * on)
    shear = torch.tan(math.radians(geometry.shear) * (2 * u[:, 9] - 1) * on)
    flip_x = torch.where(u[:, 10] < geometry.horizontal_flip, -1.0, 1.0)
    flip_y = torch.where(u[:, 12] < geometry.vertical_flip, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [cos * flip_x, (cos * shear - sin) * flip_y, sin * flip_x, (sin * shear + cos) * flip_y]
    return torch.stack(rows, dim=1).view(-1, 2, 2)


def warp(images: Tensor, sizes: Tensor, matrix: Tensor, size: int, fill: str = "zero") -> Tensor:
    """Sample every image once through its matrix, bilinearly, from a pyramid level fine enough not to alias.

    Args:
        images: ``[B, C, H, W]`` float.
        sizes: ``[B, 2]`` height and width of the valid part of each.
        matrix: ``[B, 2, 3]`` of :func:`draw_matrix`.
        size: side of the result.
        fill: ``"zero"`` or ``"reflect"``.

    Returns:
        ``[B, C, size, size]``.
    """
    matrix = matrix.to(images.dtype)
    extent = sizes.flip(1).to(images.dtype)  # [B, 2] width, height
    points = _points(matrix, size)  # [B, S, S, 2]
    leaving = _leaves(matrix, extent)
    if fill == "reflect" and len(leaving):
        points[leaving] = _reflect(points[leaving], extent[leaving, None, None])
    # Source pixels per view pixel along the more shrunken axis: the norm of the matrix' columns.
    shrink = matrix[:, :, :2].norm(dim=1).amax(dim=1) * (2.0 / size)
    level = torch.log2(shrink.clamp(min=1.0)).add(0.5).floor().clamp(max=MAX_LEVEL).to(torch.int64)
    out = _sample_levels(images, points, level, size)
    if fill == "zero" and len(leaving):
        part = points[leaving]
        inside = ((part > 0) & (part < extent[leaving, None, None])).all(dim=-1)
        out[leaving] = out[leaving] * inside[:, None]
    return out


def _points(matrix: Tensor, size: int) -> Tensor:
    """Where each pixel of the view lies in the source, ``[B, size, size, 2]`` as (x, y) in pixels."""
    axis = (torch.arange(size, device=matrix.device, dtype=matrix.dtype) + 0.5) * (2.0 / size) - 1.0
    points = matrix.new_empty(len(matrix), size, size, 2)
    for i in (0, 1):
        along_x = torch.addcmul(matrix[:, i, 2:], matrix[:, i, :1], axis)  # [B, S]
        torch.add(along_x[:, None, :], (matrix[:, i, 1:2] * axis)[:, :, None], out=points[..., i])
    return points


def places(matrix: Tensor, sizes: Tensor, size: int) -> Tensor:
    """Where in the whole image each pixel of a view lies, ``[B, size, size, 2]`` as (x, y) in [0, 1]."""
    extent = sizes.flip(1).to(matrix.dtype)[:, None, None]
    return (_points(matrix, size) / extent).clamp_(0, 1)


def _leaves(matrix: Tensor, extent: Tensor) -> Tensor:
    """The rows whose view reaches beyond the border of the image."""
    reach = matrix[:, :, :2].abs().sum(dim=2)  # half the bounding box of the view's square
    centre = matrix[:, :, 2]
    slack = 1e-3  # pixels; a crop that just touches the border stays inside
    return ((centre - reach < -slack) | (centre + reach > extent + slack)).any(dim=1).nonzero()[:, 0]


def _sample_levels(images: Tensor, points: Tensor, level: Tensor, size: int) -> Tensor:
    """Bilinear samples of ``images`` at ``points`` (pixels), each row from its own level of a 2 x 2 mean pyramid."""
    levels = torch.unique(level).tolist()
    if len(levels) == 1:
        return _bilinear(_shrink(images, levels[0]), points, levels[0])
    out = images.new_empty(len(images), images.shape[1], size, size)
    for k in levels:
        index = (level == k).nonzero()[:, 0]
        out[index] = _bilinear(_shrink(images[index], k), points[index], k)
    return out


def _shrink(images: Tensor, level: int) -> Tensor:
    return F.avg_pool2d(images, 2**level, ceil_mode=True, count_include_pad=False) if level else images


def _bilinear(images: Tensor, points: Tensor, level: int) -> Tensor:
    height, width = images.shape[-2:]
    # grid_sample's [-1, 1] spans the canvas from edge to edge; a pixel at level k is 2^k source pixels wide.
    grid = points * (points.new_tensor([2.0 / width, 2.0 / height]) / 2**level) - 1.0
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _reflect(points: Tensor, extent: Tensor) -> Tensor:
    """Fold coordinates back into [0, extent]: a triangle wave."""
    return extent - (extent - points.remainder(2 * extent)).abs()
