"""Optics: kernels with unit sum and the right second moments, the cos^4 law, highlights that only brighten."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from ssl_mednet.augment.ops import Params
from ssl_mednet.augment.physics.optics import (
    Defocus,
    MotionBlur,
    SpecularHighlights,
    Vignette,
    blur_by,
    line_kernel,
    plane_basis,
)


def point(size: int = 65, rows: int = 1) -> torch.Tensor:
    x = torch.zeros(rows, 1, size, size)
    x[:, :, size // 2, size // 2] = 1.0
    return x


def moments(image: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean (x, y) and covariance of an image taken for a density, pixels."""
    p = image.double().numpy() / image.sum().item()
    y, x = np.mgrid[: p.shape[0], : p.shape[1]].astype(float)
    mean = np.array([(p * x).sum(), (p * y).sum()])
    d = np.stack([x - mean[0], y - mean[1]])
    return mean, np.einsum("hw,ihw,jhw->ij", p, d, d)


@pytest.mark.parametrize("seed", range(3))
def test_blur_by_is_scipys_convolution(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, kernels = rng.random((3, 2, 12, 17)), rng.random((3, 5, 5))
    kernels /= kernels.sum((1, 2), keepdims=True)
    out = blur_by(torch.tensor(x), torch.tensor(kernels).float())
    for i in range(3):
        for c in range(2):  # correlation, as in deep learning: the kernel is turned for scipy
            expected = convolve(x[i, c], kernels[i, ::-1, ::-1], mode="mirror")
            np.testing.assert_allclose(out[i, c].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("radius", [2.0, 3.5, 5.0])
def test_a_point_out_of_focus_is_a_disc(radius: float) -> None:
    out = Defocus(0.1).change(point(), {"radius": torch.tensor([radius / 65])})[0, 0]
    assert out.sum().item() == pytest.approx(1, abs=1e-5)
    mean, covariance = moments(out)
    np.testing.assert_allclose(mean, 32, atol=1e-4)
    excess = np.diag(covariance) - radius**2 / 4  # a disc has R^2 / 4 along each axis, pixels add a little
    assert 0 < excess.min() <= excess.max() < 0.25
    assert abs(covariance[0, 1]) < 1e-4
    inside = out[out > 0.9 * out.max()]
    assert inside.max() == pytest.approx(1 / (math.pi * radius**2), rel=0.08)
    assert (out > 0).sum() < math.pi * (radius + 1.2) ** 2


@pytest.mark.parametrize("length", [2.0, 5.3, 9.0])
@pytest.mark.parametrize("angle", [0.0, 0.4, math.pi / 2, 2.2])
def test_a_point_in_motion_is_a_line(length: float, angle: float) -> None:
    op = MotionBlur(0.2)
    out = op.change(point(), {"length": torch.tensor([length / 65]), "angle": torch.tensor([angle])})[0, 0]
    assert out.sum().item() == pytest.approx(1, abs=1e-5)
    mean, covariance = moments(out)
    np.testing.assert_allclose(mean, 32, atol=1e-4)
    direction = np.array([math.cos(angle), math.sin(angle)])
    along, across = direction @ covariance @ direction, covariance.trace() - direction @ covariance @ direction
    steps = 4 * math.ceil(0.2 * 65 / 2) + 1
    line = length**2 / 12 * (steps + 1) / (steps - 1)  # of evenly spaced places, ends included
    assert line - 1e-4 <= along <= line + 0.26  # bilinear sampling adds at most a quarter along each axis
    assert across <= 0.26
    if angle == 0.0:
        assert out[:32].sum() == 0
        assert out[33:].abs().sum() == 0


def test_line_kernels_of_one_row_do_not_depend_on_the_others() -> None:
    length, angle = torch.tensor([0.0, 3.0, 7.0]), torch.tensor([1.0, 0.3, 2.0])
    together = line_kernel(length, angle, 4)
    torch.testing.assert_close(together[1:2], line_kernel(length[1:2], angle[1:2], 4))
    torch.testing.assert_close(together.sum(dim=(1, 2)), torch.ones(3))
    assert together[0, 4, 4] == 1  # no length, no blur


@pytest.mark.parametrize("op", [Defocus, MotionBlur])
@pytest.mark.parametrize("size", [(3, 5), (8, 8), (64, 40)])
def test_blurs_keep_flat_pictures_flat_and_fit_small_ones(
    op: type[Defocus] | type[MotionBlur], size: tuple[int, int]
) -> None:
    made = op(0.2)
    params = made.parameters_from(torch.rand(6, made.numbers))
    flat = torch.full((6, 3, *size), 0.37)
    torch.testing.assert_close(made.change(flat, params), flat)
    x = torch.rand(6, 3, *size)
    still = op(0.2, strength=0.0)
    torch.testing.assert_close(still.change(x, still.parameters_from(torch.rand(6, made.numbers))), x)


def test_blurs_keep_the_light_of_what_is_inside() -> None:
    x = torch.zeros(8, 3, 48, 48)
    x[:, :, 12:36, 12:36] = torch.rand(8, 3, 24, 24)
    for op in (Defocus(), MotionBlur()):
        out = op.change(x, op.parameters_from(torch.rand(8, op.numbers)))
        torch.testing.assert_close(out.sum(dim=(2, 3)), x.sum(dim=(2, 3)), rtol=1e-4, atol=1e-3)
        assert (out - x).abs().max() > 0.05


def vignette(falloff: float, centre: tuple[float, float] = (0.5, 0.5)) -> Params:
    return {"falloff": torch.tensor([falloff]), "centre": torch.tensor([centre])}


def test_light_falls_by_the_fourth_power_of_the_cosine() -> None:
    size, falloff = 64, 0.4
    out = Vignette().change(torch.ones(1, 1, size, size), vignette(falloff))[0, 0].double()
    at = (np.arange(size) + 0.5) / size - 0.5
    r = np.hypot(at[:, None], at) / math.sqrt(0.5)  # 1 at the corner
    tangent = math.sqrt((1 - falloff) ** -0.5 - 1)  # of the angle there: cos^4 = 1 - falloff
    expected = np.cos(np.arctan(r * tangent)) ** 4
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)
    assert expected[0, 0] == pytest.approx(0.6, abs=0.02)


def test_a_vignette_belongs_to_the_whole_picture() -> None:
    """A crop with its place is the crop of the vignetted picture."""
    x = torch.rand(1, 3, 32, 32)
    params = vignette(0.35, (0.45, 0.58))
    whole = Vignette().change(x, params)
    axis = (torch.arange(32) + 0.5) / 32
    place = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)[None, 4:20, 10:30]
    part = Vignette().change(x[:, :, 4:20, 10:30], params | {"place": place})
    torch.testing.assert_close(part, whole[:, :, 4:20, 10:30])


