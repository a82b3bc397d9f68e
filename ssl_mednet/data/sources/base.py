"""What a source is: a stream of items, each something that holds images and is not decoded yet."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import NamedTuple
from urllib.parse import parse_qsl

import numpy as np

from ssl_mednet.data.written import is_written
from ssl_mednet.errors import DataError, UnreadableImage, did_you_mean
from ssl_mednet.files import expanded
from ssl_mednet.imaging import phantoms
from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import Content, ReadContext, read

SPLITS = ("train", "val", "test")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}

_SPLIT = re.compile(r"(train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?)(?![a-z])")


class PhantomIndex(NamedTuple):
    """Which phantom: arguments of :func:`ssl_mednet.imaging.phantoms.phantom`."""

    family: str
    number: int
    size: int
    seed: int


@dataclass(frozen=True)
class Item:
    """Something that holds images, not decoded yet, with what the source says of it.

    Args:
        name: for messages; a path or a member of an archive.
        content: the file's path, its bytes, paths or bytes of several files that are one thing (the levels of a slide),
            an array, a phantom's index, or the reason why there is nothing to read.
        label: class name, ``"a|b"`` for several findings, or None where the source says nothing.
        split: ``"train"``, ``"val"``, ``"test"`` or ``""``.
        group: patient, lesion or slide; ``""`` where the source has none.
        modality: of images that do not say their own, before what the caller says.
        index: place of its first image in its volume: of a slice in its series.
        most: how many of its images are taken at most, evenly spread; 0 takes all.
        window: of an array, the stored values that become 0 and 1; (0, 0) for those of its type.
    """

    name: str
    content: Content | np.ndarray | PhantomIndex | UnreadableImage
    label: str | None = None
    split: str = ""
    group: str = ""
    modality: str = ""
    index: int = 0
    most: int = 0
    window: tuple[float, float] = (0.0, 0.0)

    def images(self, modality: str = "", ctx: ReadContext | None = None) -> Iterator[MedicalImage]:
        """Decode.

        Args:
            modality: of images that do not say their own.
            ctx: what else the readers are told, as the resolution of the tiles of slides; its name, modality and most
                are set here.

        Raises:
            UnreadableImage: this item, or what follows in it, cannot be read.
        """
        if isinstance(self.content, UnreadableImage):
            raise self.content
        modality = self.modality or modality
        if isinstance(self.content, PhantomIndex):
            yield phantoms.phantom(*self.content).image  # type: ignore[arg-type]
        elif isinstance(self.content, np.ndarray):
            yield MedicalImage(self.content, modality, self.window)
        else:
            told = replace(ctx or ReadContext(), modality=modality, name=self.name, most=self.most)
            for image in read(self.content, told):
                yield replace(image, index=image.index + self.index) if self.index else image


class Source:
    """A data source: its items in a stable order, and a fingerprint that changes when they may have changed.

    Attributes:
        side: longest side of its images in pixels, where that is known before any is read.
        classes: names of the classes in their official order, where the labels of the items are class numbers.
        ordinal: whether that order means more and more of something, as grades do.
        licence: under which the images may be used, where that is known.
        note: what a reader of scores on this source must know.
        labels, group_field: see :class:`~ssl_mednet.data.schema.CorpusSpec`; set before ``items`` is asked for.
        every: each image is an item, whatever a ``labels.csv`` names; of the table the modality alone is taken. Set
            before ``items`` is asked for.
        remarks: name of a file and what is unusual about the series that begins with it (missing or double slices) or
            about the folder that it lies in; filled while ``items`` goes on. No text of any tag is in it.

    Raises:
        DataError: nothing there, or nothing that could hold an image.
    """

    side: int | None = None
    classes: tuple[str, ...] = ()
    ordinal: bool = False
    licence: str = ""
    note: str = ""
    labels: str = "all"
    group_field: str = ""
    every: bool = False

    def __init__(self, spec: str | Path) -> None:
        self.spec = str(spec)
        self.remarks: list[tuple[str, str]] = []
        self.path = expanded(spec)

    def fingerprint(self) -> str:
        raise NotImplementedError

    def items(self) -> Iterator[Item]:
        raise NotImplementedError

    def count(self) -> int | None:
        """How many items there are, where that is cheap to know; for the progress bar."""
        return None

    def prepare(self, quiet: bool = False) -> None:
        """Have on this machine what ``items`` reads; a download shows its progress unless ``quiet``.

        Raises:
            DataError: it cannot be had.
        """


def parse_spec(spec: str, defaults: dict[str, str]) -> tuple[str, dict[str, str]]:
    """``kind:name?key=value&...`` as the name and all options, those not given at their defaults.

    Raises:
        DataError: an option that is not among the defaults.
    """
    name, _, query = spec.partition(":")[2].partition("?")
    options = dict(defaults)
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in options:
            raise DataError(f"{spec}: unknown option {key!r}", did_you_mean(key, options) or f"allowed: {[*options]}")
        options[key] = value
    return name, options


Lost = Callable[[Path, str], None]  # told of a path that cannot be looked at, and why


def files_below(path: Path, lost: Lost = lambda path, reason: None) -> Iterator[Path]:
    """The files in and below a folder, in any order, without hidden ones and without what this package wrote there.

    Links are followed to files but not to folders, so a link to a parent cannot loop.
    """

    def closed(error: OSError) -> None:
        lost(Path(error.filename), f"the folder cannot be read: {error.strerror}")

    for place, folders, names in os.walk(path, onerror=closed):
        here = Path(place)
        if here != path and is_written(here, {*folders, *names}):
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in (here / name for name in names if not name.startswith(".")):
            try:
                if S_ISREG(file.stat().st_mode):
                    yield file
            except OSError as error:
                dangling = isinstance(error, FileNotFoundError) and file.is_symlink()
                lost(file, "is a link to what is not there" if dangling else f"cannot be opened: {error.strerror}")


def stamp(file: Path, name: str) -> bytes:
    """Name, size and time of a file, for a fingerprint.

    Raises:
        DataError: it is not there any more, or may not be looked at.
    """
    try:
        stat = file.stat()
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror}", "run it again if it was moved") from error
    return f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape")


def named(label: str | None, classes: tuple[str, ...]) -> str | None:
    """The label with names for numbers, where the source counts its classes and has names for them."""
    if not label or not classes:
        return label
    return "|".join(
        classes[int(part)] if part.isdecimal() and int(part) < len(classes) else part for part in label.split("|")
    )


def split_of(relative: str) -> str:
    """From the name of the file or of a folder that it lies in; "" where they say nothing."""
    for part in reversed(PurePosixPath(relative).parts):
        if found := _SPLIT.match(part.lower()):
            return SPLIT_NAMES[found[1]]
    return ""
