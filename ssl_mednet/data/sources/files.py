"""Single files, folders and archives."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ssl_mednet.data.schema import QUARANTINE, TAG
from ssl_mednet.data.sources.base import SPLIT_NAMES, Item, Source, files_below, stamp
from ssl_mednet.data.sources.together import may_be_dicom, may_share, together
from ssl_mednet.errors import DataError, UnreadableImage
from ssl_mednet.imaging.readers import archive, is_image_name, npz_splits, passed_over, series, unknown_suffix
from ssl_mednet.progress import Progress

_TABLES = (".csv", ".tsv", ".tab", ".txt")  # labels.csv, and what the rules of the catalog read
_HEADERS = (".mhd", ".mha", ".nhdr", ".nrrd")
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
        try:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read: {error.strerror}") from error

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
        for split, (images, labels) in splits.items():
            for i, image in enumerate(images):
                label = None if labels is None else npz_label(labels[i])
                pixels = image[..., None] if image.ndim == 2 else image
                yield Item(f"{self.spec}!{split}_images[{i}]", pixels, label, split)


def npz_label(row: np.ndarray) -> str:
    """The label of an item from MedMNIST's: one class number a row, or 0/1 for each of several findings."""
    values = np.atleast_1d(row)
    return str(int(values[0])) if len(values) == 1 else "|".join(str(i) for i in np.flatnonzero(values))


