"""What folders and archives have in common: many files, some of which belong together, and a table of them."""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PurePosixPath
from typing import Any

from ssl_mednet.data.schema import TAG
from ssl_mednet.data.sources.base import SPLIT_NAMES, Item, Source
from ssl_mednet.data.sources.together import may_be_dicom
from ssl_mednet.errors import DataError, UnreadableImage
from ssl_mednet.imaging.readers import is_image_name, passed_over, series, unknown_suffix


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
        several = any("|" in row.get("label", "") for row in (table or {}).values())
        if table is None:
            self._check_splits(names)
        said = _classes(names) if table is None else {n: _row(table[n], several) for n in names if n in table}
        for name, known in said.items():
            known["group"] = self._group(name, {} if table is None else table[name])
            if self.labels == "none" or (self.labels == "table" and table is None):
                known["label"] = None
            elif table is None and "|" in (known["label"] or ""):
                hint = "it stands between the findings of one image; rename the folder, or write a labels.csv"
                raise DataError(f"{self._full(name)}: there is a | in the name of the class", hint)
        for part in self._parts([n for n in names if n in said]):
            yield from self._arranged(self._stacks(part), said)
        for name in table or {}:
            if name not in said:
                reason = "labels.csv names it, but there is no such file"
                yield Item(self._full(name), UnreadableImage(self._full(name), reason))
        for name in names:
            if name not in said:
                yield Item(self._full(name), UnreadableImage(self._full(name), "labels.csv does not name it"))
        yield from self._passed_over()

    def _every(self, names: list[str]) -> Iterator[Item]:
        """An item for each of these files; of a table their modality is taken, and it alone gets lost if it is bad.

        Files of a suffix that says nothing are items too, with the reason why they are not looked at.
        """
        said: dict[str, dict[str, Any]] = {name: {} for name in names}
        for table in self._table_names():
            try:
                for name, row in self._rows(table).items():
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

    def _check_splits(self, names: list[str]) -> None:
        """Raise :class:`DataError` where some folders are splits and others beside them are not.

        Where no label is taken from folders it is a remark.
        """
        tops = {name: (folders or [""])[0] for name, folders in _below(names).items()}
        splits = {SPLIT_NAMES[top.lower()]: top for top in tops.values() if top.lower() in SPLIT_NAMES}
        odd = next((name for name, top in tops.items() if top.lower() not in SPLIT_NAMES), "")
        if len(splits) > 1 and odd:
            told = f"lies beside the folders {' and '.join(sorted(splits.values()))}, which are splits"
            if self.labels != "all":
                self.remarks.append((self._full(odd), f"{told}: so no image has a split"))
                return
            hint = "move it away, name split and class of each file in a labels.csv, or ingest it without labels"
            raise DataError(f"{self._full(odd)}: {told}", hint)

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
        slides: dict[str, list[Path | bytes | UnreadableImage]] = {}
        self.remarks += [(self._full(stack.names[0]), stack.remark) for stack in stacks if stack.remark]
        for name, content in self.contents([*place]):
            stack, index = place.get(name, (series.Stack([name]), 0))
            if not stack.slide or isinstance(content, UnreadableImage):
                yield Item(self._full(name), content, **said.get(name, {}), index=index, most=caps.get(name, 0))
            if stack.slide:
                first = stack.names[0]
                levels = slides.setdefault(first, [])
                levels.append(content)
                good = tuple(level for level in levels if not isinstance(level, UnreadableImage))
                if len(levels) == len(stack.names) and good:  # a slide does not get lost with one of its levels
                    yield Item(self._full(first), good, **said[first], most=caps.get(first, 0))

    def _stacks(self, names: list[str]) -> list[series.Stack]:
        dicom = {n for n in names if may_be_dicom(n)}
        if len(dicom) < 2:  # one file is its own series, and pictures have none
            return [series.Stack([n]) for n in names]
        known = dict(self.headers([n for n in names if n in dicom]))
        return series.stacks((n, known.get(n)) for n in names)

    def _full(self, name: str) -> str:
        return f"{self.spec}!{name}"

    def _table(self) -> dict[str, dict[str, str]] | None:
        """The rows of ``labels.csv`` by path, or None where there is none.

        Of several, each in a folder of its own, those that name no split have that which their folder is named after.
        """
        names = self._table_names()
        table: dict[str, dict[str, str]] = {}
        for name in names:
            rows = self._rows(name, {"label", self._group_column} - {""})
            bad = {r["split"] for r in rows.values() if r.get("split", "").lower() not in {"", *SPLIT_NAMES}}
            if bad:
                raise DataError(f"{self._full(name)}: split is train, val or test, not {sorted(bad)[0]!r}")
            folder = name.partition("/")[0].lower() if len(names) > 1 else ""
            table |= {path: {"split": SPLIT_NAMES.get(folder, "")} | row for path, row in rows.items()}
        return table if names else None

    def _table_names(self) -> list[str]:
        """The ``labels.csv`` of this source: that beside everything, else those of its folders."""
        tables = [n for n in self.names() if PurePosixPath(n).name == "labels.csv" and n.count("/") <= 1]
        return [n for n in tables if "/" not in n] or sorted(tables)

    def _rows(self, name: str, wanted: Set[str] = frozenset()) -> dict[str, dict[str, str]]:
        """The rows of a table by path, relative to this source, without blanks around what they say.

        It has the columns that are wanted. Paths may begin with ``./`` and have backslashes.
        """
        root, there = name.rpartition("labels.csv")[0], set(self.names())
        try:
            rows = list(csv.DictReader(io.StringIO(self.read_bytes(name).decode("utf-8-sig"))))
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{self._full(name)}: is no CSV table: {error}") from error
        if missing := (wanted | {"path"}) - set(rows[0] if rows else ()):
            hint = "columns: path,label and, where known, split,group,modality"
            raise DataError(f"{self._full(name)}: no column {' and '.join(sorted(missing))}", hint)
        found: dict[str, dict[str, str]] = {}
        for row in rows:
            row = {key: value.strip() if key != "path" else value for key, value in row.items() if value and key}
            if path := row.get("path"):
                full, plain = root + path, posixpath.normpath(root + path.replace("\\", "/"))
                other = found.setdefault(plain if full not in there and plain in there else full, row)
                for key in ("label", "split", "group"):
                    if (one := other.get(key)) != (two := row.get(key)):
                        raise DataError(f"{self._full(name)}: names {path} twice, with the {key} {one!r} and {two!r}")
        return found


