"""Resuming with another recipe or other images: refused with the difference, or done when told, and said."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssl_mednet import pretrain
from ssl_mednet.backbones.artifact import read_config
from ssl_mednet.backbones.optim import cosine_with_warmup
from ssl_mednet.errors import DataError, RecipeError, UserError
from ssl_mednet.methods import Batch, StepOutput
from ssl_mednet.methods.simclr import SimCLR
from ssl_mednet.pretraining.changes import began_with, differences
from ssl_mednet.pretraining.checkpoints import last_checkpoint
from ssl_mednet.recipe import load_recipe

SMALL = {
    "name": "small",
    "data": {"source": "phantoms:gray?n=60", "channels": "gray", "image_size": 32},
    "backbone": {"name": "test_resnet"},
    "method": {"name": "simclr"},
    "optim": {"batch_size": 8, "lr": 1e-3},
    "train": {"steps": 4, "checkpoint_every": 2, "device": "cpu", "precision": "float32"},
    "monitor": {"every": 1, "pictures": 0},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return pretrain(SMALL, out=tmp_path / "run", quiet=True).folder


def test_another_recipe_is_refused_with_every_key_that_differs(run: Path) -> None:
    with pytest.raises(RecipeError, match=r"optim.lr: 0.001 -> 0.5; train.steps: 4 -> 8.*--allow-changes"):
        pretrain(out=run, resume=True, overrides=["optim.lr=0.5", "train.steps=8"], quiet=True)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("lr: 0.001", "lr: 0.5"))  # a recipe edited by hand is one too
    with pytest.raises(RecipeError, match=r"optim.lr: 0.001 -> 0.5"):
        pretrain(out=run, resume=True, quiet=True)


def test_told_so_the_run_goes_on_with_the_new_rates_and_keeps_the_old_recipe(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = ["optim.lr=0.5", "optim.weight_decay=0.2", "train.steps=8"]
    pretrain(out=run, resume=True, overrides=changes, quiet=True, allow_changes=True)
    said = capsys.readouterr().err
    assert "goes on at step 4 with another recipe" in said
    assert "the learning rate follows the new schedule" in said
    assert load_recipe(run / "recipe.1.yaml") == load_recipe(SMALL)
    assert load_recipe(run / "recipe.yaml") == load_recipe(SMALL, changes)
    with (run / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    # a row has the rate that the next update will have
    assert rates[4:] == pytest.approx([0.5 * cosine_with_warmup(step, 8, 0) for step in range(5, 9)], rel=1e-5)
    content = torch.load(run / "checkpoints" / "step_000008.ckpt", weights_only=True)
    assert {group["weight_decay"] for group in content["optimizer_states"][0]["param_groups"]} == {0.0, 0.2}
    assert content["optimizer_states"][0]["state"][0]["step"] == 8  # moments went along


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_passes_of_an_update_stay_together_where_there_are_others(
    before: int, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["train.steps=3", f"optim.accumulate={before}"]  # three: after an odd number of passes
    pretrain(SMALL, out=tmp_path / "run", overrides=overrides, quiet=True)
    passes: list[int] = []
    updates: list[list[int]] = []
    step, after_step = SimCLR.training_step, SimCLR.after_step

    def counted(self: SimCLR, views: list[torch.Tensor], batch: Batch) -> StepOutput:
        passes.append(batch.step)
        return step(self, views, batch)

    def updated(self: SimCLR, progress: float) -> None:
        after_step(self, progress)
        updates.append(passes.copy())
        passes.clear()

    monkeypatch.setattr(SimCLR, "training_step", counted)
    monkeypatch.setattr(SimCLR, "after_step", updated)
    changes = [f"optim.accumulate={after}", "train.steps=5"]
    pretrain(out=tmp_path / "run", resume=True, overrides=changes, quiet=True, allow_changes=True)
    assert updates == [list(range(at * after, (at + 1) * after)) for at in (3, 4)]


@pytest.mark.parametrize("choose", ["last", "probe"])
def test_the_best_by_one_measure_is_not_the_best_by_another(
    choose: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    probed = ["monitor.probe=phantoms:gray?n=80&seed=3", "monitor.probe_every=2", "monitor.probe_images=40"]
    pretrain(SMALL, out=tmp_path / "run", overrides=[*probed, "train.choose=rank_me"], quiet=True)
    changes = [f"train.choose={choose}", "train.steps=6"]
    pretrain(out=tmp_path / "run", resume=True, overrides=changes, quiet=True, allow_changes=True)
    assert "the best weights until here were the best by another measure" in capsys.readouterr().err
    chosen = read_config(tmp_path / "run" / "backbone")["ssl_mednet"]["chosen"]
    state = torch.load(tmp_path / "run" / "checkpoints" / "step_000006.ckpt", weights_only=True)["state_dict"]
    saved = load_file(tmp_path / "run" / "backbone" / "model.safetensors")
    assert (chosen["by"], chosen["step"]) == (choose, 6)
    assert chosen.get("value", 0) <= 1  # an AUROC and no rank
    assert all(torch.equal(saved[k], state[f"method.backbone.{k}"]) for k in saved)


def test_what_changes_only_where_and_how_safely_it_computes_needs_no_leave(tmp_path: Path) -> None:
    pretrain(SMALL, out=tmp_path / "run", quiet=True)
    (tmp_path / "run" / "checkpoints" / "step_000004.ckpt").unlink()
    kept = ["train.keep_checkpoints=4", "train.checkpoint_every=1", "data.timeout=99"]
    pretrain(out=tmp_path / "run", resume=True, overrides=kept, quiet=True)
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.ckpt"))) == 3
    assert (tmp_path / "run" / "recipe.1.yaml").is_file()


def test_weights_of_another_shape_are_refused_even_so(run: Path) -> None:
    for change, told in (
        ("backbone.name=resnet18", "another backbone.name"),
        ("optim.name=sgd", "another optim.name"),
        ("method.output_dim=64", r"does not fit the new recipe: method.projection_head\S+ is \(128, .*, \(64, "),
    ):
        with pytest.raises(RecipeError, match=told):
            pretrain(out=run, resume=True, overrides=[change, "train.steps=6"], quiet=True, allow_changes=True)


def test_other_images_are_refused_with_both_fingerprints(run: Path, tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "scans"
    folder.mkdir()
    for i in range(16):
        Image.new("L", (32, 32), 10 * i + 3).save(folder / f"{i}.png")
    pretrain(SMALL, data=folder, out=tmp_path / "mine", quiet=True, overrides=["data.modality=xray"])
    Image.new("L", (32, 32), 255).save(folder / "one more.png")
    with pytest.raises(DataError, match=r"16 images, fingerprint \w+, rows \w+ -> 17 images, fingerprint \w+"):
        pretrain(out=tmp_path / "mine", resume=True, quiet=True)
    longer = ["train.steps=6"]
    assert pretrain(out=tmp_path / "mine", resume=True, quiet=True, overrides=longer, allow_changes=True).images == 17


def test_a_finished_run_says_how_it_goes_on(run: Path) -> None:
    with pytest.raises(UserError, match=r"finished \(4 steps\).*train.steps=N --allow-changes"):
        pretrain(out=run, resume=True, quiet=True)


def test_settings_that_are_younger_than_a_run_have_their_defaults(run: Path) -> None:
    at = last_checkpoint(run)
    assert at is not None
    old = {name: dict(section) if isinstance(section, dict) else section for name, section in at.recipe.items()}
    del old["method"]["num_layers"], old["backbone"]["last_layer"]
    assert differences(load_recipe(run / "recipe.yaml"), began_with(run, replace(at, recipe=old))) == {}
    old["method"]["gone"] = 1  # and one that is no more is told
    changed = differences(load_recipe(run / "recipe.yaml"), began_with(run, replace(at, recipe=old)))
    assert changed["method.gone"] == (None, 1)
