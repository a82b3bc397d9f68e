"""Where an export goes: only another export gives way to it, and not before the new one is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ssl_mednet.backbones.artifact import CARD, CONFIG, WEIGHTS
from ssl_mednet.classifying.model import MODEL
from ssl_mednet.errors import UserError
from ssl_mednet.files import check_folder
from ssl_mednet.pretraining.folder import RECIPE

GRAPH, ABOUT = "model.onnx", "preprocessing.json"
_KINDS = ((CONFIG, "ssl_mednet", {CONFIG, WEIGHTS, CARD}), (ABOUT, "normalisation", {ABOUT, GRAPH, CARD}))
_FILES = frozenset().union(*(files for _, _, files in _KINDS))
_WORK = ".export"


def check_room(out: str | Path, sources: Iterable[str | Path], overwrite: bool) -> Path:
    """The folder that may be written, its path resolved so that it has a name.

    Args:
        sources: what is exported; such as are no paths say nothing.
        overwrite: an export that is there may be replaced. Nothing else ever is.

    Raises:
        UserError: it may not.
    """
    folder = Path(out).expanduser().resolve()
    for source in {Path(s).expanduser().resolve() for s in sources}:
        if source.exists() and (folder == source or folder in source.parents or source in folder.parents):
            raise UserError(f"{out}: is, holds or lies in what is exported, {source.name}", "choose another --out")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{out}: is a file, --out names a folder", "choose another --out")
    check_folder(folder)
    if not folder.exists() or not _names(folder):
        return folder
    if not overwrite:
        raise UserError(f"{out}: is there already", "choose another --out, or say --overwrite")
    if not _is_export(folder):
        raise UserError(f"{out}: is no export, it will not be overwritten", "choose another --out")
    if more := sorted(_names(folder) - _FILES):
        raise UserError(f"{out}: holds {more[0]} beside an export, it will not be overwritten", "choose another --out")
    return folder


@contextmanager
def filled(out: Path) -> Iterator[Path]:
    """A path for a new folder, whose files take the place of those in ``out`` when the block ends well.

    ``out`` itself stays the folder that it is: a shell may stand in it.
    """
    made, work = not out.exists(), out / _WORK
    shutil.rmtree(work, ignore_errors=True)  # of an export that was killed
    work.mkdir(parents=True)
    try:
        yield work / "new"
        written = sorted((work / "new").iterdir())
        for path in written:
            path.replace(out / path.name)
        for name in _FILES - {path.name for path in written}:
            (out / name).unlink(missing_ok=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if made:
            with suppress(OSError):  # it is empty where the block failed, and only then
                out.rmdir()


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()} - {_WORK}


def _is_export(folder: Path) -> bool:
    """Whether it holds all that an export writes, and is not the backbone of a run or of a classifier."""
    if any((folder.parent / name).is_file() for name in (MODEL, RECIPE)):
        return False
    for name, key, files in _KINDS:
        with suppress(OSError, ValueError):
            if files <= _names(folder) and key in json.loads((folder / name).read_text()):
                return True
    return False
