"""gzip and its like, unpacked up to a limit: a bomb is refused where it passes the limit, not where it ends."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers import read as read_any


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """The images of a gzipped file of any format but an archive.

    Raises:
        UnreadableImage: damaged, too large when unpacked, or unreadable when unpacked.
    """
    inside = content(source, ctx)
    if inside.startswith(b"\x1f\x8b"):
        raise ctx.fail("is gzipped twice")
    for image in read_any(inside, replace(ctx, name=ctx.name.removesuffix(".gz"))):
        yield replace(image, volume=ctx.name) if image.volume == ctx.name.removesuffix(".gz") else image


def content(source: Path | bytes, ctx: ReadContext) -> bytes:
    """All bytes of a file, gunzipped where it is gzipped."""
    data = source if isinstance(source, bytes) else source.read_bytes()
    return unpacked(data, "gzip", 8 * ctx.max_pixels, ctx) if data[:2] == b"\x1f\x8b" else data


def unpacked(data: bytes, how: str, limit: int, ctx: ReadContext) -> bytes:
    """Bytes packed by ``gzip``, ``zlib`` or ``bzip2``.

    Raises:
        UnreadableImage: truncated, damaged, or larger than ``limit`` when unpacked.
    """
    try:
        if how == "zlib":
            machine = zlib.decompressobj()
            out = machine.decompress(data, limit + 1)
            if not machine.eof and len(out) <= limit:
                raise EOFError
        else:  # these may be several streams, one after the other
            opened = bz2.BZ2File(io.BytesIO(data)) if how == "bzip2" else gzip.GzipFile(fileobj=io.BytesIO(data))
            with opened as file:
                out = file.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ctx.fail(f"is a truncated or damaged {how} file, or holds one") from error
    if len(out) > limit:
        raise ctx.fail(f"unpacks to more than {limit:,} bytes")
    return out
