"""Batch normalisation over what several processes hold, and under passes that are repeated."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def has_batch_norm(module: nn.Module) -> bool:
    """Whether some layer normalises by the statistics of its batch."""
    return any(isinstance(m, _BatchNorm) for m in module.modules())


def synchronise(module: nn.Module, device: str) -> None:
    """Replace every batch normalisation inside ``module`` by one over the batches of all processes.

    Names, values and results on one process stay as they are. On a GPU it is torch's own, which knows no CPU.
    """
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, SyncedBatchNorm(child) if device == "cpu" else convert_sync_batchnorm(child))
        else:
            synchronise(child, device)


class SyncedBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all processes, on the CPU (Ioffe and Szegedy 2015, arXiv 1502.03167).

    In training every process normalises by mean and variance of the global batch, and the gradient flows through
    both to the inputs of every process; so with the loss averaged over processes, gradients are those of one process
    with the whole batch. Running statistics are those of one process, too. In evaluation nothing is exchanged.

    Args:
        norm: the layer to stand in for; its parameters and buffers are taken over, as are drop-out and activation
            of timm's fused layers.
    """

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.drop = getattr(norm, "drop", nn.Identity())
        self.act = getattr(norm, "act", nn.Identity())
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected [B, C, ...], not {[*input.shape]}")

    def forward(self, input: Tensor) -> Tensor:
        """``[B, C, ...]`` of this process, normalised."""
        if not self.training or not dist.is_initialized() or dist.get_world_size() == 1:
            return self.act(self.drop(super().forward(input)))
        self._check_input_dim(input)
        out, mean, variance, count = _NormaliseTogether.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            self._follow(mean, variance * (count / (count - 1)))
        return self.act(self.drop(out))

    @torch.no_grad()
    def _follow(self, mean: Tensor, unbiased: Tensor) -> None:
        assert self.num_batches_tracked is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        self.num_batches_tracked.add_(1)
        rate = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), rate)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), rate)


class _NormaliseTogether(torch.autograd.Function):
    """Output, mean, biased variance and number of values a channel; the last three carry no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, ...]:
        axes = [0, *range(2, x.ndim)]
        wide = torch.promote_types(x.dtype, torch.float32)
        variance, mean = torch.var_mean(x.to(wide), axes, correction=0)
        packed = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])])
        gathered = [torch.empty_like(packed) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, packed)
        means, variances, counts = torch.stack(gathered).split([len(mean), len(mean), 1], dim=1)
        count = counts.sum()
        # Chan, Golub and LeVeque 1979: within the processes and between them; no difference of large squares.
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count
        out = nn.functional.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        ctx.save_for_backward(x, weight, mean, torch.rsqrt(variance + eps), count)
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        axes, shape = [0, *range(2, x.ndim)], [1, -1] + [1] * (x.ndim - 2)
        gradient = gradients[0].to(mean.dtype)
        unit = (x.to(mean.dtype) - mean.view(shape)) * scale.view(shape)
        # The parameters' gradients stay those of this process: they are averaged with all others.
        to_bias, to_weight = gradient.sum(axes), (gradient * unit).sum(axes)
        sums = torch.stack([to_bias, to_weight])
        dist.all_reduce(sums)
        first, second = (sums / count).view(2, *shape)
        factor = scale if weight is None else scale * weight.to(scale.dtype)
        to_x = (gradient - first - unit * second) * factor.view(shape)
        known = weight is not None
        return to_x.to(x.dtype), to_weight if known else None, to_bias if known else None, None


def repeat_without_trace(module: nn.Module) -> None:
    """Let a pass that is repeated during the backward pass leave the running statistics of ``module`` alone.

    Checkpointing runs layers twice; without this the statistics would move twice a step.
    """
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.track_running_stats:
            layer.register_forward_pre_hook(functools.partial(_count_first_pass_only, momentum=layer.momentum))


def _count_first_pass_only(layer: Any, inputs: Any, momentum: float | None) -> None:
    # The number of the backward pass that is under way, -1 outside of any; torch's checkpointing reads it as well.
    # Statistics cannot be switched off for the second pass: it must save as many tensors as the first one did.
    first = torch._C._current_graph_task_id() == -1
    layer.momentum = momentum if first else 0.0
    if not first and layer.training:
        layer.num_batches_tracked.sub_(1)
