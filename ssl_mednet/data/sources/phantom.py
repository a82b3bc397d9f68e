"""Phantoms: images that are made, not read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from ssl_mednet.data.sources.base import Item, PhantomIndex, Source, parse_spec
from ssl_mednet.errors import DataError, did_you_mean
from ssl_mednet.imaging import phantoms

PHANTOM_LABELS = ("lesion", "modality", "finding")


class PhantomSource(Source):
    """``phantoms:gray`` or ``phantoms:color``, with ``?n=4000&seed=0&size=64&label=lesion|modality|finding`` behind.

    The split of an index is fixed (7 of 10 train, 1 val, 2 test), so a pretraining never sees what it is tested on.
    """

    licence = "CC0-1.0"  # nobody's images: made from physics by this package

    def __init__(self, spec: str) -> None:
        super().__init__(spec)
        family, options = parse_spec(spec, {"n": "4000", "seed": "0", "size": "64", "label": "lesion"})
        if family not in ("gray", "color"):
            raise DataError(
                f"{spec}: there are phantoms:gray and phantoms:color", did_you_mean(family, ("gray", "color"))
            )
        if options["label"] not in PHANTOM_LABELS:
            raise DataError(f"{spec}: label is one of {', '.join(PHANTOM_LABELS)}, not {options['label']!r}")
        if not all(options[key].isdigit() for key in ("n", "seed", "size")) or int(options["n"]) < 1:
            raise DataError(f"{spec}: n, seed and size are whole numbers, n at least 1")
        if not 32 <= int(options["size"]) <= 256:
            raise DataError(f"{spec}: size is 32 to 256 pixels")
        self.family, self.label = family, options["label"]
        self.n, self.seed, self.size = (int(options[key]) for key in ("n", "seed", "size"))
        self.side = self.size

    def fingerprint(self) -> str:
        code = b"".join(p.read_bytes() for p in sorted(Path(phantoms.__file__).parent.glob("*.py")))
        return hashlib.sha256(
            code + f"{self.family} {self.n} {self.seed} {self.label} {self.size}".encode()
        ).hexdigest()

    def count(self) -> int:
        return self.n

    def items(self) -> Iterator[Item]:
        for index in range(self.n):
            split = "train" if (turn := index // 5 % 10) < 7 else "val" if turn == 7 else "test"
            modality, lesion = phantoms.truth(self.family, index, self.seed)
            state = "lesion" if lesion else "healthy"
            label = {"lesion": state, "modality": modality, "finding": f"{modality} {state}"}[self.label]
            content = PhantomIndex(self.family, index, self.size, self.seed)
            yield Item(f"{self.spec}[{index}]", content, label, split, modality=modality)
