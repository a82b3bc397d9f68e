"""Whole-slide images: tissue tiles at a chosen resolution, from any pyramid, without ever holding a level in memory.

A :class:`Level` is a grid of segments (tiles or strips of the file) that are decoded one at a time. Tissue is what is
more saturated than glass: Otsu's threshold (IEEE Trans. SMC 9(1):62, 1979) on the saturation of a small overview after
a median filter, as in CLAM (Lu et al., Nat. Biomed. Eng. 5:555, 2021), held within bounds so that a slide that is all
tissue or all glass is not divided in two.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image, ImageFilter

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext

_OVERVIEW = 2048  # longest side of the picture in which tissue is looked for
_ENOUGH = 1024  # the smallest level that is at least this long is good enough for it
_SATURATION = (13, 38)  # of 255 (0.05 and 0.15): glass is never called tissue below, tissue never glass above
_CACHE_BYTES = 64 * 1024**2  # decoded segments that are kept, so that neighbours are not decoded twice
_FINER = 1.02  # a level this near to what is asked for is taken as it is: scanners write 0.499 or 0.2527
MAX_SEGMENTS = 16 * 1024**2


@dataclass
class Level:
    """One resolution of a slide.

    Args:
        height, width: pixels.
        mpp: microns per pixel, 0 where the file does not say.
        tile: height and width of its segments.
        segments: where in the file each segment is, by (row, column) of the grid; those that are not there are glass.
        decode: a segment as ``[h, w, 3]`` uint8; it may be smaller or larger than ``tile`` at the border.
    """

    height: int
    width: int
    mpp: float
    tile: tuple[int, int]
    segments: dict[tuple[int, int], int]
    decode: Callable[[int], np.ndarray]
    _kept: OrderedDict[tuple[int, int], np.ndarray] = field(default_factory=OrderedDict, repr=False)

    def segment(self, cell: tuple[int, int]) -> np.ndarray | None:
        """A segment, cut to the level; None where there is none."""
        if cell in self._kept:
            self._kept.move_to_end(cell)
            return self._kept[cell]
        if cell not in self.segments:
            return None
        y, x = cell[0] * self.tile[0], cell[1] * self.tile[1]
        pixels = self.decode(self.segments[cell])[: self.height - y, : self.width - x]
        self._kept[cell] = pixels
        while len(self._kept) > max(1, _CACHE_BYTES // (self.tile[0] * self.tile[1] * 3)):
            self._kept.popitem(last=False)
        return pixels

    def region(self, y: int, x: int, height: int, width: int) -> np.ndarray:
        """``[height, width, 3]`` uint8; white where the file has nothing."""
        out = np.full((height, width, 3), 255, np.uint8)
        for row in range(y // self.tile[0], (y + height - 1) // self.tile[0] + 1):
            for column in range(x // self.tile[1], (x + width - 1) // self.tile[1] + 1):
                pixels = self.segment((row, column))
                if pixels is None:
                    continue
                top, left = row * self.tile[0], column * self.tile[1]
                y0, y1 = max(y, top), min(y + height, top + pixels.shape[0])
                x0, x1 = max(x, left), min(x + width, left + pixels.shape[1])
                if y1 > y0 and x1 > x0:
                    out[y0 - y : y1 - y, x0 - x : x1 - x] = pixels[y0 - top : y1 - top, x0 - left : x1 - left]
        return out

    def overview(self) -> np.ndarray:
        """The whole level averaged down to at most ``_OVERVIEW`` pixels, segment by segment: ``[h, w, 3]`` uint8."""
        factor = max(1, -(-max(self.height, self.width) // _OVERVIEW))
        out = np.full((-(-self.height // factor), -(-self.width // factor), 3), 255, np.uint8)
        for cell in sorted(self.segments):
            pixels = self.segment(cell)
            if pixels is None or 0 in pixels.shape:
                continue
            small = np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).reduce(factor))
            y, x = cell[0] * self.tile[0] // factor, cell[1] * self.tile[1] // factor
            small = small[: out.shape[0] - y, : out.shape[1] - x]
            out[y : y + small.shape[0], x : x + small.shape[1]] = small
        return out


def tiles(levels: Sequence[Level], ctx: ReadContext, slide: str, group: str) -> Iterator[MedicalImage]:
    """The tiles of a slide that show tissue, row by row.

    Tiles lie side by side on a grid of ``ctx.tile`` pixels at ``ctx.mpp``; they come from the coarsest level that is
    fine enough and are averaged down. A slide that was scanned coarser, or that does not say how, is never enlarged:
    its tiles are ``ctx.tile`` of its own pixels. Incomplete tiles at the border are left out, unless the slide is
    smaller than a tile.

    Args:
        slide: what names the slide; ``volume`` of each tile.
        group: of all of them: the patient, or the slide.

    Yields:
        RGB, at most ``ctx.tile`` pixels square, ``index`` is the number of the tile on the whole grid. With
        ``ctx.max_tiles`` at most so many, evenly spread over the tissue.

    Raises:
        UnreadableImage: no tissue, or segments that cannot be decoded.
    """
    for level in levels:
        ctx.check_size(*level.tile)
        if min(level.height, level.width) < 1 or len(level.segments) > MAX_SEGMENTS:
            raise ctx.fail("describes no slide: one of its levels has no size, or too many tiles")
    levels = sorted(levels, key=lambda level: -level.width)
    level, step = _fitting(levels, ctx)
    rows, columns = max(1, level.height // step), max(1, level.width // step)
    share = _tissue_share(_smallest_enough(levels).overview(), level, step, (rows, columns))
    wanted = np.flatnonzero(share.ravel() >= ctx.min_tissue)
    if not len(wanted):
        raise ctx.fail("shows no tissue")
    most = min(filter(None, (ctx.max_tiles, ctx.most)), default=len(wanted))
    if most < len(wanted):
        wanted = wanted[np.linspace(0, len(wanted) - 1, most).round().astype(int)]
    for number in map(int, wanted):
        y, x = number // columns * step, number % columns * step
        pixels = level.region(y, x, min(step, level.height - y), min(step, level.width - x))
        picture = _fit(pixels, ctx.tile / step)
        modality = ctx.modality or "histopathology"
        yield MedicalImage(picture, modality, group=group, index=number, volume=slide, by_tag=bool(ctx.group_tag))


def _fitting(levels: Sequence[Level], ctx: ReadContext) -> tuple[Level, int]:
    """The level to read, and how many of its pixels a tile is wide."""
    fine = [level for level in levels if 0 < level.mpp <= ctx.mpp * _FINER]
    if not fine:
        return levels[0], ctx.tile
    best = max(fine, key=lambda level: level.mpp)
    factor = ctx.mpp / best.mpp
    return best, ctx.tile if factor <= _FINER else round(ctx.tile * factor)


def _smallest_enough(levels: Sequence[Level]) -> Level:
    enough = [level for level in levels if max(level.height, level.width) >= _ENOUGH]
    return enough[-1] if enough else levels[0]


def _tissue_share(overview: np.ndarray, level: Level, step: int, grid: tuple[int, int]) -> np.ndarray:
    """The part of each tile that is tissue, ``[rows, columns]`` in [0, 1]."""
    mask = tissue(overview)
    # Sums over all rectangles from the corner, so that a tile costs four look-ups.
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1), np.int32)
    sums[1:, 1:] = mask.cumsum(axis=0, dtype=np.int32).cumsum(axis=1, dtype=np.int32)
    y = _edges(grid[0], step * mask.shape[0] / level.height, mask.shape[0])
    x = _edges(grid[1], step * mask.shape[1] / level.width, mask.shape[1])
    y0, y1, x0, x1 = y[0][:, None], y[1][:, None], x[0][None], x[1][None]
    inside = sums[y1, x1] - sums[y0, x1] - sums[y1, x0] + sums[y0, x0]
    return inside / ((y1 - y0) * (x1 - x0))


def _edges(count: int, step: float, size: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last-plus-one overview pixel of each tile along one axis; at least one pixel each."""
    first = np.minimum((np.arange(count) * step).astype(int), size - 1)
    return first, np.clip(np.ceil((np.arange(count) + 1) * step).astype(int), first + 1, size)


def tissue(overview: np.ndarray) -> np.ndarray:
    """Where a picture of a slide, ``[H, W, 3]`` uint8, shows tissue: ``[H, W]`` bool."""
    saturation = Image.fromarray(overview).convert("HSV").getchannel("S")
    smooth = np.asarray(saturation.filter(ImageFilter.MedianFilter(5)))
    return smooth > np.clip(otsu(smooth), *_SATURATION)


def otsu(values: np.ndarray) -> int:
    """The threshold that divides uint8 values into the two classes with the largest variance between (Otsu, 1979)."""
    counts = np.array(Image.fromarray(values[None] if values.ndim == 1 else values).histogram(), np.float64)
    below = counts.cumsum()
    first = (counts * np.arange(256)).cumsum()
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = first / below - (first[-1] - first) / above
        between = np.nan_to_num(below * above * distance**2, nan=0.0, posinf=0.0)
    return int(between.argmax())


def _fit(pixels: np.ndarray, scale: float) -> np.ndarray:
    if scale >= 1:
        return pixels
    size = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
