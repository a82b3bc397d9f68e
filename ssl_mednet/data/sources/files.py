"""Single files, folders and archives."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Set
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ssl_mednet.data.schema import QUARANTINE
from ssl_mednet.data.sources.base import Item, Source, files_below, stamp
from ssl_mednet.data.sources.together import may_be_dicom, may_share, together
from ssl_mednet.data.sources.tree import TreeSource
from ssl_mednet.errors import DataError, UnreadableImage
from ssl_mednet.files import cache_folder, replacing
from ssl_mednet.imaging.readers import archive, is_image_name, npz_splits, series
from ssl_mednet.imaging.readers.levels import bits_window
from ssl_mednet.progress import Progress

_TABLES = (".csv", ".tsv", ".tab", ".txt")  # labels.csv, and what the rules of the catalog read
_HEADERS = (".mhd", ".mha", ".nhdr", ".nrrd")
_LARGE = 2**30  # bytes of a file whose digest is kept: that of 300 GB takes minutes
_HEAD = 1 << 14  # bytes of a header that are searched
_ELSEWHERE = re.compile(rb"^(?:ElementDataFile[ \t]*=|data ?file:)([^\r\n]+)", re.MULTILINE | re.IGNORECASE)


class FileSource(Source):
    """One file: a volume, a cine, a picture, or an npz with MedMNIST's keys.

    Args:
        spec: its path.
        broken: why it gives nothing, where that is known already.
    """

    def __init__(self, spec: str | Path, broken: UnreadableImage | None = None) -> None:
        super().__init__(spec)
        self.broken = broken

    def fingerprint(self) -> str:
        """Of its content, and of the numbers that a header keeps in another file."""
        numbers = _numbers_of(self.path)
        try:
            if numbers is None and self.path.stat().st_size >= _LARGE:
                return _known_digest(self.path)
            digest = _digest(self.path)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error
        if numbers:
            digest.update(stamp(numbers, numbers.name))
        return digest.hexdigest()

    def items(self) -> Iterator[Item]:
        try:
            if self.broken:
                raise self.broken
            splits = npz_splits(self.path) if self.path.suffix == ".npz" else {}
        except UnreadableImage as error:
            yield Item(self.spec, error)
            return
        if not splits:
            yield Item(self.spec, self.path)
            return
        window = max(bits_window(images) for images, _ in splits.values())
        for split, (images, labels) in splits.items():
            for i, image in enumerate(images):
                label = None if labels is None else npz_label(labels[i])
                pixels = image[..., None] if image.ndim == 2 else image
                yield Item(f"{self.spec}!{split}_images[{i}]", pixels, label, split, window=window)


def _digest(path: Path) -> Any:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256")


def _known_digest(path: Path) -> str:
    """The SHA-256 of a large file; kept in the cache for as long as the file has this name, size and time."""
    said = hashlib.sha256(stamp(path, str(path.absolute()))).hexdigest()
    kept = cache_folder() / "digests" / said[:24]
    if not kept.is_file():
        digest = _digest(path).hexdigest()
        with suppress(OSError), replacing(kept) as temporary:  # a cache that cannot be written only costs time
            temporary.write_text(digest)
        return str(digest)
    return kept.read_text()


def _numbers_of(path: Path) -> Path | None:
    """The file beside a header of MetaImage or NRRD that holds its numbers; None for any other file, or without it."""
    if path.suffix.lower() not in _HEADERS:
        return None
    try:
        with path.open("rb") as file:
            found = _ELSEWHERE.search(file.read(_HEAD))
    except OSError:  # its reader will say so
        return None
    name = found[1].decode(errors="surrogateescape").strip() if found else ""
    beside = path.parent / name
    return beside if name and name == beside.name and beside.is_file() else None


def npz_label(row: np.ndarray) -> str:
    """The label of an item from MedMNIST's: one class number a row, or 0/1 for each of several findings."""
    values = np.atleast_1d(row)
    return str(int(values[0])) if len(values) == 1 else "|".join(str(i) for i in np.flatnonzero(values))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(name).parts)


