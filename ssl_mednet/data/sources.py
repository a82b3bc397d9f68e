"""Whatever a user holds, as a stream of items to decode: folders, archives, arrays, single files, phantoms."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qsl

import numpy as np

from ssl_mednet.errors import DataError, UnreadableImage, did_you_mean
from ssl_mednet.imaging import phantoms
from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.readers import ReadContext, archive, is_image_name, npz_splits, read

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
PHANTOM_LABELS = ("lesion", "modality", "finding")


@dataclass(frozen=True)
class Item:
    """Something that holds images, not decoded yet, with what the source says of it.

    Args:
        name: for messages; a path or a member of an archive.
        content: the file's path, its bytes, an array, a phantom's index, or the reason why there is nothing to read.
        label: class name, ``"a|b"`` for several findings, or None where the source says nothing.
        split: ``"train"``, ``"val"``, ``"test"`` or ``""``.
        group: patient, lesion or slide; ``""`` where the source has none.
    """

    name: str
    content: Path | bytes | np.ndarray | tuple[str, int, int, int] | UnreadableImage
    label: str | None = None
    split: str = ""
    group: str = ""
    modality: str = ""

    def images(self, modality: str) -> Iterator[MedicalImage]:
        """Decode. ``modality`` is for images that do not say their own.

        Raises:
            UnreadableImage: this item, or what follows in it, cannot be read.
        """
        if isinstance(self.content, UnreadableImage):
            raise self.content
        if isinstance(self.content, tuple):
            yield phantoms.phantom(*self.content).image  # type: ignore[arg-type]
        elif isinstance(self.content, np.ndarray):
            yield MedicalImage(self.content, self.modality or modality)
        else:
            yield from read(self.content, ReadContext(modality=self.modality or modality, name=self.name))


class Source:
    """A data source: its items in a stable order, and a fingerprint that changes when they may have changed.

    Attributes:
        side: longest side of its images in pixels, where that is known before any is read.
        classes: names of the classes in their official order, where the labels of the items are class numbers.
        ordinal: whether that order means more and more of something, as grades do.
        licence: under which the images may be used, where that is known.
        note: what a reader of scores on this source must know.
        labels, group_field: see :class:`~ssl_mednet.data.schema.CorpusSpec`; set before ``items`` is asked for.

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

    def __init__(self, spec: str | Path) -> None:
        self.spec = str(spec)
        self.path = Path(spec).expanduser()

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


def open_source(spec: str | Path) -> Source:
    """The source that a user means by ``spec``; nothing is downloaded before its items are asked for.

    Raises:
        DataError: no such file or folder, or a phantom or MedMNIST source that is spelled wrong.
    """
    text = str(spec)
    if text.startswith("phantoms:"):
        return PhantomSource(text)
    if text.startswith("medmnist:"):
        from ssl_mednet.data.medmnist import MedMnistSource  # it stands on this module

        return MedMnistSource(text)
    path = Path(text).expanduser()
    if not path.exists():
        hint = did_you_mean(text, ("phantoms:gray", "phantoms:color")) if "phantom" in text else ""
        known = "give a folder, an archive, an npz, phantoms:gray or medmnist:NAME"
        raise DataError(f"{text}: no such file or folder", hint or known)
    if path.is_dir():
        return FolderSource(path)
    if archive.is_archive(path):
        return ArchiveSource(path)
    return FileSource(path)


def open_sources(spec: str | Path) -> list[Source]:
    """What a user means by a source or by a glob: the files that a glob finds are one source, folders and archives one
    each.

    Raises:
        DataError: as :func:`open_source`; or nothing has such a name.
    """
    text = str(Path(spec).expanduser()) if not re.match(r"\w+:", str(spec)) else str(spec)
    if Path(text).exists() or re.match(r"\w+:", text) or not any(sign in text for sign in "*?["):
        return [open_source(spec)]
    found = [Path(name) for name in sorted(glob(text, recursive=True))]  # noqa: PTH207
    if not found:
        raise DataError(f"{spec}: no file has such a name")
    files = [path for path in found if path.is_file() and not archive.is_archive(path) and path.suffix != ".npz"]
    sources = [open_source(path) for path in found if path not in set(files)]
    if not files:
        return sources
    root = Path(os.path.commonpath([path.parent for path in files]))
    listed = FolderSource(root, [path.relative_to(root).as_posix() for path in files])
    listed.spec = str(spec)
    return [listed, *sources]


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


