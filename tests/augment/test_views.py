"""Views of a batch: per row, whatever the company; gray stays gray; nothing leaves [0, 1] before normalisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssl_mednet.augment.ops import MASKS, OPS, RowOp
from ssl_mednet.augment.policy import POLICIES, build, check_augment, overridden
from ssl_mednet.augment.views import ViewMaker, resize
from ssl_mednet.draws import Draws
from ssl_mednet.errors import RecipeError
from ssl_mednet.imaging import phantoms
from ssl_mednet.imaging.batch import ImageBatch
from ssl_mednet.imaging.image import HU_OFFSET
from ssl_mednet.imaging.modality import CHANNEL_COUNT, MODALITIES
from ssl_mednet.methods import View

RANGES = ("rotate", "translate", "zoom", "shear")


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


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mixed_batch_gives_every_row_what_a_pure_one_does(channels: int) -> None:
    names = [m for m, spec in MODALITIES.items() if CHANNEL_COUNT[spec.channels] == channels]
    b = batch(4 * len(names), channels)
    b.modality[:] = torch.tensor([MODALITIES[n].code for n in names]).repeat(4)
    draws = Draws(0, 3, b.rows)
    for view, mixed in enumerate(maker(channels)(b, draws)):
        for name in names:
            own = (b.modality == MODALITIES[name].code).nonzero()[:, 0]
            pure = maker(channels)(b.take(own), draws.take(own))[view]
            torch.testing.assert_close(mixed[own], pure, atol=1e-5, rtol=0)


def test_a_policy_acts_on_its_own_rows_only() -> None:
    b = batch(12, size=32)
    b.modality[::3] = MODALITIES["pet"].code
    only_pet = ViewMaker(
        (View(scale=(1.0, 1.0)),), "by_modality", 1.0, 32, [0.0], [1.0],
        {"xray": {"ops": dict.fromkeys(POLICIES.get("xray").ops), "geometry": dict.fromkeys(RANGES, 0.0)}},
    )  # fmt: skip
    (view,) = only_pet(b, Draws(0, 0, b.rows))
    same = (view - b.unit()).abs().flatten(1).amax(1) < 1e-5
    assert same[1::3].all()
    assert same[2::3].all()
    assert not same[::3].all()


def hounsfield(n: int, low: float, high: float) -> ImageBatch:
    values = torch.linspace(-1000, 1000, 64 * 64).view(1, 1, 64, 64).repeat(n, 1, 1, 1) + HU_OFFSET
    b = batch(n, size=64, modality="ct")
    window = torch.tensor([[low + HU_OFFSET, high + HU_OFFSET]], dtype=torch.float32).repeat(n, 1)
    return ImageBatch(values.to(torch.int32).to(torch.uint16), b.sizes, window, b.modality, b.rows)


def window_only(size: int = 64) -> ViewMaker:
    """The CT policy without geometry, blur and noise."""
    override = {"ops": dict.fromkeys(("gaussian_blur", "gaussian_noise")), "geometry": dict.fromkeys(RANGES, 0.0)}
    return ViewMaker((View(scale=(1.0, 1.0)),), "ct", 1.0, size, [0.0], [1.0], {"ct": override})


def test_ct_rows_are_seen_through_other_windows_and_gain_what_the_first_cut_off() -> None:
    b = hounsfield(64, -150, 250)
    (view,) = window_only()(b, Draws(0, 0, b.rows))
    # Each picture is a ramp of HU; its window is where the ramp lies strictly between black and white.
    inside = (view > 0) & (view < 1)
    units = torch.linspace(-1000, 1000, 64 * 64).view(1, 64, 64)
    low = torch.where(inside[:, 0], units, 2000).flatten(1).amin(1)
    high = torch.where(inside[:, 0], units, -2000).flatten(1).amax(1)
    assert ((high - low) / 400).min() > 1 / 1.65
    assert ((high - low) / 400).max() < 1.65
    assert ((low + high) / 2 - 50).abs().max() < 0.26 * 400
    assert high.max() > 330  # beyond the file's own window
    assert (low - low.mean()).abs().max() > 30


def test_a_view_of_hounsfield_units_is_clipped_at_its_window() -> None:
    b = hounsfield(3, -150, 250)
    (view,) = maker_at(64, strength=0.0)(b, Draws(0, 0, b.rows))
    assert (b.unit() == 0).any()
    torch.testing.assert_close(view, b.unit(), atol=1e-5, rtol=0)


def maker_at(size: int, strength: float) -> ViewMaker:
    """Whole gray images at one size."""
    return ViewMaker((View(scale=(1.0, 1.0)),), "by_modality", strength, size, [0.0], [1.0])


def test_finished_pictures_of_ct_keep_their_values() -> None:
    b = batch(6, size=32, modality="ct")
    (view,) = window_only(32)(b, Draws(0, 0, b.rows))
    torch.testing.assert_close(view, b.unit(), atol=1e-5, rtol=0)


def test_a_window_is_that_of_pydicom() -> None:
    from pydicom.dataset import Dataset
    from pydicom.pixels import apply_windowing

    data = Dataset()
    data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = "MONOCHROME2", 16, 1
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = 40, 400, "LINEAR_EXACT"
    data.RescaleIntercept, data.RescaleSlope = 0, 1
    values = np.linspace(-1000, 1000, 64 * 64).astype(np.int16).reshape(64, 64)
    shown = apply_windowing(values, data)
    expected = (shown - shown.min()) / (shown.max() - shown.min())
    ours = hounsfield(1, -160, 240).unit()[0, 0].numpy()
    np.testing.assert_allclose(ours, expected, atol=1 / 400 + 1e-6)


@pytest.mark.parametrize(("modality", "channels"), [("ultrasound", 1), ("fundus", 3)])
def test_nothing_outside_the_fan_or_disc_changes(modality: str, channels: int) -> None:
    kind = "gray" if channels == 1 else "color"
    index = [i for i in range(40) if phantoms.truth(kind, i, 0)[0] == modality][:6]
    pixels = np.stack([phantoms.phantom(kind, i, 64, 0).image.pixels for i in index])
    b = batch(len(index), channels, 64, modality)
    b = replace(b, pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous())
    still = dict.fromkeys(RANGES, 0.0) | {"horizontal_flip": 0.0}
    make = ViewMaker(
        (View(scale=(1.0, 1.0)),), "by_modality", 1.0, 64, [0.0] * channels, [1.0] * channels,
        {modality: {"geometry": still}},
    )  # fmt: skip
    (view,) = make(b, Draws(0, 0, b.rows))
    mask = MASKS.get(POLICIES.get(modality).mask)(b.unit(), b.sizes)
    assert 0.2 < mask.mean() < 0.95
    outside = (mask == 0).expand_as(view)
    assert torch.equal(view[outside], b.unit()[outside])
    assert (view - b.unit()).abs()[~outside].max() > 0.05


def test_a_policy_can_keep_larger_crops_than_the_method_asks_for() -> None:
    b = batch(64, 3, modality="blood")
    seen: dict[int, torch.Tensor] = {}

    def note(views: list, rows: list, op: str, index: torch.Tensor, params: dict, images: torch.Tensor) -> None:
        if op == "crop":
            seen[views[0]] = torch.linalg.det(params["matrix"][:, :, :2]).abs() * 4 / (48 * 48)

    maker(3, views=(View(), View(scale=(0.05, 0.3), size=0.5)))(b, Draws(0, 0, b.rows), note)
    assert seen[0].min() > 0.49
    assert seen[1].max() < 0.31  # local crops stay local


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


def test_what_cannot_act_is_refused_when_the_recipe_is_read() -> None:
    check_augment("by_modality", "gray", 1.0, {})
    check_augment("natural", "color", 1.0, {"natural_color": {"ops": {"kornia.RandomSolarize": {"p": 0.1}}}})
    for policy, channels, override, says in (
        ("generic_color", "gray", {}, "is for color images"),
        ("generic_grey", "gray", {}, "did you mean 'generic_gray'"),
        ("by_modality", "gray", {"xray": {"ops": {"color_jitter": {}}}}, "acts on color"),
        ("by_modality", "gray", {"xray": {"ops": {"kornia.RandomHue": {}}}}, "acts on color"),
        ("by_modality", "gray", {"xray": {"ops": {"gama": {}}}}, "did you mean 'gamma'"),
        ("by_modality", "gray", {"xray": {"ops": {"gamma": {"gama": 1}}}}, "did you mean 'gamma'"),
        ("by_modality", "gray", {"xray": {"geometry": {"rotat": 1}}}, "did you mean 'rotate'"),
        ("by_modality", "gray", {"xray": {"opps": {}}}, "did you mean 'ops'"),
        ("by_modality", "gray", {"xray": {"turns": "left"}}, "one of none, lateral, free"),
        ("by_modality", "gray", {"xray": {"mask": "fann"}}, "did you mean 'fan'"),
        ("by_modality", "gray", {"xray": {"strengt": 1}}, "did you mean 'strength'"),
        (
            "by_modality",
            "gray",
            {"xray": {"strength": 3}},
            "augment.override.xray.strength: a number from 0 to 2, not 3",
        ),
        ("by_modality", "gray", {"xray": {"strength": True}}, "a number from 0 to 2, not True"),
        ("by_modality", "gray", {"xrya": {}}, "did you mean 'xray'"),
        ("by_modality", "gray", {"blood": {}}, "no image gets this policy"),
        ("by_modality", "gray", {"xray": {"ops": {"kornia.RandomGama": {}}}}, "no intensity augmentation of kornia"),
    ):
        with pytest.raises(RecipeError) as caught:
            check_augment(policy, channels, 1.0, override)
        assert says in f"{caught.value.message} {caught.value.hint}", says


def test_overrides_change_a_policy_key_by_key() -> None:
    plain = POLICIES.get("xray")
    changed = overridden(
        "xray", plain, {"ops": {"gamma": {"p": 0.9}, "gaussian_blur": None, "jpeg": {}}, "turns": "free", "crop": 0.5}
    )
    assert changed.ops["gamma"] == plain.ops["gamma"] | {"p": 0.9}
    assert list(changed.ops)[-1] == "jpeg"
    assert "gaussian_blur" not in changed.ops
    assert (changed.geometry.quarter_turns, changed.geometry.rotate) == (True, plain.geometry.rotate)
    assert POLICIES.get("xray") is plain


def test_one_policy_may_be_stronger_than_the_others() -> None:
    alone = build("xray", 0.5, {"strength": 1, "crop": 0.4})
    assert (alone.geometry, alone.crop) == (build("xray", 1.0).geometry, 0.4)
    assert [slot.op.strength for slot in alone.view] == [1.0] * len(alone.view)
    assert build("xray", 0.5, {"strength": 0}).view == []
    assert build("mri", 0.5).geometry == POLICIES.get("mri").geometry.scaled(0.5)


def test_quantities_and_sides_are_left_alone_by_default() -> None:
    for name in POLICIES:
        policy = POLICIES.get(name)
        if policy.meaning == "quantitative":
            assert not {"brightness_contrast", "gamma", "gain"} & set(policy.ops), name
        if policy.turns == "none":
            assert policy.geometry.horizontal_flip == policy.geometry.vertical_flip == 0.0, name
        if policy.meaning == "stain" or name in ("blood", "cytology"):
            assert not {"color_jitter", "grayscale"} & set(policy.ops), name
        if name in ("xray", "ct", "ultrasound", "oct"):
            assert policy.geometry.vertical_flip == 0.0, name
    assert set(MODALITIES) <= set(POLICIES)


def test_an_op_of_someone_that_cannot_act_at_its_stage_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(RowOp):
        numbers = 1
        stage = "window"

    monkeypatch.setitem(OPS._items, "own", Own)
    with pytest.raises(RecipeError, match=r"'own' \(test_views\): its stage 'window' cannot be"):
        build("xray", 1.0, {"ops": {"own": {}}})
    monkeypatch.setattr(Own, "stage", "views")
    with pytest.raises(RecipeError, match="its stage 'views' cannot be"):
        build("xray", 1.0, {"ops": {"own": {}}})


def test_a_mask_may_be_true_and_false(monkeypatch: pytest.MonkeyPatch) -> None:
    given = batch(4, modality="ultrasound")
    expected = maker()(given, Draws(0, 0, given.rows))
    real = MASKS.get("fan")
    monkeypatch.setitem(MASKS._items, "fan", lambda images, sizes: real(images, sizes) > 0.5)
    soft = real(given.unit(), given.sizes)
    assert ((soft == 0) | (soft == 1)).all()
    for view, wanted in zip(maker()(given, Draws(0, 0, given.rows)), expected, strict=True):
        assert torch.equal(view, wanted)