class FolderSource(TreeSource):
    """A folder with images at any depth; or, with ``names``, some of its files.

    Attributes:
        lost: paths that could not be looked at, and why.
    """

    def __init__(self, path: Path, names: list[str] | None = None) -> None:
        super().__init__(path)
        self.lost: list[tuple[Path, str]] = []
        if names is None:
            names = [p.relative_to(path).as_posix() for p in files_below(path, lambda *lost: self.lost.append(lost))]
        self._names = sorted(names)
        self._heads: dict[str, series.Header | None] = {}  # of files that are still to come

    def leave_out(self, names: Set[str]) -> None:
        self._names = [name for name in self._names if name not in names]

    def names(self) -> list[str]:
        return self._names

    def _full(self, name: str) -> str:
        return str(self.path / name)

    def read_bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def fingerprint(self) -> str:
        """Of the files that are read: images, tables of what is said of them, and what headers keep in another file."""
        digest = hashlib.sha256()
        images = [name for name in self._names if is_image_name(name)]
        tables = [n for n in self._names if PurePosixPath(n).suffix.lower() in _TABLES and n != QUARANTINE]
        numbers = {str(PurePosixPath(n).parent / found.name) for n in images if (found := _numbers_of(self.path / n))}
        for name in sorted({*images, *tables, *numbers}):
            digest.update(stamp(self.path / name, name))
        return digest.hexdigest()

    def _passed_over(self) -> Iterator[Item]:
        yield from super()._passed_over()
        for path, reason in sorted(self.lost):
            if is_image_name(path.name) or reason.startswith("the folder"):
                yield Item(str(path), UnreadableImage(path, reason))

    def count(self) -> int | None:
        return sum(map(is_image_name, self._names))

    def prepare(self, quiet: bool = False) -> None:
        """Read the headers of a tree over whose directories series may be spread: the first item needs them all."""
        names = [n for n in self._names if is_image_name(n)]
        if not may_share(super()._parts(names)):
            return
        dicom = [n for n in names if may_be_dicom(n)]
        with Progress("reading headers", len(dicom), "file", quiet) as progress:
            for name, found in zip(dicom, series.headers([self.path / name for name in dicom]), strict=True):
                self._heads[name] = found
                progress.advance(1)

    def contents(self, order: list[str]) -> Iterator[tuple[str, Path | bytes | UnreadableImage]]:
        for name in order:
            yield name, self.path / name

    def headers(self, names: list[str]) -> Iterator[tuple[str, series.Header | None]]:
        for name in names:
            yield name, self._header(name)
            self._heads.pop(name)

    def _parts(self, names: list[str]) -> Iterator[list[str]]:
        """Directories; those over which series are spread in one go. Their headers are kept until their turn comes."""
        for part in together(super()._parts(names), self._header):
            yield part
            for name in part:
                self._heads.pop(name, None)

    def _header(self, name: str) -> series.Header | None:
        """Read once and kept until the turn of the file has come."""
        if name not in self._heads:
            self._heads[name] = series.header(self.path / name)
        return self._heads[name]


class ArchiveSource(TreeSource):
    """A zip or tar with images at any depth."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._names = [name for name in archive.names(path) if not _is_hidden(name)]
        except UnreadableImage as error:
            raise DataError(str(error)) from error

    def names(self) -> list[str]:
        return self._names

    def read_bytes(self, name: str) -> bytes:
        try:
            return archive.read_member(self.path, name)
        except UnreadableImage as error:
            raise DataError(str(error)) from error

    def fingerprint(self) -> str:
        return FileSource(self.path).fingerprint()

    def count(self) -> int:
        return sum(map(is_image_name, self._names))

    def contents(self, order: list[str]) -> Iterator[tuple[str, Path | bytes | UnreadableImage]]:
        wanted = set(order)
        for name, content in archive.members(self.path, order):
            if name in wanted or isinstance(content, UnreadableImage):
                yield name, content

    def headers(self, names: list[str]) -> Iterator[tuple[str, series.Header | None]]:
        for name, content in archive.heads(self.path, set(names), series.HEADER):
            yield name, series.header(content)

    def _parts(self, names: list[str]) -> Iterator[list[str]]:
        yield names  # an archive is read once, from its beginning to its end
