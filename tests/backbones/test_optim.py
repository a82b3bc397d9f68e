"""Layer-wise learning rates: every layer really trains at its own, from the first step to the last."""

from __future__ import annotations

import re

import pytest
import timm
import torch
from torch import Tensor, nn

from ssl_mednet.backbones.optim import cosine_with_warmup, create_optimizer, layer_decay_groups, parameter_groups
from ssl_mednet.errors import RecipeError

LR, DECAY = 0.1, 0.5
NETS = {"test_resnet": {}, "test_vit": {"img_size": 32, "patch_size": 8}, "test_convnext": {}}
BLOCKS_OF_CONVNEXT = [1, 2, 4, 2]


class Headed(nn.Module):
    """A timm net under a linear head, inside a wrapper that has a weight of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = nn.Module()
        self.backbone.net = timm.create_model(name, num_classes=0, in_chans=1, **NETS[name])
        self.backbone.scale = nn.Parameter(torch.ones(2, 2))
        self.head = nn.Linear(self.backbone.net.num_features, 3)


def layers_above(net: str, name: str) -> int:
    """Counted by hand from the structure of the nets; the head is on top."""
    inside = name.removeprefix("backbone.net.")
    if inside == name:
        return 0
    if net == "test_resnet":  # stem, four layers of one block each
        stage = re.match(r"layer(\d)", inside)
        return 5 - int(stage[1]) if stage else 5
    if net == "test_vit":  # embedding, six blocks; the last norm goes with the last block
        block = re.match(r"blocks\.(\d)", inside)
        return 6 - int(block[1]) if block else 1 if inside.startswith("norm") else 7
    if inside.startswith("head"):  # ConvNeXt's last norm belongs to its head
        return 0
    stage = re.match(r"stages\.(\d)", inside)
    if not stage:
        return 10
    block = re.match(r"stages\.\d\.blocks\.(\d)", inside)
    below = 1 + sum(BLOCKS_OF_CONVNEXT[: int(stage[1])]) + (int(block[1]) if block else 0)
    return 10 - below


@pytest.mark.parametrize("net", NETS)
def test_each_layer_moves_at_its_own_rate_at_every_step(net: str) -> None:
    model = Headed(net)
    optimizer = create_optimizer(model, "momentum", LR, 0.0, {"momentum": 0.0}, layer_decay=DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: cosine_with_warmup(s, 5, 2))
    for step in range(5):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        schedule.step()
        for name, parameter in model.named_parameters():
            rate = LR * DECAY ** layers_above(net, name) * cosine_with_warmup(step, 5, 2)
            moved = before[name] - parameter.detach()
            torch.testing.assert_close(moved, torch.full_like(moved, rate), atol=1e-6, rtol=1e-4, msg=name)


@pytest.mark.parametrize("net", NETS)
def test_every_parameter_is_in_one_group_and_decays_as_without_layers(net: str) -> None:
    model = Headed(net)

    def decay_of(groups: list[dict]) -> dict[int, float]:
        flat: list[tuple[Tensor, float]] = [(p, g["weight_decay"]) for g in groups for p in g["params"]]
        assert len(flat) == len(list(model.parameters()))
        return {id(p): d for p, d in flat}

    layered = layer_decay_groups(model, LR, 0.1, DECAY)
    assert decay_of(layered) == decay_of(parameter_groups(model, 0.1))
    names = {id(p): n for n, p in model.named_parameters()}
    free = {names[i] for i, d in decay_of(layered).items() if d == 0}
    assert {n for n, p in model.named_parameters() if p.ndim == 1} <= free
    assert ("backbone.net.pos_embed" in free) == ("backbone.net.cls_token" in free) == (net == "test_vit")
    assert all("lr_scale" not in group for group in layered)  # no scheduler may apply it a second time


def test_the_deepest_layers_are_the_same_with_and_without_a_wrapper() -> None:
    plain = timm.create_model("test_vit", num_classes=3, in_chans=1, **NETS["test_vit"])
    with_own_head = {g["lr"] for g in layer_decay_groups(plain, LR, 0.1, DECAY)}
    assert with_own_head == {g["lr"] for g in layer_decay_groups(Headed("test_vit"), LR, 0.1, DECAY)}
    assert min(with_own_head) == pytest.approx(LR * DECAY**7)


def test_a_net_without_named_layers_is_cut_by_the_order_of_its_parameters() -> None:
    model = nn.Module()
    model.net = timm.create_model("poolformer_s12", num_classes=0, in_chans=1)
    model.head = nn.Linear(2, 2)
    assert not hasattr(model.net, "group_matcher")
    rates = {id(p): g["lr"] for g in layer_decay_groups(model, LR, 0.1, 0.9) for p in g["params"]}
    ordered = [rates[id(p)] for p in model.parameters()]
    assert ordered == sorted(ordered)
    assert ordered[-1] == LR
    assert ordered[-3] < LR
    assert len(set(ordered)) > 3


def test_no_layer_decay_is_one_rate_and_frozen_parameters_stay_out() -> None:
    model = Headed("test_vit")
    assert {g["lr"] for g in create_optimizer(model, "adamw", LR, 0.1).param_groups} == {LR}
    model.backbone.net.requires_grad_(False)
    groups = layer_decay_groups(model, LR, 0.1, DECAY)
    assert {id(p) for g in groups for p in g["params"]} == {
        id(p) for p in (model.backbone.scale, *model.head.parameters())
    }


def test_messages_name_the_key_that_the_user_wrote() -> None:
    with pytest.raises(RecipeError, match=r"finetune\.optimizer 'adamm' is no optimizer of timm"):
        create_optimizer(nn.Linear(2, 2), "adamm", LR, 0.1, key="finetune.optimizer")
