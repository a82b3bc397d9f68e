"""Perceptual hashes, moments and flags against what they should be by definition."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from scipy.fft import dct

from ssl_mednet.data.schema import Flag
from ssl_mednet.imaging import phantoms
from ssl_mednet.ingesting.hashes import flags, keyed_hash, moments, perceptual_hash, pixel_hash


def unit(picture: Image.Image) -> np.ndarray:
    pixels = np.asarray(picture, dtype=np.float32) / 255
    return pixels[..., None] if pixels.ndim == 2 else pixels


def picture(index: int) -> Image.Image:
    return Image.fromarray(np.rint(phantoms.phantom("gray", index, 128, 0).image.unit()[..., 0] * 255).astype(np.uint8))


def distance(one: Image.Image, other: Image.Image) -> int:
    return (perceptual_hash(unit(one)) ^ perceptual_hash(unit(other))).bit_count()


def test_the_hash_is_the_sign_of_low_frequencies_against_their_median() -> None:
    gray = unit(picture(3))
    blocks = gray[..., 0].reshape(32, 4, 32, 4).mean(axis=(1, 3), dtype=np.float64)
    low = dct(dct(blocks, axis=0), axis=1)[1:9, 1:9].ravel()
    bits = "".join("1" if value > np.median(low) else "0" for value in low)
    assert f"{perceptual_hash(gray):064b}" == bits
    assert bits.count("1") == 32


def test_a_picture_stays_near_itself_when_scaled_compressed_and_brightened_and_far_from_others() -> None:
    far, near = [], []
    for i in range(0, 60, 3):
        one = picture(i)
        buffer = io.BytesIO()
        one.save(buffer, "JPEG", quality=60)
        changed = [Image.open(buffer), one.resize((90, 90)), ImageEnhance.Brightness(one).enhance(0.8)]
        near += [distance(one, other) for other in changed]
        far += [distance(one, picture(j)) for j in range(i + 1, i + 3)]
    assert np.percentile(near, 95) <= 8
    assert np.median(far) >= 16
    assert np.median(far) > 4 * max(1, np.median(near))


def test_gray_in_three_channels_hashes_as_gray() -> None:
    gray = unit(picture(1))
    assert (perceptual_hash(gray) ^ perceptual_hash(gray.repeat(3, axis=2))).bit_count() <= 1


def test_the_pixel_hash_knows_shape_and_depth() -> None:
    flat = np.zeros((4, 6, 1), np.uint8)
    others = [flat.reshape(6, 4, 1), np.zeros((4, 3, 1), np.uint16), np.zeros((4, 2, 3), np.uint8)]
    assert len({pixel_hash(p) for p in [flat, *others]}) == 4
    assert pixel_hash(flat) == pixel_hash(flat.copy())


@pytest.mark.parametrize("channels", [1, 3])
def test_moments_are_means_of_values_and_squares(channels: int) -> None:
    x = np.random.default_rng(0).random((5, 7, channels), dtype=np.float32)
    assert np.allclose(moments(x), [x.mean(axis=(0, 1)), (x**2).mean(axis=(0, 1))], atol=1e-6)


def test_constant_and_nearly_empty_pictures_are_flagged_and_real_ones_are_not() -> None:
    blank = np.full((50, 50, 1), 7, np.uint8)
    assert flags(blank, blank / np.float32(255)) == Flag.CONSTANT | Flag.NEARLY_EMPTY
    dot = blank.copy()
    dot[3:6, 3:6] = 200
    assert flags(dot, dot / np.float32(255)) == Flag.NEARLY_EMPTY
    patch = blank.copy()
    patch[:10, :10] = 200
    assert flags(patch, patch / np.float32(255)) == Flag(0)
    for i in range(10):
        image = phantoms.phantom("gray", i, 64, 0).image
        assert flags(image.pixels, image.unit()) == Flag(0)


def test_no_group_has_no_hash() -> None:
    assert keyed_hash(b"k", "") == -1
    assert 0 <= keyed_hash(b"k", "x") < 2**63
