"""Ultrasound: the field of echo is found, nothing outside it changes, and inside the formulas hold."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ssl_mednet.augment.ops import Params, RowOp, run
from ssl_mednet.augment.physics.place import place_of
from ssl_mednet.augment.physics.ultrasound import DepthAttenuation, Gain, GaussianShadow, Haze, Speckle, fan_mask
from ssl_mednet.imaging.phantoms import phantom

OPS: list[type[RowOp]] = [DepthAttenuation, GaussianShadow, Haze, Speckle, Gain]
every = pytest.mark.parametrize("op", OPS, ids=lambda o: o.__name__)
PLACES = torch.arange(64) / 64  # windows of the noise bank that do not overlap


def sector(height: int, width: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rayleigh speckle in a sector and the sector."""
    rng = np.random.default_rng(seed)
    y, x = (np.arange(height)[:, None] + 0.5) / height, (np.arange(width)[None] + 0.5) / width - 0.5
    near, half = rng.uniform(0.05, 0.2), rng.uniform(0.45, 0.7)
    radius, angle = np.hypot(x, y + near), np.arctan2(np.abs(x), y + near)
    fan = (angle < half) & (radius < 0.95 + near) & (radius > near + 0.02)
    echo = np.clip(rng.rayleigh(0.2, (height, width)), 0, 1)
    return torch.from_numpy(fan * echo).float()[None], torch.from_numpy(fan).float()[None]


def overlap(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a * b).sum() / torch.maximum(a, b).sum()).item()


def sizes_of(images: torch.Tensor) -> torch.Tensor:
    return torch.tensor(images.shape[-2:]).expand(len(images), 2)


# ---- the field


@pytest.mark.parametrize("shape", [(64, 64), (96, 120), (230, 200), (512, 400)], ids=str)
def test_a_sector_is_found(shape: tuple[int, int]) -> None:
    for seed in range(4):
        image, fan = sector(*shape, seed)
        mask = fan_mask(image[None], torch.tensor([shape]))
        assert mask.shape == (1, 1, *shape)
        assert set(mask.unique().tolist()) == {0.0, 1.0}
        assert overlap(mask[0], fan) > 0.9
        assert mask[0][:, fan[0] == 1].mean() > 0.96


def test_a_dark_lesion_is_inside_and_letters_are_outside() -> None:
    image, fan = sector(128, 128, 1)
    y, x = torch.meshgrid(torch.arange(128), torch.arange(128), indexing="ij")
    lesion = (y - 70) ** 2 + (x - 64) ** 2 < 15**2
    image[0][lesion] = 0
    for row in (6, 9):  # strokes of letters in a corner
        image[0, row, 4:18:3] = 1
    mask = fan_mask(image[None], sizes_of(image[None]))[0]
    assert mask[0][lesion].all()
    assert mask[0, :14, :20].sum() == 0
    assert overlap(mask, fan) > 0.9


@pytest.mark.parametrize("kind", ["black", "noise", "normal noise", "flat", "one bright corner"])
def test_where_no_field_is_found_it_is_everywhere(kind: str) -> None:
    image = {
        "black": torch.zeros(3, 1, 80, 60),
        "noise": torch.rand(3, 1, 80, 60),
        "normal noise": torch.randn(3, 1, 80, 60).mul(0.1).add(0.2).clamp(0, 1),
        "flat": torch.full((3, 1, 80, 60), 0.4),
        "one bright corner": F.pad(torch.ones(3, 1, 20, 20), (0, 40, 0, 60)),
    }[kind]
    assert fan_mask(image, sizes_of(image)).all()


def test_images_on_one_canvas_are_seen_each_in_its_own_part() -> None:
    shapes = [(60, 80), (96, 96), (70, 50)]
    alone = [sector(*s, seed)[0] for seed, s in enumerate(shapes)]
    canvas = torch.stack([F.pad(a, (0, 96 - a.shape[2], 0, 96 - a.shape[1]), mode="replicate") for a in alone])
    together = fan_mask(canvas, torch.tensor(shapes))
    for i, (h, w) in enumerate(shapes):
        own = fan_mask(alone[i][None], torch.tensor([[h, w]]))[0]
        assert torch.equal(together[i], F.pad(own, (0, 96 - w, 0, 96 - h), mode="replicate"))