def test_vignettes_darken_only_and_stay_in_range() -> None:
    op = Vignette()
    params = op.parameters_from(torch.rand(500, 3))
    assert params["falloff"].max() <= 0.4
    assert (params["centre"] - 0.5).abs().max() <= 0.1
    gain = op.change(torch.ones(500, 1, 16, 16), params)
    assert gain.max() <= 1
    assert gain.min() > 0.4  # a corner far from a shifted centre loses more than the one it was stated for
    assert gain.amax(dim=(1, 2, 3)).min() > 0.99


def highlight(**changes: float) -> Params:
    values = {"x": 0.5, "y": 0.5, "longer": 0.1, "shorter": 0.05, "angle": 0.0} | changes
    params = {k: torch.full((1, 5), v) for k, v in values.items()}
    return params | {"count": torch.ones(1), "opacity": torch.ones(1)}


@pytest.mark.parametrize("angle", [0.0, 0.6, 1.9])
@pytest.mark.parametrize("centre", [(0.5, 0.5), (0.4, 0.62)])
def test_a_highlight_is_its_ellipse(angle: float, centre: tuple[float, float]) -> None:
    x = torch.full((1, 1, 128, 128), 0.4)
    out = SpecularHighlights().change(x, highlight(angle=angle, x=centre[0], y=centre[1]))[0, 0]
    glare = (out - 0.4) / 0.6  # screen: x + a (1 - x)
    at = (np.arange(128) + 0.5) / 128
    dx, dy = at[None] - centre[0], at[:, None] - centre[1]
    u, v = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    q = (u / 0.1) ** 2 + (v / 0.05) ** 2
    np.testing.assert_allclose(glare.numpy(), np.minimum(1.5 * np.exp(-(q**2)), 1), atol=2e-3)


def test_highlights_shine_where_the_picture_is_lit() -> None:
    x = torch.full((1, 3, 64, 64), 0.6)
    x[:, :, :, :32] = 0.05
    out = SpecularHighlights().change(x, highlight(longer=0.2, shorter=0.2))
    assert torch.equal(out[..., :32], x[..., :32])
    assert out[..., 32:40].max() == 1


def test_highlights_only_brighten_are_white_and_scale_with_strength() -> None:
    u = torch.rand(32, SpecularHighlights.numbers)
    x = 0.3 + 0.3 * torch.rand(32, 3, 64, 64)
    full, half, none = (
        SpecularHighlights(strength=s).change(x, SpecularHighlights(strength=s).parameters_from(u)) for s in (1, 0.5, 0)
    )
    assert (full >= x - 1e-6).all()
    assert (full.amax(dim=(1, 2, 3)) > 0.8).float().mean() > 0.9
    share = (full - x).amax(dim=1) > 0.05
    assert 0.001 < share.float().mean() < 0.05  # small
    left = (1 - full) / (1 - x)  # of the way to white: the same for all channels
    assert (left.amax(dim=1) - left.amin(dim=1)).max() < 1e-4
    torch.testing.assert_close(half - x, (full - x) / 2, atol=1e-5, rtol=0)
    assert torch.equal(none, x)


def test_the_basis_of_the_plane_has_square_pixels() -> None:
    basis = plane_basis(torch.zeros(1, 1, 4, 8)).view(6, 4, 8)
    x, y = basis[3], basis[4]
    assert x[0].tolist() == pytest.approx([-0.875 + 0.25 * i for i in range(8)])
    assert y[:, 0].tolist() == pytest.approx([-0.375, -0.125, 0.125, 0.375])
    for i, product in enumerate((x * x, x * y, y * y)):
        torch.testing.assert_close(basis[i], product)
    assert (basis[5] == 1).all()
