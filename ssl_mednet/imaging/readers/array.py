"""npy and npz arrays, among them MedMNIST's; never unpickled."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.levels import as_stored, bits_window, in_channels, stretch, stretch_range

_SPLITS = ("train", "val", "test")
Splits = dict[str, tuple[np.ndarray, np.ndarray | None]]


def read(source: Path | bytes, ctx: ReadContext) -> Iterator[MedicalImage]:
    """The images of an array ``[H, W]``, ``[H, W, 3]``, ``[N, H, W]`` or ``[N, H, W, C]``, or of all arrays of an npz
    that have such a shape (MedMNIST's ``*_images`` alone where there are any), in order."""
    data = io.BytesIO(source) if isinstance(source, bytes) else source
    arrays: Iterable[np.ndarray] = (_stack(array, ctx) for array in _arrays(data, ctx))
    if ctx.most:  # which images are taken depends on how many there are
        arrays = [*arrays]
        wanted = {*ctx.chosen(sum(map(len, arrays)))}
    start, found = 0, False
    for array in arrays:
        window = bits_window(array)
        for index, image in enumerate(array, start):
            if ctx.most and index not in wanted:
                continue
            pixels = _stored(image, len(array), ctx)
            if pixels is not None:
                yield MedicalImage(in_channels(pixels, ctx.name), ctx.modality, window, index=index)
                found = True
        start += len(array)
    if not found:
        raise ctx.fail("holds no array that has the shape of a picture")


def splits(path: Path) -> Splits:
    """Images and labels by split of an npz with MedMNIST's keys (``train_images``, ``train_labels``, ...).

    Empty for any other file. Images are ``[N, H, W]`` or ``[N, H, W, 3]``.

    Raises:
        UnreadableImage: labels and images of a split differ in number, or the file cannot be read.
    """
    ctx = ReadContext(name=str(path))
    try:
        with zipfile.ZipFile(path) as file:
            names = {n.removesuffix(".npy") for n in file.namelist()}
            present = [s for s in _SPLITS if f"{s}_images" in names]
            return _on_one_scale({s: _split(file, s, names, ctx) for s in present}, ctx)
    except UnreadableImage:
        raise
    except Exception as error:  # as in `read`: damage raises everything, from zlib.error to NotImplementedError
        raise ctx.fail("is no npz, or a damaged one") from error


def _on_one_scale(found: Splits, ctx: ReadContext) -> Splits:
    """Pixels as :func:`.levels.as_stored` makes them, but that what must be stretched has one scale in all splits.

    It is that of the training images where there are any, so that no pixel depends on the test images; what goes beyond
    is clipped.
    """
    first = next(iter(found.values()))[0] if found else np.empty(0)
    stretched = first.dtype.kind in "iuf" and first.dtype not in (np.uint8, np.uint16)
    if not stretched or not np.isfinite(first).any():
        return {split: (as_stored(images, ctx.name), labels) for split, (images, labels) in found.items()}
    low, high = stretch_range(first)
    return {split: (stretch(images, low, high), labels) for split, (images, labels) in found.items()}


def _split(
    file: zipfile.ZipFile, split: str, names: set[str], ctx: ReadContext
) -> tuple[np.ndarray, np.ndarray | None]:
    images = _member(file, f"{split}_images.npy", ctx)
    labels = _member(file, f"{split}_labels.npy", ctx) if f"{split}_labels" in names else None
    if labels is not None and len(labels) != len(images):
        raise ctx.fail(f"has {len(images)} {split} images but {len(labels)} labels")
    return images, labels


def _arrays(data: Path | io.BytesIO, ctx: ReadContext) -> Iterator[np.ndarray]:
    with data.open("rb") if isinstance(data, Path) else data as file:
        if file.read(2) != b"PK":
            file.seek(0)
            yield _load(file, ctx)
            return
        try:
            with zipfile.ZipFile(file) as archive:
                names = [n for n in archive.namelist() if n.endswith(".npy")]
                medmnist = [f"{s}_images.npy" for s in _SPLITS if f"{s}_images.npy" in names]
                for name in medmnist or names:
                    yield _member(archive, name, ctx)
        except (zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ctx.fail("is a truncated or damaged npz") from error


def _member(archive: zipfile.ZipFile, name: str, ctx: ReadContext) -> np.ndarray:
    if archive.getinfo(name).flag_bits & 1:
        raise ctx.fail("is protected by a password")
    with archive.open(name) as file:
        return _load(file, ctx)


def _load(file: IO[bytes], ctx: ReadContext) -> np.ndarray:
    """One array, after a look at its header: no objects, no memory for absurd shapes."""
    version = npy.read_magic(file)
    read_header: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise ctx.fail("holds Python objects, which are never unpickled; save plain numbers")
    ctx.check_size(*(shape or (1,)))
    count = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    content = file.read(count)
    if len(content) < count:
        raise ctx.fail(f"is truncated: {len(content):,} of {count:,} bytes of its array")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


def _stack(array: np.ndarray, ctx: ReadContext) -> np.ndarray:
    """``[N, H, W]`` or ``[N, H, W, C]``."""
    if array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)):
        array = array[None]
    if array.ndim not in (3, 4):
        raise ctx.fail(f"has shape {list(array.shape)}; [H, W], [H, W, 3], [N, H, W] and [N, H, W, C] are pictures")
    return array


def _stored(image: np.ndarray, count: int, ctx: ReadContext) -> np.ndarray | None:
    try:
        return as_stored(image, ctx.name)
    except UnreadableImage:
        if count == 1:
            raise
        return None  # in a stack the others are still good
