"""Backbones: one or three channels, small images, artifacts that load where they should and nowhere else."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from ssl_mednet.backbones import (
    Preprocessing,
    backbone_args,
    backbone_kind,
    create_backbone,
    load_backbone,
    save_backbone,
)
from ssl_mednet.backbones.optim import cosine_with_warmup, create_optimizer, parameter_groups
from ssl_mednet.errors import ArtifactError, RecipeError

GRAY = Preprocessing("gray", 64, (0.4,), (0.2,))


def save(
    folder: Path, net: str = "resnet10t", channels: int = 1, size: int = 64, patch: int | None = None
) -> nn.Module:
    args = backbone_args(net, channels, size, patch)
    model = create_backbone(net, args).eval()
    kind = "gray" if channels == 1 else "color"
    save_backbone(model, folder, net, args, Preprocessing(kind, size, (0.4,) * channels, (0.2,) * channels), {})
    return model


@pytest.mark.parametrize(
    ("net", "patch"),
    [
        ("resnet10t", None),
        ("resnet18", None),
        ("convnext_atto", None),
        ("vit_tiny_patch16_224", 8),
        ("regnetx_002", None),
        ("efficientnet_lite0", None),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_an_artifact_loads_strictly_into_plain_timm_with_the_same_features(
    net: str, patch: int | None, channels: int, tmp_path: Path
) -> None:
    model = save(tmp_path / "backbone", net, channels, 64, patch)
    images = torch.rand(2, channels, 64, 64)
    plain = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).eval()
    assert plain.state_dict().keys() == model.state_dict().keys()
    with torch.no_grad():
        expected = model(images)
        assert torch.equal(plain(images), expected)
        assert torch.equal(load_backbone(tmp_path / "backbone")(images), expected)
        classifier = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True, num_classes=5).eval()
        assert torch.equal(classifier.forward_head(classifier.forward_features(images), pre_logits=True), expected)
        assert classifier(images).shape == (2, 5)
    assert expected.shape == (2, model.num_features)
    assert (tmp_path / "backbone" / "README.md").read_text().count("timm") > 1


def test_plain_timm_reads_the_preprocessing_too(tmp_path: Path) -> None:
    save(tmp_path / "backbone")
    config = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True).pretrained_cfg
    assert tuple(config["input_size"]) == (1, 64, 64)
    assert tuple(config["mean"]) == (0.4,)
    assert config["crop_pct"] == 1.0


@pytest.mark.parametrize("net", ["resnet10t", "convnext_atto", "efficientnet_lite0"])
def test_plain_timm_takes_weights_of_gray_images_to_three_equal_channels(net: str, tmp_path: Path) -> None:
    model = save(tmp_path / "backbone", net, 1, 96)
    plain = timm.create_model(f"local-dir:{tmp_path / 'backbone'}", pretrained=True, in_chans=3).eval()
    images = torch.rand(2, 1, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(plain(images.expand(-1, 3, -1, -1)), model(images), rtol=1e-3, atol=2e-3)


def test_small_images_get_a_stem_without_large_kernel_and_max_pool() -> None:
    small = create_backbone("resnet18", backbone_args("resnet18", 1, 64))
    large = create_backbone("resnet18", backbone_args("resnet18", 1, 96))
    kernels = {m.kernel_size for m in small.conv1.modules() if isinstance(m, nn.Conv2d)}
    assert kernels == {(3, 3)}
    assert not any(isinstance(m, nn.MaxPool2d) for m in small.modules())
    assert large.conv1.kernel_size == (7, 7)
    assert backbone_args("convnext_atto", 1, 64)["patch_size"] == 2
    assert backbone_args("resnet18", 1, 64, stem="standard") == {"in_chans": 1}
    assert "stem_type" in backbone_args("resnet18", 1, 224, stem="small")


def test_a_vit_pools_its_normalised_patch_tokens() -> None:
    model = create_backbone("test_vit", backbone_args("test_vit", 1, 32, 8)).eval()
    images = torch.rand(2, 1, 32, 32)
    tokens = model.forward_features(images)
    torch.testing.assert_close(model(images), tokens[:, model.num_prefix_tokens :].mean(1))
    assert backbone_kind("test_vit") == "vit"
    assert backbone_kind("resnet18") == "cnn"


def test_weights_refuse_images_they_were_not_made_for(tmp_path: Path) -> None:
    save(tmp_path / "backbone")
    prepare = load_backbone(tmp_path / "backbone").preprocessing
    assert prepare(torch.rand(2, 1, 100, 80)).shape == (2, 1, 64, 64)
    torch.testing.assert_close(prepare(torch.full((1, 1, 64, 64), 0.4)), torch.zeros(1, 1, 64, 64))
    with pytest.raises(ArtifactError, match="gray images"):
        prepare(torch.rand(2, 3, 64, 64))
    with pytest.raises(ArtifactError, match="divide 8-bit pixels by 255"):
        prepare(torch.full((1, 1, 64, 64), 200.0))


def test_what_is_no_artifact_is_refused_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="nowhere: no such folder"):
        load_backbone(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="pretraining finished"):
        load_backbone(tmp_path / "empty")
    save(tmp_path / "backbone")
    weights = tmp_path / "backbone" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="cannot be read"):
        load_backbone(tmp_path / "backbone")
    weights.write_bytes(whole)
    config = tmp_path / "backbone" / "config.json"
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"architecture": "resnet26"}))
    with pytest.raises(ArtifactError, match="do not fit"):
        load_backbone(tmp_path / "backbone")
    del content["ssl_mednet"]
    config.write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match="preprocessing"):
        load_backbone(tmp_path / "backbone")


def test_saving_again_replaces_the_artifact_whole(tmp_path: Path) -> None:
    save(tmp_path / "backbone")
    (tmp_path / "backbone" / "old.txt").write_text("left over")
    model = save(tmp_path / "backbone")
    assert {p.name for p in (tmp_path / "backbone").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert list(tmp_path.iterdir()) == [tmp_path / "backbone"]
    state = load_backbone(tmp_path / "backbone").state_dict()
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_who_may_read_the_card_may_read_the_weights(tmp_path: Path) -> None:
    save(tmp_path / "backbone")
    assert len({path.stat().st_mode for path in (tmp_path / "backbone").iterdir()}) == 1


def test_norms_biases_tokens_and_positions_do_not_decay() -> None:
    model = create_backbone("test_vit", backbone_args("test_vit", 1, 32, 8))
    free, decayed = parameter_groups(model, 0.1)
    assert (free["weight_decay"], decayed["weight_decay"]) == (0.0, 0.1)
    names = {id(p): n for n, p in model.named_parameters()}
    without = {names[id(p)] for p in free["params"]}
    assert {"cls_token", "pos_embed", "norm.weight", "blocks.0.attn.qkv.bias"} <= without
    assert {names[id(p)] for p in decayed["params"]} == {n for n in names.values() if n not in without}
    assert all(p.ndim > 1 for p in decayed["params"])


def test_the_rate_rises_falls_and_ends_at_its_floor() -> None:
    factors = [cosine_with_warmup(s, total=100, warmup=10, floor=0.1) for s in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert max(factors) == factors[9] == factors[10] == 1.0
    assert factors[-1] == pytest.approx(0.1)
    assert all(a >= b for a, b in itertools.pairwise(factors[9:]))
    assert cosine_with_warmup(0, total=1, warmup=0) == 1.0


def test_an_optimizer_that_does_not_take_an_option_says_so() -> None:
    model = nn.Linear(2, 2)
    assert isinstance(create_optimizer(model, "adamw", 1e-3, 0.1, {"betas": (0.9, 0.95)}), torch.optim.AdamW)
    with pytest.raises(RecipeError, match="does not take these options"):
        create_optimizer(model, "adamw", 1e-3, 0.1, {"warp": 9})
    with pytest.raises(RecipeError, match="no optimizer of timm"):
        create_optimizer(model, "adamm", 1e-3, 0.1)
