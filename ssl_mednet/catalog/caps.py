"""How much of a set is taken: some images of each volume, some files of all, by seed and names alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath

from ssl_mednet.catalog.idc import draw
from ssl_mednet.errors import DataError
from ssl_mednet.imaging.readers import ReadContext
from ssl_mednet.imaging.readers.series import Stack

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".gif", ".webp"})  # one image a file
Frames = Callable[[str], int | None]


@dataclass(frozen=True)
class Caps:
    """What of a set is taken; 0 is everything.

    Args:
        per_volume: images of a volume at most, evenly spread: of a file of several, of a DICOM series, or of a folder
            of pictures, which are the frames of a video (those of one group, where a folder holds several).
        beside_images: the same of files and series, but pictures are no frames, and all stay.
        tiles: of a slide; they are counted here and cut by the reader.
        limit: images of the whole set at most: files as the seed draws them, whatever their order.
        seed: which ones.
    """

    per_volume: int = 0
    beside_images: int = 0
    tiles: int = 0
    limit: int = 0
    seed: int = 0

    def __bool__(self) -> bool:
        return any((self.per_volume, self.beside_images, self.limit))

    def take(self, stacks: Iterable[Stack], group: Callable[[str], str], frames: Frames) -> dict[str, int]:
        """The files that are read, each with how many of its images are taken at most (0: all of them).

        Args:
            group: of a file.
            frames: how many images a file holds, where its header says so at once.

        Raises:
            DataError: a limit, and a file of which nothing says how many images it holds.
        """
        most = self.per_volume or self.beside_images
        files: dict[str, int] = {}  # images of each that are taken at most; 0 where that is not known
        slides: dict[str, list[str]] = {}
        pictures: dict[tuple[str, str], list[str]] = {}
        for stack in stacks:
            first = stack.names[0]
            if stack.slide:
                slides[first], files[first] = stack.names, self.tiles or most
            elif len(stack.names) > 1:
                files |= dict.fromkeys(_spread(stack.names, most), 1)
            elif PurePosixPath(first).suffix.lower() in _PICTURES:
                pictures.setdefault((first.rpartition("/")[0], group(first)), []).append(first)
            else:
                files[first] = most or self.tiles
        for names in pictures.values():
            files |= dict.fromkeys(_spread(names, self.per_volume), 1)
        if self.limit:
            files = self._drawn(files, frames)
        return {name: n for first, n in files.items() for name in slides.get(first, [first])}

    def _drawn(self, files: dict[str, int], frames: Frames) -> dict[str, int]:
        left, kept = self.limit, {}
        for name in sorted(files, key=lambda n: draw(self.seed, n)):
            if not left:
                break
            known, most = frames(name), files[name]  # what it holds, and how much of that is taken
            holds = min(known, most) if known and most else known or most
            if not holds:
                raise DataError(f"{name}: nothing says how many images it holds, so a limit cannot be kept",
                                "state per_volume beside limit")  # fmt: skip
            kept[name] = min(holds, left)
            left -= kept[name]
        return kept


def shares(holds: Mapping[str, int], most: int, seed: int) -> dict[str, int]:
    """So many images of each file that they are ``most`` together, or all: as equal as their numbers of images allow.

    Args:
        holds: how many images each file has.

    Returns:
        The files that give any; which those are where there are more files than ``most``, the seed draws.
    """
    taken = {}
    waiting = sorted(holds, key=lambda n: (holds[n], draw(seed, n)))  # large files give what small ones cannot
    for place, name in enumerate(waiting):
        taken[name] = min(holds[name], most // (len(waiting) - place))
        most -= taken[name]
    return {name: n for name, n in taken.items() if n}


def _spread(names: list[str], most: int) -> list[str]:
    return [names[i] for i in ReadContext(most=most).chosen(len(names))]


ALL = Caps()
