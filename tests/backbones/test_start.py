"""Going on from weights: they arrive in every method as they are, for other sizes too, and pass on what they owe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from ssl_mednet import pretrain
from ssl_mednet.backbones import (
    Preprocessing,
    backbone_args,
    create_backbone,
    load_backbone,
    save_backbone,
)
from ssl_mednet.backbones import start as start_module
from ssl_mednet.backbones.artifact import read_config
from ssl_mednet.backbones.start import (
    inherited_held_out,
    inherited_licences,
    load_start,
    start_net,
    with_inherited,
)
from ssl_mednet.errors import ArtifactError, RecipeError, UserError
from ssl_mednet.evaluation.baselines import RepeatChannels
from ssl_mednet.pretraining.build import build_module
from ssl_mednet.recipe import load_recipe

OWED = {"data": {"images": 3, "licences": {"CC-BY-NC-SA-4.0": 2, "not stated": 1}}}


def artifact(folder: Path, net: str = "test_resnet", size: int = 32, **provenance: object) -> Path:
    args = backbone_args(net, 1, size, 8 if net == "test_vit" else None)
    model = create_backbone(net, args)
    save_backbone(model, folder, net, args, Preprocessing("gray", size, (0.4,), (0.2,)), provenance)
    return folder


def recipe(weights: object, method: str) -> dict[str, Any]:
    return {
        "name": "child",
        "data": {"source": "phantoms:gray?n=24", "image_size": 32},
        "backbone": {"weights": str(weights)},
        "method": {"name": method},
        "optim": {"batch_size": 8},
        "train": {"steps": 1, "device": "cpu"},
    }


@pytest.mark.parametrize(
    ("method", "net"), [("simclr", "test_resnet"), ("byol", "test_resnet"), ("mae", "test_vit"), ("byol", "test_vit")]
)
def test_no_method_initialises_them_anew(method: str, net: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "parent", net)
    state = load_backbone(folder).state_dict()
    plan = load_recipe(recipe(folder, method))
    assert plan.backbone.name == net
    module = build_module(plan, 1, (0.4,), (0.2,))
    nets = [module.method.backbone, *(m for n, m in module.method.named_children() if n == "teacher_backbone")]
    assert len(nets) == (2 if method == "byol" else 1)
    for one in nets:
        found = one.state_dict()
        assert found.keys() == state.keys()
        assert all(torch.equal(found[k], v) for k, v in state.items())


def test_positions_are_resampled_for_another_size(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "parent", "test_vit")
    own, args = start_net(str(folder), "gray", 64)
    assert args["img_size"] == 64
    found = load_start(str(folder), "gray", own, args).state
    old, new = load_backbone(folder).state_dict(), found["pos_embed"]
    prefix = create_backbone(own, args).num_prefix_tokens
    assert new.shape[1] - prefix == 4 * (old["pos_embed"].shape[1] - prefix)
    torch.testing.assert_close(new[:, prefix:].mean(), old["pos_embed"][:, prefix:].mean(), atol=1e-3, rtol=0)
    assert torch.equal(found["blocks.0.attn.qkv.weight"], old["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["backbone.name=resnet18"], "are a test_resnet, backbone.name is 'resnet18'"),
        (["data.channels=color", "data.source=phantoms:color?n=24"], "take gray images, data.channels is 'color'"),
        (["backbone.patch_size=8"], "those of the weights"),
        (["backbone.stem=small"], "those of the weights"),
        (["method.name=mae"], "method 'mae' trains a vit"),
    ],
)
def test_what_does_not_fit_is_refused(more: list[str], says: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path / "parent")
    with pytest.raises(RecipeError, match=says):
        load_recipe(recipe(folder, "simclr"), more)


def test_a_run_says_where_it_started_and_what_its_parent_owes(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "parent", **OWED)
    run = pretrain(recipe(folder, "simclr"), out=tmp_path / "run", quiet=True)
    assert run.before == str(folder)
    ours = read_config(run.folder / "backbone")["ssl_mednet"]
    assert ours["preprocessing"]["mean"] == [0.4]  # images go on to come in as the weights know them
    assert ours["parent"]["weights"] == "parent"
    assert ours["parent"]["sha256"] == read_config(folder)["ssl_mednet"]["sha256"]
    assert any("no commercial use (2 images: CC-BY-NC-SA-4.0)" in line for line in ours["data"]["publishing"])
    card = (run.folder / "backbone" / "README.md").read_text()
    assert "| started from | parent (sha256" in card
    assert str(tmp_path) not in card
    child = inherited_licences(ours)
    assert child["CC-BY-NC-SA-4.0"] == 2  # a grandchild owes it too
    assert child[""] == 1


def test_finished_weights_may_keep_a_share_of_those_they_started_from(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "parent")
    first, found = load_backbone(folder).state_dict(), {}
    for share in (0.0, 0.25):
        said = recipe(folder, "simclr")
        said["backbone"]["keep_start"] = share
        said["optim"] |= {"lr": 0.1, "warmup": 0.0}
        run = pretrain(said, out=tmp_path / str(share), quiet=True)
        found[share] = load_backbone(run.folder).state_dict()
    assert any(not torch.equal(found[0.0][k], v) for k, v in first.items())
    for name, start in first.items():
        ended = found[0.0][name]
        expected = 0.75 * ended + 0.25 * start if start.is_floating_point() else ended
        torch.testing.assert_close(found[0.25][name], expected, rtol=0, atol=1e-6)
    assert "kept of it" not in (tmp_path / "0.0" / "backbone" / "README.md").read_text()
    assert "kept of it: 25 %" in (tmp_path / "0.25" / "backbone" / "README.md").read_text()
    again, keeps = tmp_path / "0.0", ["backbone.keep_start=0.25"]
    with pytest.raises(RecipeError, match=r"backbone.keep_start: 0.0 -> 0.25.*--allow-changes"):
        pretrain(out=again, resume=True, overrides=keeps, quiet=True)
    with pytest.raises(UserError, match="this run is finished"):  # it would say a rate that no step had
        pretrain(out=again, resume=True, overrides=[*keeps, "optim.lr=0.2"], quiet=True, allow_changes=True)
    run = pretrain(out=again, resume=True, overrides=keeps, quiet=True, allow_changes=True)  # not a step more
    for name, tensor in load_backbone(run.folder).state_dict().items():
        torch.testing.assert_close(tensor, found[0.25][name], rtol=0, atol=1e-6)
    assert "kept of it: 25 %" in (again / "backbone" / "README.md").read_text()
    with pytest.raises(RecipeError, match="keep_start goes with weights to start from"):
        load_recipe(recipe("", "simclr") | {"backbone": {"name": "test_resnet", "keep_start": 0.5}})


def test_the_licence_of_the_weights_themselves_is_owed_too() -> None:
    free = {"data": {"images": 100, "licences": {"CC0-1.0": 100}}}
    assert inherited_licences(free) == {"CC0-1.0": 100}
    assert inherited_licences(free | {"licence": "CC-BY-NC-4.0"}) == {"CC0-1.0": 100, "CC-BY-NC-4.0": 100}
    assert inherited_licences(free | {"licence": "CC0-1.0"}) == {"CC0-1.0": 100}
    assert inherited_licences({"data": {"images": 100}, "licence": "CC0-1.0"}) == {"CC0-1.0": 100}


def test_images_without_a_licence_have_none_in_whatever_comes_of_the_weights() -> None:
    assert inherited_licences(OWED | {"licence": "CC-BY-4.0"}) == {"CC-BY-NC-SA-4.0": 2, "": 1, "CC-BY-4.0": 3}


def test_a_run_does_not_go_on_where_other_weights_took_the_place_of_its_parent(tmp_path: Path) -> None:
    folder, out = artifact(tmp_path / "parent"), tmp_path / "run"
    plan = recipe(folder, "simclr")
    pretrain(plan, out=out, quiet=True)
    more = ["train.steps=2"]
    state = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_bytes()
    artifact(folder)  # of other random weights
    with pytest.raises(RecipeError, match="began with other weights"):
        pretrain(plan, out=out, resume=True, overrides=more, quiet=True, allow_changes=True)
    for name, content in zip(("model.safetensors", "config.json"), state, strict=True):
        (folder / name).write_bytes(content)
    assert pretrain(plan, out=out, resume=True, overrides=more, quiet=True, allow_changes=True).steps == 2


def audit(suite: str, exact: int) -> dict[str, Any]:
    said = {"suite": suite, "test_images": 7, "exact": exact, "near": 0, "not_audited": []}
    return said | {"contamination_allowed": bool(exact)}


def test_test_images_that_a_parent_was_trained_on_stay_in_every_child(tmp_path: Path) -> None:
    seen = audit("gray.yaml", 3)
    folder = artifact(tmp_path / "parent", data={"images": 5, "held_out": seen})
    run = pretrain(recipe(folder, "simclr"), out=tmp_path / "run", quiet=True)
    ours = read_config(run.folder / "backbone")["ssl_mednet"]
    assert ours["data"]["held_out"] == {"inherited": [seen], "contamination_allowed": True}
    card = (run.folder / "backbone" / "README.md").read_text()
    assert "| test images among them | gray.yaml: 3 exact, 0 near (in what it started from) |" in card
    again = pretrain(recipe(run.folder, "simclr"), out=tmp_path / "again", quiet=True)
    assert inherited_held_out(read_config(again.folder / "backbone")["ssl_mednet"]) == [seen]


def test_what_is_said_of_a_childs_own_images_stays_beside_what_it_inherits() -> None:
    own, seen, clean = audit("color.yaml", 0), audit("gray.yaml", 3), audit("gray.yaml", 0)
    assert with_inherited(own, []) == own
    assert with_inherited(own, [clean]) == own | {"inherited": [clean]}
    merged = with_inherited(own, [seen])
    assert merged == own | {"inherited": [seen], "contamination_allowed": True}
    assert inherited_held_out({"data": {"held_out": merged}})[1:] == [seen]


@pytest.mark.parametrize(
    ("weights", "error", "says"),
    [
        ("timm:resnet18", ArtifactError, "or imagenet:resnet18"),
        ("nowhere", ArtifactError, "or imagenet:NAME"),
        (
            "imagenet:efficientnet_lite0@96",
            RecipeError,
            "is data.image_size .*weights=imagenet:efficientnet_lite0 data.image_size=96",
        ),
    ],
)
def test_a_slip_in_their_name_is_answered_with_what_weights_take(
    weights: str, error: type[UserError], says: str
) -> None:
    with pytest.raises(error, match=says):
        start_net(weights, "gray", 64)


def test_an_export_to_onnx_is_called_so(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").touch()
    with pytest.raises(ArtifactError, match="is an export to ONNX"):
        start_net(str(tmp_path), "gray", 64)


@pytest.mark.parametrize("net", ["test_vit", "test_resnet"])
def test_imagenets_kernels_see_in_a_gray_image_what_they_saw_in_three_channels(
    net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact for a ViT, whose stem has a bias and no padding; beside the border for a CNN with a batch norm."""
    color = timm.create_model(net, num_classes=0, **({"img_size": 64} if net == "test_vit" else {})).eval()
    color.pretrained_cfg |= {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    for module in color.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    monkeypatch.setattr(start_module, "imagenet_net", lambda spec, name: (color, net))
    own, args = start_net(f"imagenet:{net}", "gray", 64, extra={"global_pool": "token"} if net == "test_vit" else {})
    begin = load_start(f"imagenet:{net}", "gray", own, args)
    gray = create_backbone(own, args)
    gray.load_state_dict(begin.state)
    images = torch.rand(2, 1, 64, 64)
    repeated = RepeatChannels(nn.Identity(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))(images)
    with torch.no_grad():
        ours, theirs = _stem(gray.eval(), (images - begin.mean[0]) / begin.std[0]), _stem(color, repeated)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=1e-4)
    assert any("ImageNet" in licence for licence in begin.licences)


def _stem(net: nn.Module, images: torch.Tensor) -> torch.Tensor:
    if hasattr(net, "patch_embed"):
        return net(images)
    stem = next(name for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d))
    seen: list[torch.Tensor] = []
    hook = net.get_submodule(stem).register_forward_hook(lambda module, given, out: seen.append(out))
    net(images)
    hook.remove()
    return seen[0][..., 2:-2, 2:-2]
