"""Files that appear whole or not at all, so that a killed run leaves nothing half-written under a good name."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well; folders are made as needed.

    The content is on the disk before it has the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """What was renamed in a folder is on the disk, so that a power cut does not undo it."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def write_json(path: Path, content: Any, nan: bool = True) -> None:
    """JSON, indented; whole or not at all.

    Args:
        nan: whether what is not a finite number is written as ``NaN``, which other readers of JSON refuse, or as null.
    """
    if not nan:
        content = json.loads(json.dumps(content), parse_constant=lambda _: None)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=nan) + "\n")


def with_nan(figures: Any) -> Any:
    """Figures as they were before :func:`write_json` wrote them without: null is NaN, a figure that is not defined."""
    if isinstance(figures, dict):
        return {key: with_nan(value) for key, value in figures.items()}
    return float("nan") if figures is None else figures