class TreeSource(Source):
    """Files below a root: the common part of folders and archives."""

    def names(self) -> list[str]:
        """All files below the root, relative, with forward slashes."""
        raise NotImplementedError

    def read_bytes(self, name: str) -> bytes:
        raise NotImplementedError

    def contents(self, order: list[str]) -> Iterator[tuple[str, Path | bytes | UnreadableImage]]:
        """These files with their content, in this order where the source can be read in any, and all bad ones."""
        raise NotImplementedError

    def headers(self, names: list[str]) -> Iterator[tuple[str, series.Header | None]]:
        """These files with what they say of their place in a DICOM series."""
        raise NotImplementedError

    def items(self) -> Iterator[Item]:
        """Files in order; slices of a DICOM series in the order in which they lie in space, levels of a slide as one.

        A series may lie in any directories of a tree, so the first item waits for the headers of all files that may be
        DICOM. Videos and archives come last, as items that cannot be read.
        """
        names = [n for n in self.names() if is_image_name(n)]
        if self.every:
            yield from self._every(names)
            return
        table = self._table()
        if table is None and self._group_column:
            hint = "folder, file, path:REGEX, tag:NAME, or a column of a labels.csv beside the images"
            raise DataError(f"{self.spec}: no labels.csv has the column {self.group_field!r}", hint)
        said = _classes(names) if table is None else {n: _row(table[n]) for n in names if n in table}
        for name, known in said.items():
            known["group"] = self._group(name, {} if table is None else table[name])
            if self.labels == "none" or (self.labels == "table" and table is None):
                known["label"] = None
        for part in self._parts([n for n in names if n in said]):
            yield from self._arranged(self._stacks(part), said)
        for name in table or {}:
            if name not in said:
                reason = "labels.csv names it, but there is no such file"
                yield Item(self._full(name), UnreadableImage(self._full(name), reason))
        yield from self._passed_over()

    def _every(self, names: list[str]) -> Iterator[Item]:
        """An item for each of these files; of a table their modality is taken, and it alone gets lost if it is bad.

        Files of a suffix that says nothing are items too, with the reason why they are not looked at.
        """
        said: dict[str, dict[str, Any]] = {name: {} for name in names}
        table = self._table_name()
        try:
            for name, row in self._rows(table).items() if table else ():
                if name in said:
                    said[name]["modality"] = row.get("modality") or ""
        except (DataError, OSError) as error:
            full = self._full(table)
            yield Item(full, UnreadableImage(full, str(error).removeprefix(f"{full}: ")))
        for part in self._parts(names):
            yield from self._arranged(self._stacks(part), said)
        yield from self._passed_over()
        for name in self.names():
            if reason := unknown_suffix(name):
                yield Item(self._full(name), UnreadableImage(self._full(name), reason))

    def _passed_over(self) -> Iterator[Item]:
        for name in self.names():
            if not is_image_name(name) and (reason := passed_over(name)):
                yield Item(self._full(name), UnreadableImage(self._full(name), reason))

    @property
    def _group_column(self) -> str:
        """The column of the table that the user named, if any."""
        elsewhere = self.group_field in ("folder", "file") or self.group_field.startswith(("path:", TAG))
        return "" if elsewhere else self.group_field

    def _group(self, name: str, row: dict[str, str]) -> str:
        """What of a file's path, or of its row in the table, says what it may not be split from."""
        if self.group_field.startswith("path:"):
            found = re.search(self.group_field.removeprefix("path:"), name)
            return (found[1] if found.re.groups else found[0]) if found else ""
        if self.group_field in ("folder", "file"):
            return name if self.group_field == "file" else str(PurePosixPath(name).parent)
        return row.get(self._group_column or "group") or ""

    def _parts(self, names: list[str]) -> Iterator[list[str]]:
        """What is read in one go: a directory."""
        groups: dict[str, list[str]] = {}
        for name in names:
            groups.setdefault(name.rpartition("/")[0], []).append(name)
        yield from groups.values()

    def _arranged(
        self, stacks: list[series.Stack], said: dict[str, dict[str, Any]], most: Mapping[str, int] | None = None
    ) -> Iterator[Item]:
        """The items of some stacks; with ``most``, those files alone, and of each at most so many images."""
        place = {name: (stack, i) for stack in stacks for i, name in enumerate(stack.names)}
        place = place if most is None else {name: where for name, where in place.items() if name in most}
        caps = most or {}
        slides: dict[str, dict[str, Path | bytes]] = {}
        self.remarks += [(self._full(stack.names[0]), stack.remark) for stack in stacks if stack.remark]
        for name, content in self.contents([*place]):
            stack, index = place.get(name, (series.Stack([name]), 0))
            if not stack.slide or isinstance(content, UnreadableImage):
                yield Item(self._full(name), content, **said.get(name, {}), index=index, most=caps.get(name, 0))
                continue
            levels = slides.setdefault(stack.names[0], {})
            levels[name] = content
            if len(levels) == len(stack.names):
                first = stack.names[0]
                yield Item(self._full(first), tuple(levels.values()), **said[first], most=caps.get(first, 0))

    def _stacks(self, names: list[str]) -> list[series.Stack]:
        dicom = {n for n in names if may_be_dicom(n)}
        if len(dicom) < 2:  # one file is its own series, and pictures have none
            return [series.Stack([n]) for n in names]
        known = dict(self.headers([n for n in names if n in dicom]))
        return series.stacks((n, known.get(n)) for n in names)

    def _full(self, name: str) -> str:
        return f"{self.spec}!{name}"

    def _table(self) -> dict[str, dict[str, str]] | None:
        """The rows of ``labels.csv`` by path, or None where there is none."""
        name = self._table_name()
        if not name:
            return None
        table = self._rows(name, {"label", self._group_column} - {""})
        bad = {r["split"] for r in table.values() if r.get("split")} - set(SPLIT_NAMES)
        if bad:
            raise DataError(f"{self._full(name)}: split is train, val or test, not {sorted(bad)[0]!r}")
        return table

    def _table_name(self) -> str:
        """The ``labels.csv`` of this source; empty where it has none."""
        tables = [n for n in self.names() if PurePosixPath(n).name == "labels.csv" and n.count("/") <= 1]
        return min(tables, key=len, default="")

    def _rows(self, name: str, wanted: Set[str] = frozenset()) -> dict[str, dict[str, str]]:
        """The rows of a table by path, relative to this source; it has the columns that are wanted."""
        root = name.rpartition("labels.csv")[0]
        try:
            rows = list(csv.DictReader(io.StringIO(self.read_bytes(name).decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self._full(name)}: is no CSV table: {error}") from error
        if missing := (wanted | {"path"}) - set(rows[0] if rows else ()):
            hint = "columns: path,label and, where known, split,group,modality"
            raise DataError(f"{self._full(name)}: no column {' and '.join(sorted(missing))}", hint)
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            if path := row["path"]:
                other = found.setdefault(root + path, row)
                for key in ("label", "split"):
                    if (one := other.get(key)) != (two := row.get(key)):
                        raise DataError(f"{self._full(name)}: names {path} twice, with the {key} {one!r} and {two!r}")
        return found


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") and part != ".." for part in PurePosixPath(name).parts)


def _row(row: dict[str, str]) -> dict[str, Any]:
    """What a row of ``labels.csv`` says of its file, as arguments of :class:`Item`."""
    split = SPLIT_NAMES.get(row.get("split") or "", "")
    return {"label": row["label"] or "", "split": split, "modality": row.get("modality") or ""}


def _classes(names: list[str]) -> dict[str, dict[str, Any]]:
    """Split and class of each file, from the folders it lies in: ``[train|val|test/]CLASS/...``."""
    parts = {n: list(PurePosixPath(n).parts[:-1]) for n in names}
    while parts and all(p for p in parts.values()) and len({p[0] for p in parts.values()}) == 1:
        if next(iter(parts.values()))[0].lower() in SPLIT_NAMES:
            break
        for p in parts.values():
            p.pop(0)  # a folder that holds everything says nothing
    found: dict[str, dict[str, Any]] = {}
    with_splits = bool(parts) and all(p and p[0].lower() in SPLIT_NAMES for p in parts.values())
    for name, p in parts.items():
        split = SPLIT_NAMES[p.pop(0).lower()] if with_splits else ""
        found[name] = {"split": split, "label": p[0] if p else None}
    return found


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
        numbers = {self._numbers_of(n) for n in images if PurePosixPath(n).suffix.lower() in _HEADERS}
        for name in sorted({*images, *tables, *numbers.intersection(self._names)}):
            digest.update(stamp(self.path / name, name))
        return digest.hexdigest()

    def _numbers_of(self, name: str) -> str:
        """The file beside a header of MetaImage or NRRD that holds its numbers; empty where it names none."""
        try:
            with (self.path / name).open("rb") as file:
                found = _ELSEWHERE.search(file.read(_HEAD))
        except OSError:  # its reader will say so
            return ""
        return str(PurePosixPath(name).parent / found[1].decode(errors="surrogateescape").strip()) if found else ""

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
            for name in dicom:
                self._header(name)
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
