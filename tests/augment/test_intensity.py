"""The formulas of the ops that serve any image; what holds for all ops is in test_ops."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from scipy.ndimage import gaussian_filter

from ssl_mednet.augment.intensity import (
    BrightnessContrast,
    ColorJitter,
    Gamma,
    GaussianBlur,
    GaussianNoise,
    normal_field,
)
from ssl_mednet.augment.ops import run
from ssl_mednet.draws import Draws


def images(n: int = 16, channels: int = 3, size: int = 24) -> torch.Tensor:
    return torch.rand(n, channels, size, size)


def test_kornias_own_augmentations_leave_the_callers_random_state_alone() -> None:
    x = images(8)
    state = torch.get_rng_state()
    changed = run(K.RandomSharpness(0.9, p=0.7), x, torch.rand(8, 2, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert (changed - x).abs().max() > 1e-3


def test_blur_is_the_gaussian_of_scipy() -> None:
    x = images(4, 1, 32)
    sigma = torch.tensor([0.0, 0.4, 0.7, 0.8])
    out = GaussianBlur(0.8).change(x, {"sigma": sigma})
    for i, s in enumerate(sigma.tolist()):
        expected = gaussian_filter(x[i, 0].numpy(), s, mode="mirror", radius=3) if s else x[i, 0].numpy()
        torch.testing.assert_close(out[i, 0], torch.tensor(expected), atol=1e-4, rtol=0)


def test_noise_has_the_deviation_it_was_given() -> None:
    grey = torch.full((64, 1, 64, 64), 0.5)
    place = torch.linspace(0, 1, 65)[:-1]
    out = GaussianNoise(0.1).change(grey, {"sigma": torch.full((64,), 0.05), "place": place})
    assert abs(out.std().item() - 0.05) < 5e-4
    assert abs(out.mean().item() - 0.5) < 5e-4
    assert not torch.equal(out[0], out[1])


def test_a_noise_field_begins_at_its_place_to_the_number() -> None:
    u = torch.cat([torch.tensor([0.0, 2.0**-24, 1 - 2.0**-24]), Draws(0, 0, torch.arange(500)).uniform("u", 1)[:, 0]])
    field = normal_field(u, (1, 1, 3), torch.device("cpu")).flatten(1)
    start = (u.double() * ((1 << 22) - 3)).long()
    bank = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0x5EED))
    assert torch.equal(field, bank[start[:, None] + torch.arange(3)])


def test_noise_fields_of_two_rows_are_not_correlated() -> None:
    field = normal_field(torch.tensor([0.1, 0.5, 0.9]), (1, 64, 64), torch.device("cpu")).flatten(1)
    assert (torch.corrcoef(field) - torch.eye(3)).abs().max() < 0.06


def test_brightness_and_contrast_follow_their_formula() -> None:
    x = images(1) * 0.4 + 0.3
    out = BrightnessContrast().change(x, {"brightness": torch.tensor([1.1]), "contrast": torch.tensor([0.8])})
    torch.testing.assert_close(out, (x - x.mean()) * 0.8 + x.mean() * 1.1)


def test_a_hue_turn_keeps_gray_gray_and_luma() -> None:
    gray = torch.rand(4, 1, 8, 8).expand(-1, 3, -1, -1).contiguous()
    params = {"saturation": torch.full((4,), 1.3), "angle": torch.full((4,), 0.5)}
    torch.testing.assert_close(ColorJitter().change(gray, params), gray, atol=1e-5, rtol=0)
    color = torch.rand(4, 3, 8, 8) * 0.3 + 0.35
    turned = ColorJitter().change(color, params | {"saturation": torch.ones(4)})
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    torch.testing.assert_close((turned * luma).sum(1), (color * luma).sum(1), atol=1e-4, rtol=0)
    assert (turned - color).abs().max() > 0.01


def test_the_probability_is_respected() -> None:
    x = images(2000, 1, 4)
    changed = (run(Gamma(p=0.3), x, torch.rand(2000, 2)) != x).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.3) < 0.04
