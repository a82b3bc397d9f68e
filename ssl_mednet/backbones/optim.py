"""Parameter groups, optimizer and schedule, shared by pretraining and fine-tuning."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from ssl_mednet.errors import RecipeError, did_you_mean

# Tokens and position tables are not weights of a map: decaying them pulls the representation to the origin.
NO_DECAY_NAMES = ("cls_token", "reg_token", "dist_token", "mask_token", "pos_embed", "relative_position_bias_table")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: without decay (norms, biases, tokens, positions) and with it."""
    exempt = [n for n, _ in module.named_parameters() if n.rpartition(".")[2] in NO_DECAY_NAMES]
    return param_groups_weight_decay(module, weight_decay, no_weight_decay_list=exempt)


def layer_decay_groups(module: nn.Module, lr: float, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters by layer, each group with its own ``lr``: ``lr * layer_decay ** (layers above it)``.

    The layers are those of timm's ``group_matcher`` of the net inside ``module`` (for nets without one: every twelve
    parameters); all that lies outside the net, such as a linear head, is the layer on top. Decay of weights as in
    :func:`parameter_groups`. Layer-wise rates: Clark et al. 2020 (arXiv 2003.10555), appendix A; Bao et al. 2022.
    """
    prefix, net = next(((n, m) for n, m in module.named_modules() if hasattr(m, "pretrained_cfg")), ("", nn.Identity()))
    start = f"{prefix}." if prefix else ""
    inside = {id(p) for p in net.parameters()}
    # The matcher's patterns begin where the names of the net itself do; the slash keeps them off all other names.
    names = [(n.removeprefix(start) if id(p) in inside else f"outside/{n}", p) for n, p in module.named_parameters()]
    view = SimpleNamespace(named_parameters=lambda: iter(names), pretrained_cfg={"classifier": "outside/"})
    if hasattr(net, "group_matcher"):
        view.group_matcher = net.group_matcher
    exempt = [n for n, _ in names if n.rpartition(".")[2] in (*NO_DECAY_NAMES, "bias")]
    groups = param_groups_layer_decay(view, weight_decay, exempt, layer_decay=layer_decay)  # type: ignore[arg-type]
    # timm leaves it to its own schedulers to read lr_scale: every other one would train all layers at one rate.
    return [{"params": g["params"], "weight_decay": g["weight_decay"], "lr": lr * g["lr_scale"]} for g in groups]


def create_optimizer(
    module: nn.Module,
    name: str,
    lr: float,
    weight_decay: float,
    options: dict[str, Any] | None = None,
    layer_decay: float = 1.0,
    key: str = "optim.name",
) -> torch.optim.Optimizer:
    """An optimizer of timm by name, with our parameter groups.

    Args:
        layer_decay: factor on the rate from each layer to the one below; 1 for none. See :func:`layer_decay_groups`.
        key: where the user wrote the name, for messages.

    Raises:
        RecipeError: timm does not know the optimizer, or it refuses the options.
    """
    check_optimizer(name, key)
    if layer_decay == 1.0:
        groups = parameter_groups(module, weight_decay)
    else:
        groups = layer_decay_groups(module, lr, weight_decay, layer_decay)
    try:
        return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, **(options or {}))
    except TypeError as error:
        raise RecipeError(f"{key} {name!r} does not take these options: {error}") from error


def check_optimizer(name: str, key: str = "optim.name") -> None:
    """Raise :class:`RecipeError`, naming ``key``, where timm knows no optimizer of this name."""
    known = [str(optimizer) for optimizer in list_optimizers()]
    if name not in known:
        raise RecipeError(f"{key} {name!r} is no optimizer of timm", did_you_mean(name, known))


def cosine_with_warmup(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """The factor on the learning rate for the update number ``step`` (from 0).

    Linear from ``1 / warmup`` over the first ``warmup`` updates, then half a cosine down to ``floor`` at the last.
    """
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
