"""Files that appear whole or not at all, so that a killed run leaves nothing half-written under a good name."""

from __future__ import annotations

import errno
import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ssl_mednet.errors import WriteError

ANOTHER = "name another --out"


@contextmanager
def write_errors(path: Path, hint: str = ANOTHER) -> Iterator[None]:
    """What the system says while ``path`` is written, in one line that names it.

    Raises:
        WriteError: it said something.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"{path}: cannot be written ({error.strerror or error})", hint) from error


def expanded(path: str | Path) -> Path:
    """A path with ``~`` as the home folder, but where nobody has such a home: then it is the name of a file."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def cache_folder() -> Path:
    """Where decoded corpora, and what was found out of them, are kept."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ssl_mednet"
    return Path(os.environ.get("SSL_MEDNET_CACHE") or default).expanduser()


def try_writing(folder: Path) -> None:
    """Make something in a folder, or in the nearest one above it that is there, and take it away again.

    Raises:
        OSError: that cannot be done.
    """
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with TemporaryDirectory(prefix=".", dir=above):
        pass


def check_folder(path: Path, hint: str = ANOTHER) -> None:
    """Refuse a folder that cannot be made or written into, before the work; nothing is left behind.

    Raises:
        WriteError: so it is.
    """
    with write_errors(path, hint):
        try_writing(path)


def check_file(path: Path, hint: str = ANOTHER) -> None:
    """As :func:`check_folder`, of a file that is to be written or replaced."""
    with write_errors(path, hint):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        try_writing(path.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends well; folders are made as needed.

    The content is on the disk before it has the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Containers and hosts that share a folder may have processes of one number.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.partial")
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
