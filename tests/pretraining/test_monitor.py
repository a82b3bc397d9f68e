"""What a run sees of itself: signs with known values, a probe that training does not notice, and the best weights."""

from __future__ import annotations

import csv
import json
import random
import signal
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from ssl_mednet import pretrain
from ssl_mednet.backbones.artifact import Preprocessing
from ssl_mednet.data.corpus import Corpus, CorpusSpec, open_corpus
from ssl_mednet.errors import DataError, RecipeError
from ssl_mednet.methods.simclr import SimCLR
from ssl_mednet.pretraining import health, online
from ssl_mednet.pretraining.build import build_module
from ssl_mednet.pretraining.curves import TimedStream
from ssl_mednet.pretraining.frozen import frozen, frozen_features
from ssl_mednet.pretraining.stopping import Stopped
from ssl_mednet.recipe import load_recipe
from ssl_mednet.schema import Recipe

SMALL: dict[str, Any] = {
    "name": "small",
    "data": {"source": "phantoms:gray?n=60", "channels": "gray", "image_size": 32},
    "backbone": {"name": "test_resnet"},
    "method": {"name": "simclr"},
    "optim": {"batch_size": 8},
    "train": {"steps": 8, "device": "cpu", "precision": "float32", "checkpoint_every": 100},
    "monitor": {"every": 2},
}
PROBED = ["monitor.probe=phantoms:gray?n=80&seed=3", "monitor.probe_every=3", "monitor.probe_images=40"]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def spectrum(values: torch.Tensor, rows: int = 200) -> torch.Tensor:
    """Centred features ``[rows, K]`` whose singular values are ``values``."""
    basis = torch.randn(rows, len(values), dtype=torch.float64)
    left = torch.linalg.qr(basis - basis.mean(0))[0]
    right = torch.linalg.qr(torch.randn(len(values), len(values), dtype=torch.float64))[0]
    return left @ torch.diag(values.double()) @ right


# --- signs ----------------------------------------------------------------------------------------------------------


def test_ranks_of_known_spectra() -> None:
    even = spectrum(torch.ones(16))
    assert float(health.effective_rank(even)) == pytest.approx(16, rel=1e-3)
    assert float(health.rank_me(even)) == pytest.approx(16, rel=1e-3)
    two = spectrum(torch.tensor([3.0, 1.0] + [0.0] * 14))
    by_hand = np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))  # Roy and Vetterli 2007, definition 1
    assert float(health.effective_rank(two)) == pytest.approx(by_hand, rel=1e-3)


def test_a_mean_that_all_images_share_counts_in_rank_me_and_not_in_the_effective_rank() -> None:
    features = spectrum(torch.ones(16)) + 100
    assert float(health.rank_me(features)) < 1.2
    assert float(health.effective_rank(features)) == pytest.approx(16, rel=1e-2)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.5])
def test_the_exponent_of_a_power_law_is_found(alpha: float) -> None:
    eigenvalues = torch.arange(1, 65, dtype=torch.float64) ** -alpha
    found = health.signs(spectrum(eigenvalues.sqrt()))["alpha_req"]
    assert found == pytest.approx(alpha, rel=1e-2)


def test_signs_of_features_that_are_few_or_broken() -> None:
    assert "alpha_req" not in health.signs(torch.randn(4, 8))  # too short a spectrum
    broken = torch.randn(16, 8)
    broken[3, 2] = torch.inf
    assert all(np.isnan(value) for value in health.signs(broken).values())


# --- tables ---------------------------------------------------------------------------------------------------------


def test_metrics_hold_what_repeats_and_speed_what_does_not(tmp_path: Path) -> None:
    pretrain(SMALL, out=tmp_path / "run", quiet=True)
    last = table(tmp_path / "run" / "metrics.csv")[-1]
    wanted = {"loss", "lr", "gradient_norm", "feature_std", "rank_me", "effective_rank", "projection_std"}
    assert wanted <= last.keys()
    rows = table(tmp_path / "run" / "speed.csv")
    assert [row["step"] for row in rows] == ["2", "4", "6", "8"]
    for row in rows:
        assert 0 <= float(row["data_share"]) <= 1
        assert float(row["images_per_second"]) > 0
        assert 0.05 < float(row["memory_gb"]) < 100
    assert not {"data_share", "images_per_second", "memory_gb"} & last.keys()


