"""All geometry of a view as one matrix, and the one sampling that applies it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

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

    Every range may also be a ``[B]`` tensor, one number a row: see :func:`per_row`.
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


def per_row(geometries: Sequence[Geometry], group: Tensor) -> Geometry:
    """One geometry with the ranges of each row: ``group`` ``[B]`` says which of the geometries a row has.

    ``fill`` becomes a ``[B]`` tensor too, True where it is ``"reflect"``.
    """
    columns: dict[str, Any] = {}
    for name in (f.name for f in fields(Geometry)):
        values = [g.fill == "reflect" if name == "fill" else float(getattr(g, name)) for g in geometries]
        columns[name] = torch.tensor(values, device=group.device)[group]
    return Geometry(**columns)


def draw_matrix(geometry: Geometry, crop: tuple[float | Tensor, float], sizes: Tensor, draws: Draws) -> Tensor:
    """One affine matrix a row: from the view's square [-1, 1]^2 to pixels of the source image.

    The crop is that of Szegedy et al. 2015 (area share uniform, ratio log-uniform, position uniform), clipped to the
    image instead of drawn again.

    Args:
        crop: smallest (a number, or one a row) and largest share of the image's area.
        sizes: ``[B, 2]`` height and width of each source image.

    Returns:
        ``[B, 2, 3]`` float32; pixel centres are at integer + 0.5.
    """
    u = draws.uniform("geometry", 13)
    height, width = sizes[:, 0].float(), sizes[:, 1].float()
    area = crop[0] + (crop[1] - crop[0]) * u[:, 0]
    log_ratio = torch.log(torch.as_tensor(geometry.ratio)) * (2 * u[:, 1] - 1)
    # A crop of the whole image is the whole image: its ratio jitter fades as the area nears 1.
    log_ratio = log_ratio.clamp(torch.log(area), -torch.log(area))
    half_w = 0.5 * width * torch.sqrt(area * torch.exp(log_ratio))
    half_h = 0.5 * height * torch.sqrt(area * torch.exp(-log_ratio))
    centre_x = half_w + (width - 2 * half_w) * u[:, 2]
    centre_y = half_h + (height - 2 * half_h) * u[:, 3]

    on = (u[:, 11] < geometry.probability).float()
    shift = (4 * u[:, 4:6] - 2) * (geometry.translate * on)[:, None]  # the square is 2 wide
    half = torch.stack([half_w, half_h], dim=1)
    linear = _linear(geometry, u) * half[:, None, :]  # the crop's window is turned rigidly about its centre
    offset = torch.stack([centre_x, centre_y], dim=1) + half * shift
    return torch.cat([linear, offset[:, :, None]], dim=2)


def _linear(geometry: Geometry, u: Tensor) -> Tensor:
    """Rotation, zoom, shear, flips and quarter turns as ``[B, 2, 2]``."""
    on = (u[:, 11] < geometry.probability).float()
    angle = math.pi / 180 * geometry.rotate * (2 * u[:, 6] - 1) * on
    angle = angle + geometry.quarter_turns * (u[:, 7] * 4).floor() * (math.pi / 2)
    zoom = torch.exp(torch.log1p(torch.as_tensor(geometry.zoom)) * (2 * u[:, 8] - 1) * on)
    shear = torch.tan(math.pi / 180 * geometry.shear * (2 * u[:, 9] - 1) * on)
    flip_x = torch.where(u[:, 10] < geometry.horizontal_flip, -1.0, 1.0)
    flip_y = torch.where(u[:, 12] < geometry.vertical_flip, -1.0, 1.0)
    cos, sin = torch.cos(angle) * zoom, torch.sin(angle) * zoom
    rows = [cos * flip_x, (cos * shear - sin) * flip_y, sin * flip_x, (sin * shear + cos) * flip_y]
    return torch.stack(rows, dim=1).view(-1, 2, 2)


class Pyramid:
    """Images and their 2 x 2 means, again and again, each level made when it is first asked for.

    Args:
        images: ``[B, C, H, W]`` float.
    """

    def __init__(self, images: Tensor) -> None:
        self._levels = [images]
        self.extent = images.new_tensor([images.shape[-1], images.shape[-2]])  # width, height of the canvas

    def level(self, k: int) -> Tensor:
        """``[B, C, H / 2^k, W / 2^k]``, rounded up: the border is repeated where a side is odd."""
        while len(self._levels) <= k:
            fine = self._levels[-1]
            height, width = fine.shape[-2:]
            if height % 2 or width % 2:
                fine = F.pad(fine, (0, width % 2, 0, height % 2), mode="replicate")
            rows = fine[:, :, ::2] + fine[:, :, 1::2]  # faster than avg_pool2d on a CPU, by four
            self._levels.append((rows[..., ::2] + rows[..., 1::2]).mul_(0.25))
        return self._levels[k]

    def __len__(self) -> int:
        return len(self._levels[0])


def warp(
    images: Tensor | Pyramid,
    sizes: Tensor,
    matrix: Tensor,
    size: int,
    fill: str | Tensor = "zero",
    beyond: Tensor | None = None,
    source: Tensor | None = None,
) -> Tensor:
    """Sample every image once through its matrix, bilinearly, from a pyramid level fine enough not to alias.

    Args:
        images: ``[B, C, H, W]`` float, or their pyramid where several views are taken of them.
        sizes: ``[B, 2]`` height and width of the valid part of each.
        matrix: ``[B, 2, 3]`` of :func:`draw_matrix`.
        size: side of the result.
        fill: ``"zero"`` or ``"reflect"``, or ``[B]`` bool, True where the image is reflected at its border.
        beyond: ``[B]``, the value that stands for black; 0 when left out.
        source: ``[B]``, which of the images each row shows, where several rows show one; sizes are the rows' own.

    Returns:
        ``[B, C, size, size]``.
    """
    pyramid = images if isinstance(images, Pyramid) else Pyramid(images)
    extent = sizes.flip(1).to(matrix.dtype)  # [B, 2] width, height
    grid = _grid(_normalised(matrix, pyramid.extent), size)
    leaving = _leaves(matrix, extent)
    reflected, black = leaving[:0], leaving
    if isinstance(fill, Tensor):
        reflected, black = leaving[fill[leaving]], leaving[~fill[leaving]]
    elif fill == "reflect":
        reflected, black = leaving, leaving[:0]
    # Where the image ends on the canvas, in the grid's units of [-1, 1].
    edge = extent * (2 / pyramid.extent)
    if len(reflected):
        from_left = grid.index_select(0, reflected).add_(1)
        grid.index_copy_(0, reflected, _reflect(from_left, edge[reflected, :, None, None]).sub_(1))
    # Source pixels per view pixel along the more shrunken axis: the norm of the matrix' columns.
    shrink = matrix[:, :, :2].norm(dim=1).amax(dim=1) * (2.0 / size)
    level = torch.log2(shrink.clamp(min=1.0)).add(0.5).floor().clamp(max=MAX_LEVEL).to(torch.int64)
    out = _sample_levels(pyramid, grid, level, size, source)
    if len(black):
        half = edge[black, :, None, None] / 2
        off_centre = torch.addcmul(1 / half - 1, grid.index_select(0, black), 1 / half).abs_()
        outside = torch.maximum(off_centre[:, 0], off_centre[:, 1]) >= 1
        value = out.new_zeros(()) if beyond is None else beyond[black, None, None, None].to(out.dtype)
        out.index_copy_(0, black, torch.where(outside[:, None], value, out.index_select(0, black)))
    return out


def _normalised(matrix: Tensor, extent: Tensor) -> Tensor:
    """From pixels of the source to the canvas' [-1, 1], as ``grid_sample`` wants it."""
    theta = matrix * (2 / extent)[:, None]
    return torch.cat([theta[:, :, :2], theta[:, :, 2:] - 1], dim=2)


