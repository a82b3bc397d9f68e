"""Speckle of optical coherence tomography: a gamma variate with the stated moments."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from ssl_mednet.augment.intensity import normal_field
from ssl_mednet.augment.physics.oct import OCTSpeckle, speckle

PLACES = torch.arange(64) / 64  # windows of the noise bank that do not overlap


@pytest.mark.parametrize("contrast", [0.05, 0.15, 0.35, 0.6])
def test_speckle_is_gamma_distributed(contrast: float) -> None:
    noise = normal_field(PLACES, (1, 64, 64), torch.device("cpu"))
    s = speckle(noise, torch.full((64,), contrast)).flatten().double()
    count = s.numel()
    assert abs(s.mean() - 1) < 4 * contrast / count**0.5
    assert s.std().item() == pytest.approx(contrast, rel=0.01)
    gamma = stats.gamma(1 / contrast**2, scale=contrast**2)
    assert stats.kstest(s.numpy()[::8], gamma.cdf).statistic < 1.95 / (count / 8) ** 0.5  # the 0.1 % level
    assert stats.skew(s.numpy()) == pytest.approx(2 * contrast, abs=0.05)
    assert s.min() >= 0


def test_the_mean_of_an_image_is_kept_where_nothing_is_clipped_and_black_stays_black() -> None:
    ramp = torch.linspace(0, 0.25, 64).expand(64, 1, 64, 64)
    out = OCTSpeckle().change(ramp, {"contrast": torch.full((64,), 0.5), "noise": PLACES})
    error = (out - ramp).mean(dim=(0, 1, 2))
    assert (out[..., 0] == 0).all()
    assert (error.abs() <= 4.5 * 0.5 * ramp[0, 0, 0] / 64).all()  # each column: 64 x 64 independent pixels


def test_the_same_speckle_in_all_channels_and_none_shared_by_neighbours() -> None:
    gray = torch.full((64, 3, 64, 64), 0.3)
    out = OCTSpeckle().change(gray, {"contrast": torch.full((64,), 0.3), "noise": PLACES})
    assert torch.equal(out[:, 0], out[:, 1])
    one = OCTSpeckle().change(gray[:, :1], {"contrast": torch.full((64,), 0.3), "noise": PLACES})
    assert torch.equal(out[:, :1], one)
    beside = torch.stack([one[..., 1:].flatten(), one[..., :-1].flatten()])
    assert abs(torch.corrcoef(beside)[0, 1]) < 0.01


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_the_contrast_is_drawn_from_its_range(strength: float) -> None:
    contrast = OCTSpeckle(strength=strength).parameters_from(torch.rand(5000, 2))["contrast"]
    assert contrast.min().item() == pytest.approx(0.15 * strength, rel=0.01)
    assert contrast.max().item() == pytest.approx(0.6 * strength, rel=0.01)
