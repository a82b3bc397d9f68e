"""One commit: the fragments of all chunks, what is said of the corpus as a whole, and the list of quarantined files."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from ssl_mednet.data.schema import FORMAT, LOCK, META_KEY, QUARANTINE, is_corpus, read_meta, schema
from ssl_mednet.files import replacing
from ssl_mednet.ingesting.rows import Record, Rejected

# What the fingerprint is made of: everything that a network sees of an image.
_SEEN = ["sha256", "window", "modality", "quantity", "codec"]
_RAW = "surrogateescape"  # names of files need not be UTF-8
_HEADER: Rejected = ("path", "reason", "reader")
_FRAGMENT = re.compile(r"[01]{24}[0-9a-f]{26}\.lance")  # as Lance names its files


@dataclass(frozen=True)
class Ingest:
    """What is remembered of one ingest in the corpus.

    Args:
        key: of sources and options; the same ingest is never committed twice.
        source: names of the sources as its rows state them: no path.
        classes: of the source in their official order, where it has one.
        quality: of JPEG, 0 for lossless.
    """

    key: str
    source: str
    licence: str
    note: str
    classes: tuple[str, ...]
    ordinal: bool
    quality: int


def commit(folder: Path, channels: str, records: list[Record], ingest: Ingest, settled: int = 0) -> dict[str, Any]:
    """Add the rows of ``records`` to the corpus in one step; a kill leaves the version before it, or this one.

    The new version lists all fragments, the old ones first, and carries the new description, so that rows and
    description never disagree.

    Args:
        settled: files among these that earlier ingests had skipped.

    Returns:
        What is said of the corpus now.
    """
    import lance

    old = lance.dataset(str(folder)) if is_corpus(folder) else None
    if old is not None and any(f.metadata.deletion_file for f in old.get_fragments()):
        # Lists of deleted rows are bound to the number that a fragment has in one version.
        old.optimize.compact_files(materialize_deletions=True, materialize_deletions_threshold=0.0)
        old = lance.dataset(str(folder))
    before = read_meta(old.schema, folder) if old is not None else {"ingests": []}
    fragments = [f.metadata for f in old.get_fragments()] if old is not None else []
    fresh = [lance.FragmentMetadata.from_json(json.dumps(f)) for record in records for f in record.fragments]
    entry = _entry(records, ingest, settled)
    ingests = [*before["ingests"], entry]
    known = _Known(0 if old is None else old.count_rows())
    meta = _describe(known.watch(_batches(folder, old, fresh)), channels, ingests)
    meta |= {"weights": before.get("weights", {})}
    entry["again"] = known.again()
    columns = schema(channels, meta)
    if old is not None:  # what others added to the corpus has no value in the new rows
        extra = [f.with_nullable(True) for f in old.schema if f.name not in columns.names]
        columns = pa.schema([*columns, *extra], metadata=(old.schema.metadata or {}) | columns.metadata)
    # Those that a killed run wrote already are not repeated.
    write_quarantine(folder, [*read_quarantine(folder), *(row for record in records for row in record.quarantine)])
    operation = lance.LanceOperation.Overwrite(columns, fragments + fresh)
    done = lance.LanceDataset.commit(str(folder), operation, read_version=old.version if old is not None else None)
    _remove_orphans(folder, done)
    return meta


def _remove_orphans(folder: Path, corpus: Any) -> None:
    """Delete the fragments of killed runs: files of Lance directly in ``data/`` that no version names.

    Lance's own clean-up would go down into whatever else lies below the folder, such as another corpus.
    """
    import lance

    files = [path for path in (folder / "data").iterdir() if _FRAGMENT.fullmatch(path.name) and path.is_file()]
    orphans = {path.name: path for path in files}
    for version in corpus.versions():
        for fragment in lance.dataset(str(folder), version=version["version"]).get_fragments():
            for file in fragment.metadata.files:
                orphans.pop(file.path, None)
    for path in orphans.values():
        path.unlink(missing_ok=True)


def state_weights(folder: Path, weights: dict[str, float]) -> None:
    """Keep in a corpus how often its modalities are to be drawn; its rows stay as they are.

    Args:
        weights: share of each modality.
    """
    import lance

    with FileLock(folder / LOCK):
        corpus = lance.dataset(str(folder))
        meta = read_meta(corpus.schema, folder)
        if meta["weights"] != weights:
            said = {**(corpus.schema.metadata or {}), META_KEY: json.dumps(meta | {"weights": weights}).encode()}
            corpus.replace_schema_metadata({key.decode(): value.decode() for key, value in said.items()})


def _entry(records: list[Record], ingest: Ingest, settled: int) -> dict[str, Any]:
    counts = {"images": sum(r.rows for r in records), "skipped": sum(len(r.quarantine) for r in records) - settled}
    return {**ingest.__dict__, "classes": list(ingest.classes), **counts}


def _batches(folder: Path, old: Any, fresh: list[Any]) -> Iterator[pa.RecordBatch]:
    """The small columns of all rows, in order; those of the new fragments before any version has them."""
    from lance.file import LanceFileReader

    wanted = [*_SEEN, "label", "group"]
    if old is not None:
        yield from old.to_batches(columns=wanted, scan_in_order=True)
    for fragment in fresh:
        for file in fragment.files:
            reader = LanceFileReader(str(folder / "data" / file.path), columns=wanted)
            yield from reader.read_all().to_batches()


class _Known:
    """Counts new images that the corpus had: by 8 bytes of their hashes, which differ for all images that anyone has.

    Args:
        before: rows that the corpus had.
    """

    def __init__(self, before: int) -> None:
        self._before = before
        self._hashes = [np.empty(0, np.uint64)]

    def watch(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            if self._before:
                self._hashes.append(np.frombuffer(_bytes(batch["sha256"]), np.uint64)[:: 32 // 8])
            yield batch

    def again(self) -> int:
        if not self._before:
            return 0
        hashes = np.concatenate(self._hashes)
        old, new = np.sort(hashes[: self._before]), np.sort(hashes[self._before :])  # ten times as fast as np.isin
        place = np.minimum(np.searchsorted(old, new), len(old) - 1)
        return int((old[place] == new).sum())


def _describe(batches: Iterator[pa.RecordBatch], channels: str, ingests: list[dict[str, Any]]) -> dict[str, Any]:
    digests = {name: hashlib.sha256() for name in _SEEN}  # one a column, so that the size of batches does not matter
    labels: set[str] = set()
    groups: list[np.ndarray] = [np.empty(0, np.int64)]
    images = 0
    for batch in batches:
        images += len(batch)
        for name, digest in digests.items():
            digest.update(_bytes(batch[name]))
        labels |= set(pc.unique(batch["label"]).drop_null().to_pylist())
        groups.append(np.unique(batch["group"].to_numpy()))
    lossy = sorted({i["quality"] for i in ingests if i["quality"]})
    said = " ".join([*(d.hexdigest() for d in digests.values()), channels, str(lossy)])
    distinct = np.unique(np.concatenate(groups))
    return {
        "format": FORMAT,
        "source": _joined(i["source"] for i in ingests),
        "channels": channels,
        "images": images,
        "skipped": sum(i["skipped"] for i in ingests),
        "classes": _classes(labels, ingests),
        "multilabel": any("|" in label for label in labels),
        "ordinal": all(i["ordinal"] for i in ingests),
        "groups": int((distinct >= 0).sum()),
        "licence": _joined(i["licence"] for i in ingests),
        "note": _joined(i["note"] for i in ingests),
        "fingerprint": hashlib.sha256(said.encode()).hexdigest(),
        "ingests": ingests,
    }


def _bytes(column: pa.Array) -> bytes:
    """The values of a column as bytes that do not depend on how Arrow holds them."""
    if pa.types.is_string(column.type):
        return "\n".join([*column.to_pylist(), ""]).encode()
    if pa.types.is_fixed_size_binary(column.type):
        return b"".join(column.to_pylist())
    flat = column.flatten() if pa.types.is_fixed_size_list(column.type) else column
    return flat.to_numpy(zero_copy_only=False).tobytes()


def _joined(texts: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(t for t in texts if t))


def _classes(labels: set[str], ingests: list[dict[str, Any]]) -> list[str]:
    """Names of the classes that occur: in their official order where there is one, else as people count."""
    names = {part for label in labels for part in label.split("|") if part or "|" not in label}
    if any("|" in label for label in labels):
        names.discard("")
    official = ingests[0]["classes"]
    if official and all(i["classes"] == official for i in ingests):
        return [name for name in official if name in names]
    return sorted(names, key=lambda n: (0, int(n), n) if n.isdigit() else (1, 0, n))


def read_quarantine(folder: Path) -> list[Rejected]:
    """The rows of the list of a corpus; lines that are none are left out, for people edit it."""
    path = folder / QUARANTINE
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors=_RAW) as file:
        rows = [row for row in csv.reader(line.replace("\0", "") for line in file) if len(row) == len(_HEADER)]
    return [row for path, reason, reader in rows if (row := (path, reason, reader)) != _HEADER]


def write_quarantine(folder: Path, rows: Iterable[Rejected]) -> None:
    """The list with these rows, each once."""
    path = folder / QUARANTINE
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8", errors=_RAW) as file:
        csv.writer(file).writerows([_HEADER, *dict.fromkeys(rows)])
