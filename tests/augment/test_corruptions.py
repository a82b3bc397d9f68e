"""Corruptions: range and growth, the same at every stored size and beside any rows, nothing outside image and mask."""

from __future__ import annotations

import functools
import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ssl_mednet.augment.corruptions import RASTER, SEVERITIES, corrupt, corruptions_of
from ssl_mednet.augment.intensity import normal_field
from ssl_mednet.augment.ops import MASKS
from ssl_mednet.augment.severities import CORRUPTIONS, OF_MODALITY
from ssl_mednet.augment.views import squashed
from ssl_mednet.errors import DataError, RecipeError
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.image import HU_OFFSET
from ssl_mednet.imaging.modality import CHANNEL_COUNT, MODALITIES
from ssl_mednet.imaging.phantoms import FAMILIES, phantom

# Modalities without phantoms of their own, and whose pictures stand for theirs.
STAND_IN = {
    **{"generic_gray": "xray", "generic_color": "histopathology", "oct": "ultrasound"},
    **{"cytology": "blood", "photo": "dermatology"},
}
PAIRS = [(m, name) for m in MODALITIES for name in corruptions_of(m)]
every_pair = pytest.mark.parametrize(("modality", "name"), PAIRS, ids=lambda value: value)
# Each corruption once, with a modality that has it.
NAMES = {name: modality for modality, name in reversed(PAIRS)}
# Of single images from one severity to the next, else 0.95: a shift by a period of a texture hides some of it.
LEAST_GROWTH = {"motion": 0.8}
every_name = pytest.mark.parametrize("name", NAMES)


@functools.cache
def pictures(modality: str, size: int = 64, count: int = 3) -> tuple[Tensor, tuple[float, float]]:
    """Phantoms as they are stored ``[N, C, size, size]``, and their window."""
    shown = STAND_IN.get(modality, modality)
    family = next(f for f in FAMILIES if shown in FAMILIES[f])
    names = FAMILIES[family]
    images = [phantom(family, names.index(shown) + i * len(names), size).image for i in range(count)]
    return torch.stack([torch.from_numpy(i.pixels.astype(np.int32)) for i in images]).movedim(3, 1), images[0].window


def batch_of(images: list[Tensor], modality: str, window: tuple[float, float] = (0, 255), spare: int = 0) -> ImageBatch:
    """Stored images ``[C, h, w]`` on a canvas with so many pixels to spare; beyond each there is garbage."""
    sizes = torch.tensor([image.shape[1:] for image in images])
    height, width = (sizes.amax(dim=0) + spare).tolist()
    deep = max(int(image.max()) for image in images) > 255
    canvas = torch.randint(0, 256, (len(images), images[0].shape[0], height, width), dtype=torch.int32)
    for row, image in enumerate(images):
        canvas[row, :, : image.shape[1], : image.shape[2]] = image
    return ImageBatch(
        canvas.to(torch.uint16 if deep else torch.uint8),
        sizes,
        torch.tensor([window] * len(images), dtype=torch.float32),
        torch.full((len(images),), MODALITIES[modality].code),
        torch.arange(len(images)) + 40,
    )


def phantoms(modality: str) -> ImageBatch:
    images, window = pictures(modality)
    return batch_of(list(images), modality, window)


def changes(batch: ImageBatch, name: str) -> Tensor:
    """Mean absolute change ``[B, severities]``."""
    clean = batch.unit()
    return torch.stack([(corrupt(batch, name, s) - clean).abs().mean(dim=(1, 2, 3)) for s in SEVERITIES], dim=1)


@pytest.mark.parametrize("modality", MODALITIES)
def test_every_modality_has_four_to_seven_corruptions_that_fit_its_channels(modality: str) -> None:
    names = corruptions_of(modality)
    assert 4 <= len(set(names)) == len(names) <= 7
    if MODALITIES[modality].channels == "gray":
        assert not {"illuminant_shift", "stain_shift", "hair"} & set(names)


