"""MetaImage (MHA, MHD) and NRRD (NRRD, NHDR): a header of text, then plain or packed numbers.

Read here rather than by ITK: both are a header and a buffer, this way they come from bytes (members of archives), the
size is known before memory is taken, and damage cannot bring the process down in C++. Tests compare with ITK. No
text of a header reaches a message, unless it is a word of the format itself: it could be a name.

MetaImage: the ITK wiki's "MetaIO/Documentation". NRRD: G. Kindlmann, "Definition of NRRD File Format" (teem.sf.net).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.packed import unpacked
from ssl_mednet.imaging.readers.volume import color_slices, slices

_MAX_HEADER = 1024**2
_META_TYPES = {
    "MET_CHAR": "i1", "MET_UCHAR": "u1", "MET_SHORT": "i2", "MET_USHORT": "u2", "MET_INT": "i4", "MET_UINT": "u4",
    "MET_LONG": "i4", "MET_ULONG": "u4", "MET_LONG_LONG": "i8", "MET_ULONG_LONG": "u8", "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}  # fmt: skip
_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "int64", "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}
_NRRD_PACKING = {"raw": "", "gzip": "gzip", "gz": "gzip", "bzip2": "bzip2", "bz2": "bzip2"}
_NRRD_TEXT = frozenset({"ascii", "txt", "text", "hex"})
_NRRD_PLACES = frozenset({"domain", "space", "time", "none", "???"})
_NRRD_COLOR = frozenset({"vector", "rgb-color", "rgba-color", "list", "3-color", "4-color", "none"})


@dataclass(frozen=True)
class _Layout:
    """What a header says of its numbers: axes fastest first, channels apart from them."""

    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    dtype: np.dtype
    channels: int
    packing: str  # "", "gzip", "zlib" or "bzip2"
    elsewhere: str  # name of the file with the numbers; empty where they follow the header
    skip: int = 0  # bytes before the numbers; -1: they are the last of the file


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """The slices of the volume along its axis of acquisition, as :func:`.volume.slices` makes them.

    Rows run along the second axis of the file and columns along the first, as ITK shows a slice; volumes of RGB or
    RGBA voxels become RGB slices.

    Raises:
        UnreadableImage: damaged, too large, of unknown encoding, or its numbers are in a file that is not there.
    """
    data = source if isinstance(source, bytes) else source.read_bytes()
    layout, rest = _nrrd(data, ctx) if data.startswith(b"NRRD") else _meta(data, ctx)
    ctx.check_size(*layout.shape, layout.channels)
    if layout.elsewhere:
        rest = _detached(source, layout.elsewhere, ctx)
    values = _numbers(rest, layout, ctx)
    if layout.channels == 1:
        yield from slices(values, layout.spacing[:3], ctx, _rows_and_columns)
    else:
        yield from color_slices(values, ctx, _rows_and_columns)


def _rows_and_columns(plane: np.ndarray) -> np.ndarray:
    return plane.swapaxes(0, 1)


def _numbers(raw: bytes, layout: _Layout, ctx: ReadContext) -> np.ndarray:
    """``[X, Y, ...]``, or ``[X, Y, ..., 3]`` for color voxels."""
    size = math.prod(layout.shape) * layout.channels * layout.dtype.itemsize
    if layout.packing:
        raw = unpacked(raw, layout.packing, size + max(layout.skip, 0) + 1024, ctx)
    start = len(raw) - size if layout.skip < 0 else layout.skip
    if start < 0 or len(raw) < start + size:
        raise ctx.fail(f"is truncated: {len(raw):,} of {size:,} bytes of its numbers")
    flat = np.frombuffer(raw, layout.dtype, count=size // layout.dtype.itemsize, offset=start)
    values = flat.reshape((layout.channels, *layout.shape), order="F")
    if layout.channels == 1:
        return values[0].astype(np.float32)
    if layout.channels not in (3, 4) or layout.dtype != np.uint8:
        raise ctx.fail(f"has {layout.channels} numbers of type {layout.dtype} a voxel, which are no gray and no color")
    return np.moveaxis(values[:3], 0, -1)


def _detached(source: Path | bytes, name: str, ctx: ReadContext) -> bytes:
    """The file that a header names, which must lie beside it."""
    if isinstance(source, bytes):
        raise ctx.fail("has its numbers in another file; inside an archive they must be in one (.mha, .nrrd)")
    if PurePosixPath(name.replace("\\", "/")).name != name or name in (".", ".."):
        raise ctx.fail("names a file in another folder for its numbers, which is not followed")
    path = source.parent / name
    if path.is_symlink() or not path.is_file():
        raise ctx.fail("its numbers are in another file, which is not there")
    if path.stat().st_size > 8 * ctx.max_pixels:
        raise ctx.fail("its numbers are in another file, which is too large")
    return path.read_bytes()


def _meta(data: bytes, ctx: ReadContext) -> tuple[_Layout, bytes]:
    """MetaImage: ``key = value`` lines, the last of which says where the numbers are."""
    fields: dict[str, str] = {}
    offset = 0
    while "ElementDataFile" not in fields:
        end = data.find(b"\n", offset, _MAX_HEADER)
        line = data[offset : end if end >= 0 else _MAX_HEADER].decode("latin-1")
        key, equals, value = line.partition("=")
        if not equals:
            raise ctx.fail("its header is no MetaImage header")
        fields[key.strip()] = value.strip()
        offset = end + 1
        if end < 0:
            break
    try:
        return _meta_layout(fields, ctx), data[offset:] if offset else b""
    except (KeyError, ValueError) as error:
        raise ctx.fail(f"its MetaImage header is damaged ({type(error).__name__})") from error


def _meta_layout(fields: dict[str, str], ctx: ReadContext) -> _Layout:
    shape = tuple(int(n) for n in fields["DimSize"].split())
    kind = fields["ElementType"].removesuffix("_ARRAY")
    if kind not in _META_TYPES:
        raise ctx.fail("has numbers of an unknown type")
    big = fields.get("BinaryDataByteOrderMSB", fields.get("ElementByteOrderMSB", "False")).lower() == "true"
    if fields.get("BinaryData", "True").lower() != "true":
        raise ctx.fail("has its numbers as text, which is not read")
    spacing = fields.get("ElementSpacing") or fields.get("ElementSize") or " ".join("1" for _ in shape)
    file = fields["ElementDataFile"]
    if file.upper() == "LIST" or "%" in file:
        raise ctx.fail("has its numbers in several files, which is not read; convert it to one .mha")
    packed = fields.get("CompressedData", "False").lower() == "true"
    return _Layout(
        shape,
        tuple(float(n) for n in spacing.split())[: len(shape)],
        np.dtype((">" if big else "<") + _META_TYPES[kind]),
        int(fields.get("ElementNumberOfChannels", "1")),
        "zlib" if packed else "",
        "" if file.upper() == "LOCAL" else file,
        0 if packed else int(fields.get("HeaderSize", "0")),
    )


def _nrrd(data: bytes, ctx: ReadContext) -> tuple[_Layout, bytes]:
    """NRRD: ``field: value`` and ``key:=value`` lines until an empty one."""
    lines, offset = [], 0
    while True:
        end = data.find(b"\n", offset, _MAX_HEADER)
        line = data[offset : end if end >= 0 else _MAX_HEADER].decode("latin-1").rstrip("\r")
        offset = end + 1
        if end < 0 or not line:
            lines.append(line)
            break
        lines.append(line)
    fields = dict(line.split(": ", 1) for line in lines[1:] if ": " in line and not line.startswith("#"))
    try:
        return _nrrd_layout({k.lower().strip(): v.strip() for k, v in fields.items()}, ctx), data[
            offset:
        ] if offset else b""
    except (KeyError, ValueError) as error:
        raise ctx.fail(f"its NRRD header is damaged ({type(error).__name__})") from error


def _nrrd_layout(fields: dict[str, str], ctx: ReadContext) -> _Layout:
    shape = tuple(int(n) for n in fields["sizes"].split())
    kind, encoding = fields["type"].lower(), fields["encoding"].lower()
    if kind not in _NRRD_TYPES:
        told = "the type block" if kind == "block" else "an unknown type"
        raise ctx.fail(f"has numbers of {told}, which is no brightness")
    if encoding not in _NRRD_PACKING:
        how = f"as {encoding}" if encoding in _NRRD_TEXT else "in an unknown way"
        raise ctx.fail(f"has its numbers encoded {how}, which is not read")
    spacing = _nrrd_spacing(fields, len(shape))
    kinds = fields.get("kinds", "").lower().split() or ["none"] * len(shape)
    colors = 1
    if len(shape) > 2 and shape[0] in (1, 3, 4) and kinds[0] in _NRRD_COLOR and (len(shape) > 3 or kinds[0] != "none"):
        colors, shape, spacing, kinds = shape[0], shape[1:], spacing[1:], kinds[1:]
    if len(shape) > 2 and not _NRRD_PLACES.issuperset(kinds[:3]):
        raise ctx.fail("has an axis among its first three that is no direction in space (its kinds); put it last")
    file = fields.get("data file", fields.get("datafile", ""))
    if file.upper().startswith("LIST") or "%" in file:
        raise ctx.fail("has its numbers in several files, which is not read; convert it to one .nrrd")
    if int(fields.get("line skip", fields.get("lineskip", "0"))):
        raise ctx.fail("has lines of text before its numbers, which is not read")
    return _Layout(
        shape,
        spacing,
        np.dtype((">" if fields.get("endian", "little").lower() == "big" else "<") + _NRRD_TYPES[kind]),
        colors,
        _NRRD_PACKING[encoding],
        file,
        int(fields.get("byte skip", fields.get("byteskip", "0"))),
    )


def _nrrd_spacing(fields: dict[str, str], axes: int) -> tuple[float, ...]:
    """mm along each axis: the length of its direction in space, else its spacing, else 1."""
    if directions := fields.get("space directions"):
        vectors = [v if v == "none" else v.strip("()") for v in directions.replace(", ", ",").split()]
        found = [1.0 if v == "none" else math.hypot(*(float(n) for n in v.split(","))) for v in vectors]
    else:
        found = [float(n) for n in fields.get("spacings", "").split()]
    found = [1.0 if math.isnan(n) else n for n in found[:axes]]
    return tuple(found + [1.0] * (axes - len(found)))