def places(matrix: Tensor, sizes: Tensor, size: int) -> Tensor:
    """Where in the whole image each pixel of a view lies, ``[B, size, size, 2]`` as (x, y) in [0, 1]."""
    theta = matrix / sizes.flip(1).to(matrix.dtype)[:, :, None]
    return _grid(theta, size).clamp_(0, 1).permute(0, 2, 3, 1)


def _grid(theta: Tensor, size: int) -> Tensor:
    """``[B, 2, size, size]`` of x and y: pixel centres of the view's [-1, 1] square through ``theta`` ``[B, 2, 3]``."""
    axis = (torch.arange(size, device=theta.device, dtype=theta.dtype) + 0.5) * (2.0 / size) - 1.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    square = torch.stack([x, y, torch.ones_like(x)]).view(3, -1)
    return (theta.reshape(-1, 3) @ square).view(-1, 2, size, size)


def _leaves(matrix: Tensor, extent: Tensor) -> Tensor:
    """The rows whose view reaches beyond the border of the image."""
    reach = matrix[:, :, :2].abs().sum(dim=2)  # half the bounding box of the view's square
    centre = matrix[:, :, 2]
    slack = 1e-3  # pixels; a crop that just touches the border stays inside
    return ((centre - reach < -slack) | (centre + reach > extent + slack)).any(dim=1).nonzero()[:, 0]


def _sample_levels(pyramid: Pyramid, grid: Tensor, level: Tensor, size: int, source: Tensor | None) -> Tensor:
    """Bilinear samples at ``grid``, each row from its own level."""
    levels = torch.unique(level).tolist()
    if len(levels) == 1:
        return _bilinear(pyramid, levels[0], grid, source)
    channels = pyramid.level(0).shape[1]
    out = grid.new_empty(len(grid), channels, size, size)
    for k in levels:
        index = (level == k).nonzero()[:, 0]
        images = index if source is None else source[index]
        out.index_copy_(0, index, _bilinear(pyramid, k, grid.index_select(0, index), images))
    return out


def _bilinear(pyramid: Pyramid, level: int, grid: Tensor, index: Tensor | None) -> Tensor:
    images = pyramid.level(level)
    height, width = images.shape[-2:]
    if index is not None:
        images = images.index_select(0, index)
    # An odd side was rounded up on the way, so this level's canvas is a little wider than the grid's.
    wider = pyramid.extent / (images.new_tensor([width, height]) * 2**level)
    if (wider != 1).any():
        grid = (grid + 1) * wider[:, None, None] - 1
    grid = grid.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _reflect(points: Tensor, extent: Tensor) -> Tensor:
    """Fold coordinates back into [0, extent]: a triangle wave."""
    return extent - (extent - points.remainder(2 * extent)).abs()
