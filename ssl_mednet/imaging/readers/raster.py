"""PNG, JPEG, BMP, GIF (first frame) and WebP; 16-bit PNG keeps its 16 bits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.levels import as_stored, bits_window, in_channels, upright

_PNG_DEPTH = 24  # offset of the bit depth in a PNG's header (PNG specification, 11.2.2 IHDR)

_ORIENTATION = 274  # tag of EXIF


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """The picture, turned as its EXIF orientation says. Palettes become RGB, CMYK becomes RGB, opacity is dropped."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    try:
        with Image.open(io.BytesIO(data)) as picture:
            ctx.check_size(picture.height, picture.width)
            if data.startswith(b"\x89PNG") and data[_PNG_DEPTH] == 16:
                pixels = upright(_sixteen_bit_png(data), picture.getexif().get(_ORIENTATION, 1))
            else:
                pixels = _eight_bit(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as error:
        raise ctx.fail("is damaged: its header cannot be read") from error
    except Image.DecompressionBombError as error:
        raise ctx.fail("declares more pixels than any picture has") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ctx.fail(f"is truncated or damaged: {str(error)[:100]}") from error
    yield MedicalImage(in_channels(as_stored(pixels, ctx.name), ctx.name), ctx.modality, bits_window(pixels))


def _sixteen_bit_png(data: bytes) -> np.ndarray:
    """Pillow reads 16-bit RGB as 8-bit, so the picture is decoded by libpng itself."""
    import imagecodecs

    return imagecodecs.png_decode(data)


def _eight_bit(picture: Image.Image) -> np.ndarray:
    mode = picture.mode
    if mode in ("I;16", "I;16B", "I;16L", "F", "L", "RGB"):
        return np.asarray(picture)
    if mode in ("1", "LA", "La"):
        return np.asarray(picture.convert("L"))
    if mode == "I":
        return np.asarray(picture)
    return np.asarray(picture.convert("RGB"))