def test_every_corruption_belongs_to_a_modality() -> None:
    assert {name for names in OF_MODALITY.values() for name in names} == set(CORRUPTIONS)
    assert all(len(c.amounts) == len(SEVERITIES) for c in CORRUPTIONS.values())


@every_pair
def test_the_range_and_the_shape_hold_and_every_severity_changes_more(modality: str, name: str) -> None:
    batch = phantoms(modality)
    before, clean = batch.pixels.clone(), batch.unit()
    for severity in (1, 5):
        out = corrupt(batch, name, severity)
        assert out.dtype == torch.float32
        assert out.shape == (3, CHANNEL_COUNT[MODALITIES[modality].channels], 64, 64)
        assert out.isfinite().all()
        assert out.min() >= 0
        assert out.max() <= 1
    assert torch.equal(batch.pixels, before)
    assert torch.equal(batch.unit(), clean)
    change = changes(batch, name)
    assert (change[:, 0] > 2e-4).all()
    assert (change[:, 1:] > LEAST_GROWTH.get(name, 0.95) * change[:, :-1]).all()
    assert (change.mean(dim=0).diff() > 0).all()
    assert change[:, 4].mean() > 1.5 * change[:, 0].mean()


@every_name
def test_a_row_has_the_same_bits_in_any_batch_and_on_any_canvas(name: str) -> None:
    """Also: nothing leaks in from beyond the image, and positions refer to the image, not to the canvas."""
    modality = NAMES[name]
    stored, window = pictures(modality)
    images = [stored[0], stored[1, :, :49, 7:], stored[2, :, 3:, :40]]
    together = batch_of(images, modality, window, spare=13)
    torch.manual_seed(1)
    other = batch_of(images, modality, window, spare=30).take(torch.tensor([2, 1]))
    out, again = corrupt(together, name, 4), corrupt(other, name, 4)
    for row, image in enumerate(images):
        height, width = image.shape[1:]
        alone = batch_of([image], modality, window)
        alone = ImageBatch(alone.pixels, alone.sizes, alone.window, alone.modality, together.rows[row : row + 1])
        expected = corrupt(alone, name, 4)[0]
        assert torch.equal(out[row, :, :height, :width], expected)
        beyond = F.pad(expected, (0, out.shape[3] - width, 0, out.shape[2] - height), mode="replicate")
        assert torch.equal(out[row], beyond)
        if row:
            assert torch.equal(again[2 - row, :, :height, :width], expected)


@every_name
def test_a_severity_means_the_same_whatever_the_stored_size(name: str) -> None:
    """One picture stored at 64, 100 and 256 pixels, corrupted, and all resized to 64."""
    modality = NAMES[name]
    stored, window = pictures(modality, 256)
    large = batch_of(list(stored), modality, window).unit()
    change = {}
    for size in (64, 100, 256):
        shrunk = F.interpolate(large, (size, size), mode="bilinear", antialias=True)
        batch = batch_of(list((shrunk * 65535).round().int()), modality, (0, 65535))
        clean = squashed(batch.unit(), batch.sizes, 64)
        for severity in (1, 3, 5):
            seen = squashed(corrupt(batch, name, severity), batch.sizes, 64)
            change[size, severity] = (seen - clean).abs().mean()
    for size in (100, 256):
        # The smallest kernels have few taps at 64 pixels: less than one pixel of defocus is hard to draw.
        assert 0.6 < change[size, 1] / change[64, 1] < 1.4
        assert 0.8 < change[size, 3] / change[64, 3] < 1.25
        assert 0.85 < change[size, 5] / change[64, 5] < 1.15


@pytest.mark.parametrize("name", ["gaussian_blur", "defocus", "point_spread", "low_resolution", "gibbs_ringing"])
def test_lengths_are_shares_of_the_longer_side(name: str) -> None:
    """Lying down or upright, a picture is blurred alike."""
    stored = pictures("xray")[0][0, :, :, :40]
    upright, lying = batch_of([stored], "xray"), batch_of([stored.mT], "xray")
    for severity in (1, 5):
        torch.testing.assert_close(
            corrupt(upright, name, severity).mT, corrupt(lying, name, severity), atol=1e-5, rtol=0
        )


