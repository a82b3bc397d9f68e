"""The preview shows what training sees: the very views of the step, and every op that made them."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ssl_mednet import preview
from ssl_mednet.contact_sheet import SHOWN, make_sheets
from ssl_mednet.draws import Draws
from ssl_mednet.errors import UserError
from ssl_mednet.ingesting.run import ingest
from ssl_mednet.pretraining.build import build_module, recipe_corpus
from ssl_mednet.recipe import load_recipe

SMALL = ["data.image_size=32", "backbone.name=test_resnet"]


@pytest.mark.parametrize("channels", ["gray", "color"])
def test_the_views_are_those_of_training_and_the_last_step_is_the_view(channels: str) -> None:
    recipe = load_recipe(f"simclr_{channels}.yaml", [*SMALL, f"data.source=phantoms:{channels}?n=60"])
    corpus = recipe_corpus(recipe, quiet=True)
    sheets = make_sheets(recipe, corpus, images=3, step=7)
    assert len(sheets) == 15
    batch = corpus.batch(np.arange(45))
    module = build_module(
        recipe, 10, (0.0,) * (1 if channels == "gray" else 3), (1.0,) * (1 if channels == "gray" else 3)
    )
    trained = module.views(batch, Draws(recipe.train.seed, 7, batch.rows))
    for sheet in sheets:
        for number, view in enumerate(sheet.views):
            assert any(torch.allclose(view, other, atol=1e-5) for other in trained[number])
        assert "crop" in [step.name for step in sheet.steps]
        assert torch.equal(sheet.steps[-1].picture, sheet.views[0])
    assert {sheet.policy for sheet in sheets} == {sheet.modality for sheet in sheets}


def test_every_modality_is_shown_wherever_its_images_lie(tmp_path: Path) -> None:
    source = tmp_path / "o'brien"
    source.mkdir()
    for i in range(80):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32), np.uint8)).save(source / f"{i:02}.png")
    lines = [f"{i:02}.png,{'xray' if i < 70 else 'mri'}" for i in range(80)]
    (source / "labels.csv").write_text("\n".join(["path,modality,label", *(f"{line},a" for line in lines)]))
    corpus = ingest(source, tmp_path / "corpus", workers=1, quiet=True, modality="")
    for data in (corpus.folder, source):
        page = preview("simclr_gray.yaml", data, tmp_path / "p.html", images=1, overrides=SMALL).read_text()
        assert "<h2>" in page
        assert data is source or {"xray", "mri"} <= set(re.findall(r"<h2>([a-z]+)", page))


def test_a_page_stands_on_its_own_and_names_what_was_drawn(tmp_path: Path) -> None:
    path = preview("simclr_gray.yaml", "phantoms:gray?n=60", tmp_path / "a" / "preview.html", images=2, overrides=SMALL)
    page = path.read_text()
    assert page.count("<h2>") == 5
    assert "http" not in page
    assert re.search(r"brightness_contrast<br><span>brightness [\d.]+, contrast [\d.]+", page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert len(pictures) > 30
    assert Image.open(io.BytesIO(base64.b64decode(pictures[0]))).size == (SHOWN, SHOWN)


def test_a_picture_can_be_written_too_and_other_files_are_refused(tmp_path: Path) -> None:
    path = preview(
        "mae_color.yaml", "phantoms:color?n=60", tmp_path / "p.png", images=1, overrides=["data.image_size=32"]
    )
    with Image.open(path) as picture:
        assert picture.height > 5 * SHOWN
        assert np.asarray(picture).std() > 20
    with pytest.raises(UserError, match=r"\.html page or a \.png picture"):
        preview("mae_color.yaml", "phantoms:color?n=60", tmp_path / "p.pdf")
