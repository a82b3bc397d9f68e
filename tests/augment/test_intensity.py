"""Properties every intensity augmentation must have, and the formulas of each."""

from __future__ import annotations

import kornia.augmentation as K
import pytest
import torch
from scipy.ndimage import gaussian_filter

from ssl_mednet.augment.intensity import (
    BrightnessContrast,
    ColorJitter,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    normal_field,
)
from ssl_mednet.augment.ops import RowOp, run
from ssl_mednet.draws import Draws

OPS: list[type[RowOp]] = [BrightnessContrast, Gamma, GaussianBlur, GaussianNoise, ColorJitter]
every = pytest.mark.parametrize("op", OPS, ids=lambda o: o.__name__)


def images(n: int = 16, channels: int = 3, size: int = 24) -> torch.Tensor:
    return torch.rand(n, channels, size, size)


def draws(n: int) -> Draws:
    return Draws(0, 0, torch.arange(n))


@every
def test_range_shape_and_type_stay(op: type[RowOp]) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        x = images().to(dtype)
        out = run(op(p=1.0), x, draws(16), "x")
        assert out.shape == x.shape
        assert out.dtype == dtype
        assert out.min() >= 0
        assert out.max() <= 1


@every
def test_it_changes_something_and_strength_zero_does_not(op: type[RowOp]) -> None:
    x = images()
    assert (run(op(p=1.0), x, draws(16), "x") - x).abs().max() > 0.01
    torch.testing.assert_close(run(op(p=1.0, strength=0.0), x, draws(16), "x"), x, atol=2e-6, rtol=0)


@every
def test_a_row_gets_the_same_result_in_any_company(op: type[RowOp]) -> None:
    x, rows = images(), draws(16)
    together = run(op(p=0.5), x, rows, "x")
    for index in (torch.tensor([3]), torch.tensor([7, 2, 11])):
        apart = run(op(p=0.5), x[index], rows.take(index), "x")
        torch.testing.assert_close(apart, together[index], atol=1e-6, rtol=0)


@every
def test_the_input_is_left_alone_and_gradients_are_finite(op: type[RowOp]) -> None:
    x = images()
    x[:, :, :4] = 0.0  # where powers and roots are in danger
    x[:, :, -4:] = 1.0
    kept = x.clone()
    x.requires_grad_()
    run(op(p=1.0), x, draws(16), "x").sum().backward()
    assert torch.equal(x.detach(), kept)
    assert torch.isfinite(x.grad).all()


@every
def test_it_stands_in_kornias_own_pipeline(op: type[RowOp]) -> None:
    torch.manual_seed(0)
    out = K.AugmentationSequential(op(p=0.5), K.RandomHorizontalFlip(p=0.5))(images())
    assert out.shape == (16, 3, 24, 24)


def test_kornias_own_augmentations_can_be_mixed_in_and_depend_on_the_row_only() -> None:
    x, rows = images(8), draws(8)
    op = K.RandomSharpness(0.9, p=0.7)
    state = torch.get_rng_state()
    together = run(op, x, rows, "sharp")
    assert torch.equal(torch.get_rng_state(), state)
    index = torch.tensor([5, 1])
    torch.testing.assert_close(run(op, x[index], rows.take(index), "sharp"), together[index])
    assert (together - x).abs().max() > 1e-3


def test_blur_is_the_gaussian_of_scipy() -> None:
    x = images(4, 1, 32)
    sigma = torch.tensor([0.0, 0.4, 0.7, 0.8])
    out = GaussianBlur(0.8).change(x, {"sigma": sigma})
    for i, s in enumerate(sigma.tolist()):
        expected = gaussian_filter(x[i, 0].numpy(), s, mode="mirror", radius=3) if s else x[i, 0].numpy()
        torch.testing.assert_close(out[i, 0], torch.tensor(expected), atol=1e-4, rtol=0)


def test_noise_has_the_deviation_it_was_given() -> None:
    grey = torch.full((64, 1, 64, 64), 0.5)
    place = torch.linspace(0, 1, 65)[:-1]
    out = GaussianNoise(0.1).change(grey, {"sigma": torch.full((64,), 0.05), "place": place})
    assert abs(out.std().item() - 0.05) < 5e-4
    assert abs(out.mean().item() - 0.5) < 5e-4
    assert not torch.equal(out[0], out[1])


def test_noise_fields_of_two_rows_are_not_correlated() -> None:
    field = normal_field(torch.tensor([0.1, 0.5, 0.9]), (1, 64, 64), torch.device("cpu")).flatten(1)
    assert (torch.corrcoef(field) - torch.eye(3)).abs().max() < 0.06


def test_brightness_and_contrast_follow_their_formula() -> None:
    x = images(1) * 0.4 + 0.3
    out = BrightnessContrast().change(x, {"brightness": torch.tensor([1.1]), "contrast": torch.tensor([0.8])})
    torch.testing.assert_close(out, (x - x.mean()) * 0.8 + x.mean() * 1.1)


def test_a_hue_turn_keeps_gray_gray_and_luma() -> None:
    gray = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()
    params = {"saturation": torch.full((4,), 1.3), "angle": torch.full((4,), 0.5)}
    torch.testing.assert_close(ColorJitter().change(gray, params), gray, atol=1e-5, rtol=0)
    color = torch.rand(4, 3, 8, 8) * 0.3 + 0.35
    turned = ColorJitter().change(color, params | {"saturation": torch.ones(4)})
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((turned * luma).sum(1), (color * luma).sum(1), atol=1e-4, rtol=0)
    assert (turned - color).abs().max() > 0.01


def test_the_probability_is_respected() -> None:
    x = images(2000, 1, 4)
    changed = (run(Gamma(p=0.3), x, draws(2000), "g") != x).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.3) < 0.04
