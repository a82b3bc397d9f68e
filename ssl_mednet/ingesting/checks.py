"""What an ingest refuses before it begins, and what a disk says in words."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssl_mednet.data.schema import LABELS, LOCK, QUARANTINE, TAG, WORK, CorpusSpec, is_corpus
from ssl_mednet.errors import DataError, IngestError
from ssl_mednet.files import write_errors
from ssl_mednet.imaging.modality import CHANNEL_COUNT
from ssl_mednet.imaging.modality import modality as known_modality

_FULL = (errno.ENOSPC, errno.EDQUOT)


def check(spec: CorpusSpec, timeout: float) -> None:
    """Refuse what a user cannot mean.

    Raises:
        DataError: the message says what is allowed.
    """
    if spec.channels not in CHANNEL_COUNT:
        raise DataError(f"channels is gray or color, not {spec.channels!r}")
    if spec.modality:
        known_modality(spec.modality)
    if not 0 <= spec.quality <= 100:
        raise DataError(f"quality is 1 to 100, or 0 for lossless, not {spec.quality}")
    if spec.store_size < 8:
        raise DataError(f"the longest side is 8 pixels or more, not {spec.store_size}")
    if spec.mpp <= 0 or spec.tile < 16 or spec.max_tiles < 0:
        raise DataError("slides: microns per pixel are above 0, tiles have 16 pixels or more, at most 0 (all) or more")
    if spec.labels not in LABELS:
        raise DataError(f"labels are one of {', '.join(LABELS)}, not {spec.labels!r}")
    if spec.group_field.startswith("path:"):
        try:
            re.compile(spec.group_field.removeprefix("path:"))
        except re.error as error:
            raise DataError(f"--group {spec.group_field}: is no regular expression: {error}") from error
    if spec.group_field.startswith(TAG):
        from ssl_mednet.imaging.readers.tags import parse_tag  # it brings pydicom

        parse_tag(spec.group_tag)
    if timeout <= 0:
        raise DataError(f"the timeout is a time above 0, not {timeout:g} s")


def check_folder(folder: Path) -> None:
    """Refuse to make a corpus among files that are not its own.

    A folder may be there that is empty (hidden files and ``lost+found`` do not count), or that an ingest has begun.

    Raises:
        IngestError: it holds something else or lies in a corpus.
        WriteError: it cannot be looked at.
    """
    with disk_errors(folder, every=True):
        if is_corpus(folder):
            return
        if folder.is_dir() and not (folder / WORK).exists() and not (folder / LOCK).exists():
            names = (path.name for path in folder.iterdir())
            if found := next((name for name in names if not name.startswith(".") and name != "lost+found"), ""):
                raise IngestError(
                    f"{folder}: is no corpus and not empty (it holds {found})", "name a new folder as --out"
                )
        if inside := next((above for above in folder.resolve().parents if is_corpus(above)), None):
            raise IngestError(f"{folder}: lies in the corpus {inside}", "name a folder outside of it as --out")


@contextmanager
def disk_errors(folder: Path, every: bool = False) -> Iterator[None]:
    """A full disk, or one that may not be written, as what it is; the reason may come from Rust, as a text.

    Args:
        every: whatever the system says, it says of this folder.
    """
    try:
        yield
    except OSError as error:
        text = str(error)
        if error.errno in _FULL or "os error 28" in text or "os error 122" in text:
            hint = f"what was there before is untouched; free some space and run it again to go on (see {QUARANTINE})"
            raise IngestError(f"{folder}: the disk is full", hint) from error
        if every or error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST) or "os error 13" in text:
            with write_errors(folder):
                raise
        raise
