"""Slides in DICOM (VL Whole Slide Microscopy, PS3.3 A.32.8): tiled full and tiled sparse, one or several levels."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, parse_basic_offsets, parse_fragments
from pydicom.pixels import get_decoder

from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.jpeg import plugin_for
from ssl_mednet.imaging.readers.slide import MAX_SEGMENTS, Level, tiles
from ssl_mednet.imaging.readers.tags import value_of

_EXTRAS = frozenset({"LABEL", "OVERVIEW", "THUMBNAIL", "LOCALIZER"})
# What a decoder asks for of one frame.
_OF_A_FRAME = (
    "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation",
)  # fmt: skip
_LONG_VR = frozenset({b"OB", b"OW", b"UN"})
_FRAGMENT = 8  # bytes of an item's tag and length


def read(source: Path | bytes | tuple[Path | bytes, ...], ctx: ReadContext) -> Iterator[MedicalImage]:
    """The tissue tiles of a slide; see :func:`.slide.tiles`. The group is the patient, else the slide;
    or what the file says at ``ctx.group_tag``.

    Args:
        source: a file, or all files of a slide: the levels of its pyramid, and label and overview, which are left out.

    Raises:
        UnreadableImage: no level among them, no tissue, a compression without decoder, or damage.
    """
    with ExitStack() as stack:
        levels: dict[tuple[int, int], Level] = {}
        header: Dataset | None = None
        for part in source if isinstance(source, tuple) else (source,):
            opened: BinaryIO = io.BytesIO(part) if isinstance(part, bytes) else part.open("rb")
            file = stack.enter_context(opened)
            data = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            if _EXTRAS & set(data.get("ImageType") or ()):
                continue
            level = _level(data, file, ctx)
            levels.setdefault((level.height, level.width), level)  # further focal planes and optical paths are left out
            header = header or data
        if header is None:
            raise ctx.fail("is the label or an overview of a slide, not the slide")
        slide = str(header.get("SeriesInstanceUID", "") or ctx.name)
        group = value_of(header, ctx.group_tag) if ctx.group_tag else value_of(header, "PatientID") or slide
        yield from tiles([*levels.values()], ctx, slide, group)


def _level(data: Dataset, file: BinaryIO, ctx: ReadContext) -> Level:
    if int(data.get("SamplesPerPixel", 1)) != 3 or int(data.get("BitsAllocated", 8)) != 8:
        raise ctx.fail("is a slide that is not 8-bit color (fluorescence or the like), which is not read")
    tile = (int(data.Rows), int(data.Columns))
    height, width = int(data.get("TotalPixelMatrixRows", tile[0])), int(data.get("TotalPixelMatrixColumns", tile[1]))
    ctx.check_size(*tile)
    frames = int(data.get("NumberOfFrames", 1) or 1)
    if min(height, width, frames) < 1 or frames > MAX_SEGMENTS:
        raise ctx.fail(f"is damaged: a level of {width} x {height} pixels in {frames} tiles")
    grid = (-(-height // tile[0]), -(-width // tile[1]))
    frame = _Frames(data, file, frames, ctx)
    return Level(height, width, _mpp(data, width), tile, _cells(data, grid, tile, frames, ctx), frame.decode)


def _cells(
    data: Dataset, grid: tuple[int, int], tile: tuple[int, int], frames: int, ctx: ReadContext
) -> dict[tuple[int, int], int]:
    """The frame of each cell of the grid: as positions say (sparse), else row by row (full, PS3.3 C.7.6.17.3)."""
    if data.get("DimensionOrganizationType") != "TILED_FULL" and data.get("PerFrameFunctionalGroupsSequence"):
        cells: dict[tuple[int, int], int] = {}
        for number, groups in enumerate(data.PerFrameFunctionalGroupsSequence[:frames]):
            position = groups.PlanePositionSlideSequence[0]
            row, y = divmod(int(position.RowPositionInTotalImagePixelMatrix) - 1, tile[0])
            column, x = divmod(int(position.ColumnPositionInTotalImagePixelMatrix) - 1, tile[1])
            if x or y:
                raise ctx.fail("has tiles that overlap or lie off their grid, which is not read")
            if 0 <= row < grid[0] and 0 <= column < grid[1]:
                cells.setdefault((row, column), number)
        return cells
    if frames < grid[0] * grid[1]:
        raise ctx.fail(f"is damaged: {frames} tiles where its size asks for {grid[0] * grid[1]}")
    return {divmod(number, grid[1]): number for number in range(grid[0] * grid[1])}


def _mpp(data: Dataset, width: int) -> float:
    """Microns per pixel: its spacing, else the width of what was scanned over its pixels; 0 where neither is told."""
    for groups in data.get("SharedFunctionalGroupsSequence") or []:
        if groups.get("PixelMeasuresSequence"):
            return 1000.0 * float(groups.PixelMeasuresSequence[0].PixelSpacing[0])
    return 1000.0 * float(data.get("ImagedVolumeWidth") or 0.0) / width


class _Frames:
    """The frames of an open file, each read and decoded when it is asked for."""

    def __init__(self, data: Dataset, file: BinaryIO, count: int, ctx: ReadContext) -> None:
        self._file, self._ctx = file, ctx
        syntax = data.file_meta.TransferSyntaxUID
        try:
            self._decoder = get_decoder(syntax)
        except NotImplementedError as error:
            raise ctx.fail("has a transfer syntax that holds no pixels that can be decoded") from error
        self._packed = syntax.is_encapsulated
        self._plugin = plugin_for(syntax)
        self._one = Dataset()
        for name in _OF_A_FRAME:
            if name in data:
                setattr(self._one, name, data[name].value)
        self._one.file_meta = data.file_meta
        self._one.NumberOfFrames = 1
        self._size = int(data.Rows) * int(data.Columns) * 3
        self._start = _pixels_begin(file, *data.original_encoding)
        self._parts = self._fragments(data, count) if self._packed else []

    def decode(self, number: int) -> np.ndarray:
        """``[rows, columns, 3]`` uint8, RGB."""
        self._one.PixelData = encapsulate([self._packed_frame(number)]) if self._packed else self._plain_frame(number)
        self._one["PixelData"].VR = "OB"
        try:
            return self._decoder.as_array(self._one, index=0, decoding_plugin=self._plugin)[0]
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise self._ctx.fail("its tiles cannot be decoded: truncated, damaged or wrongly described") from error

    def _plain_frame(self, number: int) -> bytes:
        self._file.seek(self._start + number * self._size)
        return self._file.read(self._size)

    def _packed_frame(self, number: int) -> bytes:
        content = []
        for offset in self._parts[number]:
            self._file.seek(offset + 4)
            (length,) = struct.unpack("<L", self._file.read(4))
            content.append(self._file.read(length))
        return b"".join(content)

    def _fragments(self, data: Dataset, count: int) -> list[list[int]]:
        """Where the fragments of each frame begin: one a frame, or as the offset table divides them (PS3.5 A.4)."""
        self._file.seek(self._start)
        starts = parse_basic_offsets(self._file)
        first = self._file.tell()
        _, offsets = parse_fragments(self._file)
        if "ExtendedOffsetTable" in data:
            starts = [int(n) for n in np.frombuffer(data.ExtendedOffsetTable, "<u8")]
        if len(offsets) == count:
            return [[offset] for offset in offsets]
        if len(starts) < count:
            raise self._ctx.fail(f"is truncated: {len(offsets)} of {count} tiles are there")
        bounds = np.searchsorted(offsets, [*(first + start for start in starts[:count]), offsets[-1] + 1])
        return [offsets[a:b] for a, b in pairwise(bounds)]


def _pixels_begin(file: BinaryIO, implicit: bool | None, little: bool | None) -> int:
    """Where the value of Pixel Data begins in a file that was read up to its tag."""
    start = file.tell()
    tag = file.read(_FRAGMENT)
    if struct.unpack("<HH" if little else ">HH", tag[:4]) != (0x7FE0, 0x0010):
        raise ValueError("no pixels here")
    return start + (8 if implicit or tag[4:6] not in _LONG_VR else 12)
