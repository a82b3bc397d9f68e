"""Photon noise: the moments of counted photons."""

from __future__ import annotations

import math

import pytest
import torch

from ssl_mednet.augment.physics.xray import PoissonDose

PLACES = torch.arange(64) / 64  # windows of the noise bank that do not overlap
COUNT = 64 * 64 * 64


@pytest.mark.parametrize("photons", [1e3, 1e4, 1e5])
@pytest.mark.parametrize("brightness", [0.1, 0.4, 0.8])
def test_mean_is_kept_and_the_variance_is_that_of_counts(photons: float, brightness: float) -> None:
    flat = torch.full((64, 1, 64, 64), brightness)
    out = PoissonDose().change(flat, {"sigma": torch.full((64,), photons**-0.5), "noise": PLACES}).double()
    variance = brightness / photons
    assert abs(out.mean() - brightness) < 4 * math.sqrt(variance / COUNT) + 1e-7
    assert abs(out.var() - variance) < 4 * variance * math.sqrt(2 / COUNT) + 1e-8


def test_noise_grows_with_the_root_of_the_brightness() -> None:
    ramp = torch.linspace(0.1, 0.8, 64).expand(64, 1, 64, 64)
    out = PoissonDose().change(ramp, {"sigma": torch.full((64,), 1000**-0.5), "noise": PLACES})
    ratio = (out - ramp).std(dim=(0, 1, 2)) / (ramp[0, 0, 0] / 1000).sqrt()
    assert (ratio - 1).abs().max() < 4.5 / math.sqrt(2 * 64 * 64)


def test_photons_are_log_uniform_and_the_strength_scales_the_deviation() -> None:
    u = torch.rand(20000, 2)
    photons = PoissonDose().parameters_from(u)["sigma"] ** -2
    exponent = torch.log10(photons.double())
    assert exponent.min().item() == pytest.approx(3, abs=0.01)
    assert exponent.max().item() == pytest.approx(5, abs=0.01)
    assert abs(exponent.mean() - 4) < 4 * 2 / math.sqrt(12 * 20000)
    half = PoissonDose(strength=0.5).parameters_from(u)
    torch.testing.assert_close(half["sigma"] ** -2, 4 * photons)
    assert torch.equal(half["noise"], u[:, 1])


def test_no_photons_no_noise_and_a_finite_gradient() -> None:
    black = torch.zeros(4, 1, 16, 16, requires_grad=True)
    out = PoissonDose().change(black, {"sigma": torch.full((4,), 0.03), "noise": PLACES[:4]})
    assert out.max() < 2e-4
    out.sum().backward()
    assert black.grad is not None
    assert torch.isfinite(black.grad).all()