def test_noise_on_an_image_of_the_raster_has_the_deviation_of_the_table() -> None:
    gray = torch.full((1, RASTER, RASTER), 128)
    batch = batch_of([gray], "xray")
    for severity in (1, 3):
        noise = corrupt(batch, "gaussian_noise", severity) - batch.unit()
        assert noise.std() == pytest.approx(CORRUPTIONS["gaussian_noise"].amounts[severity - 1], rel=0.05)


def test_fine_detail_of_a_large_image_outlives_noise_that_is_made_on_the_raster() -> None:
    checks = (torch.arange(256)[:, None] + torch.arange(256)) % 2
    batch = batch_of([100 + 50 * checks[None]], "xray")
    out = corrupt(batch, "gaussian_noise", 2)
    contrast = (out[0, 0] * (2 * checks - 1)).mean() * 2
    assert contrast == pytest.approx(50 / 255, rel=0.05)


@pytest.mark.parametrize(("modality", "mask"), [("ultrasound", "fan"), ("fundus", "disc")])
def test_nothing_changes_outside_the_field_of_view(modality: str, mask: str) -> None:
    stored, window = pictures(modality)
    batch = batch_of(list(stored), modality, window)
    clean = batch.unit()
    outside = MASKS.get(mask)(clean, batch.sizes) == 0
    assert outside.float().mean() > 0.1
    for name in corruptions_of(modality):
        changed = corrupt(batch, name, 5) != clean
        assert not (changed & outside).any(), name
        assert changed.any(), name


def test_windows_move_on_hounsfield_units_and_show_what_was_cut_off() -> None:
    batch = phantoms("ct")
    low, high = batch.window[0].tolist()
    assert batch.hounsfield.all()
    assert low == HU_OFFSET - 160
    stored = batch.pixels.int().float()
    out = corrupt(batch, "window_level", 5)
    for row in range(3):
        shift = CORRUPTIONS["window_level"].amounts[4] * (high - low)
        moved = [((stored[row] - low - sign * shift) / (high - low)).clamp(0, 1) for sign in (-1, 1)]
        assert any(torch.allclose(out[row], m, atol=1e-5) for m in moved)
    finished = batch_of(list((batch.unit() * 255).round().int()), "ct")
    assert not finished.hounsfield.any()
    assert (corrupt(finished, "window_level", 5) - out).abs().mean() > 1e-3
    assert (changes(finished, "window_level").diff(dim=1) > 0).all()


@pytest.mark.parametrize("name", corruptions_of("xray"))
def test_sixteen_bits_are_corrupted_as_eight(name: str) -> None:
    stored = pictures("xray")[0]
    eight, sixteen = batch_of(list(stored), "xray"), batch_of(list(stored * 257), "xray", (0, 65535))
    assert sixteen.pixels.dtype == torch.uint16
    torch.testing.assert_close(corrupt(sixteen, name, 3), corrupt(eight, name, 3), atol=1e-4, rtol=0)


def test_severities_share_what_is_drawn_and_seeds_and_rows_do_not() -> None:
    gray = torch.full((1, RASTER, RASTER), 128)
    batch = batch_of([gray, gray], "xray")

    def noise(severity: int, seed: int = 0) -> Tensor:
        return (corrupt(batch, "gaussian_noise", severity, seed) - batch.unit()).flatten(1)

    def alike(a: Tensor, b: Tensor) -> float:
        return float(torch.corrcoef(torch.stack([a, b]))[0, 1])

    assert alike(noise(1)[0], noise(4)[0]) > 0.99
    assert abs(alike(noise(4)[0], noise(4, seed=1)[0])) < 0.1
    assert abs(alike(noise(4)[0], noise(4)[1])) < 0.1


