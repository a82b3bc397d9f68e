"""Text that was burnt into a picture: names of views, callipers' figures, and sometimes of patients."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

_LETTERS = 4  # that a word has at least: the single "R" of an X-ray says which side it is, not who it is
_LOWEST, _TALLEST = 4, 0.07  # height of a letter: pixels, and share of the shorter side
_CONTRAST = 0.25  # of a letter against what surrounds it, in [0, 1]
_SAME = 0.12  # how far the levels of the letters of a line may differ: pens have one level, tissue has not
_BORDER = 0.3  # share of either side from the edge where overlays are put


class Box(NamedTuple):
    """A line of text: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, the ends not included."""

    top: int
    bottom: int
    left: int
    right: int


class _Letter(NamedTuple):
    top: int
    bottom: int
    left: int
    right: int
    level: float

    @property
    def height(self) -> int:
        return self.bottom - self.top


def find_text(gray: np.ndarray) -> list[Box]:
    """Lines of bright or dark text near the border of a picture ``[H, W]`` in [0, 1].

    A word is four or more small, compact spots of strong contrast and of one level and height, on one base line and
    no further from each other than letters of a word are. It finds letters of 4 pixels or more, so text that
    was averaged away with a large picture is not found; and it reads nothing.
    """
    found = []
    for picture in (gray, 1 - gray):
        found += [_box(line) for line in _lines(_letters(picture))]
    return [box for box in found if _near_border(box, gray.shape)]


def _letters(gray: np.ndarray) -> list[_Letter]:
    """Spots that could be a letter each, from left to right."""
    tallest = max(_LOWEST + 2, round(_TALLEST * min(gray.shape)))
    # What is brighter than its surroundings and fits a square a letter cannot fill.
    raised = ndimage.white_tophat(gray, size=tallest | 1) > _CONTRAST
    labels, _ = ndimage.label(raised, structure=np.ones((3, 3)))
    letters = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        if not _LOWEST <= height <= tallest or width > 1.6 * height:
            continue
        spot = labels[rows, columns] == number
        if 0.2 <= spot.mean() <= 0.95 or width <= height / 2:  # a full narrow spot is an "I"
            level = float(gray[rows, columns][spot].max())
            letters.append(_Letter(rows.start, rows.stop, columns.start, columns.stop, level))
    return sorted(letters, key=lambda letter: letter.left)


def _lines(letters: list[_Letter]) -> list[list[_Letter]]:
    """Letters that follow one another, where there are enough of them."""
    lines: list[list[_Letter]] = []
    for letter in letters:
        for line in lines:
            if _follows(line[-1], letter):
                line.append(letter)
                break
        else:
            lines.append([letter])
    return [line for line in lines if len(line) >= _LETTERS]


def _follows(before: _Letter, after: _Letter) -> bool:
    taller, lower = max(before.height, after.height), min(before.height, after.height)
    return (
        0 <= after.left - before.right <= 0.6 * taller
        and abs(after.bottom - before.bottom) <= max(1, 0.2 * taller)
        and lower >= 0.6 * taller
        and abs(after.level - before.level) <= _SAME
    )


def _box(line: list[_Letter]) -> Box:
    tops, bottoms, lefts, rights, _ = zip(*line, strict=True)
    return Box(min(tops), max(bottoms), min(lefts), max(rights))


def _near_border(box: Box, shape: tuple[int, ...]) -> bool:
    middle = ((box.top + box.bottom) / 2 / shape[0], (box.left + box.right) / 2 / shape[1])
    return any(min(place, 1 - place) <= _BORDER for place in middle)
