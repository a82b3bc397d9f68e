"""The last layer of an EfficientNet, made from statistics of images instead of by training."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ssl_mednet.errors import TrainingError

# Chosen on validation splits, see eval/search.md; at full whitening (0.5) few labels have more noise to fit.
POWER, FLOOR, BIAS = 0.25, 1e-3, 0.5


def can_whiten(net: nn.Module) -> bool:
    """Whether ``net`` ends in a pointwise convolution, batch normalisation and activation before its pooling.

    So do nearly all of timm's EfficientNets, to which MobileNetV2 and MnasNet belong.
    """
    conv = getattr(net, "conv_head", None)
    pointwise = isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.bias is None
    return isinstance(net, EfficientNet) and pointwise and isinstance(net.bn2, _BatchNorm)


@torch.no_grad()
def whitened(net: nn.Module, batches: Iterable[Tensor], seed: int) -> nn.Module:
    """A copy of a net whose last convolution is not the trained one: it passes on all that the map before it says.

    A contrastive loss leaves little in the layers next to it of what it is to be invariant to, and cutting them off
    helps (Bordes et al. 2022, *Guillotine regularization*, arXiv 2206.13378). The pretrained architecture wants its
    last layer, so another one takes its place: the map of C channels is whitened in part (each principal component is
    divided by its variance to the power of 0.25) and turned at random, into as many features as the layer has; they
    are normalised, and the activation before the pooling makes random features of them (Rahimi and Recht 2008,
    *Weighted sums of random kitchen sinks*). The whitening is the symmetric one (ZCA), which does not depend on the
    signs of the components, so rounding changes the layer by rounding only.

    Args:
        net: one that :func:`can_whiten`.
        batches: images ``[B, C, H, W]``, normalised, on the device of the net; a few thousand in all.
        seed: of the rotations.

    Raises:
        TrainingError: the map is the same for all images, or not finite, so that there is nothing to pass on.
    """
    assert isinstance(net, EfficientNet)
    net = copy.deepcopy(net).eval()
    conv, norm = net.conv_head, net.bn2
    mean, covariance = _statistics(net, conv, batches)
    spread = float(covariance.diagonal().max())
    if not 0 < spread < float("inf") or not covariance.isfinite().all():
        raise TrainingError(
            "the map before the last layer is constant or not finite", "backbone.last_layer=trained leaves it as it is"
        )
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp(min=0)
    scales = (values + FLOOR * values[-1]).pow(-POWER)
    weight = (vectors * scales) @ vectors.T @ _rotations(conv.in_channels, conv.out_channels, seed)  # [C, D]
    conv.weight.copy_(weight.T[:, :, None, None])
    norm.weight.fill_(1.0)
    norm.bias.fill_(BIAS)
    norm.running_mean.copy_(mean @ weight)
    norm.running_var.copy_((weight * (covariance @ weight)).sum(0))
    return net


def _statistics(net: nn.Module, layer: nn.Module, batches: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean ``[C]`` and covariance ``[C, C]`` of the channels of what goes into ``layer``, float64 on the CPU."""
    count, total, products = 0, torch.zeros(()), torch.zeros(())

    def add(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal count, total, products
        points = inputs[0].movedim(1, -1).flatten(0, -2).cpu().double()
        count, total, products = count + len(points), total + points.sum(0), products + points.T @ points

    handle = layer.register_forward_pre_hook(add)
    try:
        for images in batches:
            net(images)
    finally:
        handle.remove()
    mean = total / count
    return mean, products / count - torch.outer(mean, mean)


def _rotations(rows: int, columns: int, seed: int) -> Tensor:
    """Random orthogonal matrices side by side, uniform (Haar), ``[rows, columns]`` float64."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    while len(found) * rows < columns:
        q, r = torch.linalg.qr(torch.randn(rows, rows, dtype=torch.float64, generator=generator))
        found.append(q * r.diagonal().sign())
    return torch.cat(found, 1)[:, :columns]
