"""The retinal disc: found in phantoms and in drawn discs of any cut, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssl_mednet.augment.physics.fundus import disc_mask
from ssl_mednet.imaging.phantoms import phantom


def picture(modality: int, turn: int, size: int = 96) -> torch.Tensor:
    """A color phantom; modality 0 histopathology, 1 dermatology, 2 fundus, 3 blood, 4 endoscopy."""
    return torch.tensor(phantom("color", 5 * turn + modality, size).image.pixels.copy()).permute(2, 0, 1).float() / 255


def drawn(
    height: int, width: int, centre: tuple[float, float], radius: float, seed: int = 0, light: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """A mottled disc (centre as x, y in pixels) on nearly black, and its truth."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    inside = np.hypot(x - centre[0], y - centre[1]) <= radius
    color = np.array([1.3, 0.7, 0.3])[:, None, None] * light * rng.uniform(0.7, 1.3, (1, height, width))
    image = np.clip(color * inside + np.abs(rng.normal(0, 0.012, (3, height, width))), 0, 1)
    return torch.tensor(image).float(), torch.tensor(inside)


def overlap(mask: torch.Tensor, truth: torch.Tensor) -> float:
    """Intersection over union."""
    mask = mask > 0.5
    return ((mask & truth).sum() / (mask | truth).sum()).item()


def found(image: torch.Tensor) -> torch.Tensor:
    return disc_mask(image[None], torch.tensor([image.shape[1:]]))[0, 0]


def test_it_is_the_disc_of_every_phantom() -> None:
    images = torch.stack([picture(2, i) for i in range(24)])
    masks = disc_mask(images, torch.full((24, 2), 96))
    assert masks.shape == (24, 1, 96, 96)
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    for image, mask in zip(images, masks[:, 0], strict=True):
        truth = image.amax(dim=0) > 0.08
        assert overlap(mask, truth) > 0.95


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("height", "width", "centre", "radius"),
    [
        (96, 96, (48, 48), 44),
        (120, 180, (90, 60), 56),  # wide, whole
        (120, 180, (92, 58), 75),  # cut at top and bottom
        (120, 180, (90, 40), 70),  # cut at the top only
        (200, 150, (70, 105), 88),  # cut left and right
        (64, 64, (30, 33), 24),  # small and off the middle
        (400, 400, (205, 195), 190),  # large
    ],
)
def test_discs_of_any_size_and_cut(
    height: int, width: int, centre: tuple[float, float], radius: float, seed: int
) -> None:
    image, truth = drawn(height, width, centre, radius, seed)
    assert overlap(found(image), truth) > 0.95


@pytest.mark.parametrize("light", [0.12, 0.25, 0.75])
def test_it_does_not_depend_on_exposure(light: float) -> None:
    image, truth = drawn(96, 96, (48, 48), 43, 1, light)
    assert overlap(found(image), truth) > 0.95


def test_dark_parts_and_labels_do_not_pull_it() -> None:
    image, truth = drawn(128, 128, (64, 64), 58)
    image[:, 50:80, 2:40] *= 0.05  # an eyelash or an unlit part that reaches the rim
    image[:, 2:9, 2:24] = 0.9  # a label in the corner
    image[:, 60:68, 120:126] = 0.5  # the notch of the camera
    assert overlap(found(image), truth) > 0.95


@pytest.mark.parametrize("modality", [0, 3])
def test_full_frame_pictures_have_none(modality: int) -> None:
    images = torch.stack([picture(modality, i) for i in range(12)])
    assert disc_mask(images, torch.full((12, 2), 96)).min() == 1


def test_nor_have_black_white_noise_slopes_and_vignettes() -> None:
    torch.manual_seed(0)
    axis = torch.linspace(-1, 1, 96)
    squared = axis[:, None] ** 2 + axis**2
    slope = axis.expand(96, 96) / 2 + 0.5
    pictures = [
        torch.zeros(96, 96),
        torch.ones(96, 96),
        torch.rand(96, 96),
        0.03 * torch.rand(96, 96),
        slope,
        (0.8 * (1 - squared / 2)).clamp(min=0),
        0.8 * torch.exp(-2 * squared),
        (slope > 0.5).float(),
        (torch.rand(96, 96) < 0.01).float(),
    ]
    images = torch.stack(pictures)[:, None].expand(-1, 3, -1, -1)
    masks = disc_mask(images, torch.full((len(images), 2), 96))
    assert masks.amin(dim=(1, 2, 3)).tolist() == [1.0] * len(images)


def test_only_the_valid_part_counts_and_the_rest_repeats_it() -> None:
    image, truth = drawn(80, 100, (50, 40), 37)
    canvas = torch.nn.functional.pad(image[None], (0, 60, 0, 40), mode="replicate")
    mask = disc_mask(canvas, torch.tensor([[80, 100]]))[0, 0]
    assert overlap(mask[:80, :100], truth) > 0.95
    repeated = torch.nn.functional.pad(mask[None, None, :80, :100], (0, 60, 0, 40), mode="replicate")[0, 0]
    assert torch.equal(mask, repeated)


def test_rows_do_not_depend_on_each_other_and_gray_works() -> None:
    images = torch.stack([picture(m, i) for m, i in ((2, 0), (0, 0), (2, 3), (3, 1))])
    sizes = torch.full((4, 2), 96)
    together = disc_mask(images, sizes)
    for i in range(4):
        assert torch.equal(disc_mask(images[i : i + 1], sizes[:1])[0], together[i])
    gray = disc_mask(images.mean(dim=1, keepdim=True), sizes)
    assert (gray != together).float().mean() < 1e-3
    assert disc_mask(images.bfloat16(), sizes).dtype == torch.bfloat16
