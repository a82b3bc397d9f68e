"""Small sources, and ones with files that break their reader."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import lance
import numpy as np
import pyarrow as pa
from PIL import Image

from ssl_mednet.data.sources import Item, Source
from ssl_mednet.errors import UnreadableImage
from ssl_mednet.imaging.image import MedicalImage


class Trap(Item):
    """An item whose reader does what decoders in C do to a process."""

    def images(self, modality: str = "", ctx: object = None) -> Iterator[MedicalImage]:
        assert isinstance(self.content, bytes)
        kind, *rest = self.content.decode().split("|")
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang":
            time.sleep(600)
        if kind == "shut" and not Path(rest[0]).exists():
            raise UnreadableImage(self.name, "cannot be opened: Permission denied")
        if kind == "slow":
            time.sleep(4)
        if kind == "once" and not Path(rest[0]).exists():  # dies of something that is not the file's doing
            Path(rest[0]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        yield MedicalImage(np.full((6, 7, 1), int(rest[-1]) % 251, np.uint8), group=f"patient {rest[-1]}")


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import this file


class TrapSource(Source):
    """``contents``: one of ``good|N``, ``crash|N``, ``hang|N``, ``slow|N``, ``once|PATH|N``,
    ``shut|PATH|N`` an item, which is named after its path if it has one."""

    def __init__(self, contents: list[str]) -> None:
        super().__init__("traps:")
        self.contents = contents

    def fingerprint(self) -> str:
        return " ".join(self.contents)

    def items(self) -> Iterator[Item]:
        for i, content in enumerate(self.contents):
            path = content.split("|")[1] if content.startswith("shut") else ""
            yield Trap(path or f"traps:{i}", content.encode())


def write_pictures(root: Path, count: int, side: int = 12) -> Path:
    """PNGs whose pixels say which they are."""
    root.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (side, side), dtype=np.uint8)
        pixels[0, :2] = divmod(i, 256)
        Image.fromarray(pixels).save(root / f"{i:05d}.png")
    return root


def numbers(folder: Path) -> list[int]:
    """Which of :func:`write_pictures` a corpus holds, in its order."""
    column = table(folder)["image"].to_pylist()
    return [data[0] * 256 + data[1] for data in column]


def table(folder: Path) -> pa.Table:
    return lance.dataset(str(folder)).to_table()


def same_content(one: Path, other: Path) -> bool:
    return (
        table(one).equals(table(other))
        and (one / "quarantine.csv").read_bytes() == (other / "quarantine.csv").read_bytes()
    )
