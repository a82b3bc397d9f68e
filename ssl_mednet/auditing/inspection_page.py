"""An inspection as one HTML file that needs nothing else: numbers, histograms, a contact sheet a modality."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from jinja2 import Template
from PIL import Image

from ssl_mednet.auditing.inspection import SIDE, Inspection
from ssl_mednet.catalog.licences import DISCLAIMER
from ssl_mednet.errors import UserError
from ssl_mednet.files import check_file, replacing

_COLUMNS = 8  # pictures side by side
_PAGE = Template(
    """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ c.name }}</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222; max-width: 60rem }
h2 { margin: 2rem 0 .5rem; font-size: 1.1rem } h2 small { color: #666; font-weight: normal }
table { border-collapse: collapse } th, td { text-align: left; padding: .15rem .8rem .15rem 0; vertical-align: top }
td.n, th.n { text-align: right } img { max-width: 100%; background: #ddd } svg { background: #f4f6f8; display: block }
code { font-size: 12px } .note { color: #666; font-size: 12px }
</style><h1>{{ c.name }}</h1>
<p>{{ c.images }} {{ c.channels }} images, {{ c.labelled }} with a label, {{ c.quarantined }} files in quarantine.
Fingerprint <code>{{ c.fingerprint }}</code>.</p>
<h2>Licences</h2><p>{{ c.verdict.sentence }}</p>
<ul>{% for condition in c.verdict.conditions %}<li>{{ condition }}</li>{% endfor %}</ul>
<table><tr><th>source<th>licence<th class="n">images</tr>
{% for (source, licence), count in c.sources.items() %}<tr><td>{{ source }}<td>{{ licence or "not stated" }}
<td class="n">{{ count }}</tr>{% endfor %}</table><p class="note">{{ disclaimer }}</p>
<h2>Splits</h2><table><tr><th>split<th class="n">images<th class="n">groups<th class="n">ungrouped</tr>
{% for s in c.splits %}<tr><td>{{ s.name or "none" }}<td class="n">{{ s.images }}<td class="n">{{ s.groups }}
<td class="n">{{ s.ungrouped }}</tr>{% endfor %}</table>
{% if c.shared_groups %}<p>{{ c.shared_groups }} groups lie in more than one split.</p>{% endif %}
<h2>Quality</h2><table><tr><td>exact copies<td class="n">{{ c.copies }}</tr>
{% for name, count in c.flags.items() %}<tr><td>{{ name }}<td class="n">{{ count }}</tr>{% endfor %}
{% for name, count in (c.marks or {}).items() %}<tr><td>marked {{ name }}<td class="n">{{ count }}</tr>{% endfor %}
</table>
{% if c.marks is none %}
<p class="note">No marks of this version: make them with <code>ssl-mednet curate</code>.</p>{% endif %}
{% for m in parts %}<h2>{{ m.part.name }} <small>{{ m.part.images }} images,
{% for bits, count in m.part.bits.items() %}{{ count }} of {{ bits }} bits{{ ", " if not loop.last }}{% endfor %}
</small></h2>
<table><tr><th><th class="n">least<th class="n">5 %<th class="n">50 %<th class="n">95 %<th class="n">most</tr>
<tr><td>height{% for n in m.part.height %}<td class="n">{{ n }}{% endfor %}</tr>
<tr><td>width{% for n in m.part.width %}<td class="n">{{ n }}{% endfor %}</tr></table>
<p class="note">Intensities through the window, 0 to 1, of a sample; heights are roots of the shares.</p>
<svg width="{{ 10 * m.bars|length }}" height="60" role="img" aria-label="histogram of {{ m.part.name }}">
{% for h in m.bars %}<rect x="{{ 10 * loop.index0 }}" y="{{ 60 - h }}" width="9" height="{{ h }}" fill="#0b5cad"/>
{% endfor %}</svg><p><img alt="images of {{ m.part.name }}" src="{{ m.sheet }}"></p>{% endfor %}</html>
""",
    autoescape=True,
)


def write_page(inspection: Inspection, out: str | Path) -> Path:
    """Write the page.

    Raises:
        UserError: as :func:`check_page`.
    """
    path = check_page(out)
    with replacing(path) as temporary:
        temporary.write_text(as_page(inspection), encoding="utf-8")
    return path


def check_page(out: str | Path) -> Path:
    """Where a page is to be written.

    Raises:
        UserError: ``out`` is no HTML file, or cannot be written.
    """
    path = Path(out).expanduser()
    if path.suffix != ".html":
        raise UserError(f"{path}: an inspection is an .html page", "choose --out corpus.html")
    check_file(path)
    return path


def as_page(inspection: Inspection) -> str:
    """The whole page as text."""
    parts = [
        {"part": part, "bars": _heights(part.histogram), "sheet": _sheet(part.pictures)}
        for part in inspection.modalities
    ]
    return _PAGE.render(c=inspection, parts=parts, disclaimer=DISCLAIMER)


def _heights(histogram: np.ndarray) -> list[int]:
    return [int(h) for h in (np.sqrt(histogram / max(histogram.max(), 1e-12)) * 56).round()]


def _sheet(pictures: np.ndarray) -> str:
    """Pictures ``[n, 96, 96(, 3)]`` side by side as the address of one PNG."""
    lines = -(-len(pictures) // _COLUMNS)
    cell = SIDE + 4
    mode = "L" if pictures.ndim == 3 else "RGB"
    page = Image.new(mode, (min(len(pictures), _COLUMNS) * cell, lines * cell), "white")
    for i, picture in enumerate(pictures):
        page.paste(Image.fromarray(picture), (i % _COLUMNS * cell, i // _COLUMNS * cell))
    buffer = io.BytesIO()
    page.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
