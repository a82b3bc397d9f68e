"""Tables of images: Parquet, and the folders that Hugging Face's ``datasets`` writes; with pyarrow alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ssl_mednet.data.sources.base import Item, Source, files_below, split_of, stamp
from ssl_mednet.errors import DataError, UnreadableImage

SUFFIXES = (".parquet", ".arrow")
_DAMAGED = (pa.ArrowException, OSError, ValueError)  # what pyarrow raises on broken bytes
_IMAGES = ("image", "img", "images", "picture", "pixels", "bytes", "jpg", "jpeg", "png", "dcm")
_LABELS = ("label", "labels", "class", "target", "cls")
_GROUPS = ("group", "patient_id", "patient")
_ROWS = 16  # read at a time


def tables_in(path: Path) -> list[Path]:
    """The tables with images at or below a path, in order; empty where it is something else.

    A table that cannot be opened counts, so that what is wrong with it is told when it is read.
    """
    files = [path] if path.is_file() else sorted(files_below(path))
    return [p for p in files if p.suffix.lower() in SUFFIXES and _may_hold_images(p)]


class TableSource(Source):
    """Parquet or Arrow files with a column of images: ``{bytes, path}`` as in Hugging Face's image datasets, or bytes.

    ``label`` (or labels, class, target, cls) is the class: a name, a number that the schema's ``ClassLabel`` names, or
    a list of them; ``group`` or ``patient_id`` the group. The split is in the name of the file (``train-00000-of-...``)
    or of its folder.

    Args:
        spec: a file, or a folder with files at any depth.
    """

    def __init__(self, spec: str | Path) -> None:
        super().__init__(spec)
        self.files = tables_in(self.path)
        if not self.files:
            raise DataError(f"{spec}: holds no table with a column of images", "a struct {bytes, path}, or binary")
        names = (_class_names(schema) for schema in map(_schema, self.files) if schema is not None)
        self.classes = next(filter(None, names), ())

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(stamp(file, self._relative(file)))
        return digest.hexdigest()

    def count(self) -> int | None:
        try:
            return sum(pq.read_metadata(file).num_rows for file in self.files)
        except _DAMAGED:  # or Arrow, whose rows are not counted before they are read
            return None

    def items(self) -> Iterator[Item]:
        for file in self.files:
            row = 0
            try:
                for batch in _batches(file):
                    for values in batch.to_pylist():
                        yield self._item(file, row, values)
                        row += 1
            except _DAMAGED as error:
                name = f"{file}[{row}...]"
                reason = f"the table is damaged here ({type(error).__name__}); what comes after is lost"
                yield Item(name, UnreadableImage(name, reason))

    def _item(self, file: Path, row: int, values: dict[str, Any]) -> Item:
        name = f"{file}[{row}]"
        label, group = values.get("label"), values.get("group")
        return Item(
            name,
            _content(values["image"], file.parent, name),
            _label(label),
            split_of(self._relative(file)),
            "" if group is None else str(group),
        )

    def _relative(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix() if file != self.path else file.name


def _may_hold_images(path: Path) -> bool:
    schema = _schema(path)
    return schema is None or _image_column(schema) is not None


def _schema(path: Path) -> pa.Schema | None:
    """The columns of a table; None where it cannot be opened."""
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_schema(path)
        with pa.OSFile(str(path)) as file, _arrow(file) as reader:
            return reader.schema
    except _DAMAGED:
        return None


def _arrow(file: pa.NativeFile) -> Any:
    """A reader of Arrow's stream format, as ``save_to_disk`` writes, or of its file format."""
    magic = file.read(6)
    file.seek(0)
    return pa.ipc.open_file(file) if magic == b"ARROW1" else pa.ipc.open_stream(file)


def _image_column(schema: pa.Schema) -> str | None:
    fields = [f for f in schema if pa.types.is_struct(f.type) and f.type.get_field_index("bytes") >= 0]
    fields += [schema.field(n) for n in _IMAGES if n in schema.names and _is_bytes(schema.field(n).type)]
    named = [f for f in fields if f.name.lower() in _IMAGES]  # a mask may come first
    return (named or fields)[0].name if fields else None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _holds_files(kind: pa.DataType) -> bool:
    return pa.types.is_struct(kind) or _is_bytes(kind)


def _class_names(schema: pa.Schema) -> tuple[str, ...]:
    """Names of the classes in the order of their numbers, from what ``datasets`` keeps in the schema."""
    column = next((n for n in _LABELS if n in schema.names), "")
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        names = feature.get("names") or feature["feature"]["names"]  # of one class a row, or of several
        return tuple(map(str, names))
    except (KeyError, TypeError, ValueError, AttributeError):
        return ()


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """A few rows at a time, the columns that are used alone, named ``image``, ``label`` and ``group``."""
    with pa.OSFile(str(path)) as file:
        if path.suffix.lower() == ".parquet":
            table = pq.ParquetFile(file)
            columns = _columns(table.schema_arrow)
            for batch in table.iter_batches(batch_size=_ROWS, columns=list(columns.values()), use_threads=False):
                yield _renamed(batch, columns)
            return
        reader = _arrow(file)
        columns = _columns(reader.schema)
        blocks = (
            (reader.get_batch(i) for i in range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
        )
        for block in blocks:
            block.validate(full=True)
            for start in range(0, block.num_rows, _ROWS):
                yield _renamed(block.slice(start, _ROWS), columns)


def _columns(schema: pa.Schema) -> dict[str, str]:
    image = _image_column(schema)
    if image is None:
        raise ValueError("no column of images")
    found = {"image": image}
    for role, names in (("label", _LABELS), ("group", _GROUPS)):
        if column := next((n for n in names if n in schema.names and not _holds_files(schema.field(n).type)), ""):
            found[role] = column
    return found


def _renamed(batch: pa.RecordBatch, columns: dict[str, str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([batch.column(c) for c in columns.values()], names=list(columns))


def _content(image: Any, folder: Path, name: str) -> Path | bytes | UnreadableImage:
    """The bytes of an image, or the path of the file beside the table that holds them."""
    if isinstance(image, dict):
        path = image.get("path")
        image = image.get("bytes")
        if image is None and isinstance(path, str) and path:
            parts = PurePosixPath(path.replace("\\", "/"))
            if parts.is_absolute() or ".." in parts.parts:
                return UnreadableImage(name, "its path leads out of the folder of the table, which is not followed")
            return folder / parts
    return image if isinstance(image, bytes) else UnreadableImage(name, "the row holds no image")


def _label(value: Any) -> str | None:
    """``"a|b"`` for several; None where there is none: null, or -1 as ``datasets`` writes it."""
    if value is None or (isinstance(value, int) and value < 0):
        return None
    if isinstance(value, list):
        return "|".join(str(v) for v in value)
    return str(value)
