"""Phantoms: a pure function of the index, physics that can be checked, lesions that cannot be guessed."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from ssl_mednet.imaging.image import HU_OFFSET
from ssl_mednet.imaging.phantoms import FAMILIES, gray, phantom, truth
from ssl_mednet.imaging.phantoms.shapes import blob, grid

every_family = pytest.mark.parametrize("family", ["gray", "color"])


@every_family
def test_a_phantom_depends_on_its_index_only(family: str) -> None:
    first = [phantom(family, i, 32).image.pixels for i in range(10)]
    again = [phantom(family, i, 32).image.pixels for i in reversed(range(10))][::-1]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    other = [phantom(family, i, 32, seed=1).image.pixels for i in range(10)]
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))
    assert not np.array_equal(first[0], first[5])


@every_family
def test_modalities_take_turns_and_half_of_each_has_a_lesion(family: str) -> None:
    names = FAMILIES[family]
    truths = [truth(family, i) for i in range(500)]
    assert [t[0] for t in truths] == [names[i % 5] for i in range(500)]
    for k in range(5):
        lesions = [lesion for _, lesion in truths[k::5]]
        assert sum(lesions) == 50
        assert abs(np.corrcoef(lesions[1:], lesions[:-1])[0, 1]) < 0.3
    for i in range(10):
        made = phantom(family, i, 32)
        assert (made.image.modality, made.lesion) == truths[i]


@every_family
@pytest.mark.parametrize("size", [32, 100])
def test_pixels_are_what_the_modality_stores(family: str, size: int) -> None:
    for i in range(5):
        image = phantom(family, i, size).image
        assert image.pixels.shape == (size, size, 1 if family == "gray" else 3)
        assert image.pixels.dtype == (np.uint16 if image.modality == "ct" else np.uint8)
        assert image.unit().std() > 0.05
    with pytest.raises(ValueError, match="32 to 256"):
        phantom(family, 0, 300)


def test_another_size_shows_the_same_lesion_free_anatomy() -> None:
    for family in ("gray", "color"):
        for i in range(5):
            small, large = (phantom(family, i, s).image.unit().mean() for s in (64, 128))
            assert small == pytest.approx(large, abs=0.08)


def test_ct_is_in_hounsfield_units() -> None:
    image = phantom("gray", 1, 128).image
    hu = image.pixels[..., 0].astype(int) - HU_OFFSET
    assert image.quantity == "hu"
    assert np.median(hu[:8, :8]) < -900  # air
    assert 0 < np.median(hu[60:70, 30:50]) < 120  # liver
    assert hu.max() > 300  # bone


def test_filtered_back_projection_reconstructs_a_disc() -> None:
    size = 128
    disc = blob(size, (0.1, -0.2), (0.4, 0.4), soft=0.05)
    sinogram = (gray.projector(size, 90) @ disc.ravel()).reshape(90, size)
    np.testing.assert_allclose(sinogram.sum(axis=1), disc.sum(), rtol=1e-6)  # every projection has the whole mass
    back = gray.filtered_back_projection(sinogram)
    x, y = grid(size)
    inside, outside = np.hypot(x - 0.1, y + 0.2) < 0.33, np.hypot(x, y) > 0.75
    assert back[inside].mean() == pytest.approx(1.0, abs=0.05)
    assert abs(back[outside & (np.hypot(x, y) < 0.95)].mean()) < 0.05


def test_the_air_around_a_head_has_rayleigh_noise() -> None:
    ratios = []
    for i in range(2, 100, 5):
        corner = phantom("gray", i, 128).image.unit()[:14, :14, 0]
        ratios.append(corner.mean() / corner.std())
    assert np.median(ratios) == pytest.approx(1.91, abs=0.15)  # sqrt(pi / (4 - pi))


def test_what_is_black_is_black() -> None:
    for i in range(5):
        fan = phantom("gray", 3 + 5 * i, 64).image.pixels[..., 0]
        assert (fan[-6:, :3] == 0).all()
        assert (fan[:10, :4] == 0).all()
        retina = phantom("color", 2 + 5 * i, 64).image.pixels
        assert (retina[:4, :4] == 0).all()


@every_family
def test_the_lesion_is_not_told_by_brightness_or_raw_pixels(family: str) -> None:
    made = [phantom(family, i, 32) for i in range(1000)]
    x = np.stack([m.image.unit().ravel() for m in made])
    y = np.array([m.lesion for m in made])
    brightness = x.mean(axis=1)
    assert 0.4 < roc_auc_score(y, brightness) < 0.6
    x = StandardScaler().fit(x[:700]).transform(x)
    score = LogisticRegression(C=1e-4, max_iter=300).fit(x[:700], y[:700]).decision_function(x[700:])
    assert roc_auc_score(y[700:], score) < 0.75
