"""The one sampling that applies a view's matrix, antialiased where the view shrinks its source."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_mednet.imaging.batch import select_images

MAX_LEVEL = 4  # the coarsest image of the pyramid is 2^4 times smaller than the source
_PAIR = {torch.uint8: (torch.int16, 8), torch.uint16: (torch.int32, 16)}


class Pyramid:
    """Images and their 2 x 2 means, again and again, each level made when it is first asked for.

    Args:
        images: ``[B, C, H, W]`` of any real type; they become float32 when they are looked at.
    """

    def __init__(self, images: Tensor) -> None:
        self._levels = [images]
        self.channels = images.shape[1]
        self.size = images.shape[-1], images.shape[-2]  # width and height of the canvas
        self.extent = torch.tensor(self.size, dtype=torch.float32).to(images.device, non_blocking=True)

    def level(self, k: int) -> Tensor:
        """``[B, C, H / 2^k, W / 2^k]``, rounded up: the border is repeated where a side is odd."""
        while len(self._levels) <= k:
            self._levels.append(_halved(self._levels[-1]))
        return self._levels[k]

    def at(self, k: int, index: Tensor | None) -> Tensor:
        """Some of the images of a level, all where ``index`` is None, float32."""
        images = self.level(k)
        return (images if index is None else select_images(images, index)).float()

    def __len__(self) -> int:
        return len(self._levels[0])


def _halved(fine: Tensor) -> Tensor:
    """2 x 2 means, float32, ``[B, C, ceil(H / 2), ceil(W / 2)]``."""
    height, width = fine.shape[-2:]
    if height % 2 or width % 2:
        fine = F.pad(fine.float(), (0, width % 2, 0, height % 2), mode="replicate")
    if fine.dtype in _PAIR:
        # Two neighbours are read as one integer of twice the width, which a CPU adds by far faster than every second
        # float; the sums are exact.
        wide, bits = _PAIR[fine.dtype]
        pair = fine.flatten().view(wide).view(*fine.shape[:3], fine.shape[3] // 2)
        columns = (pair & ((1 << bits) - 1)).add_((pair >> bits).bitwise_and_((1 << bits) - 1))
        return (columns[:, :, ::2] + columns[:, :, 1::2]).float().mul_(0.25)
    rows = fine[:, :, ::2] + fine[:, :, 1::2]
    return (rows[..., ::2] + rows[..., 1::2]).mul_(0.25)


def warp(
    images: Tensor | Pyramid,
    sizes: Tensor,
    matrix: Tensor,
    size: int,
    fill: str | Tensor = "zero",
    beyond: Tensor | None = None,
    source: Tensor | None = None,
    finish: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> Tensor:
    """Sample every image once through its matrix, bilinearly, from a pyramid level fine enough not to alias.

    Args:
        images: ``[B, C, H, W]``, or their pyramid where several views are taken of them.
        sizes: ``[B, 2]`` height and width of the valid part of each.
        matrix: ``[B, 2, 3]`` of :func:`ssl_mednet.augment.geometry.draw_matrix`.
        size: side of the result.
        fill: ``"zero"`` or ``"reflect"``, or ``[B]`` bool, True where the image is reflected at its border.
        beyond: ``[B]``, the value that stands for black; 0 when left out.
        source: ``[B]``, which of the images each row shows, where several rows show one; sizes are the rows' own.
        finish: what is still to be done to some samples ``[K, C, size, size]``, told which rows they are.

    Returns:
        ``[B, C, size, size]`` float32.
    """
    pyramid = images if isinstance(images, Pyramid) else Pyramid(images)
    extent = sizes.flip(1).to(matrix.dtype)  # [B, 2] width, height
    leaving = _leaves(matrix, extent)
    reflected = fill if isinstance(fill, Tensor) else torch.full_like(leaving, fill == "reflect")
    theta = _normalised(matrix, pyramid.extent)
    # Where the image ends on the canvas, in the grid's units of [-1, 1].
    edge = extent * (2 / pyramid.extent)
    black = matrix.new_zeros(len(matrix)) if beyond is None else beyond.to(torch.float32)
    out = torch.empty(len(matrix), pyramid.channels, size, size, device=matrix.device)
    level = _level(matrix, size)
    for k in torch.unique(level).tolist():
        index = (level == k).nonzero()[:, 0]
        grid = _grid(theta[index], size)
        turned = (leaving & reflected)[index].nonzero()[:, 0]
        if len(turned):
            from_left = grid.index_select(0, turned).add_(1)
            grid.index_copy_(0, turned, _reflect(from_left, edge[index[turned], :, None, None]).sub_(1))
        part = _bilinear(pyramid, k, grid, index if source is None else source[index])
        cut = (leaving & ~reflected)[index].nonzero()[:, 0]
        if len(cut):
            outside = _outside(theta[index[cut]], edge[index[cut]], size)
            value = black[index[cut], None, None, None]
            part.index_copy_(0, cut, torch.where(outside, value, part.index_select(0, cut)))
        out.index_copy_(0, index, part if finish is None else finish(part, index))
    return out


def places(matrix: Tensor, sizes: Tensor, size: int) -> Tensor:
    """Where in the whole image each pixel of a view lies, ``[B, size, size, 2]`` as (x, y) in [0, 1]."""
    theta = matrix / sizes.flip(1).to(matrix.dtype)[:, :, None]
    return _grid(theta, size).clamp_(0, 1).permute(0, 2, 3, 1)


def _level(matrix: Tensor, size: int) -> Tensor:
    """``[B]`` int64, the level of the pyramid whose pixels are nearest to the view's."""
    # Source pixels per view pixel along the more shrunken axis: the norm of the matrix' columns.
    shrink = matrix[:, :, :2].norm(dim=1).amax(dim=1) * (2.0 / size)
    return torch.log2(shrink.clamp(min=1.0)).add(0.5).floor().clamp(max=MAX_LEVEL).to(torch.int64)


