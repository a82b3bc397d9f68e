"""WebDataset shards: tar files in which neighbours of one name are one sample (``0001.jpg``, ``0001.cls``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

from ssl_mednet.data.sources.base import SPLIT_NAMES, Item, Source, files_below, split_of, stamp
from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.readers import archive, is_image_name

_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_TABLE = frozenset({"cls", "json", "txt"})
_LOOKED_AT = 64  # members of a tar, until it is known to be a shard
_LABELS = ("label", "labels", "cls", "class", "target")


def shards_in(path: Path) -> list[Path]:
    """The shards at a path, or in and below a folder, in order; empty where there is something else.

    Where one tar is a shard all are: another may be damaged at its beginning, or hold images that nothing is said of.
    """
    files = [path] if path.is_file() else sorted(files_below(path))
    files = [p for p in files if p.name.lower().endswith(_SUFFIXES)]
    return files if any(map(_is_shard, files)) else []


class ShardSource(Source):
    """WebDataset shards: images with their class in ``.cls`` or ``.json`` (keys label, split, group, modality).

    The split is that of the sample, else what the name of the shard begins with (``train-0001.tar``).

    Args:
        spec: a shard, or a folder of shards.
    """

    def __init__(self, spec: str | Path) -> None:
        super().__init__(spec)
        self.files = shards_in(self.path)

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(stamp(file, self._relative(file)))
        return digest.hexdigest()

    def items(self) -> Iterator[Item]:
        for file in self.files:
            split = split_of(self._relative(file))
            for _, sample in groupby(archive.members(file), key=lambda member: _key(member[0])[0]):
                yield from _sample(file, list(sample), split)

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix() if file != self.path else file.name


def _sample(file: Path, members: list[archive.Member], split: str) -> Iterator[Item]:
    said: dict[str, Any] = {}
    for name, content in members:
        kind = _key(name)[1]
        if kind in _TABLE and isinstance(content, bytes):
            try:
                said |= _said(kind, content)
            except (ValueError, RecursionError):
                full = f"{file}!{name}"
                yield Item(full, UnreadableImage(full, "is no label: neither text nor JSON of the kind expected"))
    split = SPLIT_NAMES.get(str(said.get("split", "")).lower(), split)
    group, modality = (str(said.get(key, "")) for key in ("group", "modality"))
    for name, content in members:
        if isinstance(content, UnreadableImage) or (_key(name)[1] not in _TABLE and is_image_name(name)):
            yield Item(f"{file}!{name}", content, said.get("label"), split, group, modality)


def _said(kind: str, content: bytes) -> dict[str, Any]:
    """What the side file of a sample says; a caption (.txt) is free text and says nothing that is kept."""
    if kind == "txt":
        return {}
    if kind == "cls":
        return {"label": content.decode("utf-8").strip()}
    values = json.loads(content)
    if not isinstance(values, dict):
        return {"label": _label(values)}
    found = {key: values[key] for key in ("split", "group", "modality") if isinstance(values.get(key), str | int)}
    label = next((values[key] for key in _LABELS if values.get(key) is not None), None)
    return found if label is None else found | {"label": _label(label)}


def _label(value: Any) -> str:
    if isinstance(value, list):
        return "|".join(map(_label, value))
    if isinstance(value, str | int | float):
        return str(value)
    raise ValueError("a label is a name, a number, or a list of them")


def _key(name: str) -> tuple[str, str]:
    """Sample and kind: the name up to the first dot of its last part, and what is behind it."""
    folder, slash, last = name.rpartition("/")
    stem, _, kind = last.partition(".")
    return folder + slash + stem, kind.lower()


def _is_shard(path: Path) -> bool:
    """Whether some of the first members of a tar are an image and what is said of it, side by side."""
    names = islice(archive.tar_names(path), _LOOKED_AT)
    for _, sample in groupby(names, key=lambda name: _key(name)[0]):
        members = list(sample)
        kinds = {_key(name)[1] for name in members}
        if kinds & {"cls", "json"} and any(is_image_name(n) for n in members if _key(n)[1] not in _TABLE):
            return True
    return False
