"""What augmentation does to images, for a person to judge: originals, views, and every op with its drawn parameters."""

from __future__ import annotations

import base64
import io
import json
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Template
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ssl_mednet.augment.ops import Params
from ssl_mednet.augment.views import resize
from ssl_mednet.data.corpus import Corpus
from ssl_mednet.draws import Draws
from ssl_mednet.errors import UserError
from ssl_mednet.files import check_file
from ssl_mednet.imaging.modality import BY_CODE
from ssl_mednet.methods import METHODS
from ssl_mednet.pretraining.build import build_views, recipe_corpus, recipe_rows
from ssl_mednet.recipe import load_recipe

SHOWN = 128  # side of a picture on the page, pixels
_STEPS = 5  # ops that fit beside the views in a PNG
_HIDDEN = ("noise", "place")  # where in the bank of noise a row reads: nothing to see


@dataclass
class Step:
    """One op that changed a picture: its name, what was drawn for it, and the picture after it ``[C, H, W]``."""

    name: str
    parameters: str
    picture: Tensor


@dataclass
class Sheet:
    """An image of the source, the views made from it, and how the first of them came to be."""

    modality: str
    policy: str
    original: Tensor
    views: list[Tensor]
    steps: list[Step] = field(default_factory=list)


def preview(
    recipe: str | Path | dict[str, Any],
    data: str | Path | None = None,
    out: str | Path = "preview.html",
    images: int = 4,
    step: int = 0,
    overrides: list[str] | None = None,
    quiet: bool = False,
) -> Path:
    """Write a page (``.html``) or a picture (``.png``) of what a recipe's augmentation makes of its images.

    Args:
        images: how many of each modality.
        step: number of the training step whose views are shown; they are those that training sees.

    Raises:
        UserError: the recipe or the data cannot be used, or ``out`` is neither HTML nor PNG.
    """
    path = Path(out).expanduser()
    if path.suffix not in (".html", ".png"):
        raise UserError(f"{path}: a preview is an .html page or a .png picture", "choose --out preview.html")
    check_file(path)
    said = list(overrides or [])
    if data is not None:
        said.append(f"data.source={json.dumps(str(data))}")
    plan = load_recipe(recipe, said)
    corpus = recipe_corpus(plan, quiet)
    sheets = make_sheets(plan, corpus, images, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    title = f"{plan.name}: {plan.data.source}, step {step}, strength {plan.augment.strength:g}"
    if path.suffix == ".png":
        as_picture(sheets, title).save(path)
    else:
        path.write_text(as_page(sheets, title), encoding="utf-8")
    return path


def make_sheets(recipe: Any, corpus: Corpus, images: int, step: int) -> list[Sheet]:
    """The first images of each modality with the views that training would make of them."""
    method = METHODS.get(recipe.method.name)
    channels = 1 if corpus.channels == "gray" else 3
    maker = build_views(recipe, method.views, (0.0,) * channels, (1.0,) * channels)
    candidates = recipe_rows(recipe, corpus)
    codes = corpus.modality[candidates]
    rows = np.concatenate([candidates[np.flatnonzero(codes == code)[:images]] for code in np.unique(codes)])
    batch = corpus.batch(rows)
    originals = resize(batch, recipe.data.image_size)
    names = [BY_CODE[int(code)].name for code in batch.modality]
    sheets = [Sheet(name, maker.policy_of(name), o, []) for name, o in zip(names, originals, strict=True)]

    def note(views: list[int], of: list[int], op: str, index: Tensor, params: Params, pictures: Tensor) -> None:
        for k, i in enumerate(index.tolist()):
            if views[i] == 0:
                row, picture = of[i], pictures[i]
                if op != "crop" and not any(s.name == "crop" for s in sheets[row].steps):  # still the whole canvas
                    picture = picture[:, : int(batch.sizes[row, 0]), : int(batch.sizes[row, 1])]
                sheets[row].steps.append(Step(op, _said(params, k), picture.clone()))

    views = maker(batch, Draws(recipe.train.seed, step, batch.rows), note)
    for i, sheet in enumerate(sheets):
        sheet.views = [view[i] for view in views]
    return sheets


def _said(params: Params, row: int) -> str:
    """``sigma 0.31, angle 12``: parameters that are one number a row."""
    said = []
    for name, values in params.items():
        value = values[row]
        if value.numel() == 1 and name not in _HIDDEN:
            said.append(f"{name} {float(value):.3g}")
    return ", ".join(said)


def _image(picture: Tensor, side: int = SHOWN) -> Image.Image:
    array = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    image = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST).convert("RGB")


