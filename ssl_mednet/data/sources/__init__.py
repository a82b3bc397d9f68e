"""Whatever a user holds, as a stream of items to decode: folders, archives, tables, shards, single files, phantoms."""

from __future__ import annotations

import os
import re
from glob import glob
from pathlib import Path

from ssl_mednet.data.sources import shards
from ssl_mednet.data.sources.base import SPLITS, Item, PhantomIndex, Source, parse_spec
from ssl_mednet.data.sources.files import ArchiveSource, FileSource, FolderSource, npz_label
from ssl_mednet.data.sources.mixed import MixedSource
from ssl_mednet.data.sources.phantom import PHANTOM_LABELS, PhantomSource
from ssl_mednet.data.sources.tree import TreeSource
from ssl_mednet.errors import DataError, UnreadableImage, did_you_mean
from ssl_mednet.files import expanded
from ssl_mednet.imaging.readers import archive, is_image_name, passed_over

__all__ = [
    "PHANTOM_LABELS",
    "SPLITS",
    "ArchiveSource",
    "FileSource",
    "FolderSource",
    "Item",
    "PhantomIndex",
    "PhantomSource",
    "Source",
    "TreeSource",
    "npz_label",
    "open_source",
    "open_sources",
    "parse_spec",
]

_OF_THEIR_OWN = (".npz", ".parquet", ".arrow")  # files of a glob that are sources by themselves


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
    path = expanded(text)
    if not path.exists():
        hint = did_you_mean(text, ("phantoms:gray", "phantoms:color")) if "phantom" in text else ""
        known = "give a folder, an archive, a Parquet file, an npz, phantoms:gray or medmnist:NAME"
        if path.parent.name == "corpora":  # where recipes look for theirs
            known = f"ssl-mednet ingest SRC... --out {text} makes it; the first lines of a recipe say from what"
        raise DataError(f"{text}: no such file or folder", hint or known)
    special, taken = _special(path)
    if special:
        if path.is_dir():
            rest = FolderSource(path)
            rest.leave_out(taken)
            if rest.lost or any(is_image_name(name) or passed_over(name) for name in rest.names()):
                special = [*special, rest]
        return special[0] if len(special) == 1 else MixedSource(path, special)
    if path.is_dir():
        return FolderSource(path)
    return ArchiveSource(path) if archive.is_archive(path) else FileSource(path)


def open_sources(spec: str | Path) -> list[Source]:
    """What a user means by a source or by a glob: the files that a glob finds are one source, folders and archives one
    each.

    Raises:
        DataError: as :func:`open_source`; or nothing has such a name.
    """
    text = str(expanded(spec)) if not re.match(r"\w+:", str(spec)) else str(spec)
    if Path(text).exists() or re.match(r"\w+:", text) or not any(sign in text for sign in "*?["):
        return [open_source(spec)]
    found = [Path(name) for name in sorted(glob(text, recursive=True))]  # noqa: PTH207
    if not found:
        raise DataError(f"{spec}: no file has such a name")
    files = [p for p in found if p.is_file() and not archive.is_archive(p) and p.suffix.lower() not in _OF_THEIR_OWN]
    taken = set(files)
    sources = [_one_of_many(path) for path in found if path not in taken]
    if not files:
        return sources
    root = Path(os.path.commonpath([path.parent for path in files]))
    listed = FolderSource(root, [path.relative_to(root).as_posix() for path in files])
    listed.spec = str(spec)
    return [listed, *sources]


def _one_of_many(path: Path) -> Source:
    """What a glob found; an archive that is damaged loses itself only."""
    try:
        return open_source(path)
    except DataError as error:
        if not isinstance(error.__cause__, UnreadableImage):
            raise
        return FileSource(path, error.__cause__)


def _special(path: Path) -> tuple[list[Source], set[str]]:
    """Tables and shards at or below a path, which are not read file by file, and the files that they are."""
    found: list[Source] = []
    files: list[Path] = []
    suffixes = {p.suffix.lower() for p in (path.rglob("*") if path.is_dir() else [path])}
    if suffixes & {".parquet", ".arrow"}:
        from ssl_mednet.data.sources import tables  # pyarrow waits until it is needed

        if files := tables.tables_in(path):
            found.append(tables.TableSource(path))
    if suffixes & {".tar", ".gz", ".tgz", ".bz2", ".xz"} and (tars := shards.shards_in(path)):
        found.append(shards.ShardSource(path))
        files = [*files, *tars]
    return found, {file.relative_to(path).as_posix() for file in files}
