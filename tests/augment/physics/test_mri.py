"""Magnetic resonance: each artefact against its formula, written out image by image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ssl_mednet.augment.physics.kspace import Ghosting, GibbsRinging, Motion
from ssl_mednet.augment.physics.mri import BiasField, LowResolution, RicianNoise
from ssl_mednet.augment.physics.place import place_of

PLACES = torch.arange(64) / 64  # windows of the noise bank that do not overlap
SHAPES = [(24, 24), (20, 27), (31, 18)]
shapes = pytest.mark.parametrize("shape", SHAPES, ids=str)


def images(count: int, shape: tuple[int, int], seed: int = 0) -> torch.Tensor:
    """Smooth blobs, well inside [0, 1], so that no clipping hides an error."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 6, 6, generator=generator)
    return F.interpolate(coarse, shape, mode="bicubic").mul(0.4).add(0.3).clamp(0.1, 0.9)


# ---- place


def test_without_a_place_the_view_is_the_source() -> None:
    place = place_of(torch.zeros(2, 3, 4, 8), {})
    assert place.shape == (2, 4, 8, 2)
    np.testing.assert_allclose(place[1, 2, :, 0], (np.arange(8) + 0.5) / 8)
    np.testing.assert_allclose(place[1, :, 5, 1], (np.arange(4) + 0.5) / 4)


def test_a_given_place_is_taken() -> None:
    given_place = torch.rand(2, 4, 8, 2)
    assert torch.equal(place_of(torch.zeros(2, 1, 4, 8), {"place": given_place}), given_place)


# ---- bias field


def log_field(coefficients: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    terms = [x, y, x**2, x * y, y**2, x**3, x**2 * y, x * y**2, y**3]
    field = sum(c * t for c, t in zip(coefficients, terms, strict=True))
    return field - field.mean()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.sampled_from(SHAPES), scale=st.sampled_from([0.05, 0.5]))
def test_bias_field_is_the_exponential_of_its_polynomial(seed: int, shape: tuple[int, int], scale: float) -> None:
    rng = np.random.default_rng(seed)
    coefficients = rng.uniform(-scale, scale, (3, 9))
    x = images(3, shape, seed)
    out = BiasField().change(x, {"coefficients": torch.from_numpy(coefficients).float()})
    at_y, at_x = ((np.arange(n) + 0.5) / n * 2 - 1 for n in shape)
    grid_x, grid_y = np.meshgrid(at_x, at_y)
    for i in range(3):
        expected = x[i, 0].double().numpy() * np.exp(log_field(coefficients[i], grid_x, grid_y))
        expected /= max(expected.max(), 1)
        np.testing.assert_allclose(out[i, 0], expected, rtol=2e-5)


def test_a_crop_sees_its_part_of_the_field() -> None:
    x = images(4, (32, 32))
    params = {"coefficients": BiasField().parameters_from(torch.rand(4, 9))["coefficients"]}
    whole = BiasField().change(x, params)
    place = place_of(x, {})[:, 8:20, 10:30]
    crop = BiasField().change(x[:, :, 8:20, 10:30], {**params, "place": place})
    ratio = crop / whole[:, :, 8:20, 10:30]
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio), rtol=1e-4, atol=0)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_order_bounds_the_polynomial(order: int) -> None:
    flat = torch.full((6, 1, 32, 32), 0.01)
    op = BiasField(order=order)
    field = op.change(flat, op.parameters_from(torch.rand(6, 9))).double().log()
    for dim in (2, 3):
        size = [(field.diff(n=n, dim=dim) * 16**n).abs().amax() for n in (order, order + 1)]
        assert size[0] > 0.1
        assert size[1] < 0.1 * size[0]  # rounding is multiplied by 16 ** n


def test_coefficients_span_their_range() -> None:
    for strength in (0.5, 1.0):
        coefficients = BiasField(strength=strength).parameters_from(torch.rand(2000, 9))["coefficients"]
        assert coefficients.amin(0).max() < -0.49 * strength
        assert coefficients.amax(0).min() > 0.49 * strength
        assert coefficients.abs().max() <= 0.5 * strength


# ---- Rician noise


@pytest.mark.parametrize("signal", [0.0, 0.03, 0.1, 0.25, 0.5])
@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_magnitude_noise_follows_rice(signal: float, sigma: float) -> None:
    flat = torch.full((64, 1, 64, 64), signal)
    out = RicianNoise().change(flat, {"sigma": torch.full((64,), sigma), "noise": PLACES}).double().flatten().numpy()
    mean, variance = stats.rice.stats(signal / sigma, scale=sigma)
    assert abs(out.mean() - mean) < 4 * math.sqrt(variance / out.size) + 1e-6
    assert abs(out.var() - variance) < 4 * variance * math.sqrt(2.5 / out.size)
    assert abs((out**2).mean() - (signal**2 + 2 * sigma**2)) < 4 * np.std(out**2) / math.sqrt(out.size)