def test_both_directions_of_a_shift_occur() -> None:
    stored = pictures("blood")[0][:1].expand(12, -1, -1, -1)
    batch = batch_of(list(stored), "blood")
    redder = (corrupt(batch, "illuminant_shift", 3) - batch.unit())[:, 0].mean(dim=(1, 2)) > 0
    assert 0 < redder.sum() < 12


def test_a_picture_without_the_detail_that_is_taken_stays_as_it_is() -> None:
    small = batch_of([pictures("xray")[0][0, :, :28, :28]], "xray")
    torch.testing.assert_close(corrupt(small, "low_resolution", 1), small.unit(), atol=1e-6, rtol=0)
    assert (corrupt(small, "low_resolution", 5) - small.unit()).abs().mean() > 1e-3


def test_the_thinnest_images_can_be_corrupted() -> None:
    stored = pictures("xray")[0][0]
    for image in (stored[:, :1], stored[:, :, :1], stored[:, :2, :3]):
        for name in CORRUPTIONS:
            if name not in ("illuminant_shift", "stain_shift", "hair"):
                out = corrupt(batch_of([image], "generic_gray"), name, 5)
                assert out.shape == (1, *image.shape), name
                assert out.isfinite().all(), name


def test_it_runs_in_inference_mode_and_leaves_the_noise_usable_for_training() -> None:
    batch = phantoms("xray")
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        inside = corrupt(batch, "gaussian_blur", 3)
        corrupt(batch, "gaussian_noise", 3)
    torch.testing.assert_close(inside.clone(), corrupt(batch, "gaussian_blur", 3))
    scale = torch.ones(1, requires_grad=True)
    (normal_field(torch.tensor([0.5]), (1, 8, 8), torch.device("cpu")) * scale).sum().backward()
    assert scale.grad is not None


def test_mistakes_are_refused() -> None:
    batch = phantoms("xray")
    with pytest.raises(RecipeError, match=r"unknown corruption 'gausian_noise' .*did you mean 'gaussian_noise'"):
        corrupt(batch, "gausian_noise", 1)
    for severity in (0, 6, -1, 2.5):
        with pytest.raises(RecipeError, match="severities 1 to 5"):
            corrupt(batch, "gaussian_noise", severity)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="gray"):
        corrupt(batch, "hair", 1)
    with pytest.raises(DataError, match="did you mean 'xray'"):
        corruptions_of("xrey")


@pytest.mark.parametrize(
    ("archive", "modality"),
    [
        *(("kermany_cxr", "xray"), ("brain_mri", "mri"), ("busi_us", "ultrasound")),
        *(("pbc_blood", "blood"), ("ham10000_derm", "dermatology")),
    ],
)
def test_every_severity_changes_real_images_more(archive: str, modality: str, data_root: Path) -> None:
    with zipfile.ZipFile(data_root / f"{archive}.zip") as file:
        members = [n for n in file.namelist() if n.endswith((".png", ".jpg"))]
        chosen = [file.read(n) for n in members[:: len(members) // 6][:6]]
    mode = "L" if MODALITIES[modality].channels == "gray" else "RGB"
    images = [np.array(Image.open(io.BytesIO(data)).convert(mode), dtype=np.int32) for data in chosen]
    batch = batch_of([torch.from_numpy(np.atleast_3d(i)).movedim(2, 0) for i in images], modality)
    batch = batch.take(torch.arange(6))
    for name in corruptions_of(modality):
        clean = squashed(batch.unit(), batch.sizes, 64)
        seen = [squashed(corrupt(batch, name, s), batch.sizes, 64) for s in SEVERITIES]
        change = torch.stack([(s - clean).abs().mean(dim=(1, 2, 3)) for s in seen], dim=1)
        assert (change[:, 1:] > LEAST_GROWTH.get(name, 0.95) * change[:, :-1]).all(), name
        assert (change.mean(dim=0).diff() > 0).all(), name
        assert change[:, 0].mean() < 0.11, name  # barely seen; as much as a twelfth off the brightness of white
        assert change[:, 4].mean() > 0.01, name
