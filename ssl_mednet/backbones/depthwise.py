"""Depthwise convolutions whose kernel is larger than their map: weight gradients by matrix products on a CPU.

Without bf16, torch's kernels for a CPU (oneDNN) have no fast path for these weight gradients: in EfficientNet-Lite0 at
64 px, where kernels of 5 x 5 see maps of 4 x 4 and 2 x 2 points, they take half of a training step.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

MOST_PAIRS = 4096  # of output with input positions: a product of all pairs pays on small maps only
Sizes = tuple[int, ...]


def quicken(net: nn.Module) -> None:
    """Turn the plain depthwise convolutions of ``net`` into :class:`DepthwiseConv2d`, in place; parameters stay."""
    for module in net.modules():
        if type(module) is nn.Conv2d and _plain_depthwise(module):
            module.__class__ = DepthwiseConv2d


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise ``nn.Conv2d``: the same output, and the same gradients up to rounding, but not those of gradients."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._is_slow(input, weight):
            return super()._conv_forward(input, weight, bias)
        y: Tensor = _ByPairs.apply(input, weight, self.stride, self.padding)
        return y if bias is None else y + bias[:, None, None]

    def _is_slow(self, x: Tensor, weight: Tensor) -> bool:
        trained = torch.is_grad_enabled() and weight.requires_grad
        plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.dim() == 4
        if not (trained and plain) or torch.is_autocast_enabled("cpu"):
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        small = any(n < k for n, k in zip(x.shape[2:], self.kernel_size, strict=True))
        return small and self._pairs(x) <= MOST_PAIRS

    def _pairs(self, x: Tensor) -> int:
        assert not isinstance(self.padding, str)
        sizes = zip(x.shape[2:], self.kernel_size, self.stride, self.padding, strict=True)
        return math.prod(n * ((n + 2 * p - k) // s + 1) for n, k, s, p in sizes)


def _plain_depthwise(conv: nn.Conv2d) -> bool:
    each = conv.groups == conv.in_channels == conv.out_channels > 1
    return each and conv.dilation == (1, 1) and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)


class _ByPairs(torch.autograd.Function):
    """Weight gradients from the products of every output position with every input position, summed over the images."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, stride: Sizes, padding: Sizes) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            rest = (ctx.stride, ctx.padding, (1, 1), False, (0, 0), len(weight), [True, False, False])
            grad_x = torch.ops.aten.convolution_backward(grad, x, weight, None, *rest)[0]
        taps = _taps(tuple(x.shape[2:]), tuple(grad.shape[2:]), tuple(weight.shape[2:]), ctx.stride, ctx.padding)
        of_grad, of_x = (t.flatten(2).permute(1, 2, 0) for t in (grad, x))  # [C, positions, B]
        pairs = of_grad @ of_x.mT
        return grad_x, (pairs.flatten(1) @ taps).view_as(weight), None, None


@lru_cache(maxsize=64)
def _taps(size: Sizes, out: Sizes, kernel: Sizes, stride: Sizes, padding: Sizes) -> Tensor:
    """``[output positions * input positions, taps of the kernel]``: 1 where a pair meets at a tap."""
    (height, width), (rows, columns), (down, across) = size, out, kernel
    taps = torch.zeros(rows, columns, height, width, down, across)
    for r, c, i, j in torch.cartesian_prod(*map(torch.arange, (rows, columns, down, across))).tolist():
        y, x = r * stride[0] + i - padding[0], c * stride[1] + j - padding[1]
        if 0 <= y < height and 0 <= x < width:
            taps[r, c, y, x, i, j] = 1
    return taps.view(rows * columns * height * width, down * across)