def test_air_becomes_rayleigh() -> None:
    air = torch.zeros(64, 1, 64, 64)
    out = RicianNoise().change(air, {"sigma": torch.full((64,), 0.1), "noise": PLACES}).flatten()[::8].numpy()
    assert stats.kstest(out, stats.rayleigh(scale=0.1).cdf).statistic < 1.95 / math.sqrt(out.size)  # the 0.1 % level


# ---- low resolution


def down_and_up(line: np.ndarray, count: int) -> np.ndarray:
    """Area means from the integral of a line, then linear interpolation, written out."""
    size = len(line)
    integral = np.interp(np.linspace(0, size, count + 1), np.arange(size + 1), np.concatenate([[0], np.cumsum(line)]))
    means = np.diff(integral) * count / size
    return np.interp((np.arange(size) + 0.5) * count / size, np.arange(count) + 0.5, means)


@shapes
def test_low_resolution_is_area_means_and_linear_interpolation(shape: tuple[int, int]) -> None:
    x = torch.rand(5, 1, *shape)
    zoom = torch.tensor([0.5, 0.6, 0.71, 0.9, 1.0])
    out = LowResolution().change(x, {"zoom": zoom})
    for i, z in enumerate(zoom.tolist()):
        expected = x[i, 0].double().numpy()
        for axis in (0, 1):
            expected = np.apply_along_axis(down_and_up, axis, expected, int(np.rint(z * shape[axis])))
        np.testing.assert_allclose(out[i, 0], expected, atol=2e-6)


def test_half_the_resolution_is_torchs_own_mean_and_bilinear() -> None:
    x = torch.rand(2, 3, 32, 48)
    out = LowResolution().change(x, {"zoom": torch.tensor([0.5, 0.25])})
    for i, factor in enumerate((2, 4)):
        small = F.avg_pool2d(x[i : i + 1], factor)
        torch.testing.assert_close(out[i : i + 1], F.interpolate(small, (32, 48), mode="bilinear"))


# ---- k-space


def test_kspace_artefacts_act_on_the_source() -> None:
    assert {op.stage for op in (GibbsRinging, Ghosting, Motion)} == {"source"}


@shapes
def test_truncation_is_that_of_numpy(shape: tuple[int, int]) -> None:
    x, alpha = images(4, shape), torch.tensor([0.0, 0.45, 0.83, 1.0])
    out = GibbsRinging().change(x, {"alpha": alpha})
    fy, fx = np.meshgrid(*(np.fft.fftfreq(n) for n in shape), indexing="ij")
    for i, a in enumerate(alpha.tolist()):
        kept = np.hypot(fy, fx) <= (1 - a / 2) * math.sqrt(0.5) + 1e-6
        expected = np.abs(np.fft.ifft2(np.fft.fft2(x[i, 0].double().numpy()) * kept))
        np.testing.assert_allclose(out[i, 0], expected.clip(max=1), atol=1e-6)
    assert torch.allclose(out.mean(dim=(2, 3)), x.mean(dim=(2, 3)), atol=1e-6)


def test_truncation_rings_at_an_edge() -> None:
    step = torch.full((1, 1, 8, 256), 0.25)
    step[..., 64:192] = 0.75
    out = GibbsRinging().change(step, {"alpha": torch.tensor([1.0])})[0, 0, 0]
    # Wilbraham and Gibbs: an overshoot of 8.95 % of the jump, seen here at whole pixels only.
    assert 0.06 < (out.max() - 0.75) / 0.5 < 0.11
    away = out[110:146] - 0.75
    assert (away.sign().diff() != 0).sum() > 20
    assert away.abs().max() < 0.01


