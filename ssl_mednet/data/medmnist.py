"""MedMNIST's 2-D sets by name, as ``medmnist:bloodmnist?size=64``: downloaded when their images are first needed.

The package ``medmnist`` is not used: on import it writes to the home folder, and it downloads without a timeout.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.lib import format as npy

from ssl_mednet.data.download import fetch, has_checksum
from ssl_mednet.data.sources import SPLITS, Item, Source, npz_label, parse_spec
from ssl_mednet.errors import DataError, did_you_mean
from ssl_mednet.files import cache_folder

FACTS = Path(__file__).with_name("medmnist.yaml")
SIZES = (28, 64, 128, 224)
_BLOCK = 1 << 24  # bytes of images held at a time


@dataclass(frozen=True)
class Facts:
    """What is known of a set before its file is there.

    Args:
        title: as its authors write it.
        modality: ours, of :data:`ssl_mednet.imaging.modality.MODALITIES`.
        channels: 1 or 3.
        task: MedMNIST's word: binary-class, multi-class, "multi-label, binary-class", ordinal-regression.
        rows: images of each split.
        classes: names, in the order of the numbers that the file holds.
        md5: of the file, by the side of the images in pixels.
        note: what a reader of scores must know.
    """

    title: str
    modality: str
    channels: int
    task: str
    rows: dict[str, int]
    classes: tuple[str, ...]
    licence: str
    md5: dict[int, str]
    note: str = ""


@functools.cache
def read_facts(path: Path) -> tuple[str, dict[str, Facts]]:
    """The address of a file, with ``{file}`` for its name, and the facts of all sets by name."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    sets = {name: Facts(**{**facts, "classes": tuple(facts["classes"])}) for name, facts in content["sets"].items()}
    return content["url"], sets


class MedMnistSource(Source):
    """``medmnist:NAME``, with ``?size=28|64|128|224&root=FOLDER`` behind.

    The npz is looked for in ``root``, in ``$SSL_MEDNET_DATA`` and in ``downloads/medmnist`` of the cache, and is used
    where its MD5 is the official one. Else it is downloaded, into ``root`` where that is given, into the cache
    otherwise; from ``$SSL_MEDNET_MEDMNIST_URL/NAME.npz`` (``NAME_64.npz``) where that is set, from Zenodo otherwise.

    Labels are class numbers, as in the file, so that classes keep their official order; ``classes`` has the names.

    Raises:
        DataError: no such set, size or option.
    """

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        name, options = parse_spec(spec, {"size": "28", "root": ""})
        self._url, sets = read_facts(FACTS)
        if name.lower() not in sets:
            hint = did_you_mean(name.lower(), sets) or f"one of {', '.join(sets)}"
            raise DataError(f"{spec}: MedMNIST has no 2-D set {name!r}", hint)
        if options["size"] not in map(str, SIZES):
            raise DataError(f"{spec}: size is {', '.join(map(str, SIZES))}, not {options['size']!r}")
        self.side = int(options["size"])
        self.facts = sets[name.lower()]
        self.md5 = self.facts.md5[self.side]
        self.file_name = f"{name.lower()}.npz" if self.side == 28 else f"{name.lower()}_{self.side}.npz"
        self.classes, self.licence, self.note = self.facts.classes, self.facts.licence, self.facts.note
        self.ordinal = self.facts.task == "ordinal-regression"
        self._root = Path(options["root"]).expanduser() if options["root"] else None
        self._file: Path | None = None

    @property
    def url(self) -> str:
        """Where the file is downloaded from."""
        mirror = os.environ.get("SSL_MEDNET_MEDMNIST_URL")
        return f"{mirror.rstrip('/')}/{self.file_name}" if mirror else self._url.format(file=self.file_name)

    def fingerprint(self) -> str:
        # From the facts alone, so that a decoded corpus serves without the file.
        said = f"medmnist {self.file_name} {self.md5} {self.facts.modality} {self.classes}"
        return hashlib.sha256(said.encode()).hexdigest()

    def count(self) -> int:
        return sum(self.facts.rows.values())

    def prepare(self, quiet: bool = False) -> None:
        """Find the file, or download it.

        Raises:
            DataError: it can be neither found nor downloaded, or ``root`` holds another file of this name.
        """
        self._file = self._file or self._find(quiet)

    def _find(self, quiet: bool) -> Path:
        downloads = cache_folder() / "downloads" / "medmnist"
        shared = os.environ.get("SSL_MEDNET_DATA")
        folders = [f for f in (self._root, Path(shared).expanduser() if shared else None, downloads) if f]
        others = []
        for path in (folder / self.file_name for folder in folders):
            if has_checksum(path, md5=self.md5):
                return path
            if path.exists():
                others.append(path)
        target = (self._root or downloads) / self.file_name
        if self._root and target in others:  # somebody put it there: it is not ours to overwrite
            hint = "move it away to have the official one downloaded, or give its path as the source to use it as it is"
            raise DataError(f"{target}: is not the official file (its MD5 is not {self.md5})", hint)
        try:
            return fetch(self.url, target, md5=self.md5, quiet=quiet)
        except DataError as error:
            ignored = [f"{path} is there, but is not the official file: its MD5 differs" for path in others]
            raise DataError(f"{self.spec}: {error.message}", "; ".join([error.hint, *ignored])) from error

    def items(self) -> Iterator[Item]:
        self.prepare()
        assert self._file is not None
        with zipfile.ZipFile(self._file) as archive:
            for split in SPLITS:
                labels = np.concatenate(list(_blocks(archive, f"{split}_labels")))
                images = (image for block in _blocks(archive, f"{split}_images") for image in block)
                for i, (image, label) in enumerate(zip(images, labels, strict=True)):
                    pixels = image[..., None] if image.ndim == 2 else image
                    name = f"{self.spec}!{split}_images[{i}]"
                    yield Item(name, pixels, npz_label(label), split, modality=self.facts.modality)


def _blocks(archive: zipfile.ZipFile, name: str) -> Iterator[np.ndarray]:
    """An array ``[N, ...]`` of an npz, some rows at a time: PathMNIST's training images at 224 px are 13.5 GB."""
    with archive.open(f"{name}.npy") as file:
        version = npy.read_magic(file)
        read_header: Any = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read_header(file)
        if fortran:  # column by column: no row is whole before the end
            yield np.frombuffer(file.read(), dtype).reshape(shape, order="F")
            return
        row = dtype.itemsize * math.prod(shape[1:])
        step = max(1, _BLOCK // row)
        for start in range(0, shape[0], step):
            count = min(step, shape[0] - start)
            yield np.frombuffer(file.read(count * row), dtype).reshape(count, *shape[1:])