def _normalised(matrix: Tensor, extent: Tensor) -> Tensor:
    """From pixels of the source to the canvas' [-1, 1], as ``grid_sample`` wants it."""
    theta = matrix * (2 / extent)[:, None]
    return torch.cat([theta[:, :, :2], theta[:, :, 2:] - 1], dim=2)


def _grid(theta: Tensor, size: int) -> Tensor:
    """``[B, 2, size, size]`` of x and y: pixel centres of the view's [-1, 1] square through ``theta`` ``[B, 2, 3]``."""
    axis = (torch.arange(size, device=theta.device, dtype=theta.dtype) + 0.5) * (2.0 / size) - 1.0
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    square = torch.stack([x, y, torch.ones_like(x)]).view(3, -1)
    return (theta.reshape(-1, 3) @ square).view(-1, 2, size, size)


def _leaves(matrix: Tensor, extent: Tensor) -> Tensor:
    """``[B]`` bool: rows whose view reaches beyond the border of the image."""
    reach = matrix[:, :, :2].abs().sum(dim=2)  # half the bounding box of the view's square
    centre = matrix[:, :, 2]
    slack = 1e-3  # pixels; a crop that just touches the border stays inside
    return ((centre - reach < -slack) | (centre + reach > extent + slack)).any(dim=1)


def _bilinear(pyramid: Pyramid, level: int, grid: Tensor, index: Tensor) -> Tensor:
    """Bilinear samples of these images of a level at ``grid`` ``[K, 2, S, S]``."""
    images = pyramid.at(level, index)
    # An odd side was rounded up on the way, so this level's canvas is a little wider than the grid's.
    wider = [whole / (part * 2**level) for whole, part in zip(pyramid.size, images.shape[:-3:-1], strict=True)]
    if wider != [1, 1]:
        grid = (grid + 1) * torch.tensor(wider).to(grid.device, non_blocking=True)[:, None, None] - 1
    grid = grid.permute(0, 2, 3, 1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _outside(theta: Tensor, edge: Tensor, size: int) -> Tensor:
    """``[K, 1, S, S]`` bool: points of the grid through ``theta`` that lie beyond images that end at ``edge``."""
    scale = 2 / edge[:, :, None]  # to where the image itself is [-1, 1]
    own = torch.cat([theta[:, :, :2] * scale, (theta[:, :, 2:] + 1) * scale - 1], dim=2)
    off_centre = _grid(own, size).abs_()
    return (torch.maximum(off_centre[:, 0], off_centre[:, 1]) >= 1)[:, None]


def _reflect(points: Tensor, extent: Tensor) -> Tensor:
    """Fold coordinates back into [0, extent]: a triangle wave."""
    return extent - (extent - points.remainder(2 * extent)).abs()
