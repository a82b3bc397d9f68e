"""A pretraining run: what it writes, what it refuses, and that it survives being killed."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ssl_mednet import load_backbone, pretrain
from ssl_mednet.errors import RecipeError, UserError
from ssl_mednet.pretraining import build as build_module_of
from ssl_mednet.pretraining.health import feature_std, rank_me
from ssl_mednet.recipe import load_recipe
from ssl_mednet.shipped import list_shipped

SMALL = {
    "name": "small",
    "data": {"source": "phantoms:gray?n=60", "channels": "gray", "image_size": 32},
    "backbone": {"name": "test_resnet"},
    "method": {"name": "simclr"},
    "optim": {"batch_size": 8},
    "train": {"steps": 6, "device": "cpu", "precision": "float32"},
    "monitor": {"every": 2},
}


GRAY = ("xray", "ct", "mri", "ultrasound", "pet")


def test_a_run_folder_holds_everything_to_understand_and_repeat_the_run(tmp_path: Path) -> None:
    result = pretrain(SMALL, out=tmp_path / "run", quiet=True)
    assert result.folder == tmp_path / "run"
    assert (result.steps, result.images, result.skipped) == (6, 45, 0)  # the training split of 60 phantoms
    names = {p.name for p in result.folder.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.csv", "checkpoints", "backbone", "tensorboard"} <= names
    assert load_recipe(result.folder / "recipe.yaml") == load_recipe(SMALL)
    with (result.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "4", "6"]
    assert all(float(row["loss"]) > 0 and float(row["feature_std"]) > 0 and float(row["rank_me"]) >= 1 for row in rows)
    environment = json.loads((result.folder / "environment.json").read_text())
    assert environment["precision"] == "32-true"
    assert environment["images_by_policy"] == result.policies == dict.fromkeys(GRAY, 9)
    assert "torch" in environment["packages"]
    config = json.loads((result.folder / "backbone" / "config.json").read_text())
    assert config["ssl_mednet"]["recipe"]["name"] == "small"
    assert config["ssl_mednet"]["data"]["images"] == 45
    assert load_backbone(result.folder).preprocessing.image_size == 32


def test_a_run_repeats_bit_for_bit_and_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    pretrain(SMALL, out=tmp_path / "a", quiet=True)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(3)
    pretrain(SMALL, out=tmp_path / "b", quiet=True)
    one, two = (load_file(tmp_path / r / "backbone" / "model.safetensors") for r in ("a", "b"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    pretrain(SMALL, out=tmp_path / "c", overrides=["train.seed=1"], quiet=True)
    other = load_file(tmp_path / "c" / "backbone" / "model.safetensors")
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_an_existing_run_is_neither_overwritten_nor_continued_with_another_recipe(tmp_path: Path) -> None:
    pretrain(SMALL, out=tmp_path / "run", quiet=True)
    with pytest.raises(RecipeError, match="holds a run already"):
        pretrain(SMALL, out=tmp_path / "run", quiet=True)
    with pytest.raises(RecipeError, match=r"optim.lr: 0.001 -> 0.5"):
        pretrain(SMALL, out=tmp_path / "run", resume=True, overrides=["optim.lr=0.5"], quiet=True)
    with pytest.raises(UserError, match="finished"):
        pretrain(out=tmp_path / "run", resume=True, quiet=True)
    (tmp_path / "run" / "checkpoints" / "step_000006.ckpt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"no checkpoint can be used: step_000006.ckpt is not what was written"):
        pretrain(out=tmp_path / "run", resume=True, quiet=True)


def test_runs_without_a_name_of_their_own_do_not_collide() -> None:
    folders = [pretrain(SMALL, overrides=["train.steps=1"], quiet=True).folder for _ in range(2)]
    assert folders == [Path("runs/small"), Path("runs/small-2")]


def test_the_card_says_under_which_licences_the_images_came_and_what_that_means(tmp_path: Path) -> None:
    from ssl_mednet import ingest

    rng, folder = np.random.default_rng(0), tmp_path / "scans"
    folder.mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 255, (32, 32), np.uint8)).save(folder / f"{i}.png")
    corpus = ingest(folder, tmp_path / "corpus", licence="CC-BY-NC-4.0", quiet=True).folder
    ingest("phantoms:gray?n=10&size=32", corpus, quiet=True)
    run = pretrain(SMALL, data=corpus, out=tmp_path / "run", quiet=True, overrides=["data.split=all"])
    card = (run.folder / "backbone" / "README.md").read_text()
    assert "CC-BY-NC-4.0 (12 images), CC0-1.0 (10 images)" in card
    assert "no commercial use" in card
    assert "not legal advice" in card


def test_resume_without_a_checkpoint_starts(tmp_path: Path) -> None:
    assert pretrain(SMALL, out=tmp_path / "new", resume=True, quiet=True).steps == 6
    with pytest.raises(RecipeError, match="no recipe given"):
        pretrain(out=tmp_path / "nothing")


def test_epochs_become_steps(tmp_path: Path) -> None:
    assert pretrain(SMALL, out=tmp_path / "run", overrides=["train.epochs=2"], quiet=True).steps == 11  # 2 x 45 / 8


def test_a_cnn_trained_on_small_views_says_at_what_larger_size_it_is_used(tmp_path: Path) -> None:
    result = pretrain(SMALL, out=tmp_path / "run", overrides=["train.steps=1", "data.used_size=48"], quiet=True)
    backbone = load_backbone(result.folder)
    assert backbone.preprocessing.image_size == 48
    assert backbone(backbone.preprocessing(torch.rand(2, 1, 32, 32))).shape == (2, backbone.num_features)


def test_accumulated_batches_update_once_and_see_all_rows(tmp_path: Path) -> None:
    result = pretrain(SMALL, out=tmp_path / "run", overrides=["optim.accumulate=2"], quiet=True)
    content = torch.load(result.folder / "checkpoints" / "step_000006.ckpt", weights_only=True)
    assert content["global_step"] == 6
    assert content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == 12


def test_reconstructions_are_pictures_in_their_own_channels(tmp_path: Path) -> None:
    from PIL import Image

    recipe = SMALL | {"backbone": {"name": "test_vit", "patch_size": 8}, "method": {"name": "mae"}}
    pretrain(recipe, out=tmp_path / "run", quiet=True)
    with Image.open(tmp_path / "run" / "pictures" / "reconstruction.png") as picture:
        assert picture.size == (3 * 33 + 1, 8 * 33 + 1)  # original, seen, painted; eight images; one pixel between


def test_automatic_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = load_recipe(SMALL, ["train.precision=auto"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    for native, expected in ((True, "bf16-mixed"), (False, "32-true")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda native=native: native)
        assert build_module_of.resolve_precision(recipe) == expected


def test_automatic_precision_on_a_gpu_without_bf16_is_one_that_shared_weights_can_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    for strategy, expected in (("ddp", "16-mixed"), ("fsdp", "32-true")):
        recipe = load_recipe(SMALL, ["train.precision=auto", "train.device=auto", f"train.strategy={strategy}"])
        assert build_module_of.resolve_precision(recipe) == expected


def test_bf16_trains_too(tmp_path: Path) -> None:
    pretrain(SMALL, out=tmp_path / "run", overrides=["train.precision=bf16"], quiet=True)
    assert all(
        v.dtype != torch.bfloat16 for v in load_file(tmp_path / "run" / "backbone" / "model.safetensors").values()
    )


def test_signs_of_collapse() -> None:
    spread = torch.randn(256, 32)
    point = torch.ones(256, 32) + 1e-6 * torch.randn(256, 32)
    line = torch.randn(256, 1) * torch.randn(1, 32)
    assert feature_std(spread) == pytest.approx(1.0, abs=0.05)
    assert feature_std(point) < 1e-3
    assert rank_me(spread) > 25
    assert rank_me(line) < 1.1
    values = torch.linalg.svdvals(spread)
    share = values / values.sum()
    assert rank_me(spread) == pytest.approx(float(torch.exp(-(share * share.log()).sum())), rel=1e-3)


# Those for curated corpora are in test_flagship.py.
@pytest.mark.parametrize("name", [n for n in list_shipped("recipes") if load_recipe(n).data.keep == "all"])
def test_every_shipped_recipe_trains_into_weights_that_plain_timm_loads(name: str, tmp_path: Path) -> None:
    source = f"phantoms:{'gray' if 'gray' in name else 'color'}?n=60"
    small = ["train.steps=1", "optim.batch_size=8", "train.device=cpu", "monitor.pictures=0"]
    result = pretrain(name, source, tmp_path / "run", overrides=small, quiet=True)
    code = (  # in a process that does not know this package
        "import sys, timm, torch; folder = sys.argv[1]; "
        "m = timm.create_model('local-dir:' + folder, pretrained=True).eval(); "
        "x = torch.ones(2, m.pretrained_cfg['input_size'][0], 64, 64); f = m(x); "
        "assert f.shape == (2, m.num_features) and f.isfinite().all(); "
        "assert not any('ssl_mednet' in n for n in sys.modules); torch.save(f, folder + '/features.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(result.folder / "backbone")], check=True, cwd=tmp_path)
    features = torch.load(result.folder / "backbone" / "features.pt", weights_only=True)
    ours = load_backbone(result.folder)
    with torch.inference_mode():
        torch.testing.assert_close(ours(torch.ones(2, 1 if "gray" in name else 3, 64, 64)), features)
