"""Parameter groups, optimizer and schedule, shared by pretraining and fine-tuning."""

from __future__ import annotations

import math
from typing import Any

import torch
from timm.optim import create_optimizer_v2, list_optimizers, param_groups_weight_decay
from torch import nn

from ssl_mednet.errors import RecipeError, did_you_mean

# Tokens and position tables are not weights of a map: decaying them pulls the representation to the origin.
NO_DECAY_NAMES = ("cls_token", "reg_token", "dist_token", "mask_token", "pos_embed", "relative_position_bias_table")


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: without decay (norms, biases, tokens, positions) and with it."""
    exempt = {n for n, _ in module.named_parameters() if n.rpartition(".")[2] in NO_DECAY_NAMES}
    return param_groups_weight_decay(module, weight_decay, no_weight_decay_list=sorted(exempt))


def create_optimizer(
    module: nn.Module, name: str, lr: float, weight_decay: float, options: dict[str, Any] | None = None
) -> torch.optim.Optimizer:
    """An optimizer of timm by name, with our parameter groups.

    Raises:
        RecipeError: timm does not know the optimizer, or it refuses the options.
    """
    check_optimizer(name)
    try:
        groups = parameter_groups(module, weight_decay)
        return create_optimizer_v2(groups, opt=name, lr=lr, weight_decay=weight_decay, **(options or {}))
    except TypeError as error:
        raise RecipeError(f"optim.name {name!r} does not take these options: {error}") from error


def check_optimizer(name: str) -> None:
    """Raise :class:`RecipeError` where timm knows no optimizer of this name."""
    known = [str(optimizer) for optimizer in list_optimizers()]
    if name not in known:
        raise RecipeError(f"optim.name {name!r} is no optimizer of timm", did_you_mean(name, known))


def cosine_with_warmup(step: int, total: int, warmup: int, floor: float = 0.0) -> float:
    """The factor on the learning rate for the update number ``step`` (from 0).

    Linear from ``1 / warmup`` over the first ``warmup`` updates, then half a cosine down to ``floor`` at the last.
    """
    if step < warmup:
        return (step + 1) / warmup
    share = min(1.0, (step - warmup) / max(1, total - 1 - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
