"""What holds for every registered augmentation: range, identity at strength 0, types, gradients, rows on their own."""

from __future__ import annotations

import kornia.augmentation as K
import pytest
import torch

from ssl_mednet.augment.ops import OPS, RowOp, create_op, numbers_of, run

every = pytest.mark.parametrize("name", list(OPS))


def made(name: str, strength: float = 1.0) -> RowOp:
    op = create_op(name, {"p": 1.0}, strength)
    assert isinstance(op, RowOp)
    return op


def pictures(op: RowOp, n: int = 8, size: int = 64) -> torch.Tensor:
    """Smooth pictures with exact 0 and 1 in them; color where the op wants it, gray otherwise."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(n, 3 if op.color_only else 1, 6, 6, generator=generator)
    x = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1)
    x[:, :, :3], x[:, :, -3:] = 0.0, 1.0
    return x


@every
def test_the_range_the_shape_and_the_input_stay(name: str) -> None:
    op = made(name)
    for edge in (None, 0.0, 1 - 2**-24):
        x = pictures(op)
        u = torch.rand(8, op.numbers) if edge is None else torch.full((8, op.numbers), edge)
        before = x.clone()
        y = op.change(x, op.parameters_from(u))
        assert y.shape == x.shape
        assert y.min() >= 0
        assert y.max() <= 1
        assert torch.equal(x, before)


@every
def test_strength_zero_is_the_identity_and_half_is_less(name: str) -> None:
    x = pictures(made(name))
    u = torch.rand(8, made(name).numbers, generator=torch.Generator().manual_seed(0))

    def effect(strength: float) -> float:
        op = made(name, strength)
        return float((op.change(x, op.parameters_from(u)) - x).abs().mean())

    nothing = made(name, 0.0)
    torch.testing.assert_close(nothing.change(x, nothing.parameters_from(u)), x, atol=1e-4, rtol=0)
    assert 0 < effect(0.5) < effect(1.0) * 1.02


@every
def test_half_precision_gives_nearly_the_same(name: str) -> None:
    op = made(name)
    x = pictures(op)
    params = op.parameters_from(torch.rand(8, op.numbers, generator=torch.Generator().manual_seed(1)))
    half = op.change(x.bfloat16(), params)
    assert half.dtype == torch.bfloat16
    assert half.min() >= 0
    assert half.max() <= 1
    assert (half.float() - op.change(x, params)).abs().mean() < 0.02


@every
def test_gradients_are_finite(name: str) -> None:
    op = made(name)
    x = pictures(op).requires_grad_()
    op.change(x, op.parameters_from(torch.rand(8, op.numbers))).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@every
def test_a_row_does_not_depend_on_the_rows_beside_it(name: str) -> None:
    op = made(name)
    x = pictures(op)
    u = torch.rand(8, numbers_of(op))
    whole = run(op, x, u)
    some = torch.tensor([6, 1, 4])
    # The last bits of a row depend on where it stands in a vector register; steep edges make 7e-5 of them.
    torch.testing.assert_close(run(op, x[some], u[some]), whole[some], atol=2e-4, rtol=0)


@every
def test_equal_channels_stay_equal(name: str) -> None:
    """A gray picture in three channels comes out gray, unless the op is there to change color."""
    op = made(name)
    if op.color_only:
        return
    x = pictures(op).expand(-1, 3, -1, -1).contiguous()
    y = op.change(x, op.parameters_from(torch.rand(8, op.numbers)))
    if name not in ("gaussian_noise", "jpeg"):
        torch.testing.assert_close(y[:, 0], y[:, 2], atol=1e-5, rtol=0)


@every
def test_it_is_a_kornia_augmentation(name: str) -> None:
    op = made(name)
    x = pictures(op)
    chain = K.AugmentationSequential(op, K.RandomHorizontalFlip(p=0.0))
    y = chain(x)
    assert y.shape == x.shape
    again = chain(x, params=chain._params)
    torch.testing.assert_close(again, y)


def test_augmentations_of_kornia_depend_on_the_row_only() -> None:
    op = create_op("kornia.RandomSolarize", {"p": 1.0}, 1.0)
    x = torch.rand(6, 1, 16, 16)
    u = torch.rand(6, numbers_of(op))
    whole = run(op, x, u)
    some = torch.tensor([4, 2])
    torch.testing.assert_close(run(op, x[some], u[some]), whole[some])
    assert create_op("kornia.RandomSolarize", {"p": 0.4}, 0.5).p == pytest.approx(0.2)
