"""Files that an ingest could not use for a reason that has passed since: they are taken up by the next run of it."""

from __future__ import annotations

import re
from pathlib import Path

from ssl_mednet.data.sources import Source
from ssl_mednet.ingesting.commit import read_quarantine
from ssl_mednet.ingesting.rows import Rejected

_TOO_SLOW = re.compile(r"its reader gave nothing for (\S+) s")


def worth_another_try(folder: Path, sources: list[Source], timeout: float, quiet: bool) -> list[Rejected]:
    """Rows of the quarantine of a corpus that are of these sources and whose reason is gone.

    A file that could not be opened can be now, or its reader is given more time than it was.

    Args:
        timeout: seconds that one image may take now.
    """
    rows = reasons_gone(folder, timeout)
    if not rows:
        return []
    for source in sources:
        source.prepare(quiet)
    wanted = {path for path, *_ in rows}
    ours = {item.name for source in sources for item in source.items() if item.name in wanted}
    for source in sources:
        source.remarks.clear()  # they will be told once more
    return [row for row in rows if row[0] in ours]


def reasons_gone(folder: Path, timeout: float) -> list[Rejected]:
    """Rows of the quarantine of a corpus whose reason is gone, of whatever source."""
    return [row for row in read_quarantine(folder) if _has_passed(*row[:2], timeout)]


def _has_passed(path: str, reason: str, timeout: float) -> bool:
    if given := _TOO_SLOW.fullmatch(reason):
        return float(given[1]) < timeout
    return reason.startswith("cannot be opened: ") and _opens(path)


def _opens(path: str) -> bool:
    try:
        with Path(path).open("rb"):
            return True
    except (OSError, ValueError):
        return False
