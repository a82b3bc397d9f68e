"""Nets for three channels that take gray images: kernels summed, what the channels differ by put elsewhere."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ssl_mednet.errors import ArtifactError

_HINT = "data.channels=color data.convert=true takes them as they are"
State = tuple[dict[str, Tensor], tuple[float, ...], tuple[float, ...]]


def three_channels(net: nn.Module) -> State:
    """Tensors of a net with its ``pretrained_cfg`` as they are, mean and deviation of the channels."""
    mean, std = _statistics(net)
    return net.state_dict(), tuple(mean.float().tolist()), tuple(std.float().tolist())


def one_channel(net: nn.Module, said: str) -> State:
    """Tensors of the same net for one channel, normalised by the means of the three channels' statistics.

    Its kernels are sums over the channels, weighted so that a gray image gives what it gave as three equal channels,
    each normalised with its own statistics. What these differ by is a constant a kernel. It goes into the bias of the
    stem, or into the batch norm that takes its output; beside the border of the image, which is padded with zeros,
    that is exact. A stem of several branches is several stems.

    Args:
        net: with timm's ``pretrained_cfg``; it is left in evaluation mode.
        said: what the user called it, for messages.

    Raises:
        ArtifactError: the constant has no place to go to, or the kernels are not used as they are.
    """
    (mean, std), state = _statistics(net), dict(net.state_dict())
    level, spread = mean.mean(), std.mean()
    for name in _stems(net, said):
        stem, wide = net.get_submodule(name), state[f"{name}.weight"].double()
        if not _is_linear(stem):
            raise ArtifactError(f"{said}: its stem standardises its kernels, so they cannot be summed", _HINT)
        kernels = wide / std.view(1, 3, 1, 1)  # [O, 3, H, W]
        shift = (kernels.sum(dim=(2, 3)) * (level - mean)).sum(dim=1)  # [O]
        state[f"{name}.weight"] = (kernels * spread).sum(dim=1, keepdim=True).to(stem.weight.dtype)
        if stem.bias is not None:
            place, sign = f"{name}.bias", 1
        elif shift.abs().max() > 1e-6:
            place, sign = f"{_norm_behind(net, stem, said)}.running_mean", -1
        else:
            continue
        state[place] = (state[place] + sign * shift).to(state[place].dtype)
    return state, (round(float(level), 6),), (round(float(spread), 6),)


def _statistics(net: nn.Module) -> tuple[Tensor, Tensor]:
    config: Any = net.pretrained_cfg
    return torch.tensor(config["mean"], dtype=torch.float64), torch.tensor(config["std"], dtype=torch.float64)


def _stems(net: nn.Module, said: str) -> Sequence[str]:
    """Names of the convolutions that see the image."""
    config: Any = net.pretrained_cfg
    stem = config.get("first_conv") or ()
    names = [stem] if isinstance(stem, str) else list(stem)
    found = dict(net.named_modules())
    if not names or any(not isinstance(m := found.get(n), nn.Conv2d) or m.weight.shape[1] != 3 for n in names):
        raise ArtifactError(f"{said}: which of its layers sees the image is not known", _HINT)
    return names


@torch.no_grad()
def _is_linear(stem: nn.Module) -> bool:
    """Whether twice the kernel gives twice the output: not so where it is standardised first (arXiv 1903.10520)."""
    once = copy.deepcopy(stem).eval()
    if once.bias is not None:
        once.bias.zero_()  # type: ignore[operator]
    twice = copy.deepcopy(once)
    twice.weight.mul_(2)  # type: ignore[operator]
    side = 4 * max(stem.kernel_size)  # type: ignore[arg-type]
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    return torch.allclose(twice(images), 2 * once(images), rtol=1e-3, atol=1e-6)


@torch.no_grad()
def _norm_behind(net: nn.Module, stem: nn.Module, said: str) -> str:
    """Name of the batch norm that takes the output of this stem, and is the only one that takes it."""
    made: list[Tensor] = []
    takers: list[str] = []

    def watch(name: str, module: nn.Module) -> Any:
        def look(_: nn.Module, given: tuple[Any, ...]) -> None:
            if made and any(one is made[0] for one in given):
                takers.append(name)

        return module.register_forward_pre_hook(look)

    # Norms of timm hold drop-out and activation; other modules with children only hand on what they are given.
    inner = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d) or not any(m.children())]
    hooks = [watch(name, m) for name, m in inner if not isinstance(m, nn.Identity)]
    hooks.append(stem.register_forward_hook(lambda _, given, out: made.append(out)))
    config: Any = net.pretrained_cfg
    net.eval()
    try:
        net(torch.zeros(1, *config["input_size"]))
    finally:
        for hook in hooks:
            hook.remove()
    norm = net.get_submodule(takers[0]) if len(takers) == 1 else None
    if isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None:
        return takers[0]
    raise ArtifactError(
        f"{said}: its channels differ in their means, and its stem has neither bias nor batch norm", _HINT
    )
