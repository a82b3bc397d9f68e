"""Hairs and scales: where they lie, how much they cover, and what they leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from ssl_mednet.augment.ops import Params
from ssl_mednet.augment.physics.skin import Hair, RulerMarks, line_cover

WHITE = torch.ones(1, 3, 128, 128)


def hair(**changes: float) -> Params:
    """One hair across the middle of the picture, opaque, one hundredth of the width thick."""
    values = {"angle": 0.0, "offset": 0.0, "bend": 0.0, "thickness": 0.01, "opacity": 1.0, "tip": 9.0} | changes
    params = {k: torch.full((1, 8), v) for k, v in values.items()}
    return params | {"count": torch.ones(1), "brown": torch.zeros(1)}


def cover(params: Params, size: int = 128) -> np.ndarray:
    """Share of each pixel under ink, from a white picture."""
    dark = 1 - Hair().change(torch.ones(1, 3, size, size), params)
    return (dark[0, 0] / (1 - 0.06)).numpy()


@pytest.mark.parametrize("width", [0.3, 0.7, 1.0, 1.6, 3.2])
@pytest.mark.parametrize("shift", [0.0, 0.2, 0.5])
def test_a_lines_cover_sums_to_its_width(width: float, shift: float) -> None:
    distance = (torch.arange(-8, 9) + shift).abs()
    total = line_cover(distance, torch.full((17,), width)).sum().item()
    assert total == pytest.approx(width, abs=1e-5)


def test_a_line_of_no_or_negative_width_covers_nothing() -> None:
    assert line_cover(torch.zeros(3), torch.tensor([0.0, -0.5, -20.0])).tolist() == [0, 0, 0]


@pytest.mark.parametrize("thickness", [0.005, 0.01, 0.025])
@pytest.mark.parametrize("angle", [0.0, math.pi / 2, 0.3, 2.0])
def test_a_straight_hair_covers_its_length_times_its_thickness(thickness: float, angle: float) -> None:
    share = cover(hair(thickness=thickness, angle=angle)).mean()
    length = 1 / max(abs(math.cos(angle)), abs(math.sin(angle)))  # of a line through the middle, widths
    assert share == pytest.approx(length * thickness, rel=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_hairs_lie_on_their_parabola(seed: int) -> None:
    rng = np.random.default_rng(seed)
    angle, offset, bend = rng.uniform(0, 2 * np.pi), rng.uniform(-0.5, 0.5), rng.uniform(-0.2, 0.2)
    inked = cover(hair(angle=angle, offset=offset, bend=bend))
    y, x = np.nonzero(inked > 0.3)
    x, y = (x + 0.5) / 64 - 1, (y + 0.5) / 64 - 1
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    assert len(x) > 60
    assert np.abs(across - offset - bend * along**2).max() < 1.5 / 64  # half widths a pixel


def test_a_hair_ends_in_a_thin_tip() -> None:
    inked = cover(hair(tip=0.0, thickness=0.03))
    columns = inked.sum(axis=0)
    assert columns[64:].max() < 0.05
    assert columns[:32] == pytest.approx(3.84, rel=0.03)
    assert (np.diff(columns[34:64]) < 0).all()


def test_count_says_how_many_hairs_there_are() -> None:
    params = hair()
    params["offset"] = torch.linspace(-0.8, 0.8, 8)[None]
    for count in range(1, 9):
        params["count"] = torch.tensor([float(count)])
        column = cover(params)[:, 64]
        assert column.sum() == pytest.approx(1.28 * count, rel=0.05)


def test_hairs_darken_only_and_scale_with_strength() -> None:
    u = torch.rand(16, Hair.numbers)
    x = 0.4 + 0.6 * torch.rand(16, 3, 48, 48)
    full = Hair().change(x, Hair().parameters_from(u))
    half = Hair(strength=0.5).change(x, Hair(strength=0.5).parameters_from(u))
    none = Hair(strength=0.0).change(x, Hair(strength=0.0).parameters_from(u))
    assert (full <= x + 1e-6).all()
    assert ((full - x).abs().amax(dim=(1, 2, 3)) > 0.1).float().mean() > 0.9
    torch.testing.assert_close(half - x, (full - x) / 2, atol=1e-5, rtol=0)
    assert torch.equal(none, x)


def test_most_of_the_skin_stays_bare() -> None:
    op = Hair()
    touched = (1 - op.change(torch.ones(200, 3, 64, 64), op.parameters_from(torch.rand(200, op.numbers)))) > 0.02
    share = touched[:, 0].float().mean(dim=(1, 2))
    assert share.max() < 0.35
    assert 0.02 < share.mean() < 0.2


def ruler(**changes: float) -> Params:
    values = {
        "angle": 0.0,
        "offset": 0.5,
        "spacing": 0.1,
        "phase": 0.0,
        "length": 0.05,
        "thickness": 0.01,
        "opacity": 1.0,
        "baseline": 0.0,
    }
    return {k: torch.tensor([v]) for k, v in (values | changes).items()}


def marks(**changes: float) -> np.ndarray:
    return ((1 - RulerMarks().change(WHITE, ruler(**changes)))[0, 0] / 0.92).numpy()


@pytest.mark.parametrize("spacing", [0.07, 0.12])
@pytest.mark.parametrize("phase", [0.0, 0.5, 3.5])
def test_ticks_are_evenly_spaced_and_every_fifth_is_longer(spacing: float, phase: float) -> None:
    inked = marks(spacing=spacing, phase=phase)
    expected = [k for k in range(-20, 20) if abs((k - phase) * spacing) < 0.495]
    columns = [64 + 128 * (k - phase) * spacing for k in expected]
    near = inked[94].copy()  # 2 pixels inside the line at 96: every tick
    for k, c in zip(expected, columns, strict=True):
        window = slice(max(round(c) - 3, 0), round(c) + 3)
        assert near[window].sum() == pytest.approx(1.28, abs=0.05)
        assert inked[:, window].sum() == pytest.approx(1.28 * 6.4 * (1.7 if k % 5 == 0 else 1), rel=0.05)
    assert inked.sum() == pytest.approx(sum(1.28 * 6.4 * (1.7 if k % 5 == 0 else 1) for k in expected), rel=0.02)


def test_the_scale_stands_where_it_is_put() -> None:
    inked = marks(baseline=1.0)
    rows = inked.sum(axis=1)
    assert rows[95:97].sum() > 100  # the line, 64 + 0.5 * 64
    assert rows[:84].max() == 0
    assert rows[98:].max() == 0
    torch.testing.assert_close(
        torch.tensor(marks(angle=math.pi, baseline=1.0)), torch.tensor(inked).flip(0, 1), atol=1e-4, rtol=0
    )


def test_marks_darken_only_and_scale_with_strength() -> None:
    u = torch.rand(16, RulerMarks.numbers)
    x = 0.4 + 0.6 * torch.rand(16, 3, 48, 48)
    out = [RulerMarks(strength=s).change(x, RulerMarks(strength=s).parameters_from(u)) for s in (1.0, 0.5, 0.0)]
    assert (out[0] <= x + 1e-6).all()
    assert ((out[0] - x).abs().amax(dim=(1, 2, 3)) > 0.1).all()
    torch.testing.assert_close(out[1] - x, (out[0] - x) / 2, atol=1e-5, rtol=0)
    assert torch.equal(out[2], x)


@pytest.mark.parametrize(("height", "width"), [(48, 80), (80, 48)])
def test_pixels_are_square_in_pictures_that_are_not(height: int, width: int) -> None:
    """The same hair on a square canvas, cut to the picture about its middle."""
    params = hair(angle=0.7, offset=0.1, bend=0.15)
    out = Hair().change(torch.ones(1, 3, height, width), params)
    if height < width:
        whole = Hair().change(torch.ones(1, 3, width, width), params)
        expected = whole[:, :, (width - height) // 2 : (width + height) // 2]
    else:
        expected = Hair().change(torch.ones(1, 3, width, width), params)
        out = out[:, :, (height - width) // 2 : (height + width) // 2]
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=0)
