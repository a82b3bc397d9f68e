"""Thumbnails -> one sheet a task, embedded once and shown many times; points of a map -> compact SVG paths."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from ssl_mednet.reporting import theme
from ssl_mednet.reporting.load import Thumbnails

QUALITY = 90  # of the JPEG: for recognising an image, not for reading it
_BLOCK = 8  # JPEG's, pixels; a cell is whole blocks, so that neighbours do not bleed into each other
RADIUS = 3.4  # of a point on the map, pixels


def data_uri(content: bytes, kind: str) -> str:
    """``data:image/png;base64,...``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass
class Sheet:
    """All pictures of a task in one JPEG, a square grid of cells.

    Args:
        name: of the CSS class that shows it.
        columns, lines: of the grid.
        cell: number of the cell of each image id.
    """

    name: str
    uri: str
    columns: int
    lines: int
    cell: dict[int, int] = field(default_factory=dict)

    def place(self, row: int) -> tuple[int, int] | None:
        """Column and line of an image, None where it has no picture here."""
        at = self.cell.get(int(row))
        return None if at is None else (at % self.columns, at // self.columns)


def make_sheet(name: str, thumbnails: Thumbnails) -> Sheet:
    """The pictures, resized to whole JPEG blocks where they are not."""
    pictures = thumbnails.pictures
    n, side = len(pictures), _BLOCK * math.ceil(max(pictures.shape[1:3]) / _BLOCK)
    columns = math.ceil(math.sqrt(n))
    lines = math.ceil(n / columns)
    mode = "L" if pictures.shape[3] == 1 else "RGB"
    page = Image.new(mode, (columns * side, lines * side))
    for i, picture in enumerate(pictures):
        image = Image.fromarray(picture[..., 0] if mode == "L" else picture)
        if image.size != (side, side):
            image = image.resize((side, side), Image.Resampling.BICUBIC)
        page.paste(image, (i % columns * side, i // columns * side))
    buffer = io.BytesIO()
    page.save(buffer, "JPEG", quality=QUALITY, subsampling=0, optimize=True)
    cells = {int(row): i for i, row in enumerate(thumbnails.rows)}
    return Sheet(name, data_uri(buffer.getvalue(), "jpeg"), columns, lines, cells)


def on_map(xy: np.ndarray, width: int, height: int, margin: float = 14) -> tuple[np.ndarray, int]:
    """Coordinates ``[n, 2]`` on a drawing, y downwards, one scale on both axes; and its height, at most ``height``."""
    low, high = xy.min(axis=0), xy.max(axis=0)
    span = np.maximum(high - low, 1e-12)
    scale = min((width - 2 * margin) / span[0], (height - 2 * margin) / span[1])
    used = math.ceil(max(span[1] * scale + 2 * margin, height / 2))
    centred = (xy - (low + high) / 2) * scale
    return np.round(centred * (1, -1) + (width / 2, used / 2), 1), used


def shapes(points: Iterable[Sequence[float]], number: int) -> str:
    """SVG path data: at each point the shape of class ``number``: circle, square, triangle, diamond and so on."""
    path = _SHAPES[theme.shape(number)]
    return "".join(f"M{x:g} {y:g}{path}" for x, y in points)


def _polygon(*corners: tuple[float, float]) -> str:
    """Path data relative to the centre: there, round the corners, closed."""
    r = RADIUS
    moves = [(x2 - x1, y2 - y1) for (x1, y1), (x2, y2) in zip(((0, 0), *corners), corners, strict=False)]
    (x, y), *rest = moves
    return f"m{x * r:.2f} {y * r:.2f}" + "".join(f"l{a * r:.2f} {b * r:.2f}" for a, b in rest) + "z"


_CIRCLE = f"m{-RADIUS:g} 0a{RADIUS:g} {RADIUS:g} 0 1 0 {2 * RADIUS:g} 0a{RADIUS:g} {RADIUS:g} 0 1 0 {-2 * RADIUS:g} 0z"
_PLUS = [(-0.4, -1.2), (0.4, -1.2), (0.4, -0.4), (1.2, -0.4), (1.2, 0.4), (0.4, 0.4)]
_PLUS += [(-x, -y) for x, y in _PLUS]
# In the order of the theme's markers, so that a legend serves curves and maps.
_SHAPES = (
    _CIRCLE,
    _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    _polygon((0, -1.25), (1.15, 0.85), (-1.15, 0.85)),
    _polygon((0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)),
    _polygon((0, 1.25), (1.15, -0.85), (-1.15, -0.85)),
    _polygon(*_PLUS),
    _polygon(*(((x - y) * 0.7071, (x + y) * 0.7071) for x, y in _PLUS)),
)
