"""One matrix, one sampling: exact where it can be checked by hand, antialiased where the crop shrinks."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from ssl_mednet.augment.geometry import Geometry, draw_matrix
from ssl_mednet.augment.warp import Pyramid, warp
from ssl_mednet.draws import Draws


def sizes(n: int, height: int, width: int) -> torch.Tensor:
    return torch.tensor([[height, width]]).repeat(n, 1)


def draws(n: int, step: int = 0) -> Draws:
    return Draws(0, step, torch.arange(n))


def whole(height: int, width: int) -> torch.Tensor:
    """The matrix that shows the whole image."""
    return torch.tensor([[[width / 2, 0, width / 2], [0, height / 2, height / 2]]])


def test_the_whole_image_at_its_own_size_is_itself() -> None:
    image = torch.rand(1, 3, 48, 48)
    torch.testing.assert_close(warp(image, sizes(1, 48, 48), whole(48, 48), 48), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("linear", "expected"),
    [
        ([[-1, 0], [0, 1]], lambda i: i.flip(3)),
        ([[1, 0], [0, -1]], lambda i: i.flip(2)),
        ([[0, -1], [1, 0]], lambda i: torch.rot90(i, 1, (2, 3))),
    ],
)
def test_flips_and_quarter_turns_move_pixels_without_blurring(linear: list, expected: object) -> None:
    image = torch.rand(1, 1, 32, 32)
    matrix = torch.tensor(linear, dtype=torch.float32)[None] * 16
    matrix = torch.cat([matrix, torch.full((1, 2, 1), 16.0)], dim=2)
    torch.testing.assert_close(warp(image, sizes(1, 32, 32), matrix, 32), expected(image), atol=1e-5, rtol=0)


def test_a_turn_by_an_angle_agrees_with_torch() -> None:
    image = torch.rand(1, 1, 40, 40)
    angle = math.radians(20)
    linear = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    theta = torch.cat([linear, torch.zeros(2, 1)], dim=1)[None]
    grid = F.affine_grid(theta, [1, 1, 40, 40], align_corners=False)
    expected = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
    matrix = torch.cat([linear * 20, torch.full((2, 1), 20.0)], dim=1)[None]
    ours = warp(image, sizes(1, 40, 40), matrix, 40)
    inside = F.grid_sample(torch.ones_like(image), grid, padding_mode="zeros", align_corners=False) > 0.999
    torch.testing.assert_close(ours[inside], expected[inside], atol=1e-4, rtol=0)


def test_shrinking_averages_instead_of_picking() -> None:
    """A checkerboard of single pixels has no right to survive as a pattern at a quarter of its size."""
    board = ((torch.arange(128)[:, None] + torch.arange(128)) % 2).float()[None, None]
    small = warp(board, sizes(1, 128, 128), whole(128, 128), 32)
    assert (small - 0.5).abs().max() < 1e-5
    exact = torch.rand(1, 1, 128, 128)
    small = warp(exact, sizes(1, 128, 128), whole(128, 128), 32)
    torch.testing.assert_close(small, F.avg_pool2d(exact, 4), atol=1e-5, rtol=0)


def test_every_row_is_sampled_from_its_own_level() -> None:
    images = torch.rand(3, 1, 128, 128)
    close_up = torch.tensor([[[16.0, 0, 64], [0, 16.0, 64]]])
    matrices = torch.cat([whole(128, 128), close_up, whole(128, 128)])
    together = warp(images, sizes(3, 128, 128), matrices, 32)
    for i in range(3):
        alone = warp(images[i : i + 1], sizes(1, 128, 128), matrices[i : i + 1], 32)
        assert torch.equal(together[i : i + 1], alone)


def test_outside_is_black_or_reflected_at_the_border_of_the_image_not_of_the_canvas() -> None:
    image = torch.full((1, 1, 64, 64), 9.0)
    image[:, :, :40, :30] = torch.arange(30.0) / 30
    extent, wide = sizes(1, 40, 30), torch.tensor([[[30.0, 0, 15], [0, 40.0, 20]]])  # twice the image
    black = warp(image, extent, wide, 60, "zero")
    assert (black[..., :14] == 0).all()
    assert black.max() < 1
    folded = warp(image, extent, wide, 60, "reflect")
    assert folded.max() < 1
    torch.testing.assert_close(folded[..., :15].flip(3), folded[..., 15:30], atol=1e-5, rtol=0)


@settings(max_examples=30, deadline=None)
@given(
    low=st.floats(0.05, 1.0),
    height=st.integers(16, 200),
    width=st.integers(16, 200),
    step=st.integers(0, 1000),
)
def test_a_crop_stays_inside_the_image_and_has_the_area_it_was_given(
    low: float, height: int, width: int, step: int
) -> None:
    matrix = draw_matrix(Geometry(horizontal_flip=0.5), (low, 1.0), sizes(32, height, width), draws(32, step))
    reach = matrix[:, :, :2].abs().sum(2)
    assert (matrix[:, :, 2] - reach > -0.01).all()
    assert (matrix[:, :, 2] + reach < torch.tensor([width, height]) + 0.01).all()
    area = torch.linalg.det(matrix[:, :, :2]).abs() * 4 / (height * width)
    assert (area > low - 1e-3).all()
    assert (area < 1 + 1e-3).all()


def test_the_ranges_are_used_and_not_exceeded() -> None:
    geometry = Geometry(ratio=1.0, horizontal_flip=0, rotate=20)
    matrix = draw_matrix(geometry, (1.0, 1.0), sizes(4000, 64, 64), draws(4000))
    angle = torch.rad2deg(torch.atan2(matrix[:, 1, 0], matrix[:, 0, 0]))
    assert angle.abs().max() <= 20.01
    assert angle.max() > 19
    assert angle.min() < -19
    flips = draw_matrix(Geometry(horizontal_flip=0.3), (1.0, 1.0), sizes(4000, 64, 64), draws(4000))
    assert abs((flips[:, 0, 0] < 0).float().mean() - 0.3) < 0.03
    assert (flips[:, 1, 1] > 0).all()


def test_a_turn_is_rigid_on_images_that_are_not_square() -> None:
    matrix = draw_matrix(Geometry(ratio=1.0, horizontal_flip=0, rotate=30), (1.0, 1.0), sizes(50, 40, 80), draws(50))
    linear = matrix[:, :, :2] @ torch.diag(torch.tensor([1 / 40, 1 / 20]))
    torch.testing.assert_close(linear @ linear.transpose(1, 2), torch.eye(2).expand(50, 2, 2), atol=1e-5, rtol=0)


def test_strength_zero_leaves_the_crop_only() -> None:
    geometry = Geometry(vertical_flip=0.5, quarter_turns=True, rotate=30, translate=0.2, zoom=0.2, shear=10)
    matrix = draw_matrix(geometry.scaled(0), (1.0, 1.0), sizes(20, 64, 64), draws(20))
    torch.testing.assert_close(matrix, whole(64, 64).expand(20, 2, 3), atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
@pytest.mark.parametrize(("height", "width"), [(16, 24), (15, 20), (9, 7)])
def test_stored_integers_are_halved_as_their_floats_are(dtype: torch.dtype, height: int, width: int) -> None:
    top = torch.iinfo(dtype).max
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, top + 1, (3, 2, height, width), generator=generator)
    images[0] = top
    integers, floats = Pyramid(images.to(dtype)), Pyramid(images.float())
    for level in (1, 2):
        assert torch.equal(integers.level(level), floats.level(level))


def test_images_of_one_channel_are_halved_however_they_lie_in_memory() -> None:
    last = torch.randint(0, 256, (3, 8, 8, 1), dtype=torch.uint8).permute(0, 3, 1, 2)
    assert torch.equal(Pyramid(last).level(1), Pyramid(last.float()).level(1))
