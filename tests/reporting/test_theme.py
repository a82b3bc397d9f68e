"""Colours can be read and told apart, by everyone, in both themes; figures use no other colours and stay the same."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from ssl_mednet.reporting import theme
from ssl_mednet.reporting.figures import AxisText, Line, lines

THEMES = {"light": (theme.LIGHT, theme.SERIES_LIGHT), "dark": (theme.DARK, theme.SERIES_DARK)}
# Machado, Oliveira and Fernandes 2009, severity 1: linear RGB as it is seen with protan, deutan and tritan deficiency.
VISION = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(color: str) -> np.ndarray:
    c = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2.2, 1.4.3."""
    dark, bright = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = to_xyz @ np.clip(rgb, 0, 1) / np.array([0.9505, 1.0, 1.089])
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("name", THEMES)
def test_text_stands_out_from_its_ground(name: str) -> None:
    colors, series = THEMES[name]
    for ground, text in itertools.product(("paper", "panel"), ("ink", "muted", "link", "good", "bad")):
        assert contrast(colors[ground], colors[text]) >= 4.5, (ground, text)
    for color in series:
        assert contrast(colors["paper"], color) >= 3, color


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize("name", THEMES)
def test_series_can_be_told_apart(name: str, vision: str) -> None:
    seen = [lab(np.array(VISION[vision]) @ linear(color)) for color in THEMES[name][1]]
    for (i, one), (j, other) in itertools.combinations(enumerate(seen), 2):
        assert np.linalg.norm(one - other) > 15, (i, j)


def figure(name: str = "one", title: str = "costs $5 & <b> of $9") -> str:
    return lines(name, AxisText(title, "x", "y", 'said "so"'), [Line([1, 2, 3], [1, 2, 4], 1, [0, 1, 3], [2, 3, 5])])


def test_a_figure_takes_all_colors_and_the_font_from_the_page() -> None:
    svg = figure()
    assert re.findall(r"#[0-9a-f]{6}\b", svg) == []
    assert "var(--s1)" in svg
    assert "var(--ink)" in svg
    assert set(re.findall(r"font-family: ([^;\"]+)", svg)) == {"inherit"}
    assert "<style" not in svg
    assert "http" not in svg.replace("http://www.w3.org", "")
    assert "costs $5 &amp; &lt;b&gt; of $9" in svg
    assert 'aria-label="said &#34;so&#34;"' in svg


def test_the_same_figure_twice_is_the_same_and_two_share_no_id() -> None:
    assert figure() == figure()
    one, other = (set(re.findall(r'\bid="([^"]+)"', figure(name))) for name in ("one", "two"))
    assert one
    assert not one & other
    assert set(re.findall(r'(?:url\(#|href="#)([^)"]+)', figure())) <= one
