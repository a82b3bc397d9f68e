"""The verb ``ingest``: sources in, a corpus out, whatever happens on the way."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock

from ssl_mednet.data.schema import FORMAT, LOCK, CorpusSpec, is_corpus, read_meta
from ssl_mednet.data.sources import Source, TreeSource, open_sources
from ssl_mednet.errors import DataError, IngestError
from ssl_mednet.ingesting.again import worth_another_try
from ssl_mednet.ingesting.checks import check, check_folder, disk_errors
from ssl_mednet.ingesting.chunks import Chunk, Job, Origin, chunks
from ssl_mednet.ingesting.commit import Ingest, commit, read_quarantine, write_quarantine
from ssl_mednet.ingesting.engines import run
from ssl_mednet.ingesting.hashes import KEY, group_key, keyed_hash
from ssl_mednet.ingesting.journal import Journal
from ssl_mednet.ingesting.names import name_of
from ssl_mednet.ingesting.rows import Record, Rejected
from ssl_mednet.progress import Progress

STORE_SIZE = 256  # pixels: twice what the largest shipped recipe looks at
TIMEOUT = 120.0  # seconds
_GROUPS_DIFFER = (
    f"no key was given (${KEY}), so the groups of this ingest cannot be matched to those of other corpora or ingests"
)


@dataclass(frozen=True)
class Summary:
    """What an ingest did.

    Args:
        folder: of the corpus.
        images: added by this ingest.
        quarantined: files of this ingest that gave no image, or not all of theirs; ``quarantine.csv`` lists them.
        total: images of the corpus now.
        fingerprint: of the corpus now.
        already: it had been ingested before, and nothing was done.
        notes: what the user should know.
        missing: sets that were to be in it and are not, and why.
    """

    folder: Path
    images: int
    quarantined: int
    total: int
    fingerprint: str
    already: bool = False
    notes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Way:
    """How the work is done; see :func:`ingest`. It changes nothing of the corpus."""

    engine: str = "loky"
    address: str = ""
    workers: int = 0
    timeout: float = TIMEOUT


WAY = Way()


def ingest(
    sources: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    channels: str = "gray",
    store_size: int = STORE_SIZE,
    quality: int = 0,
    modality: str = "",
    convert: bool = False,
    labels: str = "table",
    group_field: str = "",
    mpp: float = CorpusSpec.mpp,
    tile: int = CorpusSpec.tile,
    max_tiles: int = CorpusSpec.max_tiles,
    source: str = "",
    licence: str = "",
    engine: str = "loky",
    address: str = "",
    workers: int = 0,
    timeout: float = TIMEOUT,
    quiet: bool = False,
) -> Summary:
    """Make a corpus of images, or add to one.

    The rows lie in the order of the sources and of the items in them, so two runs give the same corpus. A run that
    was killed goes on where it was; one that ended is not repeated, but for files whose reason to be left out has
    passed (they could not be opened, or took longer than the timeout is now). A file that cannot be read, that crashes
    its reader or that makes it wait is listed in ``quarantine.csv``, with the reason.

    Args:
        sources: folders, files, archives, globs, or sources with a name (``medmnist:NAME``); one or several.
        out: folder of the corpus.
        channels, store_size, quality, modality, convert, labels, group_field, mpp, tile, max_tiles: see
            :class:`~ssl_mednet.data.schema.CorpusSpec`. Labels are taken from tables alone by default, because
            folders may be named after patients.
        source: name of the data set, for every row; the last part of each source's name when empty (``file`` for a
            single image, which may be named after a patient).
        licence: SPDX identifier, or ``custom:...``; what the source says of itself when empty.
        engine: ``"loky"`` (this machine), ``"ray"`` or ``"dask"``.
        address: of a Ray or Dask cluster, whose machines see sources and corpus under the same names as this one.
        workers: processes on this machine; 0 for one a core.
        timeout: seconds that one image may take.

    Raises:
        DataError: a source that is not there, no image that can be used, a full disk, or a corpus of other channels.
            What the corpus held before is never touched.
    """
    spec = CorpusSpec(
        channels, store_size, modality, convert, quality, labels, group_field, mpp=mpp, tile=tile, max_tiles=max_tiles
    )
    check(spec, timeout)
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    opened = [one for text in given for one in open_sources(text)]
    if not opened:
        raise DataError("nothing to ingest", "name a folder, a file, an archive or a glob")
    way = Way(engine, address, workers, timeout)
    return ingest_opened(opened, Path(out).expanduser().absolute(), spec, source, licence, way, quiet)


def ingest_opened(
    sources: list[Source],
    folder: Path,
    spec: CorpusSpec,
    source: str = "",
    licence: str = "",
    way: Way = WAY,
    quiet: bool = False,
) -> Summary:
    """:func:`ingest` of sources that are open already."""
    for one in sources:
        if spec.group_field and not spec.group_tag and not isinstance(one, TreeSource):
            raise DataError(f"{one.spec}: only files in folders and archives can be grouped by {spec.group_field!r}")
        one.group_field, one.labels = spec.group_field, spec.labels
    origins = tuple(Origin(source or name_of(s), licence or s.licence, s.classes) for s in sources)
    said = "\n".join(s.fingerprint() for s in sources)
    given = group_key()
    # Without the user's key, one that only those who hold the very files can make: nothing is stored, and still a
    # killed run is taken up with the same hashes and two runs agree to the byte, as with a random key they could not.
    key = given or hashlib.sha256(f"groups\n{said}".encode()).digest()
    identity = f"{FORMAT}\n{said}\n{spec}\n{origins}\n{keyed_hash(key, 'identity')}"
    name = hashlib.sha256(identity.encode()).hexdigest()[:24]
    with disk_errors(folder):
        check_folder(folder)
        with disk_errors(folder, every=True):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOCK).touch()
        with FileLock(folder / LOCK):
            before = _meta(folder)
            if before and before["channels"] != spec.channels:
                kind = before["channels"]
                raise IngestError(f"{folder}: holds {kind} images, not {spec.channels}", "name another --out")
            again: list[Rejected] = []
            entry = _entry(before, name) if before else None
            if before and entry:
                again = worth_another_try(folder, sources, way.timeout, quiet)
                name = hashlib.sha256(f"{name} {again}".encode(errors="surrogateescape")).hexdigest()[:24]
                if not again or _entry(before, name):  # of a run that was killed before it was taken off the list
                    _settle(folder, again)
                    return _summary(folder, before, entry, already=True)
            for one in sources:
                one.prepare(quiet)
            job = Job(str(folder), spec, origins, key, way.timeout)
            journal = Journal(folder, name)
            _work(sources, job, journal, way, quiet, frozenset(path for path, *_ in again))
            if before and entry and not any(record.rows for record in journal.records()):
                _settle(folder, again, [row for record in journal.records() for row in record.quarantine])
                journal.clear()
                return _summary(folder, before, entry, already=True)
            ungrouped = sum(record.ungrouped for record in journal.records()) if spec.group_field else 0
            meta = _commit(sources, job, journal, name, len(again))
            _settle(folder, again)
            notes = [*_remarks(sources), *([] if given or not meta["groups"] else [_GROUPS_DIFFER])]
            if copies := meta["ingests"][-1]["again"]:
                notes.append(f"{copies} of these images were in the corpus already: ssl-mednet curate marks copies")
            if ungrouped:
                notes.append(f"{ungrouped} images have no group: --group {spec.group_field} says nothing of them")
            return _summary(folder, meta, meta["ingests"][-1], notes=tuple(notes))


def _remarks(sources: list[Source]) -> tuple[str, ...]:
    """What is unusual about series of slices and folders, the first of it by name."""
    remarks = [remark for source in sources for remark in source.remarks]
    if not remarks:
        return ()
    file, what = remarks[0]
    more = f" (and {len(remarks) - 1} more such remarks)" if len(remarks) > 1 else ""
    return (f"{file}: {what}{more}",)


def _meta(folder: Path) -> dict[str, Any] | None:
    if not is_corpus(folder):
        return None
    import lance

    return read_meta(lance.dataset(str(folder)).schema, folder)


def _entry(meta: dict[str, Any], key: str) -> dict[str, Any] | None:
    return next((one for one in meta["ingests"] if one["key"] == key), None)


def _settle(folder: Path, rows: list[Rejected], instead: Sequence[Rejected] = ()) -> None:
    """Take rows off the list of quarantined files, and put what is said of them now there."""
    if rows:
        gone = set(rows)
        write_quarantine(folder, [*(row for row in read_quarantine(folder) if row not in gone), *instead])


def _summary(folder: Path, meta: dict[str, Any], entry: dict[str, Any], **more: Any) -> Summary:
    return Summary(folder, entry["images"], max(0, entry["skipped"]), meta["images"], meta["fingerprint"], **more)


def _work(
    sources: list[Source], job: Job, journal: Journal, way: Way, quiet: bool, only: frozenset[str] = frozenset()
) -> None:
    """Have every chunk in the journal; of these files alone, if there are any."""
    counts = [source.count() for source in sources]
    total = len(only) or (None if None in counts else sum(c for c in counts if c is not None))
    with Progress("ingesting " + ", ".join(o.name for o in job.origins), total, "img", quiet) as progress:
        before = _Counts.of(journal.records())
        counted = before
        progress.start_from(before.items)

        def missing() -> Iterator[Chunk]:
            return (chunk for chunk in chunks(sources, only) if chunk.number not in journal.done)

        for record in run(way.engine, job, missing(), way.workers, way.address):
            journal.add(record)
            counted = _Counts.of([record], counted)
            note = f"{counted.quarantined} quarantined" if counted.quarantined else ""
            rate = (counted.images - before.images) / max(1, counted.items - before.items)
            progress.advance(record.items, note, weight=rate)


class _Counts(NamedTuple):
    items: int
    images: int
    quarantined: int

    @classmethod
    def of(cls, records: list[Record], start: tuple[int, int, int] = (0, 0, 0)) -> _Counts:
        columns = zip(start, *((r.items, r.rows, len(r.quarantine)) for r in records), strict=True)
        return cls(*map(sum, columns))


def _commit(sources: list[Source], job: Job, journal: Journal, name: str, settled: int) -> dict[str, Any]:
    records = journal.records()
    if not any(record.rows for record in records):
        journal.clear()
        raise _nothing(sources, records)
    entry = Ingest(
        key=name,
        source=", ".join(dict.fromkeys(o.name for o in job.origins)),
        licence=", ".join(dict.fromkeys(o.licence for o in job.origins if o.licence)),
        note=" ".join(dict.fromkeys(s.note for s in sources if s.note)),
        classes=sources[0].classes if len({s.classes for s in sources}) == 1 else (),
        ordinal=all(s.ordinal for s in sources),
        quality=job.spec.quality,
    )
    meta = commit(Path(job.folder), job.spec.channels, records, entry, settled)
    journal.clear()
    return meta


def _nothing(sources: list[Source], records: list[Record]) -> DataError:
    spec, rejected = ", ".join(s.spec for s in sources), [row for record in records for row in record.quarantine]
    if not rejected:
        return DataError(f"{spec}: holds no image", "PNG, JPEG, TIFF, DICOM, NIfTI, npy, npz, zip, tar")
    reason = Counter(reason for _, reason, _ in rejected).most_common(1)[0][0]
    path = next(path for path, why, _ in rejected if why == reason)
    return DataError(
        f"{spec}: none of its {len(rejected)} files can be used, most often because: {reason}", f"for example {path}"
    )
