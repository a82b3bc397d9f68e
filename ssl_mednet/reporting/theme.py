"""Colours of the report, for light and dark, and the SVG that follows them.

Series colours are the hues of Okabe and Ito (2008, "Color Universal Design"), moved until each stands out from the
ground (3:1 or more) and from every other one, with normal and with colour-blind eyes (``test_theme.py``).
A marker and a dash go with every colour, so nothing depends on colour alone.
"""

from __future__ import annotations

import re

LIGHT = {
    "paper": "#ffffff",
    "panel": "#f4f6f8",
    "ink": "#1b1f24",
    "muted": "#555f6b",
    "rule": "#c8cfd7",
    "link": "#0b5cad",
    "good": "#0a6b3d",
    "bad": "#a83200",
}
DARK = {
    "paper": "#14181d",
    "panel": "#1d232a",
    "ink": "#e6e8eb",
    "muted": "#a3adb8",
    "rule": "#3d4650",
    "link": "#7ab8ff",
    "good": "#4cd18f",
    "bad": "#ff9466",
}
SERIES_LIGHT = ("#075fa9", "#d34f16", "#00a05a", "#b9779a", "#643b18", "#668eff", "#414b51")
SERIES_DARK = ("#4e7bf2", "#e06a1a", "#00c269", "#c677b4", "#f0de5e", "#abe3ff", "#b1c0b2")
DASHES = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# What is drawn with, and what stands for it in the page. No other colour may be used in a figure.
PLACEHOLDERS = {name: f"#01{i:02x}fe" for i, name in enumerate(LIGHT)}
SERIES = tuple(f"#02{i:02x}fe" for i in range(len(SERIES_LIGHT)))
_VARIABLE = {code: name for name, code in PLACEHOLDERS.items()} | {code: f"s{i}" for i, code in enumerate(SERIES)}
_CODE = re.compile("|".join(_VARIABLE))
_FONT = re.compile(r"font-family: [^;\"]*sans-serif")
_ID = re.compile(r' id="([^"]*)"')
_REFERENCE = re.compile(r'(url\(#|href="#)([^)"]+)')


def shape(number: int) -> int:
    """Which of the markers a series has. Where the colours begin again they are one off: 49 series look different."""
    return (number + number // len(MARKERS)) % len(MARKERS)


def variables(colors: dict[str, str], series: tuple[str, ...]) -> str:
    """CSS custom properties: ``--ink: #1b1f24; ... --s0: ...``."""
    named = colors | {f"s{i}": color for i, color in enumerate(series)}
    return " ".join(f"--{name}: {color};" for name, color in named.items())


def themed(svg: str, name: str, label: str) -> str:
    """An SVG file of matplotlib as a part of the page: colours and font of the page, ids of its own.

    Args:
        name: of the figure, unlike that of any other in the page; goes before the ids.
        label: what a screen reader says; already escaped.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"\s*<metadata>.*?</metadata>|\s*<style.*?</style>", "", body, flags=re.S)
    body = _CODE.sub(lambda m: f"var(--{_VARIABLE[m[0]]})", body)
    body = _FONT.sub("font-family: inherit", body)
    used = {m[2] for m in _REFERENCE.finditer(body)}
    body = _ID.sub(lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = _REFERENCE.sub(rf"\g<1>{name}-\g<2>", body)
    body = re.sub(r"\n\s*", " ", body)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', body)
    assert size
    head = f'<svg class="plot" role="img" aria-label="{label}" width="{size[1]}" height="{size[2]}" {size[0]}>'
    return head + body[body.index(">") + 1 :].strip()
