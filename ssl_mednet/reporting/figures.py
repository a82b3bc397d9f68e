"""Numbers -> inline SVG. matplotlib draws, the page's own colours and font are put in; the same input, the same bytes.

Every panel is a figure of its own that fits a telephone; the page lays them side by side where there is room.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import IdentityTransform, blended_transform_factory

from ssl_mednet.reporting.curves import FEW, Reliability
from ssl_mednet.reporting.theme import DASHES, MARKERS, PLACEHOLDERS, SERIES, shape, themed

INK, MUTED, RULE, PAPER = (PLACEHOLDERS[name] for name in ("ink", "muted", "rule", "paper"))
WIDTH, HEIGHT = 304, 250  # of a panel, pixels
# Room for labels, pixels. Fixed, so that panels side by side line up, and because measuring text would take most time.
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 26, 44
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ssl_mednet",
    "font.family": "sans-serif",
    "font.size": 12,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.facecolor": "none",
    "axes.labelcolor": INK,
    "axes.titlesize": 12.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "path.simplify_threshold": 0.5,
}
Values = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Line:
    """One curve: ``series`` chooses colour, dash and marker; ``low`` and ``high`` draw a band around it."""

    x: Values
    y: Values
    series: int
    low: Values | None = None
    high: Values | None = None


@dataclass(frozen=True)
class AxisText:
    """What stands at a panel: title, both axes, and the sentence for who cannot see it."""

    title: str
    x: str
    y: str
    label: str


def lines(
    name: str,
    said: AxisText,
    curves: Sequence[Line],
    *,
    ticks: dict[float, str] | None = None,
    bottom: float | None = None,
    width: int = WIDTH,
    height: int = HEIGHT,
) -> Markup:
    """A panel of curves with markers and bands.

    Args:
        ticks: positions on x with their names, which makes x logarithmic; else x counts.
        bottom: the y axis begins there or lower.
    """

    def draw(axes: Axes) -> None:
        for curve in curves:
            if curve.low is not None and curve.high is not None:
                axes.fill_between(curve.x, curve.low, curve.high, color=SERIES[_nth(curve)], alpha=0.16, linewidth=0)
        for curve in curves:
            _draw(axes, curve, markers=len(curve.x) <= 30)
        if ticks is None:
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        else:
            _log_ticks(axes, ticks)
        if bottom is not None:
            axes.set_ylim(bottom=min(bottom, axes.get_ylim()[0]))
        # Round numbers of few digits, whatever the size: the room for them is fixed.
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.4g}"))

    return panel(name, said, draw, width, height)


def roc_panel(
    name: str, said: AxisText, curves: Sequence[Line], points: Sequence[tuple[float, float, int]] = ()
) -> Markup:
    """ROC curves in the unit square with the diagonal of chance; ``points``: (fpr, tpr, series) of decisions."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        for curve in curves:
            _draw(axes, curve, markers=False)
        for x, y, series in points:
            look: dict[str, Any] = {"marker": MARKERS[shape(series)], "markersize": 9, "markeredgecolor": INK}
            axes.plot([x], [y], color=SERIES[series % len(SERIES)], zorder=5, **look)
        _unit_square(axes)

    return panel(name, said, draw, WIDTH, WIDTH)


def reliability_panel(name: str, said: AxisText, bins: Reliability, series: int) -> Markup:
    """The share that came true over confidence, and below it how many predictions stand behind each point."""
    filled = bins.count > 0
    thick = bins.count >= FEW
    color = SERIES[series % len(SERIES)]

    def draw(figure: Figure) -> None:
        top, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": (4, 1), "hspace": 0.1})
        top.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=(0, (1, 2)))
        top.plot(bins.confidence[filled], bins.frequency[filled], color=color, linewidth=1.2)
        for chosen, face in ((thick, color), (filled & ~thick, PAPER)):
            look: dict[str, Any] = {"marker": "o", "markersize": 6, "markerfacecolor": face, "markeredgecolor": color}
            top.plot(bins.confidence[chosen], bins.frequency[chosen], linestyle="none", **look)
        _unit_square(top)
        edges = np.linspace(0, 1, len(bins.count) + 1)
        below.bar(edges[:-1], bins.count, width=np.diff(edges) * 0.9, align="edge", color=color, linewidth=0)
        below.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        _say(top, AxisText(said.title, "", said.y, ""))
        _say(below, AxisText("", said.x, "number", ""))

    return _render(name, said.label, draw, WIDTH, 360)


def panel(name: str, said: AxisText, draw: Callable[[Axes], None], width: int, height: int) -> Markup:
    """One pair of axes as inline SVG."""

    def whole(figure: Figure) -> None:
        axes = figure.add_subplot()
        draw(axes)
        _say(axes, said)

    return _render(name, said.label, whole, width, height)


def _render(name: str, label: str, draw: Callable[[Figure], None], width: int, height: int) -> Markup:
    with rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(width / 72, height / 72))
        sides = {"left": _LEFT / width, "right": 1 - _RIGHT / width}
        figure.subplots_adjust(**sides, bottom=_BOTTOM / height, top=1 - _TOP / height)
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return Markup(themed(buffer.getvalue(), name, escape(label)))


def _draw(axes: Axes, curve: Line, markers: bool) -> None:
    look: dict[str, Any] = {"marker": MARKERS[shape(curve.series)], "markersize": 5} if markers else {}
    axes.plot(curve.x, curve.y, color=SERIES[_nth(curve)], linestyle=DASHES[curve.series % len(DASHES)], **look)


def _nth(curve: Line) -> int:
    return curve.series % len(SERIES)


def _say(axes: Axes, said: AxisText) -> None:
    axes.set_title(_plain(said.title))
    axes.set_xlabel(_plain(said.x))
    axes.set_ylabel(_plain(said.y))
    pixels_by_share = blended_transform_factory(IdentityTransform(), axes.transAxes)  # SVG has 72 dots per inch
    axes.yaxis.set_label_coords(14, 0.5, transform=pixels_by_share)


def _plain(text: str) -> str:
    """Names from outside are not mathematics: matplotlib would read what stands between two dollar signs."""
    return text.replace("$", r"\$")


def _log_ticks(axes: Axes, ticks: dict[float, str]) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(ticks)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([*ticks.values()])


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
