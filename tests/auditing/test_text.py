"""Burnt-in text: found where it is drawn, not where there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from audit_helpers import picture, real
from PIL import Image, ImageDraw, ImageFont

from ssl_mednet.auditing.text import find_text

PLACES = {"top": (12, 8), "bottom": (100, 232), "left": (4, 120)}


def written(image: Image.Image, place: tuple[int, int], text: str = "PORTABLE 12:45", level: int = 255) -> np.ndarray:
    ImageDraw.Draw(image).text(place, text, fill=level, font=ImageFont.load_default(size=13))
    return np.asarray(image, dtype=np.float32) / 255


@pytest.mark.parametrize("modality", ["xray", "ultrasound", "mri"])
def test_phantoms_have_no_text_and_written_ones_have(modality: str) -> None:
    clean = [np.asarray(picture(i, modality, 256), dtype=np.float32) / 255 for i in range(20)]
    assert sum(bool(find_text(gray)) for gray in clean) == 0
    dark = Image.new("L", (256, 256), 12)
    for place in PLACES.values():
        canvas = dark.copy()
        canvas.paste(picture(3, modality, 160), (48, 40))
        assert find_text(written(canvas, place))


def test_the_box_is_where_the_text_is() -> None:
    boxes = find_text(written(Image.new("L", (256, 200), 10), (20, 170)))
    assert min(b.left for b in boxes) in range(18, 40)
    assert all(165 <= b.top < b.bottom <= 190 for b in boxes)


def test_dark_text_on_bright_ground_is_text() -> None:
    assert find_text(written(Image.new("L", (256, 256), 230), (20, 10), level=0))


def test_a_letter_and_scattered_specks_are_no_text() -> None:
    assert find_text(written(Image.new("L", (256, 256), 10), (20, 10), "R")) == []
    specks = np.zeros((256, 256), np.float32)
    for y, x in np.random.default_rng(0).integers(5, 245, (40, 2)):
        specks[y : y + 6, x : x + 4] = 1
    assert len(find_text(specks)) == 0
    middle = written(Image.new("L", (256, 256), 10), (90, 120), "LESION A")
    assert find_text(middle) == []


@pytest.mark.data
def test_real_images_without_text_are_not_flagged(data_root: Path) -> None:
    """Seen by eye: no line of four letters can be read in these sets at their size."""
    for name in ("mednist", "kermany_cxr", "brain_mri"):
        images, _ = real(data_root, name, 200)
        flagged = sum(bool(find_text(np.asarray(image, dtype=np.float32) / 255)) for image in images)
        assert flagged <= 1, name


@pytest.mark.parametrize("name", ["examples_rgb_color.dcm", "examples_palette.dcm"])
def test_real_ultrasound_with_text_is_flagged(name: str) -> None:
    """The names of hospital and protocol stand in these files of pydicom's own tests, seen at the stored size."""
    from pydicom.data import get_testdata_file

    from ssl_mednet.data.sources import open_source

    item = next(iter(open_source(str(get_testdata_file(name))).items()))
    image = next(iter(item.images(""))).shrunk(256)
    assert find_text(image.unit().mean(axis=2))
