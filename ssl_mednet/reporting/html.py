"""Views -> one HTML file: style, script, figures and pictures are in it, and nothing is fetched from anywhere."""

from __future__ import annotations

import base64
import hashlib
import math
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ssl_mednet.reporting import tables, theme, words
from ssl_mednet.reporting.leaderboard import BAR
from ssl_mednet.reporting.page import Page
from ssl_mednet.reporting.pictures import shapes
from ssl_mednet.reporting.references import alike
from ssl_mednet.reporting.tasks import NOT_SEEDS

FOLDER = Path(__file__).parent
PROTOCOL_HELP = {
    "linear": "the network is frozen, only a logistic regression on its features is fitted",
    "knn": "the network is frozen; the most similar training images vote",
    "finetune": "the whole network is trained further with the labels",
    "linear_then_finetune": "a linear probe first, then the whole network from there",
}


def render(page: Page, version: str) -> str:
    """The whole file as text; the same views give the same bytes."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.globals |= {
        "alike": alike,
        "bar_width": BAR,
        "colors": len(theme.SERIES),
        "dash": _dash,
        "defined": lambda value: not math.isnan(value),
        "join": words.join,
        "marker": lambda number, x, y: shapes([(x, y)], number),
        "metric_name": words.metric_name,
        "not_seeds": NOT_SEEDS,
        "number": words.number,
        "protocol_help": PROTOCOL_HELP,
        "protocol_name": words.protocol_name,
        "sources": tables.sources,
    }
    script = (FOLDER / "page.js").read_text(encoding="utf-8")
    digest = hashlib.sha256(script.encode()).digest()
    return environment.get_template("page.html.j2").render(
        page=page,
        css=Markup((FOLDER / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=base64.b64encode(digest).decode(),
        light=theme.variables(theme.LIGHT, theme.SERIES_LIGHT),
        dark=theme.variables(theme.DARK, theme.SERIES_DARK),
        version=version,
    )


def _dash(number: int) -> str:
    """The dash of a series as SVG writes it, as long as in the figures."""
    dash = theme.DASHES[number % len(theme.DASHES)]
    return "" if isinstance(dash, str) else " ".join(f"{1.8 * length:g}" for length in dash[1])
