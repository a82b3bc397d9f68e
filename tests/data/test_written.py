"""What this package writes into a folder of images is not read as images of that folder, and does not change it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ssl_mednet import evaluate, finetune, pretrain
from ssl_mednet.backbones.artifact import CARD
from ssl_mednet.data.sources import FolderSource
from ssl_mednet.data.written import is_written
from ssl_mednet.exporting.room import ABOUT, GRAPH
from ssl_mednet.exporting.run import export

RECIPE = {
    "name": "small",
    "data": {"source": ".", "channels": "gray", "image_size": 32},
    "backbone": {"name": "test_resnet"},
    "method": {"name": "simclr", "hidden_dim": 32, "output_dim": 16},
    "optim": {"batch_size": 8},
    "train": {"steps": 2, "device": "cpu", "precision": "float32"},
    "monitor": {"every": 1},
}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FolderSource:
    """A folder of two classes, in which one stands."""
    rng = np.random.default_rng(0)
    for number in range(30):
        path = tmp_path / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 32), dtype=np.uint8)).save(path)
    monkeypatch.chdir(tmp_path)
    return FolderSource(Path())


def test_runs_results_models_and_exports_in_the_folder_of_the_images_are_no_data(images: FolderSource) -> None:
    before = images.fingerprint()
    run = pretrain(RECIPE, quiet=True).folder
    options = ["device=cpu", "resamples=20"]
    first, second = (evaluate([run], data=".", overrides=options, quiet=True) for _ in range(2))
    finetune(run, ".", "model", overrides=options, quiet=True)
    made = finetune(run, ".", "model2", overrides=options, quiet=True)
    export("model", "timm", "export")
    assert {p.name for p in Path().iterdir()} == {"a", "b", "runs", "results", "model", "model2", "export"}
    assert [*Path("runs").rglob("*.png")]
    assert [*Path("results").rglob("*.npz")]
    again = FolderSource(Path())
    assert (again.names(), again.fingerprint()) == (images.names(), before)
    assert first.rows == second.rows
    assert made.row["classes"] == ["a", "b"]


def test_results_of_an_evaluation_that_was_killed_and_graphs_are_no_data(images: FolderSource) -> None:
    for name in ("results/set/rows/key.json", "results/set/predictions/key.npz", "results/set/gallery/map.npz"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    assert FolderSource(Path()).names() == images.names()
    assert is_written(Path("onnx"), {GRAPH, ABOUT, CARD})


def test_a_folder_that_only_resembles_them_is_data_and_so_is_the_one_that_is_named(images: FolderSource) -> None:
    for name in ("results/0.png", "recipe.yaml", "environment.json"):  # these two mark a run, but it is named
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    assert set(FolderSource(Path()).names()) == {*images.names(), "results/0.png", "recipe.yaml", "environment.json"}
