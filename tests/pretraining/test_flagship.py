"""The flagship recipes start: from a corpus made, curated and held to a suite as they say, up to weights that load."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from ssl_mednet import load_backbone, pretrain, weights_path
from ssl_mednet.auditing.audit import ContaminationError
from ssl_mednet.auditing.quality import Mark, curate
from ssl_mednet.catalog.corpus_recipe import read_corpus_recipe
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.ingesting.commit import state_weights
from ssl_mednet.ingesting.run import ingest
from ssl_mednet.recipe import load_recipe

RECIPES = ("gray", "color", "gray_vit", "color_vit")
WIDTH = {"gray": 2048, "color": 2048, "gray_vit": 384, "color_vit": 384}
FEW = ["optim.batch_size=2", "train.device=cpu"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes find what they name: corpora of phantoms, some of which are test images of the suites."""
    folder = tmp_path_factory.mktemp("home")
    for kind in ("gray", "color"):
        corpus = folder / "corpora" / kind
        ingest(f"phantoms:{kind}?n=32&size=224", corpus, channels=kind, workers=1, quiet=True)
        state_weights(corpus, read_corpus_recipe(f"mednet/corpus_{kind}.yaml").weights)
        suite = folder / f"{kind}.yaml"
        held = f"phantoms:{kind}?n=16&size=224&label=lesion"
        suite.write_text(f'name: {kind}\nsets:\n  - {{source: "{held}", channels: {kind}}}\n')
        quality = curate(corpus, quiet=True, against=[suite])
        assert 0 < np.count_nonzero(quality.marks & Mark.HELD_OUT) < 16
    return folder


@pytest.mark.parametrize("name", RECIPES)
def test_a_flagship_takes_a_step(name: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a small size: with the shares of its corpus, and with none of the suite's test images."""
    monkeypatch.chdir(home)
    small = ["data.image_size=32", "train.steps=1", "monitor.pictures=0"]
    run = pretrain(f"mednet/{name}.yaml", out=tmp_path / "run", overrides=[*FEW, *small], quiet=True)
    kind = name.removesuffix("_vit")
    done = load_recipe(run.folder / "recipe.yaml")
    assert done.data.weights == read_corpus_recipe(f"mednet/corpus_{kind}.yaml").weights
    said = json.loads((run.folder / "backbone" / "config.json").read_text())["ssl_mednet"]["data"]
    assert said["images"] < len(Corpus(home / "corpora" / kind))
    assert said["held_out"]["test_images"] > 0
    assert (said["held_out"]["exact"], said["held_out"]["near"]) == (0, 0)
    assert run.skipped_steps == 0


@pytest.mark.parametrize("kind", ["gray", "color"])
def test_the_recipe_of_a_net_that_ships_takes_a_step(
    kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    monkeypatch.delenv("SSL_MEDNET_ZOO", raising=False)
    few = [*FEW, f"data.source=corpora/{kind}", "train.steps=1", "monitor.pictures=0"]
    run = pretrain(f"mednet/{kind}_tiny.yaml", out=tmp_path / "run", overrides=few, quiet=True)
    backbone, shipped = load_backbone(run.folder), load_backbone(f"{kind}-mednet-tiny")
    assert backbone.preprocessing.image_size == shipped.preprocessing.image_size == 96
    assert {k: v.shape for k, v in backbone.state_dict().items()} == {
        k: v.shape for k, v in shipped.state_dict().items()
    }
    said = json.loads(Path(weights_path(f"{kind}-mednet-tiny"), "config.json").read_text())["ssl_mednet"]["recipe"]
    own = yaml.safe_load(_text(f"{kind}_tiny"))
    for section in ("backbone", "method", "augment", "optim", "train"):
        assert own[section].items() <= said[section].items()


@pytest.mark.parametrize("kind", ["gray", "color"])
def test_a_flagship_is_held_to_its_suite(
    kind: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    with pytest.raises(ContaminationError, match="holds test images"):
        pretrain(f"mednet/{kind}.yaml", out=tmp_path / "run", overrides=[*FEW, "data.keep=all"], quiet=True)


@pytest.mark.parametrize("name", RECIPES)
def test_a_flagship_is_for_three_million_images_and_eight_gpus(name: str) -> None:
    recipe = load_recipe(f"mednet/{name}.yaml")
    assert (recipe.data.image_size, recipe.data.sampling, recipe.data.keep) == (224, "weights", "good")
    assert recipe.data.source == f"corpora/{recipe.data.channels}"
    assert recipe.data.held_out == f"{recipe.data.channels}.yaml"
    share = recipe.optim.batch_size / 8
    assert share == (recipe.optim.cache_chunk or share), "eight GPUs take the batch in one piece each"
    assert all(len(line) <= 120 for line in _text(name).splitlines())


def _text(name: str) -> str:
    from ssl_mednet.shipped import shipped_folder

    return (shipped_folder("recipes") / "mednet" / f"{name}.yaml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("name", RECIPES)
def test_twenty_steps_of_a_flagship(name: str, processes: int, home: Path, tmp_path: Path) -> None:
    """Its own net, at its own 224 pixels, by the command a user types."""
    asked = ["pretrain", "--recipe", f"mednet/{name}.yaml", "--out", str(tmp_path / "run"), "--quiet"]
    few = [f"optim.batch_size={2 * processes}", "train.steps=20", "train.device=cpu", "monitor.every=1"]
    command = [sys.executable, "-m", "ssl_mednet.cli", *asked, "--devices", str(processes), *few]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False, timeout=1800)
    assert done.returncode == 0, done.stderr
    with (tmp_path / "run" / "metrics.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert len(losses) == 20
    assert all(map(math.isfinite, losses))
    update = json.loads((tmp_path / "run" / "environment.json").read_text())["update"]
    assert (update["images"], update["processes"]) == (2 * processes, processes)

    backbone = load_backbone(tmp_path / "run")
    recipe = load_recipe(f"mednet/{name}.yaml")
    assert backbone.preprocessing.channels == recipe.data.channels
    assert backbone.preprocessing.image_size == 224
    images = torch.rand(2, 1 if recipe.data.channels == "gray" else 3, 250, 300)
    with torch.no_grad():
        features = backbone(backbone.preprocessing(images))
    assert features.shape == (2, WIDTH[name])
    assert features.isfinite().all()