def as_picture(sheets: list[Sheet], title: str) -> Image.Image:
    """All sheets as one picture: a line an image; original, views, then the first view op by op."""
    font = ImageFont.load_default(size=11)
    heads = ["original", *(f"view {i + 1}" for i in range(len(sheets[0].views)))]
    columns = len(heads) + _STEPS
    cell, label, left = SHOWN + 6, 44, 96
    page = Image.new("RGB", (left + columns * cell, 24 + len(sheets) * (cell + label)), "white")
    pen = ImageDraw.Draw(page)
    pen.text((6, 6), title, fill="black", font=font)
    for line, sheet in enumerate(sheets):
        top = 24 + line * (cell + label)
        pen.text((6, top + SHOWN // 2), sheet.modality, fill="black", font=font)
        cells = [(head, "", picture) for head, picture in zip(heads, [sheet.original, *sheet.views], strict=True)]
        cells += [(step.name, step.parameters, step.picture) for step in sheet.steps[:_STEPS]]
        for column, (head, text, picture) in enumerate(cells):
            x = left + column * cell
            page.paste(_image(picture), (x, top))
            pen.text((x, top + SHOWN + 1), head, fill="black", font=font)
            pen.multiline_text((x, top + SHOWN + 14), _lines(text), fill="#666666", font=font, spacing=1)
    return page


def _lines(text: str) -> str:
    """The first parameters, one or two to a line of a cell, at most two lines."""
    lines = textwrap.wrap(text, 22)
    return "\n".join(lines[:2])


_PAGE = Template(
    """<!doctype html><html lang="en"><meta charset="utf-8"><title>{{ title }}</title>
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2rem; color: #222 }
h2 { margin: 2rem 0 .5rem; font-size: 1.1rem } h2 small { color: #666; font-weight: normal }
.row { display: flex; flex-wrap: wrap; gap: .6rem; margin-bottom: 1rem; align-items: flex-start }
figure { margin: 0; width: {{ side }}px } img { width: {{ side }}px; image-rendering: pixelated; background: #ddd }
figcaption { font-size: 11px; overflow-wrap: anywhere } figcaption span { color: #666 }
.step { opacity: .95 } .arrow { align-self: center; color: #999 }
</style><h1>Augmentation</h1><p>{{ title }}. Left: the image and the views that training sees. Right of the arrow: how
the first view came to be, op by op, with what was drawn; ops whose coin did not choose the image are not there.</p>
{% for modality, policy, rows in groups %}<h2>{{ modality }} <small>policy {{ policy }}</small></h2>
{% for row in rows %}<div class="row">{% for f in row.views %}<figure><img alt="{{ f[0] }}" src="{{ f[2] }}">
<figcaption>{{ f[0] }}</figcaption></figure>{% endfor %}<span class="arrow">&rarr;</span>
{% for f in row.steps %}<figure class="step"><img alt="{{ f[0] }}" src="{{ f[2] }}">
<figcaption>{{ f[0] }}<br><span>{{ f[1] }}</span></figcaption></figure>{% endfor %}</div>{% endfor %}{% endfor %}</html>
""",
    autoescape=True,
)


def as_page(sheets: list[Sheet], title: str) -> str:
    """All sheets as one HTML file that needs nothing else."""

    def source(picture: Tensor) -> str:
        buffer = io.BytesIO()
        _image(picture).save(buffer, "PNG")
        return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"

    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for sheet in sheets:
        named = [("original", sheet.original), *((f"view {i + 1}", v) for i, v in enumerate(sheet.views))]
        row = {
            "views": [(name, "", source(picture)) for name, picture in named],
            "steps": [(s.name, s.parameters, source(s.picture)) for s in sheet.steps],
        }
        groups.setdefault((sheet.modality, sheet.policy), []).append(row)
    listed = [(modality, policy, rows) for (modality, policy), rows in groups.items()]
    return _PAGE.render(title=title, side=SHOWN, groups=listed)