class PhantomSource(Source):
    """``phantoms:gray`` or ``phantoms:color``, with ``?n=4000&seed=0&size=64&label=lesion|modality|finding`` behind.

    The split of an index is fixed (7 of 10 train, 1 val, 2 test), so a pretraining never sees what it is tested on.
    """

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        family, options = parse_spec(spec, {"n": "4000", "seed": "0", "size": "64", "label": "lesion"})
        if family not in ("gray", "color"):
            raise DataError(
                f"{spec}: there are phantoms:gray and phantoms:color", did_you_mean(family, ("gray", "color"))
            )
        if options["label"] not in PHANTOM_LABELS:
            raise DataError(f"{spec}: label is one of {', '.join(PHANTOM_LABELS)}, not {options['label']!r}")
        if not all(options[key].isdigit() for key in ("n", "seed", "size")) or int(options["n"]) < 1:
            raise DataError(f"{spec}: n, seed and size are whole numbers, n at least 1")
        if not 32 <= int(options["size"]) <= 256:
            raise DataError(f"{spec}: size is 32 to 256 pixels")
        self.family, self.label = family, options["label"]
        self.n, self.seed, self.size = (int(options[key]) for key in ("n", "seed", "size"))
        self.side = self.size

    def fingerprint(self) -> str:
        code = b"".join(p.read_bytes() for p in sorted(Path(phantoms.__file__).parent.glob("*.py")))
        return hashlib.sha256(
            code + f"{self.family} {self.n} {self.seed} {self.label} {self.size}".encode()
        ).hexdigest()

    def count(self) -> int:
        return self.n

    def items(self) -> Iterator[Item]:
        for index in range(self.n):
            split = "train" if (turn := index // 5 % 10) < 7 else "val" if turn == 7 else "test"
            modality, lesion = phantoms.truth(self.family, index, self.seed)
            state = "lesion" if lesion else "healthy"
            label = {"lesion": state, "modality": modality, "finding": f"{modality} {state}"}[self.label]
            content = (self.family, index, self.size, self.seed)
            yield Item(f"{self.spec}[{index}]", content, label, split, modality=modality)


class FileSource(Source):
    """One file: a volume, a cine, a picture, or an npz with MedMNIST's keys."""

    def fingerprint(self) -> str:
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def items(self) -> Iterator[Item]:
        splits = npz_splits(self.path) if self.path.suffix == ".npz" else {}
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

    def contents(self) -> Iterator[tuple[str, Path | bytes | UnreadableImage]]:
        """Every file that may hold an image, with its content."""
        raise NotImplementedError

    def items(self) -> Iterator[Item]:
        table = self._table()
        if table is not None:
            yield from self._by_table(table)
            return
        if self.group_field and not self._group_from_path:
            hint = "folder, file, path:REGEX, or a column of a labels.csv beside the images"
            raise DataError(f"{self.spec}: no labels.csv has the column {self.group_field!r}", hint)
        names = [n for n in self.names() if is_image_name(n)]
        classes = _classes(names)
        for name, content in self.contents():
            split, label = classes.get(name, ("", None))
            yield Item(self._full(name), content, label if self.labels == "all" else None, split, self._group(name))

    @property
    def _group_from_path(self) -> bool:
        return self.group_field in ("folder", "file") or self.group_field.startswith("path:")

    def _group(self, name: str, row: dict[str, str] | None = None) -> str:
        """What of a file's path, or of its row in the table, says what it may not be split from."""
        if self.group_field.startswith("path:"):
            found = re.search(self.group_field.removeprefix("path:"), name)
            return (found[1] if found.re.groups else found[0]) if found else ""
        if self.group_field in ("folder", "file"):
            return name if self.group_field == "file" else str(PurePosixPath(name).parent)
        return (row or {}).get(self.group_field or "group") or ""

    def _full(self, name: str) -> str:
        return f"{self.spec}!{name}"

    def _table(self) -> dict[str, dict[str, str]] | None:
        """The rows of ``labels.csv`` by path, or None where there is none."""
        tables = [n for n in self.names() if PurePosixPath(n).name == "labels.csv" and n.count("/") <= 1]
        if not tables:
            return None
        name = min(tables, key=len)
        root = name.rpartition("labels.csv")[0]
        try:
            rows = list(csv.DictReader(io.StringIO(self.read_bytes(name).decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self._full(name)}: is no CSV table: {error}") from error
        wanted = {"path", "label"} | ({self.group_field} - {""} if not self._group_from_path else set())
        missing = wanted - set(rows[0] if rows else ())
        if missing:
            hint = "columns: path,label and, where known, split,group,modality"
            raise DataError(f"{self._full(name)}: no column {' and '.join(sorted(missing))}", hint)
        bad = {r["split"] for r in rows if r.get("split")} - set(_SPLIT_NAMES)
        if bad:
            raise DataError(f"{self._full(name)}: split is train, val or test, not {sorted(bad)[0]!r}")
        return {root + r["path"]: r for r in rows if r["path"]}

    def _by_table(self, table: dict[str, dict[str, str]]) -> Iterator[Item]:
        present = set()
        for name, content in self.contents():
            row = table.get(name)
            if row is None:
                continue
            present.add(name)
            split = _SPLIT_NAMES.get(row.get("split") or "", "")
            label = row["label"] or "" if self.labels != "none" else None
            yield Item(self._full(name), content, label, split, self._group(name, row), row.get("modality") or "")
        for name in table:
            if name not in present:
                reason = "labels.csv names it, but there is no such file"
                yield Item(self._full(name), UnreadableImage(self._full(name), reason))


def _classes(names: list[str]) -> dict[str, tuple[str, str | None]]:
    """Split and class of each file, from the folders it lies in: ``[train|val|test/]CLASS/...``."""
    parts = {n: list(PurePosixPath(n).parts[:-1]) for n in names}
    while parts and all(p for p in parts.values()) and len({p[0] for p in parts.values()}) == 1:
        if next(iter(parts.values()))[0].lower() in _SPLIT_NAMES:
            break
        for p in parts.values():
            p.pop(0)  # a folder that holds everything says nothing
    found: dict[str, tuple[str, str | None]] = {}
    with_splits = bool(parts) and all(p and p[0].lower() in _SPLIT_NAMES for p in parts.values())
    for name, p in parts.items():
        split = _SPLIT_NAMES[p.pop(0).lower()] if with_splits else ""
        found[name] = (split, p[0] if p else None)
    return found


class FolderSource(TreeSource):
    """A folder with images at any depth; or, with ``names``, some of its files."""

    def __init__(self, path: Path, names: list[str] | None = None) -> None:
        super().__init__(path)
        if names is None:
            # Links are followed to files but not to folders, so a link to a parent cannot loop.
            files = (p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
            names = [p.relative_to(path).as_posix() for p in files]
        self._names = sorted(names)

    def names(self) -> list[str]:
        return self._names

    def _full(self, name: str) -> str:
        return str(self.path / name)

    def read_bytes(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in self._names:
            stat = (self.path / name).stat()
            digest.update(f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def count(self) -> int:
        return sum(map(is_image_name, self._names))

    def contents(self) -> Iterator[tuple[str, Path | bytes | UnreadableImage]]:
        for name in self._names:
            if is_image_name(name):
                yield name, self.path / name


class ArchiveSource(TreeSource):
    """A zip or tar with images at any depth."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._names = archive.names(path)
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

    def contents(self) -> Iterator[tuple[str, Path | bytes | UnreadableImage]]:
        for name, content in archive.members(self.path):
            if is_image_name(name) or isinstance(content, UnreadableImage):
                yield name, content
