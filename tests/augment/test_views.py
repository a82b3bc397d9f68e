"""Views of a batch: per row, whatever the company; gray stays gray; nothing leaves [0, 1] before normalisation."""

from __future__ import annotations

import pytest
import torch

from ssl_mednet.augment.policy import POLICIES, Policy
from ssl_mednet.augment.views import ViewMaker, check_policy, resize
from ssl_mednet.draws import Draws
from ssl_mednet.errors import RecipeError
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.modality import MODALITIES
from ssl_mednet.methods import View


def batch(n: int, channels: int = 1, size: int = 48, modality: str = "xray") -> ImageBatch:
    generator = torch.Generator().manual_seed(7)
    pixels = torch.randint(0, 256, (n, channels, size, size), dtype=torch.uint8, generator=generator)
    code = torch.full((n,), MODALITIES[modality].code)
    return ImageBatch(
        pixels, torch.full((n, 2), size), torch.tensor([[0.0, 255.0]]).repeat(n, 1), code, torch.arange(100, 100 + n)
    )


def take(b: ImageBatch, index: torch.Tensor) -> ImageBatch:
    return ImageBatch(*(getattr(b, f)[index] for f in b.__dataclass_fields__))


def maker(channels: int = 1, strength: float = 1.0, views: tuple[View, ...] = (View(), View())) -> ViewMaker:
    return ViewMaker(views, "by_modality", strength, 32, [0.0] * channels, [1.0] * channels)


@pytest.mark.parametrize(("channels", "modality"), [(1, "xray"), (3, "blood")])
def test_a_row_gets_the_same_view_in_another_batch(channels: int, modality: str) -> None:
    whole = batch(24, channels, modality=modality)
    views = maker(channels)(whole, Draws(0, 9, whole.rows))
    for index in (torch.tensor([5]), torch.tensor([20, 3, 8])):
        part = take(whole, index)
        for one, other in zip(maker(channels)(part, Draws(0, 9, part.rows)), views, strict=True):
            torch.testing.assert_close(one, other[index], atol=1e-5, rtol=0)


def test_views_differ_from_each_other_from_step_to_step_and_from_row_to_row() -> None:
    b = batch(8)
    one, two = maker()(b, Draws(0, 0, b.rows))
    later, _ = maker()(b, Draws(0, 1, b.rows))
    assert (one - two).abs().mean() > 0.05
    assert (one - later).abs().mean() > 0.05


@pytest.mark.parametrize(("channels", "modality"), [(1, "mri"), (3, "fundus")])
def test_range_and_channels_stay(channels: int, modality: str) -> None:
    b = batch(16, channels, modality=modality)
    for view in maker(channels)(b, Draws(0, 0, b.rows)):
        assert view.shape == (16, channels, 32, 32)
        assert view.min() >= 0
        assert view.max() <= 1


def test_strength_zero_with_a_full_crop_is_the_picture_itself() -> None:
    b = batch(4, size=32)
    (view,) = maker(strength=0.0, views=(View(scale=(1.0, 1.0)),))(b, Draws(0, 0, b.rows))
    torch.testing.assert_close(view, b.unit(), atol=1e-5, rtol=0)


def test_rows_of_several_modalities_get_their_own_policy_in_their_own_place() -> None:
    POLICIES._items["pet"] = lambda strength: Policy(POLICIES.get("generic_gray")(0.0).geometry)  # leaves PET alone
    try:
        b = batch(12, size=32)
        b.modality[::3] = MODALITIES["pet"].code
        (view,) = maker(views=(View(scale=(1.0, 1.0)),))(b, Draws(0, 0, b.rows))
        same = (view - b.unit()).abs().flatten(1).amax(1) < 1e-5
        assert same[::3].all()
        assert not same[1::3].any()
    finally:
        del POLICIES._items["pet"]


def test_sixteen_bit_rows_keep_more_than_256_levels() -> None:
    pixels = torch.arange(64 * 64, dtype=torch.int32).view(1, 1, 64, 64) * 16
    b = ImageBatch(
        pixels.to(torch.uint16),
        torch.tensor([[64, 64]]),
        torch.tensor([[0.0, 65535.0]]),
        torch.zeros(1).long(),
        torch.zeros(1).long(),
    )
    (view,) = ViewMaker((View(scale=(1.0, 1.0)),), "by_modality", 0.0, 64, [0.0], [1.0])(b, Draws(0, 0, b.rows))
    assert len(view.unique()) > 4000


def test_the_window_of_each_row_is_applied_and_clipped() -> None:
    pixels = torch.tensor([0, 100, 200, 300], dtype=torch.int32).view(1, 1, 2, 2).to(torch.uint16).repeat(2, 1, 1, 1)
    windows = torch.tensor([[100.0, 200.0], [0.0, 400.0]])
    b = ImageBatch(pixels, torch.full((2, 2), 2), windows, torch.zeros(2).long(), torch.arange(2))
    torch.testing.assert_close(b.unit()[0].flatten(), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    torch.testing.assert_close(b.unit()[1].flatten(), torch.tensor([0.0, 0.25, 0.5, 0.75]))


def test_reconstruction_views_are_not_resampled_askew() -> None:
    b = batch(6, size=32)
    (view,) = maker(views=(View(scale=(1.0, 1.0), intensity=False),))(b, Draws(0, 0, b.rows))
    unit = b.unit()
    for row in range(6):
        assert min((view[row] - unit[row]).abs().max(), (view[row] - unit[row].flip(2)).abs().max()) < 1e-5


def test_local_views_are_smaller() -> None:
    b = batch(4)
    views = maker(views=(View(), View(scale=(0.05, 0.3), size=0.5)))(b, Draws(0, 0, b.rows))
    assert [v.shape[-1] for v in views] == [32, 16]


def test_evaluation_resizes_the_whole_of_each_image() -> None:
    b = batch(3, size=64)
    ours = resize(b, 32)
    expected = torch.nn.functional.interpolate(b.unit(), (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(ours, expected)
    sizes = torch.tensor([[64, 64], [40, 20], [64, 64]])
    mixed = ImageBatch(b.pixels, sizes, b.window, b.modality, b.rows)
    small = torch.nn.functional.interpolate(b.unit()[1:2, :, :40, :20], (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(mixed, 32)[1:2], small)


def test_a_policy_for_the_other_kind_of_image_is_refused() -> None:
    check_policy("by_modality", "gray")
    with pytest.raises(RecipeError, match="color images"):
        check_policy("generic_color", "gray")
    with pytest.raises(RecipeError, match="did you mean 'generic_gray'"):
        check_policy("generic_grey", "gray")
