"""A selection as a source for the ingest: its files, with patient, label and split by the rules of the catalog."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path, PurePosixPath

from ssl_mednet.catalog.caps import shares
from ssl_mednet.catalog.entries import Where
from ssl_mednet.catalog.selection import Selection
from ssl_mednet.data.sources import FolderSource, Item, Source
from ssl_mednet.errors import DataError
from ssl_mednet.imaging.readers import is_image_name, series
from ssl_mednet.imaging.readers.series import Stack

_SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def open_selection(selection: Selection) -> list[Source]:
    """The sources of a selection, opened. Those of IDC have to be fetched before: see ``prepare``.

    Raises:
        DataError: a folder is not there.
    """
    return [CatalogSource(path, selection) for path in selection.sources]


class CatalogSource(FolderSource):
    """A folder of a set of the catalog. What its rules skip is not looked at.

    Items have the group as the set writes it; whoever stores them hashes it. DICOM files without a rule of their own
    have none here: their reader knows the patient.

    Raises:
        DataError: no such folder; and from ``items``, rules that find nothing: they may be from memory.
    """

    labels: str = "all"

    def __init__(self, path: Path, selection: Selection) -> None:
        if not path.is_dir():
            raise DataError(f"{path}: no such folder", f"{selection.name} is read from a folder: unpack an archive")
        super().__init__(path)
        self.selection = selection
        self.licence = selection.licence
        self._patients = {s.url.split("/")[-2]: s.patient for s in selection.series}
        self._names = [n for n in self._names if not any(fnmatch(n, pattern) for pattern in selection.skip)]

    def fingerprint(self) -> str:
        rules = (self.selection.group, self.selection.label, self.selection.split)
        caps = f" {self.selection.caps}" if self.selection.caps else ""
        if self.selection.per_patient:
            caps += hashlib.sha256(repr(sorted(self.selection.per_patient.items())).encode()).hexdigest()
        return f"{super().fingerprint()} {self.selection.name} {rules!r}{caps}"

    def count(self) -> int | None:
        return None if self.selection.caps else super().count()

    def items(self) -> Iterator[Item]:
        groups, labels, splits = (
            self._values(what, rule)
            for what, rule in (
                ("patients", self.selection.group),
                ("labels", self.selection.label),
                ("splits", self.selection.split),
            )
        )
        names = [n for n in self.names() if is_image_name(n)]
        said = {
            name: {
                "label": labels.get(name) if self.labels != "none" else None,
                "split": _SPLITS.get(splits.get(name, "").lower(), ""),
                "group": groups.get(name, ""),
                "modality": self.selection.modality or "",
            }
            for name in names
        }
        parts: Iterable[list[Stack]] = map(self._stacks, self._parts(names))
        caps = self.selection.caps
        if caps.limit:  # the draw is from all of them
            parts = [[*chain.from_iterable(parts)]]
        for stacks in parts:
            most = caps.take(stacks, lambda n: groups.get(n, ""), self._frames) if caps else self._of_patient(stacks)
            yield from self._arranged(stacks, said, most)
        yield from self._passed_over()

    def _parts(self, names: list[str]) -> Iterator[list[str]]:
        """What is read in one go: a directory; all of a patient where those are capped, because they share the cap."""
        if not self.selection.per_patient:
            yield from super()._parts(names)
            return
        of_patient: dict[str, list[str]] = {}
        for name in names:
            of_patient.setdefault(self._patient(name), []).append(name)
        yield from of_patient.values()

    def _of_patient(self, stacks: list[Stack]) -> dict[str, int] | None:
        """How many images each file of a patient gives under the patient's cap; None where there is none."""
        most = self.selection.per_patient.get(self._patient(stacks[0].names[0]))
        if most is None:
            return None
        holds = {n: 1 if len(s.names) > 1 else self._frames(n) or 1 for s in stacks for n in s.names}
        return shares(holds, most, self.selection.seed)

    def _patient(self, name: str) -> str:
        """Whose series it is that a file lies in the folder of."""
        return self._patients.get(PurePosixPath(name).parts[0], "")

    def _frames(self, name: str) -> int | None:
        header = series.header(self.path / name)
        return header.frames if header else None

    def _values(self, what: str, rule: Where) -> dict[str, str]:
        """What a rule says of each file that it says something of.

        Raises:
            DataError: it says nothing of any file.
        """
        if rule.kind is None or (rule.kind == "dicom" and rule.pattern is None):
            return {}
        read = {"path": self._of_paths, "dicom": self._of_series, "folder": _of_folders}
        read |= {"table": self._of_table, "lists": self._of_lists}
        found = read[rule.kind](rule, [n for n in self.names() if is_image_name(n)])
        if not found:
            told = rule.pattern or rule.table or ", ".join(rule.lists.values()) or "folders"
            origin = "" if self.selection.verified else ", which is from memory,"
            message = f"{self.selection.name}: the rule of the catalog for its {what}{origin} finds none: {told}"
            raise DataError(message, "give the folder as a plain source, with --group folder, file or path:REGEX")
        return found

    def _of_paths(self, rule: Where, names: list[str]) -> dict[str, str]:
        matches = {n: re.search(rule.pattern or "", n) for n in names}
        return {n: m[0] for n, m in matches.items() if m}

    def _of_series(self, rule: Where, names: list[str]) -> dict[str, str]:
        """The patient in a PatientID that holds more than that, by the series that a file lies in the folder of."""
        matches = {n: re.search(rule.pattern or "", self._patient(n)) for n in names}
        return {n: m[0] for n, m in matches.items() if m}

    def _of_table(self, rule: Where, names: list[str]) -> dict[str, str]:
        values: dict[str, str] = {}
        for table in self._text(rule.table or ""):
            rows = csv.DictReader(io.StringIO(table))
            if not {rule.file, rule.column} <= set(rows.fieldnames or ()):
                raise DataError(f"{self.selection.name}: {rule.table} has no columns {rule.file}, {rule.column}")
            values |= {row[rule.file or ""]: row[rule.column or ""] or "" for row in rows}
        return _of_files(values, names)

    def _of_lists(self, rule: Where, names: list[str]) -> dict[str, str]:
        values: dict[str, str] = {}
        for split, pattern in rule.lists.items():
            values |= {line.strip(): split for text in self._text(pattern) for line in text.splitlines()}
        return _of_files(values, names)

    def _text(self, pattern: str) -> list[str]:
        """The content of all files of such a name."""
        names = [n for n in self.names() if fnmatch(PurePosixPath(n).name, pattern)]
        return [self.read_bytes(n).decode("utf-8-sig", errors="replace") for n in names]


def _of_folders(rule: Where, names: list[str]) -> dict[str, str]:
    return {n: PurePosixPath(n).parent.name for n in names if len(PurePosixPath(n).parts) > 1}


def _of_files(values: dict[str, str], names: list[str]) -> dict[str, str]:
    """The value of each file, which a table may name with its folders, without, or without its suffix."""
    found = {}
    for name in names:
        path = PurePosixPath(name)
        for key in (name, path.name, path.stem):
            if values.get(key):
                found[name] = values[key]
                break
    return found
