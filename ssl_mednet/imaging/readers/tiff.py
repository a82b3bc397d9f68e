"""TIFF: 1 to 16 bit and float, one page an image; slides as tiles."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext, slide_tiff
from ssl_mednet.imaging.readers.levels import as_stored, bits_window, in_channels, upright

_OTHER_COLORS = (tifffile.PHOTOMETRIC.CIELAB, tifffile.PHOTOMETRIC.ICCLAB, tifffile.PHOTOMETRIC.ITULAB)


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """Every page that is a picture, in order; reduced copies (pyramid levels, thumbnails) are left out.

    A slide is cut into its tissue tiles instead; see :mod:`.slide_tiff`.
    """
    try:
        with tifffile.TiffFile(io.BytesIO(source) if isinstance(source, bytes) else source) as file:
            if slide_tiff.is_slide(file):
                yield from slide_tiff.read(file, ctx)
                return
            pages = [p for p in file.pages if isinstance(p, tifffile.TiffPage)]
            found = [page for page in pages if not page.is_reduced and not _is_level(page, pages)]
            for index in ctx.chosen(len(found)):
                page = found[index]
                ctx.check_size(page.imagelength, page.imagewidth, page.imagedepth)
                # A dark page of a stack is dark: what bits the stack has is not known from one page.
                values, window = _pixels(page, ctx, alone=len(found) == 1)
                pixels = in_channels(as_stored(values, ctx.name), ctx.name)
                yield MedicalImage(pixels, ctx.modality, window, index=index)
    except (tifffile.TiffFileError, ValueError, OSError, IndexError, KeyError) as error:
        raise ctx.fail(f"is a damaged or unusual TIFF ({type(error).__name__})") from error
    if not found:
        raise ctx.fail("is a TIFF without a picture")


def _is_level(page: tifffile.TiffPage, pages: list[tifffile.TiffPage]) -> bool:
    """Whether a page only repeats the first one smaller."""
    first = pages[0]
    if page is first or page.imagewidth >= first.imagewidth:
        return False
    if first.is_tiled:
        return True
    across, left = divmod(first.imagewidth, page.imagewidth)
    down, below = divmod(first.imagelength, page.imagelength)
    return left == below == 0 and across == down


def _pixels(page: tifffile.TiffPage, ctx: ReadContext, alone: bool) -> tuple[np.ndarray, tuple[float, float]]:
    """Brightness or RGB, upright, and what becomes 0 and 1 of it."""
    if not isinstance(page.compression, tifffile.COMPRESSION):
        raise ctx.fail(f"is compressed in a way that no decoder knows (TIFF compression {int(page.compression)})")
    color = page.photometric
    if color in _OTHER_COLORS:
        raise ctx.fail(f"holds colors as {tifffile.PHOTOMETRIC(color).name}, which is not read: save it as RGB")
    pixels = page.asarray()
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    if color == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        pixels = np.moveaxis(np.asarray(page.colormap)[:, pixels], 0, -1)  # [3, 2^bits] uint16
    elif pixels.dtype == np.uint8 and 1 < page.bitspersample < 8:
        pixels = np.rint(pixels * (255 / (2**page.bitspersample - 1))).astype(np.uint8)
    declared = 8 < page.bitspersample < 16 and color != tifffile.PHOTOMETRIC.PALETTE
    window = (0.0, 2.0**page.bitspersample - 1) if declared else bits_window(pixels if alone else pixels[:0])
    if color == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind in "ub":
        top = window[1] if pixels.itemsize <= 2 else np.iinfo(pixels.dtype).max
        pixels = ~pixels if pixels.dtype == bool else pixels.dtype.type(top) - pixels
    if color == tifffile.PHOTOMETRIC.SEPARATED:
        pixels = _from_inks(pixels, ctx)
    tag = page.tags.get("Orientation")
    return upright(pixels, int(tag.value) if tag else 1), window


def _from_inks(pixels: np.ndarray, ctx: ReadContext) -> np.ndarray:
    """``[H, W, 4]`` of cyan, magenta, yellow and black as RGB, as Pillow does it for JPEG."""
    if pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype not in (np.uint8, np.uint16):
        raise ctx.fail("is printed in inks that are not read: save it as RGB")
    top = float(np.iinfo(pixels.dtype).max)
    left = (top - pixels[..., :3]) * ((top - pixels[..., 3:]) / top)
    return np.rint(left).astype(pixels.dtype)
