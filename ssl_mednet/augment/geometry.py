"""All geometry of a view, drawn as one matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from ssl_mednet.draws import Draws


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
        columns[name] = torch.tensor(values).to(group.device, non_blocking=True)[group]
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
