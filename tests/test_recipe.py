"""Recipes: what they may say, what they are told when they say something else, and that they read back as written."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_mednet.errors import RecipeError
from ssl_mednet.methods import METHODS, MethodConfig, View
from ssl_mednet.recipe import load_recipe
from ssl_mednet.schema import Recipe
from ssl_mednet.shipped import find_shipped, list_shipped, shipped_folder


@pytest.mark.parametrize("name", list_shipped("recipes"))
def test_every_shipped_recipe_is_short_and_right(name: str) -> None:
    recipe = load_recipe(name)
    assert f"{recipe.name}.yaml" == Path(name).name
    assert len((shipped_folder("recipes") / name).read_text().splitlines()) < 30


def test_three_methods_for_gray_and_color_are_shipped() -> None:
    assert {f"{m}_{c}.yaml" for m in ("mae", "simclr", "byol") for c in ("gray", "color")} <= set(
        list_shipped("recipes")
    )


@pytest.mark.parametrize(
    ("recipe", "override", "says"),
    [
        ("mae_gray.yaml", "optim.lrr=1", ["mae_gray.yaml", "'optim.lrr'", "did you mean 'lr'", "allowed: name, lr"]),
        ("mae_gray.yaml", "dta.source=x", ["'dta'", "did you mean 'data'"]),
        ("mae_gray.yaml", "method.mask_ration=0.5", ["'method.mask_ration'", "did you mean 'mask_ratio'"]),
        ("mae_gray.yaml", "method.mask_ratio=1.5", ["method.mask_ratio", "less than 1", "1.5"]),
        ("mae_gray.yaml", "optim.lr=fast", ["optim.lr", "valid number", "'fast'"]),
        ("mae_gray.yaml", "data=3", ["data", "keys and values"]),
        ("mae_gray.yaml", "data.channels=grey", ["data.channels", "did you mean 'gray'"]),
        ("mae_gray.yaml", "backbone.name=resnet18", ["'mae' trains a vit", "'resnet18' is a cnn", "vit_tiny"]),
        ("mae_gray.yaml", "backbone.args.in_chans=3", ["in_chans must be 1", "'gray'"]),
        ("mae_gray.yaml", "data.channels=color", ["phantoms:gray", "'color'"]),
        ("mae_gray.yaml", "data.image_size=60", ["patch_size 8", "image_size 60"]),
        ("mae_gray.yaml", "data.used_size=96", ["data.used_size", "for CNNs", "64"]),
        ("simclr_gray.yaml", "method.name=simcrl", ["did you mean 'simclr'"]),
        ("simclr_gray.yaml", "backbone.name=resnet19", ["timm has no backbone", "did you mean 'resnet18'"]),
        ("simclr_gray.yaml", "backbone.patch_size=8", ["for ViTs"]),
        ("simclr_gray.yaml", "optim.name=adamm", ["no optimizer of timm", "did you mean"]),
        ("simclr_gray.yaml", "augment.policy=generic_color", ["color images", "gray"]),
        ("simclr_gray.yaml", "optim.accumulate=3", ["batch_size 128", "accumulate 3"]),
        ("simclr_gray.yaml", "train.devices=0", ["train.devices: must be a number of processes", "auto", "not 0"]),
        ("simclr_gray.yaml", "train.device=cuda:0", ["train.device", "did you mean 'cuda'"]),
        ("simclr_gray.yaml", "train.device=CPU", ["train.device", "did you mean 'cpu'"]),
        ("simclr_gray.yaml", "train.seed=1e23", ["train.seed", "integer"]),
        ("simclr_gray.yaml", "train.seed=1e19", ["train.seed", "integer"]),
        ("simclr_gray.yaml", "train.epochs=.inf", ["train.epochs: must be a finite number, not inf"]),
        ("simclr_gray.yaml", "optim.lr=.inf", ["optim.lr: must be a finite number"]),
        ("simclr_gray.yaml", "optim.options.eps=[.nan]", ["optim.options.eps.0: must be a finite number"]),
        ("simclr_gray.yaml", "augment.override.xray.ops.gamma.p=x", ["'gamma'", "from 0 to 1, not 'x'"]),
        ("simclr_gray.yaml", "augment.override.xray.ops.gamma.p=7", ["'gamma'", "from 0 to 1, not 7"]),
        ("simclr_gray.yaml", "augment.override.xray.ops.gamma.p=-1", ["'gamma'", "from 0 to 1, not -1"]),
        ("simclr_gray.yaml", "augment.override.xray.geometry.probability=2", ["xray.geometry.probability", "0 to 1"]),
        ("simclr_gray.yaml", "augment.override.xray.crop=2", ["xray.crop", "0 to 1"]),
        ("simclr_gray.yaml", "augment.policy=by_modalty", ["did you mean 'by_modality'", "known: by_modality"]),
        ("simclr_gray.yaml", "data.modality=ctt", ["did you mean 'ct'"]),
        ("simclr_gray.yaml", "data.modality=blood", ["color", "gray"]),
        ("simclr_gray.yaml", "trainsteps", ["key=value"]),
        ("simclr_grey.yaml", "train.steps=1", ["no such recipe", "did you mean 'simclr_gray.yaml'"]),
    ],
)
def test_a_mistake_is_answered_in_one_line_with_what_is_allowed(recipe: str, override: str, says: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe, [override])
    message = str(caught.value)
    assert "\n" not in message
    assert recipe.partition(".")[0] in message or override in message
    for part in says:
        assert part in message
    assert caught.value.exit_code == 2


def test_a_resolved_recipe_reads_back_as_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("mae_gray.yaml", ["train.steps=7", "backbone.args.depth=3", "optim.options.betas=[0.9,0.99]"])
    assert recipe.train.steps == 7
    assert recipe.method.settings["decoder_dim"] == 128  # the method's defaults are written out
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe
    assert set(yaml.safe_load(path.read_text())) == set(Recipe.model_fields)


def test_a_length_on_the_command_line_replaces_the_one_in_the_file() -> None:
    recipe = load_recipe("mae_gray.yaml", ["train.epochs=3"])
    assert (recipe.train.epochs, recipe.train.steps) == (3, None)
    with pytest.raises(RecipeError, match="not both"):
        load_recipe("mae_gray.yaml", ["train.epochs=3", "train.steps=3"])


@pytest.mark.parametrize("said", [["method.name=byol"], ["method={name: byol}"], ["method=byol"]])
def test_another_method_begins_with_its_own_settings(said: list[str]) -> None:
    own = load_recipe("byol_gray.yaml").method.settings.keys()
    recipe = load_recipe("simclr_gray.yaml", [*said, "data.source=phantoms:gray"])
    assert recipe.method.name == "byol"
    assert recipe.method.settings.keys() >= own
    assert "temperature" not in recipe.method.settings
    again = load_recipe("simclr_gray.yaml", ["method.name=simclr", "method.temperature=0.3"])
    assert again.method.settings == load_recipe("simclr_gray.yaml").method.settings | {"temperature": 0.3}


def test_a_path_into_a_folder_is_no_slip_of_a_shipped_name() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("nowhere/simclr_gray.yaml")
    assert str(caught.value) == "nowhere/simclr_gray.yaml: no such file"
    with pytest.raises(RecipeError, match=r"no such recipe .*did you mean 'mednet/gray.yaml'"):
        load_recipe("mednet/grey.yaml")


def test_interpolation_works_and_a_missing_key_is_named() -> None:
    content = {
        "data": {"image_size": 32},
        "name": "x",
        "backbone": {"name": "resnet18"},
        "optim": {"batch_size": "${data.image_size}"},
    }
    assert load_recipe(content).optim.batch_size == 32
    with pytest.raises(RecipeError, match="nowhere"):
        load_recipe({"optim": {"batch_size": "${nowhere}"}})


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1,", "\x00", "just words", "a: &x {b: *x}", "a: 1\na: 2"])
def test_a_file_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        load_recipe(path)


def test_a_file_in_the_working_directory_comes_before_a_shipped_one(tmp_path: Path) -> None:
    shipped = find_shipped("mae_gray.yaml", "recipes")
    assert shipped.parent == shipped_folder("recipes")
    Path("mae_gray.yaml").write_text(shipped.read_text().replace("name: mae_gray", "name: mine"))
    assert load_recipe("mae_gray.yaml").name == "mine"
    assert load_recipe("mae_gray").name == "mine"


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("last", [False, True])
def test_a_method_and_its_settings_go_together_in_any_order(inline: bool, last: bool) -> None:
    recipe: dict[str, Any] = {"data": {"source": "phantoms:gray"}, "method": "mae" if inline else {"name": "mae"}}
    said = ["method=byol", "method.hidden_dim=32"]
    method = load_recipe(recipe, said[::-1] if last else said).method
    assert (method.name, method.settings["hidden_dim"]) == ("byol", 32)
    with pytest.raises(RecipeError, match="unknown method 'my-byol'"):
        load_recipe(recipe, ["method.hidden_dim=32", "method=my-byol"])
    kept = load_recipe(recipe | {"method": "byol" if inline else {"name": "byol"}}, ["method.hidden_dim=32"]).method
    assert (kept.name, kept.settings["hidden_dim"]) == ("byol", 32)


def test_settings_that_a_recipe_cannot_hold_are_refused_before_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(MethodConfig):
        cap: float = math.inf

    class Named(MethodConfig):
        name: str = ""

    recipe = {"data": {"source": "phantoms:gray"}, "method": {"name": "byol"}}
    for config, says in ((Endless, r"method\.cap: must be a finite number"), (Named, "setting 'name'")):
        monkeypatch.setattr(METHODS.get("byol"), "Config", config)
        with pytest.raises(RecipeError, match=says):
            load_recipe(recipe)


def test_local_views_are_for_nets_that_take_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS.get("byol"), "views", (View(), View(scale=(0.05, 0.4), size=0.5)))
    recipe = {"data": {"source": "phantoms:gray", "image_size": 64}, "method": {"name": "byol"}}
    with pytest.raises(RecipeError, match=r"'byol': its views of 32 pixels are not for .vit_tiny.*dynamic_img_size"):
        load_recipe(recipe, ["backbone.name=vit_tiny_patch16_224"])
    load_recipe(recipe, ["backbone.name=vit_tiny_patch16_224", "backbone.args.dynamic_img_size=true"])
    load_recipe(recipe, ["backbone.name=test_resnet"])
