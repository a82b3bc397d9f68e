"""Stain jitter: the vectors of Ruifrok and Johnston, Beer-Lambert exactly, and glass left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_mednet.augment.physics.stain import (
    RGB_FROM_HED,
    StainJitter,
    hed_to_rgb,
    optical_density,
    rgb_to_hed,
    tissue_weight,
)
from ssl_mednet.imaging.phantoms import phantom

VECTORS = np.array(RGB_FROM_HED)


def stained(haematoxylin: float, eosin: float, size: int = 8) -> torch.Tensor:
    """A flat picture of these amounts, in nats."""
    amounts = torch.tensor([haematoxylin, eosin, 0.0]).view(1, 3, 1, 1).expand(1, 3, size, size)
    return hed_to_rgb(amounts)


def params(scale: tuple[float, float], bias: tuple[float, float], rows: int = 1) -> dict[str, torch.Tensor]:
    return {"scale": torch.tensor([scale] * rows), "bias": torch.tensor([bias] * rows)}


def section(index: int = 0, size: int = 64) -> torch.Tensor:
    pixels = phantom("color", 5 * index, size).image.pixels
    return torch.tensor(pixels.copy()).permute(2, 0, 1)[None].float() / 255


@pytest.mark.parametrize("seed", range(4))
def test_the_round_trip_is_exact_down_to_the_floor(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rgb = 1 / 255 + (254 / 255) * torch.rand(4, 3, 16, 16, generator=generator)
    rgb[0, :, 0] = 1 / 255
    rgb[0, :, 1] = 1.0
    assert (hed_to_rgb(rgb_to_hed(rgb)) - rgb).abs().max() < 1e-4


def test_amounts_are_those_of_numpy() -> None:
    rgb = torch.rand(1, 3, 8, 8).clamp(min=1 / 255)
    expected = -np.log(rgb[0].permute(1, 2, 0).double().numpy()) @ np.linalg.inv(VECTORS)
    np.testing.assert_allclose(rgb_to_hed(rgb)[0].permute(1, 2, 0).numpy(), expected, atol=1e-4)


def test_one_dye_alone_is_found_alone() -> None:
    for i in range(3):
        rgb = torch.tensor(np.exp(-0.8 * VECTORS[i]), dtype=torch.float32).view(1, 3, 1, 1)
        torch.testing.assert_close(rgb_to_hed(rgb).flatten(), 0.8 * torch.eye(3)[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("scale", "bias"), [((1.3, 0.7), (0.0, 0.0)), ((1.0, 1.0), (0.15, -0.1)), ((0.7, 1.2), (0.1, 0.2))]
)
def test_amounts_on_tissue_follow_the_formula(scale: tuple[float, float], bias: tuple[float, float]) -> None:
    rgb = stained(0.9, 0.7)
    assert tissue_weight(rgb).min() == 1
    out = rgb_to_hed(StainJitter().change(rgb, params(scale, bias)))[0, :, 0, 0]
    expected = torch.tensor([0.9 * scale[0] + bias[0], 0.7 * scale[1] + bias[1], 0.0])
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("glass", [(1.0, 1.0, 1.0), (0.97, 0.97, 0.97), (0.95, 0.94, 0.96)])
def test_glass_does_not_change_at_the_ends_of_the_range(glass: tuple[float, float, float]) -> None:
    rgb = torch.tensor(glass).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    for scale in (0.6, 1.4):
        for bias in (-0.2, 0.2):
            out = StainJitter().change(rgb, params((scale, scale), (bias, bias)))
            assert (out - rgb).abs().max() < 1 / 255


def test_glass_in_a_section_stays_while_its_tissue_changes() -> None:
    rgb = section(0).clone()
    rgb[:, :, :16] = 0.98
    out = StainJitter().change(rgb, params((1.4, 1.4), (0.2, 0.2)))
    assert (out - rgb)[:, :, :16].abs().max() < 1 / 255
    assert (out - rgb)[:, :, 16:].abs().mean() > 0.03


def test_the_weight_rises_from_glass_to_tissue_without_a_step() -> None:
    gray = torch.linspace(1.0, 0.5, 400).view(1, 1, 1, 400).expand(1, 3, 1, 400)
    weight = tissue_weight(gray).flatten()
    assert weight[0] == 0
    assert weight[-1] == 1
    assert (weight.diff() >= 0).all()
    assert weight.diff().max() < 0.02


def test_more_of_a_dye_darkens_the_channels_it_absorbs() -> None:
    rgb = stained(0.6, 0.6)
    eosin = StainJitter().change(rgb, params((1.0, 1.4), (0.0, 0.0)))
    taken = (rgb - eosin)[0, :, 0, 0] / rgb[0, :, 0, 0]
    torch.testing.assert_close(taken, 1 - torch.exp(-0.24 * torch.tensor(RGB_FROM_HED[1])), atol=1e-4, rtol=0)


def test_black_stays_black_and_its_gradient_finite() -> None:
    rgb = torch.zeros(1, 3, 4, 4, requires_grad=True)
    out = StainJitter().change(rgb, params((1.4, 0.6), (-0.2, 0.2)))
    assert torch.equal(out.detach(), rgb.detach())
    out.sum().backward()
    assert torch.isfinite(rgb.grad).all()
    assert optical_density(rgb.detach()).max() == pytest.approx(np.log(255), rel=1e-5)


def test_parameters_fill_their_range_and_strength_halves_it() -> None:
    u = torch.rand(4000, StainJitter.numbers)
    for strength in (0.5, 1.0):
        drawn = StainJitter(strength=strength).parameters_from(u)
        for values, middle, reach in ((drawn["scale"], 1, 0.4 * strength), (drawn["bias"], 0, 0.2 * strength)):
            assert values.shape == (4000, 2)
            assert (values - middle).abs().max() <= reach
            assert (values - middle).abs().max() > 0.98 * reach
            assert abs(values.mean() - middle) < 4 * reach / np.sqrt(3 * 8000)
    still = StainJitter(strength=0.0)
    assert torch.equal(still.change(section(), still.parameters_from(u[:1])), section())
