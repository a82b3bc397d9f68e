"""The work of an ingest, cut into pieces: which items a piece holds depends on the items alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ssl_mednet.data.schema import CorpusSpec
from ssl_mednet.data.sources import Item, PhantomIndex, Source

_DOUBLED_AFTER = 8  # pieces
_ITEMS = (256, 4096)  # of the first pieces, and at most
_IN_MEMORY = 32 * 2**20  # bytes of items that come with their content, so that pieces in flight stay small
_ON_DISK = (16 * 2**20, 2 * 2**30)  # bytes of files that a worker reads itself: of the first pieces, and at most


@dataclass(frozen=True)
class Origin:
    """What is the same for all items of a source."""

    name: str
    licence: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Job:
    """What a worker must know to write rows of a corpus.

    Args:
        folder: of the corpus; on a cluster every machine sees it under this name.
        key: for groups; it is never written anywhere.
        timeout: seconds that one image may take.
    """

    folder: str
    spec: CorpusSpec
    origins: tuple[Origin, ...]
    key: bytes
    timeout: float


@dataclass(frozen=True)
class Chunk:
    """Items that one worker turns into rows at a time, all of one source."""

    number: int
    origin: int
    items: tuple[Item, ...]

    def part(self, start: int, stop: int) -> Chunk:
        return replace(self, items=self.items[start:stop])

    @property
    def needs_decoding(self) -> bool:
        """Whether foreign decoders touch it, which may hang or crash."""
        return any(isinstance(part, Path | bytes) for item in self.items for part in _parts(item))


def chunks(sources: list[Source], only: frozenset[str] = frozenset()) -> Iterator[Chunk]:
    """All items of all sources in order; or those of these names alone.

    Pieces grow from 256 items or 16 MB of files to 4096 items or 2 GB, so that a small set is shared by all workers and
    a large one has few fragments: 3,000,000 files make about 760.
    """
    number = 0
    for origin, source in enumerate(sources):
        held: list[Item] = []
        memory = disk = 0
        for item in source.items():
            if only and item.name not in only:
                continue
            here, there = _bytes(item)
            full = memory + here > _IN_MEMORY or disk + there > _limit(number, *_ON_DISK)
            if held and (full or len(held) >= _limit(number, *_ITEMS)):
                yield Chunk(number, origin, tuple(held))
                number += 1
                held, memory, disk = [], 0, 0
            held.append(item)
            memory, disk = memory + here, disk + there
        if held:
            yield Chunk(number, origin, tuple(held))
            number += 1


def _limit(number: int, first: int, most: int) -> int:
    return min(most, first << min(16, number // _DOUBLED_AFTER))


def _bytes(item: Item) -> tuple[int, int]:
    """Bytes of an item in memory and on the disk."""
    here = there = 0
    for part in _parts(item):
        if isinstance(part, Path):
            with suppress(OSError):  # the reader will say what is wrong with it
                there += part.stat().st_size
        elif isinstance(part, bytes):
            here += len(part)
        elif isinstance(part, np.ndarray):
            here += part.nbytes
    return here, there


def _parts(item: Item) -> tuple[Any, ...]:
    """What an item consists of: one file, or the several of a slide."""
    content = item.content
    return content if isinstance(content, tuple) and not isinstance(content, PhantomIndex) else (content,)
