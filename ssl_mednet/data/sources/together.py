"""Which directories are read in one go: those over which a DICOM series, or the levels of a slide, are spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from ssl_mednet.imaging.readers.series import Header


def may_be_dicom(name: str) -> bool:
    """Whether a file of this name is asked for its header."""
    suffix = PurePosixPath(name).suffix.lower()
    return suffix in ("", ".dcm", ".dicom", ".ima") or suffix[1:].isdigit()


def may_share(parts: Iterable[list[str]]) -> bool:
    """Whether two or more directories hold files that may be DICOM, so that a series may be spread over them."""
    return sum(any(map(may_be_dicom, names)) for names in parts) > 1


def together(parts: Iterable[list[str]], header: Callable[[str], Header | None]) -> Iterator[list[str]]:
    """Directories one by one, those that share a stack in one go and at the place of the first of them.

    Where directories may share a series, all headers are read before the first directory is yielded; otherwise none is.

    Args:
        parts: the files of each directory, in the order of the source.
        header: of a file; asked once for each that may be DICOM.
    """
    parts = [*parts]
    if not may_share(parts):
        yield from parts
        return
    above = [*range(len(parts))]  # a forest: the first directory of a set is its root

    def root(number: int) -> int:
        while above[number] != number:
            above[number] = number = above[above[number]]
        return number

    first: dict[tuple[str, bool], int] = {}
    for number, names in enumerate(parts):
        for name in filter(may_be_dicom, names):
            if (head := header(name)) and head.stack:
                one, other = sorted((root(first.setdefault(head.stack, number)), root(number)))
                above[other] = one
    joined: dict[int, list[str]] = {}
    for number, names in enumerate(parts):
        joined.setdefault(root(number), []).extend(names)
    yield from joined.values()
