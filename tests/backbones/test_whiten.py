"""A last layer that is not trained: it passes on what the map says, is the same every time, and comes with its run."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_mednet import pretrain
from ssl_mednet.backbones import backbone_args, create_backbone, load_backbone
from ssl_mednet.backbones.whiten import BIAS, FLOOR, POWER, can_whiten, whitened
from ssl_mednet.errors import RecipeError, TrainingError, UserError
from ssl_mednet.recipe import load_recipe

NET = "test_efficientnet"


def net(seed: int = 0) -> nn.Module:
    """With statistics of images, as a trained one has them."""
    torch.manual_seed(seed)
    found = create_backbone(NET, backbone_args(NET, 1, 64))
    with torch.no_grad():
        for _ in range(20):
            found(images())
    return found.eval()


def images(count: int = 64) -> Tensor:
    """Blobs of several sizes."""
    return nn.functional.interpolate(torch.randn(count, 1, 9, 9), 64, mode="bicubic") + 0.2 * torch.randn(
        count, 1, 64, 64
    )


def inside(model: nn.Module, name: str, batch: Tensor) -> Tensor:
    """What goes into a layer, ``[points, channels]`` float64."""
    seen: list[Tensor] = []
    with model.get_submodule(name).register_forward_pre_hook(lambda _, x: seen.append(x[0])), torch.no_grad():
        model(batch)
    return seen[0].movedim(1, -1).flatten(0, -2).double()


def test_features_have_one_variance_and_cover_all_that_the_map_says() -> None:
    model, batch = net(), images()
    with torch.no_grad():
        model.conv_head.weight[1:] = model.conv_head.weight[:1]  # as a collapsed layer is
    new = whitened(model, batch.split(20), seed=3)
    activation, new.bn2.act = new.bn2.act, nn.Identity()
    with torch.no_grad():
        points = (
            new.bn2(new.conv_head(new.blocks(new.bn1(new.conv_stem(batch))))).movedim(1, -1).flatten(0, -2).double()
        )
    new.bn2.act = activation
    torch.testing.assert_close(
        points.mean(0), torch.full((points.shape[1],), BIAS, dtype=torch.float64), atol=1e-3, rtol=0
    )
    torch.testing.assert_close(points.var(0), torch.ones_like(points[0]), atol=0.02, rtol=0)
    # A linear map finds the components again, each in proportion to its variance to the power of 1 - 2 * POWER.
    found, expected = points - BIAS, inside(model, "conv_head", batch)
    expected = expected - expected.mean(0)
    left = expected - found @ torch.linalg.lstsq(found, expected).solution
    assert float(left.square().sum() / expected.square().sum()) < 1e-6


def test_principal_components_get_the_stated_weight() -> None:
    model, batch = net(), images()
    new = whitened(model, [batch], seed=3)
    into = inside(model, "conv_head", batch)
    values, vectors = torch.linalg.eigh(torch.cov(into.T, correction=0))
    weight = new.conv_head.weight[:, :, 0, 0].double().T  # [C, D]
    assert weight.shape[1] >= weight.shape[0]
    lengths = (vectors.T @ weight)[:, : weight.shape[0]].norm(dim=1)  # of the first rotation
    torch.testing.assert_close(lengths, (values + FLOOR * values[-1]).pow(-POWER), rtol=1e-3, atol=0)


def test_nothing_else_changes_and_seeds_decide() -> None:
    model, batch = net(), images()
    before = copy.deepcopy(model.state_dict())
    one, again, other = (whitened(model, batch.split(32), seed) for seed in (0, 0, 1))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for name, value in one.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
        if not name.startswith(("conv_head.", "bn2.")):
            assert torch.equal(value, before[name]), name
    assert not torch.equal(one.conv_head.weight, other.conv_head.weight)
    whole = whitened(model, [batch], 0)  # batches are only how they come
    torch.testing.assert_close(whole.conv_head.weight, one.conv_head.weight, rtol=1e-3, atol=1e-4)


def test_rounding_changes_it_by_rounding() -> None:
    """Were the components turned as they come, rounding would choose between those of equal variance."""
    layers = []
    for seed in (0, 1):
        model = net()
        channels = model.conv_head.in_channels
        torch.manual_seed(seed)
        points = torch.cat([torch.eye(channels), -torch.eye(channels)]) + 1e-6 * torch.randn(2 * channels, channels)
        model.conv_head.register_forward_pre_hook(lambda _, x, points=points: (points[:, :, None, None],))
        layers.append(whitened(model, [images(2)], 0).conv_head.weight.detach())
    assert float((layers[0] - layers[1]).norm() / layers[0].norm()) < 1e-3


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_map_that_says_nothing_is_refused(value: float) -> None:
    model = net()
    model.get_submodule("conv_head").register_forward_pre_hook(lambda _, x: (x[0] * value,))
    with pytest.raises(TrainingError, match="constant or not finite") as error:
        whitened(model, [images()], 0)
    assert "backbone.last_layer=trained" in error.value.hint


@pytest.mark.parametrize(
    ("name", "can"),
    [
        ("mobilenetv1_100", False),
        ("test_efficientnet_gn", False),
        ("tf_efficientnet_lite0", True),
        ("mobilenetv2_050", True),
        ("mobilenetv3_small_050", False),
        ("resnet10t", False),
    ],
)
def test_who_has_such_a_layer(name: str, can: bool) -> None:
    assert can_whiten(create_backbone(name, backbone_args(name, 1, 64), meta=True)) == can


def plan(**backbone: Any) -> dict[str, Any]:
    return {
        "name": "whitened",
        "data": {"source": "phantoms:gray?n=40", "image_size": 32, "used_size": 48},
        "backbone": {"name": NET} | backbone,
        "optim": {"batch_size": 8, "lr": 0.01},
        "train": {"steps": 2, "device": "cpu", "precision": "float32"},
    }


def test_a_run_ends_with_it_says_so_and_can_be_written_either_way(tmp_path: Path) -> None:
    out, key = tmp_path / "run", "backbone.last_layer"
    run = pretrain(plan(), out=out, quiet=True)
    trained = load_backbone(run.folder).state_dict()
    card = out / "backbone" / "README.md"
    assert "last layer" not in card.read_text()
    pretrain(out=out, resume=True, overrides=[f"{key}=whitened"], quiet=True, allow_changes=True)  # not a step more
    assert "| last layer | made from statistics of those images, not trained |" in card.read_text()
    anew = load_backbone(out).state_dict()
    differ = {name for name, value in anew.items() if not torch.equal(value, trained[name])}
    assert differ == {"conv_head.weight", "bn2.weight", "bn2.bias", "bn2.running_mean", "bn2.running_var"}
    with pytest.raises(UserError, match="this run is finished"):  # as it was written last
        pretrain(out=out, resume=True, quiet=True)
    whole = pretrain(plan(last_layer="whitened"), out=tmp_path / "whole", quiet=True)
    for name, value in load_backbone(whole.folder).state_dict().items():
        torch.testing.assert_close(value, anew[name], rtol=1e-4, atol=1e-5)
    model = timm.create_model(f"local-dir:{out / 'backbone'}", pretrained=True).eval()
    x = torch.rand(4, 1, 48, 48)
    loaded = load_backbone(out)
    torch.testing.assert_close(model(loaded.preprocessing(x)), loaded(loaded.preprocessing(x)))
    pretrain(out=out, resume=True, overrides=[f"{key}=trained"], quiet=True, allow_changes=True)  # and back
    assert "last layer" not in card.read_text()
    assert all(torch.equal(value, trained[name]) for name, value in load_backbone(out).state_dict().items())


def test_it_is_of_the_averaged_net_where_a_share_of_the_start_is_kept(tmp_path: Path) -> None:
    first = pretrain(plan(), out=tmp_path / "first", quiet=True)
    said = plan(weights=str(first.folder), keep_start=0.5)
    del said["backbone"]["name"]
    nets = {}
    for last in ("trained", "whitened"):
        said["backbone"]["last_layer"] = last
        nets[last] = load_backbone(pretrain(said, out=tmp_path / last, quiet=True).folder)
    batch = nets["trained"].preprocessing(torch.rand(8, 1, 48, 48))
    kept, expected = (inside(model, "conv_head", batch) for model in (nets["whitened"], nets["trained"]))
    torch.testing.assert_close(kept, expected)
    assert nets["whitened"].bn2.bias.eq(BIAS).all()  # which is not averaged with that of the start


def test_who_goes_on_from_such_weights_trains_that_layer_on_and_keeps_a_share_of_it(tmp_path: Path) -> None:
    parent = pretrain(plan(last_layer="whitened"), out=tmp_path / "parent", quiet=True)
    said = plan(weights=str(parent.folder))
    del said["backbone"]["name"]
    child = pretrain(said, out=tmp_path / "child", quiet=True)
    assert load_recipe(child.folder / "recipe.yaml").backbone.last_layer == "trained"
    before, trained = (load_backbone(run.folder).conv_head.weight for run in (parent, child))
    assert not torch.equal(before, trained)
    pretrain(out=child.folder, resume=True, overrides=["backbone.keep_start=0.75"], quiet=True, allow_changes=True)
    torch.testing.assert_close(load_backbone(child.folder).conv_head.weight, 0.75 * before + 0.25 * trained)


def test_other_nets_are_refused() -> None:
    with pytest.raises(RecipeError, match="'resnet10t' does not end in a pointwise convolution") as error:
        load_recipe(plan(name="resnet10t", last_layer="whitened"))
    assert "EfficientNet" in error.value.hint