def test_three_channels_and_half_precision_give_the_same_field() -> None:
    image = torch.stack([sector(96, 96, s)[0] for s in range(3)])
    mask = fan_mask(image, sizes_of(image))
    assert torch.equal(fan_mask(image.expand(-1, 3, -1, -1), sizes_of(image)), mask)
    half = fan_mask(image.bfloat16(), sizes_of(image))
    assert half.dtype == torch.bfloat16
    assert (half.float() - mask).abs().mean() < 0.01


def test_the_sector_of_phantoms_is_found() -> None:
    names = [phantom("gray", i, 96) for i in range(3, 43, 5)]
    images = torch.stack([torch.from_numpy(p.image.pixels[..., 0]).float() / 255 for p in names])[:, None]
    assert {p.image.modality for p in names} == {"ultrasound"}
    mask = fan_mask(images, sizes_of(images))
    assert (mask[..., :30, 0] == 0).all()  # the upper corners are black
    assert (mask[..., :30, -1] == 0).all()
    assert (images * mask).sum() / images.sum() > 0.985
    assert ((mask.mean(dim=(1, 2, 3)) > 0.25) & (mask.mean(dim=(1, 2, 3)) < 0.8)).all()


@pytest.mark.data
def test_real_images_of_a_linear_probe_are_almost_all_field(data_root: Path) -> None:
    with zipfile.ZipFile(data_root / "busi_us.zip") as archive:
        names = sorted(n for n in archive.namelist() if n.endswith(".png"))[::8]
        pictures = [np.asarray(Image.open(io.BytesIO(archive.read(n))).convert("L")) for n in names]
    images = torch.from_numpy(np.stack(pictures)).float().div(255)[:, None]
    share = fan_mask(images, sizes_of(images)).mean(dim=(1, 2, 3))
    assert (share == 1).float().mean() > 0.85  # the others are dark at the bottom or cut by an oblique edge
    assert share.min() > 0.4


# ---- the ops


@every
def test_outside_the_mask_nothing_changes_and_inside_all_is_as_without(op: type[RowOp]) -> None:
    u = torch.rand(12, 1 + op.numbers)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.rand(12, 1, 40, 36).to(dtype)
        mask = (torch.rand(12, 1, 40, 36) < 0.5).to(dtype)
        made = op(p=1.0)
        everywhere, masked = run(made, x, u), run(made, x, u, mask=mask)
        assert torch.equal(masked, torch.where(mask.bool(), everywhere, x))
        assert (everywhere != x).any()