def _row(row: dict[str, str], several: bool) -> dict[str, Any]:
    """What a row of ``labels.csv`` says of its file, as arguments of :class:`Item`.

    An empty label is no label; where ``several`` findings may be said of an image, it says none of them.
    """
    label = "|".join(part.strip() for part in row.get("label", "").split("|"))
    split = SPLIT_NAMES.get(row.get("split", "").lower(), "")
    return {"label": label if label or several else None, "split": split, "modality": row.get("modality", "")}


def _below(names: list[str]) -> dict[str, list[str]]:
    """The folders that each file lies in, from the first that does not hold everything, or is a split."""
    parts = {n: list(PurePosixPath(n).parts[:-1]) for n in names}
    while parts and all(p for p in parts.values()) and len({p[0] for p in parts.values()}) == 1:
        if next(iter(parts.values()))[0].lower() in SPLIT_NAMES:
            break
        for p in parts.values():
            p.pop(0)  # a folder that holds everything says nothing
    return parts


def _classes(names: list[str]) -> dict[str, dict[str, Any]]:
    """Split and class of each file, from the folders it lies in: ``[train|val|test/]CLASS/...``."""
    parts = _below(names)
    found: dict[str, dict[str, Any]] = {}
    with_splits = bool(parts) and all(p and p[0].lower() in SPLIT_NAMES for p in parts.values())
    for name, p in parts.items():
        split = SPLIT_NAMES[p.pop(0).lower()] if with_splits else ""
        found[name] = {"split": split, "label": p[0] if p else None}
    return found
