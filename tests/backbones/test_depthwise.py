"""Weight gradients of depthwise convolutions on small maps: those of torch, faster."""

import copy

import pytest
import timm
import torch
from torch import nn

from ssl_mednet.backbones.depthwise import DepthwiseConv2d, quicken

CASES = [  # map, kernel, stride, padding, whether the gradient is ours
    ((4, 4), 5, 1, 2, True),
    ((4, 4), 5, 2, 2, True),
    ((2, 2), 3, 1, 1, True),
    ((3, 6), 5, 2, 2, True),
    ((4, 3), (5, 3), (1, 2), (2, 1), True),
    ((1, 1), 7, 1, 3, True),
    ((6, 6), 5, 2, 2, False),
    ((8, 8), 3, 2, 1, False),
    ((3, 200), 5, 1, 2, False),  # too many pairs
]


def pair(kernel, stride, padding, bias=True, **more) -> tuple[nn.Conv2d, nn.Conv2d]:
    torch.manual_seed(0)
    stock = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=bias, **more)
    ours = copy.deepcopy(stock)
    quicken(ours)
    return stock, ours


def gradients(conv: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, and gradients of input and parameters, of a loss that differs at every position."""
    conv.zero_grad()
    x = x.clone().requires_grad_()
    y = conv(x)
    (y.float() * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in conv.parameters())]


def is_ours(conv: nn.Module, x: torch.Tensor) -> bool:
    names, todo = set(), [conv(x).grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            names.add(type(node).__name__)
            todo += [f for f, _ in node.next_functions]
    return any("ByPairs" in name for name in names)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("size", "kernel", "stride", "padding", "ours"), CASES)
def test_gradients_are_those_of_torch(size, kernel, stride, padding, ours, layout) -> None:
    stock, quick = pair(kernel, stride, padding)
    x = torch.randn(5, 6, *size, generator=torch.Generator().manual_seed(1)).to(memory_format=layout)
    assert is_ours(quick, x) == ours
    assert not is_ours(stock, x)
    for a, b in zip(gradients(stock, x), gradients(quick, x), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-5)


def test_bfloat16_evaluation_and_frozen_weights_keep_the_kernels_of_torch() -> None:
    _, quick = pair(5, 1, 2)
    x = torch.randn(2, 6, 4, 4)
    assert is_ours(quick, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_ours(quick, x)
    with torch.no_grad():
        assert quick(x).grad_fn is None
    assert quick(x[0]).shape == x[0].shape  # one image without a batch
    assert not is_ours(quick.double(), x.double())
    assert not is_ours(quick.float().requires_grad_(False), x.requires_grad_())


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(6, 12, 5, padding=2, groups=6),
        nn.Conv2d(6, 6, 5, padding=2),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6),
        nn.Conv2d(6, 6, 5, padding="same", groups=6),
        nn.Conv2d(6, 6, 5, padding=2, groups=6, padding_mode="reflect"),
        nn.Conv2d(1, 1, 5, padding=2),
    ],
)
def test_other_convolutions_are_left_alone(conv) -> None:
    quicken(conv)
    assert type(conv) is nn.Conv2d


def test_a_whole_net_trains_as_before() -> None:
    torch.manual_seed(0)
    stock = timm.create_model("efficientnet_lite0", num_classes=0, in_chans=1).train()
    quick = copy.deepcopy(stock)
    quicken(quick)
    assert list(quick.state_dict()) == list(stock.state_dict())
    assert sum(isinstance(m, DepthwiseConv2d) for m in copy.deepcopy(quick).modules()) == 16
    x = torch.randn(8, 1, 64, 64).to(memory_format=torch.channels_last)
    assert is_ours(quick, x)
    for net in (stock, quick):
        net(x).square().mean().backward()
    for (name, a), b in zip(stock.named_parameters(), quick.parameters(), strict=True):
        scale = float(a.grad.abs().max())
        torch.testing.assert_close(b.grad, a.grad, rtol=0, atol=1e-4 * scale, msg=name)