def crop_of(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A mirrored crop and its place."""
    part = (slice(None), slice(6, 30), slice(4, 34))
    return images[:, :, 6:30, 4:34].flip(3), place_of(images, {})[part].flip(2)


def test_echo_fades_exponentially_with_depth() -> None:
    x, rate = torch.rand(5, 1, 40, 40), torch.tensor([0.0, 0.5, 1.0, 2.0, 3.0])
    view, place = crop_of(x)
    out = DepthAttenuation().change(view, {"rate": rate, "place": place})
    depth = np.arange(24) / 40
    expected = view.numpy() * np.exp(-rate.numpy()[:, None, None, None] * depth[None, None, :, None])
    np.testing.assert_allclose(out, expected, rtol=1e-5)
    drawn = DepthAttenuation(strength=0.5).parameters_from(torch.rand(3000, 1))["rate"]
    assert 1.49 < drawn.max() <= 1.5


def test_the_shadow_is_a_gaussian_that_runs_on_below() -> None:
    x = torch.rand(8, 1, 40, 40)
    op = GaussianShadow()
    params = op.parameters_from(torch.rand(8, 5))
    view, place = crop_of(x)
    out = op.change(view, {**params, "place": place})
    for i in range(8):
        p = {k: v[i].double().numpy() for k, v in params.items()}
        row, column = int(p["centre"][1] * 24), int(p["centre"][0] * 30)
        at = place[i].double().numpy()
        across = (at[..., 0] - at[row, column, 0]) / p["across"]
        above = np.minimum((at[..., 1] - at[row, column, 1]) / p["above"], 0)
        shadow = p["darkness"] * np.exp(-(across**2 + above**2) / 2)
        np.testing.assert_allclose(out[i, 0], view[i, 0].numpy() * (1 - shadow), rtol=1e-4)
        assert shadow[row, column] == pytest.approx(p["darkness"])
        np.testing.assert_allclose(shadow[row:, column], p["darkness"])


def test_the_shadows_ranges() -> None:
    for strength in (0.5, 1.0):
        darkness = GaussianShadow(strength=strength).parameters_from(torch.rand(5000, 5))["darkness"]
        assert darkness.min().item() == pytest.approx(0.25 * strength, rel=0.01)
        assert darkness.max().item() == pytest.approx(0.8 * strength, rel=0.01)


def haze_of(distance: float, width: float, brightness: float) -> tuple[torch.Tensor, np.ndarray]:
    x = torch.full((64, 1, 48, 48), brightness)
    params: Params = {k: torch.full((64,), v) for k, v in {"amount": 0.2, "distance": distance, "width": width}.items()}
    out = Haze().change(x, {**params, "noise": PLACES})
    y, across = np.meshgrid((np.arange(48) + 0.5) / 48, (np.arange(48) + 0.5) / 48 - 0.5, indexing="ij")
    return out, 0.2 * np.exp(-(((np.hypot(across, y) - distance) / width) ** 2) / 2)


@pytest.mark.parametrize(("distance", "width"), [(0.2, 0.03), (0.6, 0.1)])
def test_haze_is_a_band_about_the_probe(distance: float, width: float) -> None:
    out, band = haze_of(distance, width, 0.3)
    error = (out.double().mean(dim=(0, 1)).numpy() - 0.3) - 0.7 * band
    assert (np.abs(error) < 5 * 0.7 * band * 0.5 / 8 + 1e-6).all()  # 64 images, static of contrast .5
    assert abs(error.mean()) < 4 * 0.7 * 0.5 * math.sqrt((band**2).sum() * 4 / 64) / band.size  # grains of 4 pixels
    np.testing.assert_allclose(out.numpy()[:, :, band < 1e-7], 0.3, atol=1e-6)


def test_haze_adds_light_and_leaves_white_alone() -> None:
    out, band = haze_of(0.5, 0.1, 1.0)
    assert (out == 1).all()
    dark, _ = haze_of(0.5, 0.1, 0.0)
    assert (dark.numpy()[:, 0, band > 0.1].mean(axis=1) > 0.1).all()


@pytest.mark.parametrize("contrast", [0.1, 0.3])
def test_speckle_keeps_the_mean_and_has_grains_of_two_pixels(contrast: float) -> None:
    flat = torch.full((64, 1, 64, 64), 0.4)
    out = Speckle().change(flat, {"contrast": torch.full((64,), contrast), "noise": PLACES}).double() / 0.4
    # Four pixels share a grain's numbers, so a quarter of the pixels counts.
    assert abs(out.mean() - 1) < 4 * contrast * 2 / math.sqrt(out.numel())
    assert out.std().item() == pytest.approx(contrast, rel=0.02)
    for dim in (2, 3):
        size = out.shape[dim]
        for lag, expected in ((1, 0.5), (2, 0.0)):
            pair = torch.stack([out.narrow(dim, lag, size - lag).flatten(), out.narrow(dim, 0, size - lag).flatten()])
            assert torch.corrcoef(pair)[0, 1].item() == pytest.approx(expected, abs=0.02)


def test_speckle_is_the_same_in_all_channels_and_drawn_from_its_range() -> None:
    gray = torch.rand(4, 1, 20, 20).expand(-1, 3, -1, -1).contiguous()
    op = Speckle()
    out = op.change(gray, op.parameters_from(torch.rand(4, 2)))
    assert torch.equal(out[:, 0], out[:, 1])
    contrast = op.parameters_from(torch.rand(5000, 2))["contrast"]
    assert 0.1 <= contrast.min() < 0.101 < 0.299 < contrast.max() <= 0.3


def test_gain_is_a_factor_drawn_log_uniformly() -> None:
    x = torch.rand(5, 1, 8, 8)
    gain = torch.tensor([0.3, 0.5, 1.0, 1.5, 2.0])
    torch.testing.assert_close(Gain().change(x, {"gain": gain}), (x * gain.view(-1, 1, 1, 1)).clamp(max=1))
    for strength in (0.5, 1.0):
        log = torch.log(Gain(strength=strength).parameters_from(torch.rand(20000, 1))["gain"])
        low, high = math.log(0.3) * strength, math.log(2) * strength
        assert log.min().item() == pytest.approx(low, abs=0.01)
        assert log.max().item() == pytest.approx(high, abs=0.01)
        assert abs(log.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 20000)
