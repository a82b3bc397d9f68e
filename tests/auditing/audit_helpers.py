"""Pictures, and what becomes of them on their way through other people's data sets."""

from __future__ import annotations

import csv
import io
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import numpy as np
from PIL import Image

from ssl_mednet.data.sources import Item, Source
from ssl_mednet.imaging.image import MedicalImage
from ssl_mednet.imaging.phantoms import FAMILIES, phantom


def picture(number: int, modality: str = "xray", size: int = 96) -> Image.Image:
    """One of the gray phantoms of 8 bits."""
    names = FAMILIES["gray"]
    image = phantom("gray", number * len(names) + names.index(modality), size).image
    return Image.fromarray((image.unit()[..., 0] * 255).round().astype(np.uint8))


def jpeg(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return Image.open(buffer)


def half(image: Image.Image) -> Image.Image:
    return image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)


def cropped(image: Image.Image) -> Image.Image:
    return image.crop((2, 2, image.width - 2, image.height - 2))


def brighter(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.minimum(np.asarray(image) * 1.05, 255).astype(np.uint8))


COPIES = {"jpeg": jpeg, "half": half, "cropped": cropped, "brighter": brighter}


def real(root: Path, name: str, count: int) -> tuple[list[Image.Image], list[str]]:
    """Some pictures of a real set, drawn evenly, and their groups."""
    with zipfile.ZipFile(root / f"{name}.zip") as archive:
        rows = list(csv.DictReader(io.TextIOWrapper(archive.open("labels.csv"))))
        rows = rows[:: max(1, len(rows) // count)][:count]
        return [Image.open(io.BytesIO(archive.read(r["path"]))).convert("L") for r in rows], [r["group"] for r in rows]


def write_labelled(path: Path, splits: dict[str, list[Image.Image]]) -> Path:
    """A labelled set as a zip; two classes take turns."""
    table = ["path,label,split"]
    with zipfile.ZipFile(path, "w") as archive:
        for split, images in splits.items():
            for i, image in enumerate(images):
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                archive.writestr(f"images/{split}{i}.png", buffer.getvalue())
                table.append(f"images/{split}{i}.png,{'ab'[i % 2]},{split}")
        archive.writestr("labels.csv", "\n".join(table))
    return path


class Stack(Item):
    """An item whose slices know their volume; ``content`` is an npy of ``[N, H, W]``."""

    def images(self, modality: str = "", ctx: object = None) -> Iterator[MedicalImage]:
        assert isinstance(self.content, bytes)
        for i, pixels in enumerate(np.load(io.BytesIO(self.content))):
            yield MedicalImage(pixels[..., None], "mri", volume=self.name, index=i)


class StackSource(Source):
    """Volumes, each ``[N, H, W]`` uint8."""

    def __init__(self, volumes: list[np.ndarray]) -> None:
        super().__init__("stacks:")
        self.volumes = volumes

    def fingerprint(self) -> str:
        return str([v.tobytes() for v in self.volumes])

    def items(self) -> Iterator[Item]:
        for i, volume in enumerate(self.volumes):
            buffer = io.BytesIO()
            np.save(buffer, volume)
            yield Stack(f"stacks:{i}", buffer.getvalue())


cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a worker cannot import this file
