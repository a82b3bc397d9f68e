"""Thinned counts: the law of Poisson, its mean above all; the point spread: its width and its sum."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from ssl_mednet.augment.intensity import normal_field
from ssl_mednet.augment.physics.pet import CountThinning, PointSpread, poisson_noise

PLACES = torch.arange(64) / 64  # windows of the noise bank that do not overlap
COUNT = 64 * 64 * 64


def counts(rate: float) -> np.ndarray:
    noise = normal_field(PLACES, (1, 64, 64), torch.device("cpu"))
    return (poisson_noise(torch.full((64, 1, 64, 64), rate), noise).double() + rate).flatten().numpy()


@pytest.mark.parametrize("rate", [0.003, 0.03, 0.1, 0.37, 1.0, 2.5, 7.7, 20.0, 50.0, 64.0, 90.0, 500.0])
def test_counts_have_the_moments_of_poisson(rate: float) -> None:
    n = counts(rate)
    assert abs(n.mean() - rate) < 4 * math.sqrt(rate / COUNT) + 1e-6 * rate
    # Sampling error of a variance: kurtosis of Poisson is 3 + 1 / rate. The table adds 1 % at most.
    assert abs(n.var() - rate) < rate * (4 * math.sqrt((2 + 1 / rate) / COUNT) + 0.01)
    if rate <= 64:
        error = 4 * math.sqrt((15 + 100 / rate) / COUNT)
        assert stats.skew(n) == pytest.approx(rate**-0.5, rel=0.03, abs=error)
    assert n.min() > -1e-4 * (1 + rate)  # so nothing is clipped at 0


@pytest.mark.parametrize("rate", [0.05, 0.4, 1.3, 4.0, 11.0])
def test_small_counts_are_whole_and_as_frequent_as_they_should_be(rate: float) -> None:
    n = counts(rate)
    whole = np.rint(n)
    assert (np.abs(n - whole) < 1e-3).mean() > 0.95
    seen = np.bincount(whole.astype(int), minlength=60)[:60] / COUNT
    assert np.abs(seen - stats.poisson.pmf(np.arange(60), rate)).sum() / 2 < 0.01


def test_the_mean_is_kept_at_every_brightness_that_is_not_clipped() -> None:
    ramp = torch.linspace(0, 0.5, 64).expand(64, 1, 64, 64)
    for k in (40.0, 200.0, 500.0):
        out = CountThinning().change(ramp, {"grain": torch.full((64,), 1 / k), "noise": PLACES}).double()
        mean, variance = out.mean(dim=(0, 1, 2)), out.var(dim=(0, 1, 2))
        x = ramp[0, 0, 0].double()
        assert ((mean - x).abs() <= 4.5 * (x / k / 4096).sqrt() + 1e-7).all()
        assert abs((mean - x).mean()) < 3 * (x / k).sum().sqrt() / 64 / 64
        inner = x * k > 1
        spread = ((2 + 1 / (x * k)) / 4096).sqrt()
        assert ((variance / (x / k) - 1).abs() < 4.5 * spread + 0.01)[inner].all()


def test_few_counts_of_weak_uptake_are_not_lifted_by_clipping() -> None:
    weak = torch.full((64, 1, 64, 64), 0.04)  # a fifth of a count a pixel
    out = CountThinning().change(weak, {"grain": torch.full((64,), 0.2), "noise": PLACES}).double()
    assert abs(out.mean() - 0.04) < 3 * math.sqrt(0.04 / 5 / COUNT)
    assert abs(out.var() - 0.04 / 5) < 0.03 * 0.04 / 5


def test_counts_are_log_uniform_and_the_strength_scales_the_deviation() -> None:
    u = torch.rand(20000, 2)
    exponent = torch.log(1 / CountThinning().parameters_from(u)["grain"].double())
    low, high = math.log(5), math.log(500)
    assert exponent.min().item() == pytest.approx(low, abs=0.01)
    assert exponent.max().item() == pytest.approx(high, abs=0.01)
    assert abs(exponent.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 20000)
    flat = torch.full((64, 1, 64, 64), 0.3)
    whole, half = (
        CountThinning(strength=s).change(
            flat, CountThinning(strength=s).parameters_from(torch.tensor([[0.5, 0.3]] * 64))
        )
        for s in (1.0, 0.5)
    )
    assert (half.std() / whole.std()).item() == pytest.approx(0.5, rel=0.05)


def test_rates_between_the_rows_of_the_table_do_not_depend_on_other_pixels() -> None:
    rate, noise = torch.rand(3, 1, 32, 32) * 80, torch.randn(3, 1, 32, 32)
    together = poisson_noise(rate, noise)
    apart = torch.cat([poisson_noise(rate[i : i + 1], noise[i : i + 1]) for i in range(3)])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("size", [64, 96, 160])
def test_a_point_becomes_as_wide_as_stated(size: int) -> None:
    point = torch.zeros(1, 1, size, size)
    point[0, 0, size // 2, size // 2] = 1
    out = PointSpread(0.03).change(point, {"fwhm": torch.tensor([0.03])}).double()
    assert out.sum().item() == pytest.approx(1, abs=1e-4)
    axis = torch.arange(size).double() - size // 2
    sigma = 0.03 * size / 2.354820
    # Cut at 3 sigma, a Gaussian keeps 97.3 % of its variance.
    for along in (2, 3):
        width = (out.sum(dim=(0, 1, 5 - along)) * axis**2).sum().sqrt()
        assert width.item() == pytest.approx(sigma, rel=0.04)


def test_the_width_is_drawn_up_to_the_range() -> None:
    fwhm = PointSpread(strength=0.5).parameters_from(torch.rand(5000, 1))["fwhm"]
    assert fwhm.min() < 1e-4
    assert fwhm.max().item() == pytest.approx(0.015, rel=0.01)
