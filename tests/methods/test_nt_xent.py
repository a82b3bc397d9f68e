"""NT-Xent in blocks of rows against lightly's; tests/contract/test_processes.py has several processes."""

from __future__ import annotations

import pytest
import torch
from lightly.loss import NTXentLoss
from torch import Tensor, nn

from ssl_mednet.methods.nt_xent import NTXent

IMAGES, WIDTH, TEMPERATURE = 23, 16, 0.2


def embeddings(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(IMAGES, WIDTH, generator=random).to(dtype) for _ in range(2)]


def outcome(loss: nn.Module, views: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    leaves = [view.clone().requires_grad_() for view in views]
    value = loss(*leaves)
    value.backward()
    return value.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


def check_equal(at_once: int, views: list[Tensor]) -> None:
    found, gradients = outcome(NTXent(TEMPERATURE, at_once), views)
    expected, theirs = outcome(NTXentLoss(TEMPERATURE, gather_distributed=True), views)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_once", [1, 5 * 2 * IMAGES, 2**22])  # one row, five rows, all of them
def test_loss_and_gradients_are_those_of_the_whole_matrix(at_once: int, dtype: torch.dtype) -> None:
    check_equal(at_once, embeddings(1, dtype))


def test_mixed_precision_is_within_its_rounding() -> None:
    views = embeddings(2)
    expected, theirs = outcome(NTXent(TEMPERATURE), views)
    with torch.autocast("cpu", torch.bfloat16):
        found, gradients = outcome(NTXent(TEMPERATURE, 5 * 2 * IMAGES), views)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=5e-3, atol=0)
    torch.testing.assert_close(gradients, theirs, rtol=0.05, atol=0.01 * float(theirs[0].abs().max()))


def test_what_is_kept_for_the_backward_pass_grows_with_the_batch_and_not_with_its_square() -> None:
    def kept(images: int) -> int:
        views = [torch.randn(images, WIDTH, requires_grad=True) for _ in range(2)]
        storages: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = NTXent(TEMPERATURE, at_once=2**14)(*views)
        assert loss.requires_grad
        return sum(storages.values())

    assert kept(1024) < 5 * kept(256)  # 16 times, were it the whole matrix
