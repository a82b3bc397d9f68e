"""Thumbnails on one sheet, each in its place; maps that keep distances; shapes that differ."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from ssl_mednet.reporting import figures
from ssl_mednet.reporting.figures import AxisText, Line
from ssl_mednet.reporting.load import Thumbnails
from ssl_mednet.reporting.pictures import make_sheet, on_map, shapes
from ssl_mednet.reporting.theme import MARKERS, SERIES


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB")])
def test_every_picture_is_found_in_its_cell(channels: int, mode: str) -> None:
    levels = np.arange(7, dtype=np.uint8) * 36
    pictures = np.broadcast_to(levels[:, None, None, None], (7, 20, 20, channels)).copy()
    sheet = make_sheet("s", Thumbnails(np.arange(7) * 11, pictures))
    image = Image.open(io.BytesIO(base64.b64decode(sheet.uri.partition(",")[2])))
    assert (image.mode, image.size) == (mode, (3 * 24, 3 * 24))
    for i, level in enumerate(levels):
        column, line = sheet.place(i * 11) or (-1, -1)
        cell = np.asarray(image)[line * 24 : line * 24 + 24, column * 24 : column * 24 + 24]
        assert np.abs(cell.astype(int) - int(level)).max() <= 3  # and nothing of the neighbours
    assert sheet.place(5) is None


def test_a_map_has_one_scale_and_y_upwards() -> None:
    xy = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 1.0]])
    points, height = on_map(xy, 200, 300)
    assert height == 150  # flat, but not a strip
    assert points[1, 0] - points[0, 0] == pytest.approx(4 * (points[0, 1] - points[2, 1]), abs=0.5)
    assert points[2, 1] < points[0, 1]
    assert points.min() >= 13
    assert np.isfinite(on_map(np.zeros((3, 2)), 200, 300)[0]).all()


def test_every_class_has_its_own_color_and_shape() -> None:
    count = len(SERIES) * len(MARKERS)
    looks = {(number % len(SERIES), shapes([(0, 0)], number)) for number in range(count)}
    assert len(looks) == count
    assert shapes([(1, 2), (3, 4)], 0).count("z") == 2


def test_the_legend_has_the_marker_of_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[str] = []
    plot = Axes.plot

    def spy(axes: Axes, *points: Any, marker: str = "", **look: Any) -> Any:
        drawn.append(marker)
        return plot(axes, *points, marker=marker, **look)

    monkeypatch.setattr(Axes, "plot", spy)
    for number in (0, 6, 7, 13, 14, 48):
        figures.lines("f", AxisText("t", "x", "y", "l"), [Line([1, 2], [1, 2], number)])
        figures.roc_panel("f", AxisText("t", "x", "y", "l"), [], [(0.5, 0.5, number)])
        *_, curve, _, point = drawn
        first = MARKERS.index(curve)  # the first series that has this marker
        assert shapes([(0, 0)], number) == shapes([(0, 0)], first)
        assert point == curve
