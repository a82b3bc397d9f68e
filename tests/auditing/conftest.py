"""Corpora made of pictures that a test names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ssl_mednet.data.corpus import Corpus
from ssl_mednet.ingesting.run import ingest

Make = Callable[..., Corpus]


@pytest.fixture
def make_corpus(tmp_path: Path) -> Make:
    """A gray corpus of pictures, in their order; ``modality`` is that of all of them."""
    made = []

    def make(pictures: list[Image.Image], modality: str = "xray") -> Corpus:
        root = tmp_path / f"pictures{len(made)}"
        root.mkdir()
        made.append(root)
        for i, picture in enumerate(pictures):
            picture.save(root / f"{i:05d}.png")
        return Corpus(ingest(root, tmp_path / f"corpus{len(made)}", modality=modality, workers=1, quiet=True).folder)

    return make
