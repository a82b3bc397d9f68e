"""TIFF: 1 to 16 bit and float, one page an image; slides as tiles."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext, slide_tiff
from ssl_mednet.imaging.readers.levels import as_stored, bits_window, in_channels


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
                values = _pixels(page, ctx)
                # A dark page of a stack is dark: what bits the stack has is not known from one page.
                window = bits_window(values if len(found) == 1 else values[:0])
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


def _pixels(page: tifffile.TiffPage, ctx: ReadContext) -> np.ndarray:
    if not isinstance(page.compression, tifffile.COMPRESSION):
        raise ctx.fail(f"is compressed in a way that no decoder knows (TIFF compression {int(page.compression)})")
    pixels = page.asarray()
    if page.photometric == tifffile.PHOTOMETRIC.PALETTE and page.colormap is not None:
        table = np.asarray(page.colormap)  # [3, 2^bits] uint16
        return np.moveaxis(table[:, pixels], 0, -1)
    if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and pixels.dtype.kind in "ub":
        pixels = ~pixels if pixels.dtype == bool else np.iinfo(pixels.dtype).max - pixels
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE and pixels.ndim == 3:
        pixels = np.moveaxis(pixels, 0, -1)
    return pixels
