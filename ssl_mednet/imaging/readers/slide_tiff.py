"""Slides in TIFF: Aperio SVS, pyramidal and tiled TIFF, and what else tifffile knows as a slide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import tifffile

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.jpeg_header import jpeg_size
from ssl_mednet.imaging.readers.slide import Level, tiles

_VENDORS = ("is_svs", "is_ndpi", "is_scn", "is_bif", "is_philips", "is_vectra")
_LARGE = 4096  # a tiled color TIFF with a side longer than this is a slide although it has one level only
_SAME_SHAPE = 0.02  # how far the aspect ratio of a level may be off, by rounding
_COARSEST = 50.0  # microns per pixel: a resolution beyond is that of a screen or a printer (72 dpi is 353)
_MICRONS = {1: 0.0, 2: 25_400.0, 3: 10_000.0}  # of TIFF's resolution units: none, inch, centimetre


def is_slide(file: tifffile.TiffFile) -> bool:
    """Whether a TIFF is cut into tiles, rather than read as a picture."""
    page = file.pages[0]
    if not isinstance(page, tifffile.TiffPage) or page.dtype != np.uint8 or page.samplesperpixel < 3:
        return False
    if any(getattr(file, vendor, False) for vendor in _VENDORS):
        return True
    if not page.is_tiled:
        return False
    smaller = any(
        p.is_tiled and p.imagewidth < page.imagewidth for p in file.pages[1:] if isinstance(p, tifffile.TiffPage)
    )
    return smaller or bool(page.subifds) or max(page.imagewidth, page.imagelength) > _LARGE


def read(file: tifffile.TiffFile, ctx: ReadContext) -> Iterator[MedicalImage]:
    """The tissue tiles of an open slide; see :func:`.slide.tiles`. The group is the slide.

    Raises:
        UnreadableImage: no tissue, a compression without decoder, or damage.
    """
    pages = _pyramid(file)
    base = pages[0]
    finest = _mpp(file, base)
    levels = [_level(page, finest * base.imagewidth / page.imagewidth, ctx) for page in pages]
    yield from tiles(levels, replace(ctx, group_tag=""), ctx.name, ctx.name)


def _pyramid(file: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """The levels, finest first: as tifffile knows them, else the tiled pages of the same shape of picture."""
    pages = [level.keyframe for level in file.series[0].levels]
    if len(pages) > 1:
        return pages
    base = pages[0]
    others = [p for p in file.pages if isinstance(p, tifffile.TiffPage) and p.is_tiled and p.dtype == base.dtype]
    ratio = base.imagewidth / base.imagelength
    like = [p for p in others if p.samplesperpixel == base.samplesperpixel and p.imagewidth < base.imagewidth]
    return [base, *(p for p in like if abs(p.imagewidth / p.imagelength / ratio - 1) < _SAME_SHAPE)]


def _level(page: tifffile.TiffPage, mpp: float, ctx: ReadContext) -> Level:
    height, width = page.imagelength, page.imagewidth
    tile = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip or height, width)
    tile = (min(tile[0], max(height, 1)) if not page.is_tiled else tile[0], tile[1])
    if min(*tile, height, width) < 1:
        raise ctx.fail("is damaged: a level of the slide has no size")
    grid = (-(-height // tile[0]), -(-width // tile[1]))
    counts = page.databytecounts
    if page.planarconfig != tifffile.PLANARCONFIG.CONTIG or len(counts) != grid[0] * grid[1]:
        raise ctx.fail(f"is damaged or unusual: {len(counts)} tiles where its size asks for {grid[0] * grid[1]}")
    segments = {divmod(i, grid[1]): i for i, count in enumerate(counts) if count}
    return Level(height, width, mpp, tile, segments, lambda i: _segment(page, i, ctx))


def _segment(page: tifffile.TiffPage, index: int, ctx: ReadContext) -> np.ndarray:
    """One decoded tile or strip, ``[h, w, 3]``."""
    file = page.parent.filehandle
    file.seek(page.dataoffsets[index])
    data = file.read(page.databytecounts[index])
    if data.startswith(b"\xff\xd8") and (size := jpeg_size(data)):
        ctx.check_size(*size)
    try:
        pixels = page.decode(data, index, jpegtables=page.jpegtables)[0]
    except Exception as error:  # decoders raise everything; the page says what it is compressed with
        name = getattr(page.compression, "name", str(page.compression))
        raise ctx.fail(f"its tiles cannot be decoded (compression {name}): damaged, or of a kind not known") from error
    if pixels is None:
        raise ctx.fail("is truncated: the data of a tile is missing")
    return pixels[0, :, :, :3]


def _mpp(file: tifffile.TiffFile, page: tifffile.TiffPage) -> float:
    """Microns per pixel of the full resolution: as the vendor writes it, else from the resolution; 0 if not known."""
    text = page.description or ""
    microns = 'PhysicalSizeXUnit="' not in text or re.search(r'PhysicalSizeXUnit="(µm|um|&#181;m)"', text)
    for pattern in (r"\bMPP\s*=\s*(\d+\.?\d*)", *([r'PhysicalSizeX="(\d+\.?\d*)"'] if microns else [])):
        if (found := re.search(pattern, text)) and 0 < float(found[1]) <= _COARSEST:
            return float(found[1])
    across, unit = page.resolution[0], int(page.resolutionunit)
    mpp = _MICRONS.get(unit, 0.0) / across if across > 0 else 0.0
    if 0 < mpp <= _COARSEST:
        return mpp
    found = re.search(r"\bAppMag\s*=\s*(\d+\.?\d*)", text)
    return 10.0 / float(found[1]) if found and float(found[1]) > 0 else 0.0  # 20x is 0.5 um, 40x is 0.25 um
