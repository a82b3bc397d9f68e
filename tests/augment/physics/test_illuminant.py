"""Illuminant jitter: diagonal gains on the daylight locus that keep the luma of gray."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_mednet.augment.physics.illuminant import IlluminantJitter

LUMA = torch.tensor([0.299, 0.587, 0.114])


def light(warm: float, green: float = 0.0, rows: int = 1) -> dict[str, torch.Tensor]:
    return {"warm": torch.full((rows,), warm), "green": torch.full((rows,), green)}


@pytest.mark.parametrize("seed", range(3))
def test_gray_keeps_its_luma(seed: int) -> None:
    torch.manual_seed(seed)
    op = IlluminantJitter()
    gray = (0.85 * torch.rand(32, 1, 6, 6)).expand(-1, 3, -1, -1)
    out = op.change(gray, op.parameters_from(torch.rand(32, op.numbers)))
    assert (out - gray).abs().max() > 0.02
    torch.testing.assert_close(torch.einsum("c,bchw->bhw", LUMA, out), gray[:, 0], atol=1e-6, rtol=0)


def test_the_change_is_a_gain_of_each_channel() -> None:
    x = 0.05 + 0.7 * torch.rand(1, 3, 16, 16)
    ratio = IlluminantJitter().change(x, light(0.1, 0.02)) / x
    assert ratio.flatten(2).std(dim=2).max() < 1e-5
    logs = ratio.mean(dim=(0, 2, 3)).log()
    assert logs[0] - logs[2] == pytest.approx(0.2, abs=1e-5)  # 2 warm
    assert logs[1] - (logs[0] + logs[2]) / 2 == pytest.approx(0.03, abs=1e-5)  # 3/2 green


def planck_in_srgb(kelvin: float) -> np.ndarray:
    """Gamma-coded sRGB of a black body, brightest channel 1, from Planck's law and Gaussian fits of the CIE 1931
    matching functions (Wyman, Sloan and Shirley 2013)."""
    nm = np.arange(380.0, 781.0)

    def bump(height: float, middle: float, low: float, high: float) -> np.ndarray:
        return height * np.exp(-0.5 * ((nm - middle) * np.where(nm < middle, low, high)) ** 2)

    x = bump(0.362, 442.0, 0.0624, 0.0374) + bump(1.056, 599.8, 0.0264, 0.0323) + bump(-0.065, 501.1, 0.0490, 0.0382)
    y = bump(0.821, 568.8, 0.0213, 0.0247) + bump(0.286, 530.9, 0.0613, 0.0322)
    z = bump(1.217, 437.0, 0.0845, 0.0278) + bump(0.681, 459.0, 0.0385, 0.0725)
    metres = nm * 1e-9
    power = metres**-5 / np.expm1(1.438776877e-2 / (metres * kelvin))
    to_rgb = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = to_rgb @ [(power * c).sum() for c in (x, y, z)]
    return (linear / linear.max()) ** (1 / 2.2)


@pytest.mark.parametrize(("kelvin", "warm"), [(5000, 0.11), (10000, -0.12), (4000, 0.22)])
def test_the_direction_is_that_of_black_bodies(kelvin: float, warm: float) -> None:
    x = torch.full((1, 3, 1, 1), 0.5)
    ours = IlluminantJitter().change(x, light(warm)).flatten().double().log()
    theirs = torch.tensor(planck_in_srgb(kelvin)).log() - torch.tensor(planck_in_srgb(6500)).log()
    difference = (ours - ours.mean()) - (theirs - theirs.mean())
    assert difference.abs().max() < 0.05


def test_the_ranges_and_strength() -> None:
    u = torch.rand(2000, 2)
    for strength in (0.5, 1.0):
        drawn = IlluminantJitter(log_gain=0.2, strength=strength).parameters_from(u)
        assert 0.98 * 0.2 * strength < drawn["warm"].abs().max() <= 0.2 * strength
        assert 0.98 * 0.04 * strength < drawn["green"].abs().max() <= 0.04 * strength
    x = torch.rand(4, 3, 8, 8)
    still = IlluminantJitter(strength=0.0)
    torch.testing.assert_close(still.change(x, still.parameters_from(u[:4])), x, atol=1e-6, rtol=0)


def test_opposite_lights_cancel() -> None:
    x = 0.1 + 0.6 * torch.rand(2, 3, 8, 8)
    op = IlluminantJitter()
    back = op.change(op.change(x, light(0.1, 0.02, 2)), light(-0.1, -0.02, 2))
    ratio = back / x  # both keep the luma of gray, so only a common factor near 1 is left
    assert (ratio - ratio.mean()).abs().max() < 1e-5
    assert abs(ratio.mean() - 1) < 0.02
