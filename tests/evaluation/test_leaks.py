"""A leak that was planted is found and told; innocent images are not accused."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from scipy.ndimage import gaussian_filter

from ssl_mednet import evaluate
from ssl_mednet.data.corpus import CorpusSpec
from ssl_mednet.data.labelled import open_labelled
from ssl_mednet.evaluation.leaks import count_copies
from ssl_mednet.evaluation.table import show


def leaking(folder: Path, exact: int, near: int) -> Path:
    """Cloudy pictures in three splits; some test images are training images, as they are or as brighter JPEG."""
    folder.mkdir()
    lines = ["path,label,split"]
    noise = gaussian_filter(np.random.default_rng(0).normal(size=(120, 128, 128)), (0, 6, 6))
    pictures = np.clip(0.5 + noise / (5 * noise.std()), 0, 0.95)
    for i, picture in enumerate(pictures):
        split = "train" if i < 80 else "val" if i < 90 else "test"
        shown = picture
        if 90 <= i < 90 + exact:
            shown = pictures[i - 90]
        elif 90 + exact <= i < 90 + exact + near:
            shown = np.clip(pictures[i - 90] * 1.05, 0, 1)
        image = Image.fromarray((255 * shown).round().astype(np.uint8))
        if 90 + exact <= i < 90 + exact + near:
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=80)
            image = Image.open(buffer)
        image.save(folder / f"{i}.png")
        lines.append(f"{i}.png,{'odd' if i % 2 else 'even'},{split}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_copies_of_training_images_among_the_test_images_are_counted(tmp_path: Path) -> None:
    clean = open_labelled(leaking(tmp_path / "clean", 0, 0), CorpusSpec("gray", 128), quiet=True)
    assert count_copies(clean) == {"exact": 0, "near": 0}
    leaky = open_labelled(leaking(tmp_path / "leaky", 3, 4), CorpusSpec("gray", 128), quiet=True)
    found = count_copies(leaky)
    assert found["exact"] == 3
    assert found["near"] == 4
    assert count_copies(leaky) == found  # from the cache


def test_a_leak_is_told_beside_every_table(tmp_path: Path) -> None:
    folder, said = leaking(tmp_path / "leaky", 5, 0), ["protocols=[knn]", "resamples=20", "gallery=0"]
    rows = evaluate(["baseline:pixels"], data=str(folder), out=tmp_path / "out", overrides=said, quiet=True).rows
    assert all(row["copies"]["exact"] == 5 for row in rows)
    console = Console(width=80, record=True, file=(tmp_path / "out.txt").open("w"))
    show(rows, console=console)
    assert "5 are training images too" in " ".join(console.export_text().split())