@shapes
def test_ghosts_are_those_of_numpy(shape: tuple[int, int]) -> None:
    x = images(4, shape)
    g, intensity, vertical = [4, 5, 7, 10], [1.0, 0.5, 0.8, 0.6], [True, False, False, True]
    params = {"ghosts": torch.tensor(g), "intensity": torch.tensor(intensity), "vertical": torch.tensor(vertical)}
    out = Ghosting().change(x, params)
    for i in range(4):
        spectrum = np.fft.fft2(x[i, 0].double().numpy())
        axis = 0 if vertical[i] else 1
        size = shape[axis]
        for line in range(-(size // 2), (size + 1) // 2):
            if line % g[i] == 0 and line != 0:
                index = (line, slice(None)) if axis == 0 else (slice(None), line)
                spectrum[index] *= 1 - intensity[i]
        np.testing.assert_allclose(out[i, 0], np.abs(np.fft.ifft2(spectrum)), atol=1e-6)


@pytest.mark.parametrize("ghosts", [4, 6, 8])
def test_ghosts_are_faint_copies_at_even_distances(ghosts: int) -> None:
    x = images(1, (48, 48))
    params = {"ghosts": torch.tensor([ghosts]), "intensity": torch.tensor([0.8]), "vertical": torch.tensor([True])}
    out = Ghosting().change(x, params)
    copies = sum(torch.roll(x, m * 48 // ghosts, dims=2) for m in range(ghosts))
    # The central line, the mean along the axis of every column, is not attenuated.
    expected = x - 0.8 / ghosts * copies + 0.8 * x.mean(dim=2, keepdim=True)
    torch.testing.assert_close(out, expected.abs(), atol=1e-6, rtol=0)
    assert torch.corrcoef(torch.stack([out.flatten(), x.flatten()]))[0, 1] > 0.7


def test_ghosts_are_drawn_evenly_and_scaled() -> None:
    params = Ghosting(strength=0.5).parameters_from(torch.rand(7000, 3))
    values, counts = params["ghosts"].unique(return_counts=True)
    assert values.tolist() == [4, 5, 6, 7, 8, 9, 10]
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    assert 0.25 <= params["intensity"].min() < params["intensity"].max() <= 0.5
    assert abs(params["vertical"].float().mean() - 0.5) < 4 * 0.5 / math.sqrt(7000)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), shape=st.sampled_from(SHAPES), events=st.integers(1, 4))
def test_motion_is_that_of_numpy(seed: int, shape: tuple[int, int], events: int) -> None:
    x = images(3, shape, seed)
    op = Motion(0.2, events=events)
    params = op.parameters_from(torch.rand(3, 13, generator=torch.Generator().manual_seed(seed)))
    out = op.change(x, params)
    fy, fx = (np.fft.fftfreq(n) for n in shape)
    for i in range(3):
        spectrum = np.fft.fft2(x[i, 0].double().numpy())
        times = params["times"][i].numpy()
        positions = np.concatenate([np.zeros((1, 2)), params["shifts"][i].numpy()])
        centre = positions[(times <= 0.5).sum()]
        along = fy if params["vertical"][i] else fx
        for line, frequency in enumerate(along):
            dx, dy = positions[(times <= frequency + 0.5).sum()] - centre
            ramp = np.exp(-2j * np.pi * (dy * shape[0] * fy[:, None] + dx * shape[1] * fx[None]))
            index = (line, slice(None)) if params["vertical"][i] else (slice(None), line)
            spectrum[index] *= ramp[index]
        np.testing.assert_allclose(out[i, 0], np.abs(np.fft.ifft2(spectrum)).clip(max=1), atol=2e-6)


def test_motion_takes_late_lines_from_a_rolled_copy() -> None:
    x = images(1, (32, 32))
    params = {
        "vertical": torch.tensor([True]),
        "times": torch.tensor([[0.75]]),
        "shifts": torch.tensor([[[3 / 32, -2 / 32]]]),
    }
    out = Motion(events=1).change(x, params)
    still = torch.fft.fft2(x.double())
    rolled = torch.fft.fft2(torch.roll(x.double(), (-2, 3), (2, 3)))
    late = (torch.fft.fftfreq(32) >= 0.25)[:, None]
    expected = torch.fft.ifft2(torch.where(late, rolled, still)).abs()
    torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=0)
    assert (out - x).abs().max() > 1e-3


def test_motion_in_one_piece_is_none() -> None:
    x = images(2, (24, 30))
    params = {"vertical": torch.tensor([True, False]), "times": torch.zeros(2, 2), "shifts": torch.rand(2, 1, 2)}
    params["shifts"] = params["shifts"].expand(-1, 2, -1)
    torch.testing.assert_close(Motion().change(x, params), x, atol=1e-6, rtol=0)


def test_motion_ranges() -> None:
    params = Motion(strength=0.5).parameters_from(torch.rand(2000, 13))
    assert params["shifts"].shape == (2000, 2, 2)
    assert 0.0149 < params["shifts"].abs().max() <= 0.015
    assert (params["times"].diff(dim=1) >= 0).all()
    with pytest.raises(ValueError, match="1 to 4 events"):
        Motion(events=5)