def test_waiting_for_the_loader_is_measured() -> None:
    class Slow:
        def __iter__(self) -> Iterator[int]:
            import time

            for i in range(3):
                time.sleep(0.05)
                yield i

    timed = TimedStream(Slow())  # type: ignore[arg-type]
    batches = iter(timed)
    assert [next(batches), next(batches)] == [0, 1]  # type: ignore[comparison-overlap]
    assert 0.1 <= timed.seconds < 0.5


# --- looking without touching ---------------------------------------------------------------------------------------


class Meddling(nn.Module):
    """Writes into a buffer and draws random numbers even in evaluation mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.norm = nn.BatchNorm2d(1)
        self.fixed = nn.BatchNorm1d(1).eval()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return self.norm(images).flatten(1) + torch.rand(1)


def test_looking_leaves_modes_buffers_and_random_state_as_they_were() -> None:
    net = Meddling().train()
    net.fixed.eval()
    buffers = {name: buffer.clone() for name, buffer in net.named_buffers()}
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002
    corpus = open_corpus("phantoms:gray?n=60", CorpusSpec("gray", 64), quiet=True)
    preprocessing = Preprocessing("gray", 16, (0.5,), (0.25,))
    features = frozen_features(net, corpus, np.arange(20), preprocessing, torch.device("cpu"), nullcontext())
    assert features.shape == (20, 256)
    assert net.training
    assert net.norm.training
    assert not net.fixed.training
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in net.named_buffers())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]  # noqa: NPY002
    assert random.getstate() == states[2]


def test_what_a_look_sees_is_what_evaluation_sees(tmp_path: Path) -> None:
    from ssl_mednet.evaluation.features import extract
    from ssl_mednet.evaluation.weights import load_weights

    run = pretrain(SMALL, out=tmp_path / "run", quiet=True).folder
    weights = next(load_weights([str(run)], "gray", None, 0))
    corpus, rows = open_corpus("phantoms:gray?n=60", CorpusSpec("gray", 64), quiet=True), np.arange(30)
    ours = frozen_features(
        weights.model, corpus, rows, weights.preprocessing, torch.device("cpu"), nullcontext(), channels_last=True
    )
    np.testing.assert_allclose(ours, extract(weights, corpus, rows, torch.device("cpu"), True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["knn", "linear"])
def test_training_ends_with_the_same_bits_with_and_without_a_probe(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[np.ndarray] = []
    batch = Corpus.batch

    def spy(self: Corpus, rows: np.ndarray, *more: Any) -> Any:
        if len(self) == 80:
            read.append(np.asarray(rows))
        return batch(self, rows, *more)

    pretrain(SMALL, out=tmp_path / "plain", quiet=True)
    monkeypatch.setattr(Corpus, "batch", spy)
    pretrain(SMALL, out=tmp_path / "probed", overrides=[*PROBED, f"monitor.probe_kind={kind}"], quiet=True)
    states = [torch.load(last_checkpoint(tmp_path / run), weights_only=True) for run in ("plain", "probed")]
    one, two = (state["state_dict"] for state in states)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[k], two[k]) for k in one)  # buffers too
    moments = [s["optimizer_states"][0]["state"] for s in states]
    assert all(torch.equal(moments[0][i]["exp_avg"], moments[1][i]["exp_avg"]) for i in moments[0])

    rows = table(tmp_path / "probed" / "metrics.csv")
    assert [row["step"] for row in rows if row["probe_auroc"]] == ["3", "6", "8"]
    assert all(0 <= float(row["probe_auroc"]) <= 1 for row in rows if row["probe_auroc"])
    shared = list(table(tmp_path / "plain" / "metrics.csv")[0])
    assert [{k: row[k] for k in shared} for row in rows if row["step"] != "3"] == table(
        tmp_path / "plain" / "metrics.csv"
    )

    recipe = load_recipe(SMALL, PROBED)
    probe = online.open_probe(recipe, quiet=True)
    assert probe is not None
    assert (len(probe.train), len(probe.val)) == (40, min(20, len(probe.task.splits["val"])))
    assert read
    assert not np.isin(np.concatenate(read), probe.task.splits["test"]).any()


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").glob("*.ckpt"), key=lambda path: path.stat().st_mtime)


def test_a_probe_wants_labels_and_a_choice_by_probe_wants_a_probe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"monitor\.probe=SET"):
        load_recipe(SMALL, ["train.choose=probe"])
    for i in range(10):
        Image.fromarray(np.full((32, 32), 20 * i, np.uint8)).save(tmp_path / f"{i}.png")
    with pytest.raises(DataError, match="labels"):
        pretrain(SMALL, out=tmp_path / "run", overrides=[f"monitor.probe={tmp_path}"], quiet=True)


def test_looks_that_cost_too_much_are_told_once_with_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    corpus = open_corpus("phantoms:gray?n=60", CorpusSpec("gray", 64), quiet=True)
    looks = online.Online(100, corpus, np.arange(60), Preprocessing("gray", 32, (0.5,), (0.2,)), None, "rank_me")
    looks.seconds = 6.0
    looks._tell_cost(30.0)  # too early to say
    looks._tell_cost(400.0)  # 1.5 %
    assert capsys.readouterr().err == ""
    looks._tell_cost(100.0)
    looks._tell_cost(100.0)
    told = capsys.readouterr().err
    assert told.count("6.0 % of the time") == 1
    assert "monitor.probe_every=300" in told


# --- the choice of the weights --------------------------------------------------------------------------------------


def test_the_best_weights_are_kept_and_the_card_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = iter([3.0, 9.0, 9.0, 4.0])
    monkeypatch.setattr(online, "_rank", lambda features: next(ranks))
    more = ["train.choose=rank_me", "monitor.probe_every=2"]
    pretrain(SMALL, out=tmp_path / "run", overrides=more, quiet=True)
    config = json.loads((tmp_path / "run" / "backbone" / "config.json").read_text())["ssl_mednet"]
    assert config["chosen"] == {
        "by": "rank_me", "step": 4, "value": 9.0, "why": "RankMe on 45 fixed images of the corpus"
    }  # fmt: skip
    assert config["steps"] == 8
    card = (tmp_path / "run" / "backbone" / "README.md").read_text()
    assert "8; the weights are of step 4: best RankMe on 45 fixed images of the corpus (9)" in card

    state = torch.load(last_checkpoint(tmp_path / "run"), weights_only=True)["state_dict"]
    saved = load_file(tmp_path / "run" / "backbone" / "model.safetensors")
    assert not all(torch.equal(saved[k], state[f"method.backbone.{k}"]) for k in saved)
    monkeypatch.undo()
    stop_at(4, monkeypatch)
    with pytest.raises(Stopped):
        pretrain(SMALL, out=tmp_path / "short", overrides=["monitor.probe_every=2"], quiet=True)
    there = torch.load(last_checkpoint(tmp_path / "short"), weights_only=True)["state_dict"]
    assert all(torch.equal(saved[k], there[f"method.backbone.{k}"]) for k in saved)


@pytest.mark.parametrize("choose", ["rank_me", "probe"])
def test_a_run_that_chooses_chooses_the_same_when_it_was_stopped(
    choose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = [*PROBED, f"train.choose={choose}", "monitor.probe_every=1"]
    pretrain(SMALL, out=tmp_path / "whole", overrides=more, quiet=True)
    stop_at(5, monkeypatch)
    with pytest.raises(Stopped):
        pretrain(SMALL, out=tmp_path / "parts", overrides=more, quiet=True)
    monkeypatch.undo()
    pretrain(out=tmp_path / "parts", resume=True, quiet=True)
    for name in ("metrics.csv", "backbone/config.json", "backbone/README.md"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    files = [(tmp_path / run / "backbone" / "model.safetensors").read_bytes() for run in ("whole", "parts")]
    assert files[0] == files[1]


def stop_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    after_step = SimCLR.after_step

    def and_stop(self: SimCLR, progress: float) -> None:
        after_step(self, progress)
        if round(progress * 8) == step:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(SimCLR, "after_step", and_stop)


# --- pictures -------------------------------------------------------------------------------------------------------


def test_the_views_of_every_method_are_pictures(tmp_path: Path) -> None:
    pretrain(SMALL, out=tmp_path / "run", quiet=True)
    with Image.open(tmp_path / "run" / "pictures" / "views.png") as picture:
        assert picture.size == (3 * 33 + 1, 8 * 33 + 1)  # the image and two views; eight images; one pixel between
        pixels = np.asarray(picture.convert("L"), np.float64)
    tiles = [pixels[1:33, 1 + 33 * i : 33 + 33 * i] for i in range(3)]
    assert all(tile.std() > 1 for tile in tiles)
    assert np.abs(tiles[1] - tiles[2]).mean() > 1  # two draws


def test_drawing_leaves_the_method_as_it_was(tmp_path: Path) -> None:
    recipe: Recipe = load_recipe(SMALL)
    module = build_module(recipe, 8, (0.5,), (0.25,))
    module.method.projection_head.eval()
    with frozen(module.method):
        assert not module.method.backbone.training
    assert module.method.backbone.training
    assert not module.method.projection_head.training
